"""Files of one's own that register methods: named once, imported by every process of a job.

`tightwire --import my_codec.py …` names them in an environment variable, which the workers of a study, a lab or a bench
inherit; `import tightwire` imports them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType

from tightwire.errors import PlanError

# Files and modules, separated as paths are.
VARIABLE = "TIGHTWIRE_IMPORT"


def name_extensions(sources: Sequence[str]) -> None:
    """Imports files or modules here and now, and in every process that this one starts.

    Args:
        sources: each a path that ends in `.py`, or the name of a module.

    Raises:
        PlanError: one that does not exist or cannot be imported.
    """
    named = [str(pathlib.Path(s).resolve()) if s.endswith(".py") else s for s in sources]
    for source in named:
        import_source(source)
    before = list(filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)))
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*before, *named]))


def load_extensions() -> None:
    """Imports what TIGHTWIRE_IMPORT names, as `import tightwire` does last of all: before anything lists methods.

    Raises:
        PlanError: something that does not exist or cannot be imported.
    """
    for source in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        import_source(source)


def import_source(source: str) -> ModuleType:
    """Imports a file by its path, as `import` would from its folder, or a module by its name.

    Raises:
        PlanError: it does not exist, raises, or has the name of another module that is loaded.
    """
    try:
        return (
            _import_file(pathlib.Path(source).resolve())
            if source.endswith(".py")
            else importlib.import_module(source)
        )
    except PlanError:
        raise
    except Exception as error:
        raise PlanError(
            f"{source} cannot be imported: {type(error).__name__}: {str(error).rstrip('. ')}. "
            "Name a file that ends in .py, or a module, that Python imports without error."
        ) from error


def _import_file(path: pathlib.Path) -> ModuleType:
    if not path.is_file():
        raise PlanError(f"there is no file {path} to import; write its path, as in --import my_codec.py.")
    known = sys.modules.get(path.stem)
    if known is not None:
        if known.__file__ is not None and pathlib.Path(known.__file__).resolve() == path:
            return known
        raise PlanError(
            f"{path} cannot be imported: a module {path.stem!r} is loaded already; rename the file."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: its neighbours hide nothing
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
