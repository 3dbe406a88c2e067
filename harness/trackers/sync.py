"""Sends finished runs to a Weights & Biases server from their tables: the same content as if they had run online.

A run is sent under its run id, and replaces what the server has under that id: the history line by line (each boundary
is the same line again), the summary and configuration as a whole, tables and artifacts if their content changed.
Sending a run again is therefore harmless.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness import store
from harness.store.readers import find_run, snapshot, unfinished
from harness.trackers import About, Summary, bar, published, summaries
from harness.trackers.wandb import Record, Target, require_server, temporary
from harness.wording import first_line


class Sent(NamedTuple):
    """The outcome for a run."""

    path: Path
    url: str = ""
    error: str = ""  # why it was not sent


class Chosen(NamedTuple):
    runs: list[store.Run]
    skipped: list[Sent]  # unfinished runs in results folders
    notes: list[str]


def chosen(names: Sequence[str]) -> Chosen:
    """The named runs, and those in the named results folders. ValueError if a named run is not finished.

    Controls in folders are left out, as they are by a tracker.
    """
    folders = [Path(name) for name in names if (Path(name) / "runs").is_dir()]
    single = [find_run(name, command="sync") for name in names if Path(name) not in folders]
    for run in unfinished(single):
        raise ValueError(f"sync {run.path}: {_state(run)}")
    parts = [snapshot(folders, {}, purpose="run"), snapshot(single, {})]
    runs = {run.manifest["run_id"]: run for part in parts for run in part.runs}
    notes = [note for part in parts for note in part.notes]
    left = [run for run in unfinished(folders, notes) if run.manifest.get("purpose", "run") == "run"]
    skipped = [Sent(run.path, error=_state(run)) for run in left]
    return Chosen(list(runs.values()), skipped, notes)


def _state(run: store.Run) -> str:
    status = run.manifest.get("status", "running")
    return f"not finished ({status}); repeat its command to resume it"


def target_of(run: store.Run, changes: Mapping[str, Any]) -> Target:
    """The target in a run's configuration, with `changes`."""
    own = dict(run.manifest["config"].get("tracker") or {})
    return replace(Target(), **{**{k: v for k, v in own.items() if k != "mode"}, **changes})


def recorded(run: store.Run) -> tuple[About, list[Summary]]:
    """What a tracker receives during a run, read from its folder. StoreError."""
    metrics, accuracy = store.read_rows(run, "metrics"), store.read_rows(run, "accuracy")
    tasks = 1 + max([*accuracy["task"].to_pylist(), *accuracy["boundary"].to_pylist()])
    facts, seeds = run.manifest, tuple(run.manifest["seeds"])
    return About(facts["config"], facts, run.path, seeds, tasks), summaries(metrics, accuracy, seeds, tasks)


def send(run: store.Run, target: Target, local: Path) -> str:
    """Send a run; returns its address on the server. W&B keeps its files in the folder `local`.

    TimeoutError if the server does not answer or does not receive everything in time; other errors concern this run.
    """
    about, history = recorded(run)
    began = time.monotonic()
    try:
        record = Record(about, target, "online", local)
    except Exception as error:
        if time.monotonic() - began >= target.init_timeout:
            raise TimeoutError(first_line(error, 200)) from error
        raise
    for summary in history:
        record.log(summary)
    record.close(published(run.path))
    return record.url


def sync(runs: Sequence[store.Run], changes: Mapping[str, Any]) -> Generator[Sent, None, None]:
    """Send runs one by one, and yield the outcome of each.

    ValueError if there is no key or no server, or if it does not answer in time: it would not for the next run either.
    """
    with temporary("sync") as local:
        require_server(Target(**changes).init_timeout)
        with bar.bar("sending", len(runs)) as part:
            for i, run in enumerate(runs):
                part(run.path.name)
                own = local / run.path.name
                own.mkdir()
                try:
                    yield Sent(run.path, send(run, target_of(run, changes), own))
                except TimeoutError as error:
                    raise ValueError(
                        f"W&B does not answer ({first_line(error, 200)}); {i} of {len(runs)} runs were sent;"
                        " check the network and WANDB_BASE_URL, and repeat the command to send all of them"
                    ) from error
                except Exception as error:
                    yield Sent(run.path, error=first_line(error, 200))
                shutil.rmtree(own, ignore_errors=True)
