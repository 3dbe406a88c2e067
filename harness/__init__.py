"""The machine of a continual-learning benchmark: it knows no method and no data set by name."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent  # of a checkout, or site-packages
_OURS = frozenset({"strategies", "tasks", "conf"})


class _OwnFolders:
    """Finds our three top-level packages beside this one, whatever stands in the working directory.

    Their names are common words, and `python -m` puts the working directory first on the path. To put
    our root there instead would, once installed, place all of site-packages before the standard library.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in _OURS else None


def _install() -> None:
    for name in _OURS & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or ROOT not in Path(file).resolve().parents:
            raise ImportError(f"{name} is already imported from {file}: import harness first, or rename it")
    sys.meta_path.insert(0, _OwnFolders)


_install()
