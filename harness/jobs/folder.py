"""A run's folder as a job uses it: opened for its version and data, resumed, and filled."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from harness import store
from harness.config.catalogue import targets
from harness.jobs.setting import Setting
from harness.record.sinks import Columns
from harness.store import entries, provenance, sources
from harness.trackers import Trackers, summaries
from harness.types import Model, Net, Stream
from harness.wording import warn


def opened(
    setting: Setting, stream: Stream, label: str, identity: dict[str, Any], *, beside: bool = False, **how: Any
) -> store.RunFolder:
    """The run's folder, locked. StoreError if it was started on different data."""
    place = setting.cfg["results"], f"{stream.name}_{stream.scenario}", label
    folder = store.RunFolder.open(
        *place,
        _version(place, store.identity(identity), beside),
        scenario=stream.scenario,
        keep=setting.cfg["keep"],
        **how,
    )
    # the identity has names only; the data behind a function or a further data set may change
    if folder.manifest.get("stream_hash", stream.hash) != stream.hash:
        folder.close()
        raise store.StoreError(
            f"{folder.path}: this run was started on different data with the same name; restart it on the current data"
            " with force=true, or keep both with results=FOLDER"
        )
    return folder


def _version(place: tuple[str, str, str], run_id: str, beside: bool) -> str:
    """The id of the version of a run that today's code made: `run_id`, or `run_id-2`... if other code made the first.

    If none did: the first that is free if `beside`, else `run_id`.
    """
    for n in itertools.count(1):
        name = run_id if n == 1 else f"{run_id}-{n}"
        manifest = store.run_path(*place, name) / "manifest.json"
        if not manifest.exists():
            return name if beside else run_id
        with suppress(OSError, ValueError):  # RunFolder reports what cannot be read
            if not sources.edited(json.loads(manifest.read_bytes())):
                return name
    raise AssertionError


def resumed(
    folder: store.RunFolder, setting: Setting, stream: Stream, spec: dict[str, Any], facts: dict[str, Any]
) -> tuple[int, dict[str, Any]] | None:
    """The boundary to resume from, if any; writes the configuration and the manifest of this attempt."""
    from omegaconf import OmegaConf

    used = [spec, *(setting.cfg[key] for key in ("tasks", "dataset", "model", "optimizer", "metrics"))]
    facts = {**provenance.facts(setting.device.type, targets(used)), **facts}
    resume = folder.resume()
    for note in folder.notes:
        warn(note)
    folder.write_config(OmegaConf.to_yaml(OmegaConf.create(setting.cfg)))
    folder.update_manifest(
        setting=store.identity(setting.identity),
        entry=entries.named(folder.manifest["strategy"], spec, folder.manifest["run_id"]),
        seeds=list(stream.seeds),
        stream_version=stream.version,
        stream_hash=stream.hash,
        split=stream.split,
        data=asdict(rows) if (rows := setting.facts(stream)) else None,
        config=setting.cfg,
        threads=setting.threads,
        **facts,
    )
    return resume


class FolderSink:
    """Writes rows to a run folder, then sends a summary of the boundary to the trackers."""

    def __init__(self, folder: store.RunFolder, trackers: Trackers, seeds: Sequence[int], tasks: int) -> None:
        self.folder, self.trackers, self.seeds, self.tasks = folder, trackers, tuple(seeds), tasks

    def write(self, table: str, columns: Columns) -> None:
        self.folder.append(columns["boundary"][0] if columns["boundary"] else 0, "end", {table: columns})

    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
        self.folder.commit(boundary, checkpoint(), net)
        metrics, accuracy = self.folder.table("metrics", boundary), self.folder.table("accuracy", boundary)
        for summary in summaries(metrics, accuracy, self.seeds, self.tasks):
            self.trackers.boundary(summary)

    def net(self, task: int) -> dict[str, Any]:
        return self.folder.net(task)

    def has_net(self, task: int) -> bool:
        return self.folder.has_net(task)


def compiled(folder: store.RunFolder, setting: Setting, stream: Stream, model: Model) -> bool:
    """Whether the run's steps are compiled: decided when it starts, and kept in its manifest."""
    if "compiled" not in folder.manifest:
        chosen, failed = setting.compiles(stream, model)
        if failed:
            warn(f"compile=auto: steps are not compiled: {failed}")
        folder.update_manifest(compiled=chosen)
    return bool(folder.manifest["compiled"])
