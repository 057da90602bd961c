import inspect
import pathlib
import subprocess
import sys
import threading

import torch

from tightwire import kernels
from tightwire.kernels import cpu, reference


def public(module: object) -> dict[str, inspect.Signature]:
    functions = inspect.getmembers(module, inspect.isfunction)
    return {
        name: inspect.signature(function)
        for name, function in functions
        if function.__module__ == module.__name__ and not name.startswith("_")  # type: ignore[attr-defined]
    }


def test_reference_has_every_kernel_with_the_same_signature() -> None:
    ours, defined = public(cpu), public(reference)
    del defined["random_unit"], defined["random_bits"]
    assert ours == defined


def test_device_chooses() -> None:
    assert kernels.of(torch.empty(1)) is cpu
    assert kernels.of(torch.empty(1, device="meta")) is reference


def test_import_is_light() -> None:
    # Only this package: the root package loads torch.
    code = (
        "import sys, types; root = types.ModuleType('tightwire'); root.__path__ = sys.argv[1:]; "
        "sys.modules['tightwire'] = root; import tightwire.kernels; "
        "print({'torch', 'numba', 'numpy'} & set(sys.modules))"
    )
    root = pathlib.Path(kernels.__file__).parent.parent
    assert subprocess.check_output([sys.executable, "-c", code, str(root)], text=True).strip() == "set()"


def test_scratch_is_reused_grows_and_belongs_to_a_thread() -> None:
    small = kernels.scratch("test", 10, torch.float32)
    large = kernels.scratch("test", 100, torch.float32)
    again = kernels.scratch("test", 50, torch.float32)
    assert (small.numel(), large.numel(), again.numel()) == (10, 100, 50)
    assert again.data_ptr() == large.data_ptr()
    others: list[int] = []
    thread = threading.Thread(
        target=lambda: others.append(kernels.scratch("test", 50, torch.float32).data_ptr())
    )
    thread.start()
    thread.join()
    assert others != [large.data_ptr()]
