import inspect
import pathlib
import subprocess
import sys
import threading
from types import ModuleType

import pytest
import torch

from tightwire import kernels
from tightwire.kernels import cpu, reference


def signatures(package: ModuleType) -> dict[str, inspect.Signature]:
    return {name: inspect.signature(vars(package)[name]) for name in package.__all__}


def test_processors_have_every_kernel_with_the_same_signature() -> None:
    assert signatures(cpu) == signatures(reference)


@pytest.mark.parametrize("package", [cpu, reference])
def test_every_kernel_is_in_the_file_of_its_theme(package: ModuleType) -> None:
    for name in package.__all__:
        theme = vars(reference)[name].__module__.rpartition(".")[2]
        assert vars(package)[name].__module__ == f"{package.__name__}.{theme}"
        assert name in (kernels.__doc__ or "")


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
    small = kernels.scratch_tensor("test", 10, torch.float32)
    large = kernels.scratch_tensor("test", 100, torch.float32)
    again = kernels.scratch_tensor("test", 50, torch.float32)
    assert (small.numel(), large.numel(), again.numel()) == (10, 100, 50)
    assert again.data_ptr() == large.data_ptr()
    others: list[int] = []
    thread = threading.Thread(
        target=lambda: others.append(kernels.scratch_tensor("test", 50, torch.float32).data_ptr())
    )
    thread.start()
    thread.join()
    assert others != [large.data_ptr()]
