"""A forked process that works while this one does, sends what it makes, and ends with this one, however it ends."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn, Self

from harness.wording import interruptions_kept

PATIENCE = 60.0  # seconds that a child has to save its work
STOPS = (signal.SIGINT, signal.SIGTERM)

Pipe = tuple[int, int]  # of no content: its reading end wakes when no process holds the writing end


class Failed(RuntimeError):
    """A child failed, not by a refusal; the text has its traceback."""


class Child:
    """`work(link)` in a forked child: what it sends by its link arrives in order by `receive`.

    Its errors are raised here, a refusal (ValueError) as what it is, any other as `Failed`. That it was killed is a
    refusal as well: a repeated command resumes. At the end of the context a child that still works is stopped, as by
    Ctrl-C. `close` is called in the child first, to close what belongs to this process alone, such as a lock.
    """

    def __init__(self, what: str, work: Callable[[Link], None], close: Callable[[], None] = lambda: None) -> None:
        self.what = what
        self.link, theirs = multiprocessing.Pipe()
        pipe = os.pipe()
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=(work, close, theirs, pipe))
        sys.stdout.flush()
        sys.stderr.flush()
        with signals_held():
            self.process.start()
        theirs.close()
        os.close(pipe[0])
        self.held = pipe[1]

    def receive(self) -> Any:
        """The next thing that it sent, waiting for it. Raises its error."""
        try:
            kind, value = self.link.recv()
        except (EOFError, ConnectionResetError):
            raise ValueError(f"the process that {self.what} was killed; repeat the command to resume") from None
        if kind is ValueError:
            raise ValueError(value)
        if kind is Failed:
            raise Failed(f"the process that {self.what} failed\n{value}")
        return value

    @property
    def ready(self) -> bool:
        """Whether `receive` would not wait."""
        return self.link.poll()

    def send(self, value: Any) -> None:
        """To its link. If it has ended, `receive` says why."""
        with suppress(BrokenPipeError):
            self.link.send(value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.link.close()
        os.close(self.held)
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Link:
    """The child's end."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, value: Any) -> None:
        self._tell(None, value)

    def receive(self) -> Any:
        """The next thing that the parent sent, waiting for it."""
        return self.connection.recv()

    def _tell(self, kind: type[Exception] | None, value: Any) -> None:
        with suppress(BrokenPipeError):  # nobody listens any more
            self.connection.send((kind, value))


def _run(work: Callable[[Link], None], close: Callable[[], None], connection: Connection, pipe: Pipe) -> None:
    link = Link(connection)
    try:
        with interruptions_kept():
            detach()
            close()
            end_with_parent(pipe)
            work(link)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except ValueError as error:
        link._tell(ValueError, str(error))
    except BaseException as error:
        link._tell(Failed, "".join(traceback.format_exception(error)))


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals that stop wait for the end: a process forked here takes none before `detach`, which lets them through."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- in a forked process ------------------------------------------------------------------------------


def detach() -> None:
    """Leave exit handlers to the parent; be stopped by SIGTERM only, as by Ctrl-C."""
    atexit._clear()
    forget_finalizers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent passes it on, once
    signal.signal(signal.SIGTERM, _stop_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def forget_finalizers() -> None:
    """Leave the parent's temporary folders to it; the child's own are then deleted at its end, W&B's among them."""
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]


def end_with_parent(pipe: Pipe) -> None:
    """Send this process SIGTERM as soon as no other holds the writing end: the parent has ended, perhaps killed."""
    os.close(pipe[1])
    threading.Thread(target=_wait_for_end, args=(pipe[0],), daemon=True).start()


def _wait_for_end(reading: int) -> None:
    os.read(reading, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _stop_once(number: int, frame: object) -> NoReturn:
    """A second signal would interrupt what the process writes after the first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
