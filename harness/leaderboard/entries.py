"""From finished runs to entries: which runs are compared, and the scores and costs of every seed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness import store
from harness.leaderboard.determined import COLUMNS, Determined, determined
from harness.leaderboard.naming import labels
from harness.leaderboard.records import SCORES, Entry, Place
from harness.stats import Array
from harness.store.columns import Where
from harness.store.costs import by_key, costs_of
from harness.store.entries import base, entry_of, setting_of
from harness.store.readers import Wanted, snapshot, unfinished
from harness.store.scores import DETERMINED, lowest
from harness.store.scores import SCORES as LOWEST
from harness.wording import DIVERGED, UNDEFINED, UNMEASURED

if TYPE_CHECKING:
    import pandas as pd


def finished(folders: Sequence[Path]) -> tuple[dict[Place, list[Entry]], list[str]]:
    """The entries of every setting, and notes on what was left out."""
    names = [score.metric for score in SCORES] + ["memory"]
    whole: Where = {"metric": names, "phase": ["end"], "axis": [""], "task": [-1]}
    read = snapshot(
        folders,
        {
            "metrics": Wanted(("seed", "boundary", "metric", "value"), whole),
            "timing": Wanted(("boundary", "part", "seconds"), {"part": ["step", "plain step", "train"]}),
        },
        purpose="run",
    )
    notes = list(read.notes)
    runs, metrics, more = _completed(read.runs, read.tables["metrics"], notes)
    values, costs = seed_scores(runs, metrics), costs_of(read.tables)
    lost = metrics[metrics.value.isna()]
    why = reasons(runs, values, {*zip(lost.run_id, lost.seed, lost.metric)}, more)
    made = {}
    for place, specs in _grouped(runs, notes).items():
        named = zip(labels([*specs.values()], notes), specs.values())
        entries = [_entry(label, each, values, why, costs, notes) for label, each in named]
        made[place] = [replace(entry, empty=_empty(entry, more)) for entry in entries]
    return made, notes


def _completed(
    runs: list[store.Run], metrics: pd.DataFrame, notes: list[str]
) -> tuple[list[store.Run], pd.DataFrame, Determined]:
    """The metrics, with scores that a run did not record or that are undefined looked up in its accuracy table."""
    import pandas as pd

    average = metrics[metrics.metric == "average_accuracy"]
    whole = {*average.run_id} - {*average.run_id[average.value.isna()]}
    unsure = [run for run in runs if run.manifest["run_id"] not in whole]
    read = snapshot([run.path for run in unsure], {"accuracy": Wanted(COLUMNS)}) if unsure else None
    if read is None:
        return runs, metrics, Determined(pd.DataFrame())
    notes += read.notes
    same = {(run.path, run.mark) for run in read.runs}
    gone = {run.path for run in unsure if (run.path, run.mark) not in same}
    runs = [run for run in runs if run.path not in gone]
    metrics = metrics[metrics.run_id.isin([run.manifest["run_id"] for run in runs])]
    more = determined(read.runs, metrics, read.tables["accuracy"])
    return runs, pd.concat([metrics, more.rows], ignore_index=True) if len(more.rows) else metrics, more


def reasons(
    runs: Sequence[store.Run],
    values: Mapping[tuple[str, int], Array],
    recorded: Collection[tuple[str, int, str]],
    more: Determined,
) -> dict[tuple[str, int], tuple[str, ...]]:
    """Why each score of a seed is missing, as a mark: (run_id, seed) -> [SCORES]; empty if it is there."""
    nothing, there = np.full(len(SCORES), math.nan), ("",) * len(SCORES)
    made = {}
    for run in runs:
        run_id, cfg, lost = run.manifest["run_id"], run.manifest["config"], run.manifest.get("diverged", [])
        no_copy = not (cfg.get("gap", True) and cfg.get("control", True))  # then nothing was trained to compare with
        for seed in run.manifest["seeds"]:
            marks = list(there)
            for i in np.flatnonzero(np.isnan(values.get((run_id, seed), nothing))).tolist():
                score, diverged = SCORES[i], seed in lost
                untested = score.name in DETERMINED and run_id in more.partial and not diverged
                untested |= score.name == "plasticity_lost" and no_copy
                if untested or (run_id, seed, score.metric) not in recorded:
                    marks[i] = UNMEASURED
                else:
                    marks[i] = DIVERGED if diverged else UNDEFINED
            made[run_id, seed] = tuple(marks)
    return made


def _empty(entry: Entry, more: Determined) -> tuple[int, ...]:
    return tuple(sorted({j for run in entry.runs for j in more.empty.get(run.manifest["run_id"], ())}))


def place_of(run: store.Run) -> Place:
    """The setting of a run."""
    facts = run.manifest
    return Place(facts["stream"], facts["scenario"], setting_of(facts), facts["stream_version"], facts["split"])


def spec_of(run: store.Run) -> str:
    """The strategy of a run with its values, and its version."""
    version = entry_of(run.manifest).removeprefix(base(entry_of(run.manifest)))
    return store.identity(run.manifest["config"]["strategy"]) + version


def _grouped(runs: Sequence[store.Run], notes: list[str]) -> dict[Place, dict[str, list[store.Run]]]:
    """Runs by setting and strategy. A setting is split by its data if the same seeds saw different streams."""
    seen: dict[tuple[Place, tuple[int, ...]], set[str]] = {}
    for run in runs:  # the hash covers the data and the draws of every seed
        seen.setdefault((place_of(run), tuple(run.manifest["seeds"])), set()).add(run.manifest.get("stream_hash", ""))
    divided = dict.fromkeys(place for (place, _), hashes in seen.items() if len(hashes) > 1)
    for place in divided:
        where = f"{place.stream}, setting {place.setting}"
        notes.append(f"{where}: the same seeds saw different data, so these runs are listed separately")
    groups: dict[Place, dict[str, list[store.Run]]] = {}
    for run in runs:
        place = place_of(run)
        if place in divided:
            place = place._replace(data=run.manifest.get("stream_hash", ""))
        groups.setdefault(place, {}).setdefault(spec_of(run), []).append(run)
    return groups


def seed_scores(runs: Sequence[store.Run], metrics: pd.DataFrame) -> dict[tuple[str, int], Array]:
    """Every score of every seed: (run_id, seed) -> [SCORES], NaN if it was not recorded.

    A mean over boundaries is NaN if one of its values is. A score at the end uses the last boundary of the run only.
    """
    import pandas as pd

    bottom = metrics[metrics.metric == "average_accuracy"].groupby("run_id").value.min()
    place = {run.manifest["run_id"]: place_of(run) for run in runs}
    found: dict[Place, list[float]] = {where: [] for where in place.values()}
    for run_id, low in bottom.items():
        found[place[str(run_id)]].append(low)
    floors = {where: lowest(np.array(values)) for where, values in found.items()}
    floor = {run: floors[where] for run, where in place.items()}
    lost = {(run.manifest["run_id"], seed) for run in runs for seed in run.manifest.get("diverged", [])}
    end = metrics.groupby("run_id").boundary.transform("max")
    made = {}
    for score in SCORES:
        chosen = metrics.metric == score.metric
        rows = metrics[chosen & (metrics.boundary == end)] if score.last else metrics[chosen]
        value = rows.value
        if score.metric in LOWEST and lost:
            gone = pd.MultiIndex.from_frame(rows[["run_id", "seed"]]).isin(lost) & value.isna().to_numpy()
            value = value.mask(gone, rows.run_id.map(floor).astype(float))
        keys = [rows.run_id, rows.seed]
        mean = value.groupby(keys).mean()
        made[score.name] = mean.mask(value.isna().groupby(keys).any())
    return by_key(pd.DataFrame(made))


def _entry(
    label: str,
    runs: Sequence[store.Run],
    values: Mapping[tuple[str, int], Array],
    why: Mapping[tuple[str, int], tuple[str, ...]],
    costs: Mapping[str, Array],
    notes: list[str],
) -> Entry:
    """Runs of one strategy with their seeds combined; a seed in two runs is read from the larger run."""
    of: dict[int, store.Run] = {}
    for run in sorted(runs, key=lambda r: (-len(r.manifest["seeds"]), r.manifest["run_id"])):
        for seed in run.manifest["seeds"]:
            if seed in of:
                notes.append(f"{label}: seed {seed} is read from {of[seed].path.name}, not from {run.path.name}")
            else:
                of[seed] = run
    seeds = tuple(sorted(of))
    nothing = np.full(len(SCORES), math.nan)
    table = np.stack([values.get((of[s].manifest["run_id"], s), nothing) for s in seeds])  # [seeds, SCORES]
    spent = np.stack([costs.get(run.manifest["run_id"], np.full(3, math.nan)) for run in runs])
    step, memory, _ = spent.mean(0)
    return Entry(
        label=label,
        strategy=runs[0].manifest["strategy"],
        runs=tuple(runs),
        seeds=seeds,
        scores={score.name: table[:, i] for i, score in enumerate(SCORES)},
        marks=dict(zip([score.name for score in SCORES], zip(*(why[of[s].manifest["run_id"], s] for s in seeds)))),
        diverged=tuple(s for s in seeds if s in of[s].manifest.get("diverged", [])),
        step=float(step),
        memory=float(memory),
        seconds=float(spent[:, 2].sum()) / sum(len(run.manifest["seeds"]) for run in runs),
    )


def started(folders: Sequence[Path], notes: list[str]) -> dict[Place, list[store.Run]]:
    """The runs of every setting that did not finish; damaged ones are added to `notes`."""
    made: dict[Place, list[store.Run]] = {}
    for run in unfinished(folders, notes):
        if "setting" in run.manifest and run.manifest.get("purpose", "run") == "run":
            made.setdefault(place_of(run), []).append(run)
    return made


def missing(interrupted: Sequence[store.Run], found: Sequence[Entry]) -> list[Entry]:
    """Runs that started and did not finish, unless the same strategy finished elsewhere with these seeds."""
    have = [(spec_of(run), set(e.seeds)) for e in found for run in e.runs] if interrupted else []
    left = [r for r in interrupted if not any(spec_of(r) == spec and set(r.manifest["seeds"]) <= s for spec, s in have)]
    nothing = {score.name: np.array([], dtype=np.float64) for score in SCORES}
    names = [(entry_of(run.manifest), run.manifest["strategy"]) for run in left]
    return [Entry(*name, (run,), (), nothing, state=_state(run)) for name, run in zip(names, left)]


def _state(run: store.Run) -> str:
    failed = run.manifest.get("status") == "failed"
    return f"failed: {run.manifest.get('error', '')}" if failed else "not finished"
