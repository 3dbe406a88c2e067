"""What is refused before it is opened or takes memory: devices, and data larger than the memory of this machine."""

from __future__ import annotations

import os
import resource
import stat
from contextlib import suppress
from pathlib import Path

from tasks.datasets.errors import DataError

_KINDS = {stat.S_IFIFO: "a fifo", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def memory() -> int:
    """Bytes that this process may use: of the machine, its control group or its own limit, whichever is smallest."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        found.append(own)
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # another system, or no limit ("max")
            found.append(int(Path(file).read_text("ascii")))
    return min(found)


def size_of(n: float) -> str:
    """
    >>> size_of(40 * 1024**4), size_of(300)
    ('40 TB', '300 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:,.0f} TB"


def check_memory(n: int, where: str, remedy: str) -> None:
    """DataError if `n` bytes exceed the memory of this machine."""
    if n > (most := memory()):
        raise DataError(f"{where}: needs {size_of(n)} of memory, but this machine has {size_of(most)}; {remedy}")


def check_readable(path: Path, key: str = "") -> None:
    """DataError if `path` is neither a file nor a folder: reading a fifo or a device may never end."""
    kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    if kind:
        raise DataError(f"{key}{path}: {kind}; expected a file or a folder; copy the data to a file")
