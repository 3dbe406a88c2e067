"""Finished runs to a Weights & Biases server, from their tables: what a run that was online would have sent.

A run goes under its own id. What the server has under that id is replaced: the history line by line, since each
boundary comes at the same line again; the summary and the configuration as a whole; tables and artifacts where their
content changed (W&B makes no new version of what is the same). So that to send again does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from harness import store
from harness.store.readers import find_run, snapshot, unfinished
from harness.trackers import About, Summary, bar, published, summaries
from harness.trackers.wandb import Record, Target, environment, first_line, require_server


class Sent(NamedTuple):
    """What became of a run."""

    path: Path
    url: str = ""
    error: str = ""  # why it was not sent


class Chosen(NamedTuple):
    runs: list[store.Run]
    skipped: list[Sent]  # of results folders: what is there and not finished
    notes: list[str]


def chosen(names: Sequence[str]) -> Chosen:
    """The runs that are named, one by one or by the results folders they are in. ValueError if one is not finished.

    Of a folder, controls are left out, as a tracker leaves them.
    """
    folders = [Path(name) for name in names if (Path(name) / "runs").is_dir()]
    single = [find_run(name, command="sync") for name in names if Path(name) not in folders]
    for run in unfinished(single):
        raise ValueError(f"sync {run.path}: {_state(run)}")
    parts = [snapshot(folders, {}, purpose="run"), snapshot(single, {})]
    runs = {run.manifest["run_id"]: run for part in parts for run in part.runs}
    left = [run for run in unfinished(folders) if run.manifest.get("purpose", "run") == "run"]
    skipped = [Sent(run.path, error=_state(run)) for run in left]
    return Chosen(list(runs.values()), skipped, [note for part in parts for note in part.notes])


def _state(run: store.Run) -> str:
    status = run.manifest.get("status", "running")
    return f"not finished ({status}); the command that began it goes on with it"


def target_of(run: store.Run, changes: Mapping[str, Any]) -> Target:
    """Where a run was to go by its own configuration, but for the `changes`."""
    own = dict(run.manifest["config"].get("tracker") or {})
    return replace(Target(), **{**{k: v for k, v in own.items() if k != "mode"}, **changes})


def recorded(run: store.Run) -> tuple[About, list[Summary]]:
    """What a tracker is told of a run, read from its folder. StoreError."""
    metrics, accuracy = store.read_table(run, "metrics"), store.read_table(run, "accuracy")
    tasks = 1 + max([*accuracy["task"].to_pylist(), *accuracy["boundary"].to_pylist()])
    facts, seeds = run.manifest, tuple(run.manifest["seeds"])
    return About(facts["config"], facts, run.path, seeds, tasks), summaries(metrics, accuracy, seeds, tasks)


def send(run: store.Run, target: Target) -> str:
    """Send a run; returns its address on the server. W&B's own files are not kept.

    TimeoutError where the server does not answer or does not take it all in time; else what went wrong with this run.
    """
    about, history = recorded(run)
    with TemporaryDirectory(prefix="harness-sync-", ignore_cleanup_errors=True) as local, environment(Path(local)):
        began = time.monotonic()
        try:
            record = Record(about, target, "online", Path(local))
        except Exception as error:
            if time.monotonic() - began >= target.init_timeout:
                raise TimeoutError(first_line(error)) from error
            raise
        for summary in history:
            record.log(summary)
        record.close(published(run.path))
        return record.url


def sync(runs: Sequence[store.Run], changes: Mapping[str, Any]) -> Iterator[Sent]:
    """Send runs one after another and say of each what became of it.

    ValueError where there is no key or no server, and where it does not answer in time: it would not for the next run.
    """
    with TemporaryDirectory(prefix="harness-sync-") as local, environment(Path(local)):
        require_server(Target(**changes).init_timeout)
    with bar.bar("sending", len(runs)) as part:
        for i, run in enumerate(runs):
            part(run.path.name)
            try:
                yield Sent(run.path, send(run, target_of(run, changes)))
            except TimeoutError as error:
                raise ValueError(
                    f"W&B does not answer ({first_line(error)}), sent: {i} of {len(runs)} runs;"
                    " look at the network and WANDB_BASE_URL, the same command again sends them all"
                ) from error
            except Exception as error:
                yield Sent(run.path, error=first_line(error))
