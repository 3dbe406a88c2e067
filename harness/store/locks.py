"""The lock of a run folder: one process writes to it at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from harness.store.errors import RunLocked, StoreError


def acquire(path: Path, wait: float) -> int:
    """Lock a run folder, waiting up to `wait` seconds for its holder; the file descriptor holds the lock.

    Raises RunLocked if another process holds it, StoreError on a file system without locks.
    """
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    until = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
                    raise RunLocked(f"{path}: in use by {holder}; wait until it ends, or stop it") from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                raise StoreError(
                    f"{path}: its file system has no locks, without which two processes could write to one run; choose"
                    " a folder on a local disk with results=FOLDER"
                ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
