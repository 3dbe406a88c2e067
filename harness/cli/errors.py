"""Exceptions as one line for the user: which key is wrong, and what to do."""

from __future__ import annotations

import os
import re
import signal
import sys
import sysconfig
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from harness import ROOT
from harness.wording import first_line, interruptions_kept, printable


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills. It ends a run as Ctrl-C does."""


class Reported(Exception):
    """A job of a sweep failed, and its error is already printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def usable_streams() -> None:
    """Open the standard streams that were closed, and escape the characters that their encodings lack."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # in this order, the number of the closed one is the next that is free
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Send what was not printed to the null device: the interpreter would try again at its exit, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def catch_sigterm() -> None:
    """Turn SIGTERM into `Terminated`."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def code_of(stop: KeyboardInterrupt) -> int:
    """Exit code after an interruption."""
    return 143 if isinstance(stop, Terminated) else 130


def leave(code: int) -> NoReturn:
    """End the process without the exit handlers of libraries, which may wait; temporary folders are deleted."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        found = finalizer.peek()
        if found is not None and found[1] == TemporaryDirectory._cleanup:  # type: ignore[attr-defined]
            finalizer()
    os._exit(code)


def say(line: str) -> None:
    """One line on standard error."""
    print(f"harness: {printable(line)}", file=sys.stderr)


def report(error: Exception, cfg: Any = None) -> int:
    """Print an error, as one line if the user can fix it, else with its traceback; returns the exit code."""
    line = sentence(error, cfg)
    if line is None or os.environ.get("HARNESS_TRACEBACK"):
        traceback.print_exception(error)
        return 1
    say(line)
    return 2


def each(paths: Sequence[Path], work: Callable[[Path], None]) -> int:
    """Work on every run; a run that fails is said in one line and does not stop the others. Returns their number."""
    failed = 0
    for path in paths:
        try:
            with interruptions_kept():
                work(path)
        except Exception as error:
            line = sentence(error)
            if len(paths) == 1 or line is None:
                raise
            say(line)
            failed += 1
    return failed


def refused(error: Exception) -> bool:
    """Whether a job was refused for its settings, before it started; else a disk, a lock or the training failed."""
    from harness.store import StoreError

    started = getattr(error, "__notes__", [])  # RunFolder adds a note once it is open
    return not started and not isinstance(error, (OSError, StoreError))


def sentence(error: BaseException, cfg: Any = None) -> str | None:
    """One line for an error that the user can fix; None for a bug, ours or in a user's code."""
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InstantiationException):
        return _instantiation(error, cfg)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first_line(error)}"
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
        return first_line(error)
    if type(error).__module__.startswith("yaml"):
        return " ".join(str(error).split())  # its last line has the position
    if isinstance(error, ValueError) and _deliberate(error):
        return _qualified(first_line(error), cfg)
    return None


def _qualified(line: str, cfg: Any) -> str:
    """`widths=[0]: ...` under the full key, model.widths, if only one key ends so."""
    from harness.config.preflight import dotted

    word = re.match(r"(\w+)=", line)
    unclear = word and word[1] not in (cfg or {})  # tasks=rotated is what was typed; eval.tasks is another setting
    found = [k for k in dotted(cfg or {}) if unclear and word and k.endswith(f".{word[1]}")]
    return f"{found[0].rpartition('.')[0]}.{line}" if len(found) == 1 else line


def _instantiation(error: Exception, cfg: Any) -> str | None:
    """Hydra wraps a constructor's error and names its target; the user knows the target by its key."""
    target = re.search(r"target '([^']+)'", str(error))
    key = _key_of(target.group(1), cfg) if target else ""
    cause: BaseException = error
    unwanted = Exception if "Error locating" in str(error) else type(error)
    while isinstance(cause, unwanted) and cause.__cause__ is not None:
        cause = cause.__cause__
    if target and unwanted is Exception:
        reason = "" if cause is error else f": {type(cause).__name__}: {first_line(cause)}"
        where = f"{key}._target_" if key else "_target_"
        return f"{where}={target.group(1)}: not found in {Path.cwd()} or among installed packages{reason}"
    if not isinstance(cause, (ValueError, TypeError, OSError)):
        return None
    line = first_line(cause)
    parent, _, name = key.rpartition(".")
    if not key or re.match(rf"{key.partition('.')[0]}[.=]", line):
        return line
    if parent and line.startswith(name + "."):
        return f"{parent}.{line}"
    return f"{key}.{line}" if re.match(r"\w+=", line) else f"{key}: {line}"


def _key_of(target: str, node: Any) -> str:
    """Dotted key of the mapping whose _target_ is `target`; '' if there is none."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            if value.get("_target_") == target:
                return str(key)
            below = _key_of(target, value)
            if below:
                return f"{key}.{below}"
    return ""


def _deliberate(error: BaseException) -> bool:
    """Whether a `raise` in this project or in a user's file made it; an error from inside a library is a bug."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return True
    file = Path(frames[-1].filename).resolve()
    ours = any(ROOT / folder in file.parents for folder in ("harness", "strategies", "tasks"))
    library = any(Path(sysconfig.get_path(p)).resolve() in file.parents for p in ("stdlib", "purelib", "platlib"))
    return (ours or not library) and (frames[-1].line or "").startswith("raise")
