"""The machinery of a continual-learning benchmark: it names no method and no data set."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent  # of a checkout, or site-packages
_OURS = frozenset({"strategies", "tasks", "conf"})


class _OwnFolders:
    """Finds our three top-level packages next to this one, even if the working directory has packages of these names.

    The names are common words, and `python -m` puts the working directory first on the path. Putting our root first
    instead would, once installed, place all of site-packages before the standard library.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in _OURS else None


def _install() -> None:
    for name in _OURS & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or ROOT not in Path(file).resolve().parents:
            raise ImportError(f"{name} is already imported from {file}; import harness first, or rename that package")
    sys.meta_path.insert(0, _OwnFolders)


_install()
