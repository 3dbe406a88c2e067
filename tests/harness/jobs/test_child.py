"""A process beside this one: what it sends, how it fails, and that it never outlives this one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from harness.jobs.child import Child, Failed, Link


def echo(link: Link) -> None:
    while True:
        link.send(2 * link.receive())


def test_what_it_sends_arrives_in_order() -> None:
    with Child("doubles", echo) as child:
        for value in (1, 2.5, [3]):
            child.send(value)
        assert [child.receive() for _ in range(3)] == [2, 5.0, [3, 3]]
        assert not child.ready
    assert not child.process.is_alive()


def refuses(link: Link) -> None:
    link.send("first")
    raise ValueError("tasks.rows=0: must be at least 1")


def test_its_refusal_is_raised_as_one_after_what_it_sent() -> None:
    with Child("refuses", refuses) as child:
        assert child.receive() == "first"
        with pytest.raises(ValueError, match=r"^tasks\.rows=0: must be at least 1$"):
            child.receive()


def fails(link: Link) -> None:
    raise KeyError("missing")


def test_another_error_comes_with_its_traceback() -> None:
    with (
        Child("fails", fails) as child,
        pytest.raises(Failed, match=r"the process that fails(.|\n)*in fails(.|\n)*missing"),
    ):
        child.receive()


def dies(link: Link) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_one_is_named_with_the_remedy() -> None:
    with Child("trains the control", dies) as child:
        child.process.join()
        child.send("not heard")
        with pytest.raises(ValueError, match="the process that trains the control was killed; repeat the command"):
            child.receive()


def test_it_is_stopped_at_the_end_of_the_context_and_saves_its_work(tmp_path: Path) -> None:
    def works(link: Link) -> None:
        link.send("begun")
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (tmp_path / "saved").touch()
            raise

    began = time.monotonic()
    with pytest.raises(RuntimeError), Child("works", works) as child:
        child.receive()
        os.kill(child.process.pid or 0, signal.SIGINT)  # as Ctrl-C, which reaches all processes: left to the parent
        time.sleep(0.05)
        assert not (tmp_path / "saved").exists()
        raise RuntimeError
    assert (tmp_path / "saved").exists() and time.monotonic() - began < 30


def test_an_error_that_its_stop_led_to_is_no_refusal() -> None:
    def works(link: Link) -> None:
        try:
            link.send("begun")
            time.sleep(60)
        finally:
            raise ValueError("cannot be closed")

    with Child("works", works) as child:
        child.receive()
        child.process.terminate()
        child.process.join()
        assert child.process.exitcode == 143
        with pytest.raises(ValueError, match="was killed; repeat the command to resume"):
            child.receive()


def test_it_closes_what_is_the_parent_s_alone() -> None:
    read, write = os.pipe()
    with Child("doubles", echo, close=lambda: os.close(write)) as child:
        child.send(1)
        assert child.receive() == 2
        os.close(write)
        assert os.read(read, 1) == b""  # else the child would hold the end open
    os.close(read)


def test_it_ends_when_its_parent_is_killed_though_a_later_one_was_forked(tmp_path: Path) -> None:
    """The second child has the first one's pipes from the parent."""
    parent = os.fork()
    if parent == 0:
        try:

            def sleeps(link: Link) -> None:
                (tmp_path / str(os.getpid())).touch()
                time.sleep(60)

            children = [Child("sleeps", sleeps), Child("sleeps", sleeps)]
            children[0].process.join()
        finally:
            os._exit(1)
    until = time.monotonic() + 30
    while len(names := list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    left = {int(file.name) for file in names}
    while left and time.monotonic() < until:
        left = {pid for pid in left if Path(f"/proc/{pid}").exists()}
        time.sleep(0.01)
    assert len(names) == 2 and not left
