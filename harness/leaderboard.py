"""Finished runs side by side, from their tables alone: a board for each setting, and one over all settings.

What is compared: the entries of a board are strategies (with the values they were run with) on one stream, model,
optimizer, budget and split, on the same seeds. The board's seeds are those that most entries were run with. An entry is
complete if it has a value of the sort key for each of them; only complete entries are ranked, and no mean skips a
missing value. A diverged seed is no missing one: its accuracy counts as 0, or as minus infinity where scores may be
negative, from the boundary on at which it diverged; its other measures are undefined, and shown as coverage.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats, store
from harness.reading import Wanted, snapshot, unfinished
from harness.stats import Array

if TYPE_CHECKING:
    import pandas as pd


class Score(NamedTuple):
    """A column of the leaderboard: a metric at the last boundary, or its mean over all that have it."""

    name: str
    title: str
    metric: str
    last: bool
    better: str  # higher, lower, or "" where neither is
    form: str = ".3f"


SCORES = (
    Score("average_accuracy", "average accuracy", "average_accuracy", True, "higher"),
    Score("learning_accuracy", "new-task accuracy", "learning_accuracy", False, "higher"),
    Score("forgetting", "forgetting", "forgetting", True, "lower"),
    Score("plasticity_lost", "plasticity lost", "trainability_gap", False, "lower"),
    Score("sharpness", "sharpness", "lambda_max_joint", True, "", ".3g"),
    Score("barrier", "barrier", "barrier_entezari_loss_joint", False, "lower", ".3g"),
)
BY_NAME = {score.name: score for score in SCORES}
ACCURACIES = ("average_accuracy", "learning_accuracy")  # what a diverged seed has the lowest value of
FRONTS = ("step", "memory", "forgetting")  # what average accuracy is weighed against
BASELINE = "naive"
MEANING = """\
average accuracy: over all tasks at the end; new-task accuracy: just after each task, mean; forgetting: at the end;
plasticity lost: trainability gap, mean over tasks; sharpness: largest Hessian eigenvalue of the mean loss over all
tasks, at the end; barrier: highest rise of that loss above the straight line from one boundary to the next, mean.
step: time of a step over that of a plain step; memory: bytes held between tasks for one seed. In brackets behind a
rank: what 95 % of 2,000 paired bootstraps over seeds gave; with five seeds that is too narrow. IQM: interquartile
mean. less {baseline}: mean difference, paired by seed. > {baseline}: share of seeds on which the entry beats it, with
the exact 95 % interval. Detectable: the smallest difference from it that these seeds would have shown, with
probability 0.8 at the 5 % level (minimum detectable effect, Bloom 1995). Front: nothing has both a higher accuracy and
a lower step cost (s), memory (m) or forgetting (f). Not ranked: entries without all seeds (k/n: k of n are there). A
diverged seed counts, as accuracy 0, or minus infinity where scores may be negative."""


@dataclass(frozen=True)
class Entry:
    """A strategy with its values, in one setting."""

    label: str
    strategy: str
    runs: tuple[store.Run, ...]
    seeds: tuple[int, ...]  # of the values below, in this order
    scores: Mapping[str, Array]  # name of a score -> [seeds]
    diverged: tuple[int, ...] = ()
    step: float = math.nan  # time of a step over that of a plain one
    memory: float = math.nan  # bytes for one seed
    seconds: float = math.nan  # of training, for one seed
    state: str = "done"  # or why there is nothing of it


@dataclass(frozen=True)
class Row:
    """An entry with what the comparison says of it; NaN where it says nothing."""

    entry: Entry
    found: int  # of the board's seeds, those with a value of the sort key
    means: Mapping[str, tuple[float, float, int]]  # score -> mean, half width of the interval, values there are
    rank: float = math.nan
    rank_interval: tuple[float, float] = (math.nan, math.nan)
    iqm: float = math.nan
    iqm_interval: tuple[float, float] = (math.nan, math.nan)
    difference: tuple[float, float] = (math.nan, math.nan)  # from the baseline: mean, half width
    improvement: float = math.nan
    improvement_interval: tuple[float, float] = (math.nan, math.nan)
    detectable: float = math.nan
    fronts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """One setting: rows in order of rank, those that have none behind."""

    stream: str
    scenario: str
    setting: str
    version: int
    split: str
    about: str
    by: Score
    seeds: tuple[int, ...]
    baseline: str  # "" where it is not among the entries
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """An entry over all boards."""

    label: str
    found: int  # boards on which it is complete
    rank: float = math.nan
    rank_interval: tuple[float, float] = (math.nan, math.nan)
    iqm: float = math.nan
    iqm_interval: tuple[float, float] = (math.nan, math.nan)
    improvement: float = math.nan  # over all pairs of seeds
    improvement_interval: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True)
class Leaderboard:
    boards: tuple[Board, ...]
    overall: tuple[Standing, ...] = ()  # empty where fewer than two boards compare anything
    notes: tuple[str, ...] = ()
    baseline: str = BASELINE


def leaderboard(folders: Sequence[Path], *, by: str = "average_accuracy", baseline: str = BASELINE) -> Leaderboard:
    """All finished runs of results folders, compared. ValueError for a score or a baseline that there is not."""
    if by not in BY_NAME:
        raise ValueError(f"--by {by}: no such score; there is {', '.join(BY_NAME)}")
    if not BY_NAME[by].better:
        ranked = ", ".join(s.name for s in SCORES if s.better)
        raise ValueError(f"--by {by}: neither more nor less of it is better; choose from {ranked}")
    groups, notes = entries(folders)
    cut_short: dict[tuple[Any, ...], list[store.Run]] = {}
    for run in unfinished(folders):
        if "setting" in run.manifest and run.manifest.get("purpose", "run") == "run":
            cut_short.setdefault(_place(run), []).append(run)
    for place in cut_short:
        groups.setdefault(place, [])
    made = [
        _board(place, found, cut_short.get(place, []), BY_NAME[by], baseline)
        for place, found in sorted(groups.items(), key=lambda item: tuple(map(str, item[0])))
    ]
    labels = {row.entry.label for board in made for row in board.rows}
    if baseline not in labels and (baseline != BASELINE) and labels:
        raise ValueError(f"--baseline {baseline}: no such entry; there is {', '.join(sorted(labels))}")
    return Leaderboard(tuple(made), overall(made, baseline), (*notes, *_apart(made)), baseline)


# --- from runs to entries -------------------------------------------------------------------------


def entries(folders: Sequence[Path]) -> tuple[dict[tuple[Any, ...], list[Entry]], list[str]]:
    """The entries of every setting, and what was left out."""
    import pyarrow.dataset as ds

    metrics = [score.metric for score in SCORES] + ["memory"]
    whole = (ds.field("phase") == "end") & (ds.field("axis") == "") & (ds.field("task") == -1)
    read = snapshot(
        folders,
        {
            "metrics": Wanted(("seed", "boundary", "metric", "value"), whole & ds.field("metric").isin(metrics)),
            "timing": Wanted(("boundary", "part", "seconds"), ds.field("part").isin(["step", "plain step", "train"])),
        },
        purpose="run",
    )
    values, costs = seed_scores(read.runs, read.tables["metrics"]), _costs(read.tables)
    groups: dict[tuple[Any, ...], dict[str, list[store.Run]]] = {}
    for run in read.runs:
        groups.setdefault(_place(run), {}).setdefault(_spec(run), []).append(run)
    made = {}
    notes = list(read.notes)
    for place, specs in _split_by_hash(groups, notes).items():
        names = labels([runs[0] for runs in specs.values()])
        made[place] = [_entry(name, runs, values, costs, notes) for name, runs in zip(names, specs.values())]
    return made, notes


def _place(run: store.Run) -> tuple[Any, ...]:
    """What runs must share to be compared."""
    facts = run.manifest
    return tuple(facts.get(key) for key in ("stream", "scenario", "setting", "stream_version", "split"))


def _spec(run: store.Run) -> str:
    return store.identity(run.manifest["config"]["strategy"])


def _split_by_hash(
    groups: Mapping[tuple[Any, ...], dict[str, list[store.Run]]], notes: list[str]
) -> dict[tuple[Any, ...], dict[str, list[store.Run]]]:
    """Apart where the same seeds saw different streams: the hash is of the data and of every seed's draws."""
    made: dict[tuple[Any, ...], dict[str, list[store.Run]]] = {}
    for place, specs in groups.items():
        seen: dict[tuple[int, ...], set[str]] = {}
        for run in (run for runs in specs.values() for run in runs):
            seen.setdefault(tuple(run.manifest["seeds"]), set()).add(run.manifest.get("stream_hash", ""))
        if all(len(hashes) == 1 for hashes in seen.values()):
            made[place] = specs
            continue
        notes.append(f"{place[0]}, setting {place[2]}: the same seeds saw different data, so that these stand apart")
        for spec, runs in specs.items():
            for run in runs:
                made.setdefault((*place, run.manifest.get("stream_hash", "")), {}).setdefault(spec, []).append(run)
    return made


def seed_scores(runs: Sequence[store.Run], metrics: pd.DataFrame) -> dict[tuple[str, int], Array]:
    """Every score of every seed: (run_id, seed) -> [SCORES], NaN where it was not recorded.

    A mean over boundaries is NaN if a value of it is, and a score at the end is of the run's last boundary only.
    """
    import pandas as pd

    bottom = metrics[metrics.metric == "average_accuracy"].groupby("run_id").value.min()
    place = {run.manifest["run_id"]: _place(run) for run in runs}
    negative = {place[run] for run, low in bottom.items() if low < 0}
    floor = {run: -math.inf if where in negative else 0.0 for run, where in place.items()}
    lost = {(run.manifest["run_id"], seed) for run in runs for seed in run.manifest.get("diverged", [])}
    end = metrics.groupby("run_id").boundary.transform("max")
    made = {}
    for score in SCORES:
        chosen = metrics.metric == score.metric
        rows = metrics[chosen & (metrics.boundary == end)] if score.last else metrics[chosen]
        value = rows.value
        if score.name in ACCURACIES and lost:
            gone = pd.MultiIndex.from_frame(rows[["run_id", "seed"]]).isin(lost) & value.isna().to_numpy()
            value = value.mask(gone, rows.run_id.map(floor).astype(float))
        keys = [rows.run_id, rows.seed]
        mean = value.groupby(keys).mean()
        made[score.name] = mean.mask(value.isna().groupby(keys).any())
    # a dict from here on: looking thousands of runs up one by one in a frame takes a hundred times as long
    return _by_key(pd.DataFrame(made))


def _by_key(frame: pd.DataFrame) -> dict[Any, Array]:
    return dict(zip(frame.index, frame.to_numpy(dtype=np.float64)))


def _costs(tables: Mapping[str, pd.DataFrame]) -> dict[str, Array]:
    """Of a run: time of a step over that of a plain step on the same task, median over tasks; bytes; seconds."""
    import pandas as pd

    timing, metrics = tables["timing"], tables["metrics"]
    parts = {part: rows.set_index(["run_id", "boundary"]).seconds for part, rows in timing.groupby("part")}
    step = parts.get("step", pd.Series(dtype=float))
    plain = parts.get("plain step", step)
    plain = plain.reindex(step.index)
    known = plain.notna().groupby(level=0).transform("any") if len(step) else plain.astype(bool)
    ratio = step / plain.where(known, step)  # a run of plain training has no plain step beside it: 1
    held = metrics[metrics.metric == "memory"]
    last = held[held.boundary == held.groupby("run_id").boundary.transform("max")]
    return _by_key(
        pd.DataFrame(
            {
                "step": ratio.groupby(level=0).median() if len(ratio) else ratio,
                "memory": last.groupby("run_id").value.mean(),
                "seconds": timing[timing.part == "train"].groupby("run_id").seconds.sum(),
            }
        )
    )


def _entry(
    label: str,
    runs: Sequence[store.Run],
    values: Mapping[tuple[str, int], Array],
    costs: Mapping[str, Array],
    notes: list[str],
) -> Entry:
    """Runs of one strategy, their seeds together; a seed that stands in two runs is that of the larger one."""
    of: dict[int, store.Run] = {}
    for run in sorted(runs, key=lambda r: (-len(r.manifest["seeds"]), r.manifest["run_id"])):
        for seed in run.manifest["seeds"]:
            if seed in of:
                notes.append(f"{label}: seed {seed} is that of {of[seed].path.name}, not of {run.path.name}")
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
        diverged=tuple(s for s in seeds if s in of[s].manifest.get("diverged", [])),
        step=float(step),
        memory=float(memory),
        seconds=float(spent[:, 2].sum()) / sum(len(run.manifest["seeds"]) for run in runs),
    )


def labels(runs: Sequence[store.Run]) -> list[str]:
    """The strategy's name; where several have it, with the values in which they differ."""
    names = [run.manifest["strategy"] for run in runs]
    made = list(names)
    for name in {n for n, count in Counter(names).items() if count > 1}:
        same = [i for i, n in enumerate(names) if n == name]
        for i, text in zip(same, told_apart([runs[i].manifest["config"]["strategy"] for i in same])):
            made[i] = f"{name} ({text})"
    return made


def told_apart(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each configuration apart from the others: the keys whose values are not the same everywhere.

    >>> told_apart([{"ewc": {"strength": 1, "decay": 0}}, {"ewc": {"strength": 2, "decay": 0}}, {"ewc": {"decay": 0}}])
    ['strength=1', 'strength=2', 'no strength']
    """
    flat = [dict(_flat(config)) for config in configs]
    keys = sorted({key for one in flat for key in one})
    absent = object()
    differing = [key for key in keys if any(one.get(key, absent) != flat[0].get(key, absent) for one in flat)]
    ends = Counter(key.rpartition(".")[2] for key in differing)
    short = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in differing}
    return [", ".join(f"{short[k]}={one[k]}" if k in one else f"no {short[k]}" for k in differing) for one in flat]


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


# --- from entries to boards -----------------------------------------------------------------------


def _board(
    place: tuple[Any, ...], found: Sequence[Entry], cut_short: Sequence[store.Run], by: Score, baseline: str
) -> Board:
    stream, scenario, setting, version, split = place[:5]
    seeds = reference([e.seeds for e in found] or [tuple(run.manifest["seeds"]) for run in cut_short])
    notes = [*_sources([run for e in found for run in e.runs])]
    complete: list[Entry] = []
    partial: list[Entry] = []
    for entry in found:
        if set(seeds) <= set(entry.seeds):
            if more := set(entry.seeds) - set(seeds):
                notes.append(f"{entry.label}: seeds {_listed(more)} are not compared, since other entries lack them")
            entry = on(entry, seeds)
        whole = entry.seeds == seeds and not np.isnan(entry.scores[by.name]).any()
        (complete if whole else partial).append(entry)
    for entry in partial:
        if np.isnan(entry.scores[by.name]).all() and not entry.diverged:
            path = entry.runs[0].path
            notes.append(f"{entry.label}: {by.title} was not measured; python -m harness measure {path} may add it")
    against = next((e for e in complete if e.label == baseline), None)
    if complete and against is None:
        notes.append(f"{baseline} is not among the complete entries, so that nothing is compared with it")
    rows = compared(complete, by, against)
    rows += [_uncompared(e, seeds, by) for e in [*partial, *_missing(cut_short, found)]]
    some = next(iter([*(run for e in found for run in e.runs), *cut_short]))
    return Board(
        stream=stream,
        scenario=scenario,
        setting=setting if len(place) == 5 else f"{setting}, data {place[5]}",
        version=version,
        split=split or "test",
        about=described(some.manifest),
        by=by,
        seeds=seeds,
        baseline=against.label if against else "",
        rows=tuple(rows),
        notes=tuple(notes),
    )


def reference(sets: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The seeds that are compared: the set that most entries were run with.

    Between equals the one that more entries contain, then the larger.

    >>> reference([(0, 1, 2), (0, 1, 2), (0, 1, 2, 3, 4), (0, 1)])
    (0, 1, 2)
    """
    alike = Counter(sets)
    covered = {one: sum(set(one) <= set(other) for other in sets) for one in alike}
    return max(alike, key=lambda one: (alike[one], covered[one], len(one), one))


def on(entry: Entry, seeds: tuple[int, ...]) -> Entry:
    """The entry on these of its seeds."""
    at = [entry.seeds.index(s) for s in seeds]
    kept = {name: values[at] for name, values in entry.scores.items()}
    return replace(entry, seeds=seeds, scores=kept, diverged=tuple(s for s in entry.diverged if s in seeds))


def compared(entries: Sequence[Entry], by: Score, baseline: Entry | None) -> list[Row]:
    """Complete entries, all on the same seeds, ranked by the mean of a score."""
    if not entries:
        return []
    sign = -1.0 if by.better == "lower" else 1.0
    table = np.stack([sign * e.scores[by.name] for e in entries])  # [entries, seeds], higher is better
    rank, between = stats.ranks(table.mean(1)), np.stack(stats.rank_intervals(table), 1)
    middle, around = sign * stats.iqm(table), np.sort(sign * np.stack(stats.bootstrap([table], stats.iqm), 1), 1)
    front, means = fronts(entries), summaries(entries)
    rows = []
    for i, entry in enumerate(entries):
        row = Row(
            entry=entry,
            found=table.shape[1],
            means=means[i],
            rank=float(rank[i]),
            rank_interval=_pair(between[i]),
            iqm=float(middle[i]),
            iqm_interval=_pair(around[i]),
            fronts=tuple(name for name in FRONTS if front[name][i]),
        )
        if baseline is not None and entry is not baseline:
            base = sign * baseline.scores[by.name]
            with np.errstate(invalid="ignore"):  # both diverged: minus infinity less itself
                apart = table[i] - base
            mean, half = stats.student(sign * apart)
            share = stats.improvement(table[i], base)
            row = replace(
                row,
                difference=(float(mean), float(half)),
                improvement=share,
                improvement_interval=stats.proportion_interval(share, len(base)),
                detectable=stats.detectable(apart),
            )
        rows.append(row)
    return sorted(rows, key=lambda row: (row.rank, row.entry.label))


def _pair(limits: Iterable[Any]) -> tuple[float, float]:
    low, high = map(float, limits)
    return low, high


def fronts(entries: Sequence[Entry]) -> dict[str, NDArray[np.bool_]]:
    """Which entries are on the Pareto front of average accuracy against each of FRONTS: name -> bool [entries]."""
    accuracy = np.array([e.scores["average_accuracy"].mean() for e in entries])
    costs = {
        "step": [e.step for e in entries],
        "memory": [e.memory for e in entries],
        "forgetting": [e.scores["forgetting"].mean() for e in entries],
    }
    return {name: stats.pareto(np.stack([accuracy, -np.array(cost)], 1)) for name, cost in costs.items()}


def summaries(entries: Sequence[Entry]) -> list[dict[str, tuple[float, float, int]]]:
    """Of each entry and score: mean, half width, number of values. Entries have equally many seeds."""
    made: list[dict[str, tuple[float, float, int]]] = [{} for _ in entries]
    for score in SCORES:
        table = np.stack([e.scores[score.name] for e in entries])
        mean, half = stats.student(table)
        there = (~np.isnan(table)).sum(1)
        for i, found in enumerate(made):
            found[score.name] = float(mean[i]), float(half[i]), int(there[i])
    return made


def _uncompared(entry: Entry, seeds: tuple[int, ...], by: Score) -> Row:
    got = {s for s, v in zip(entry.seeds, entry.scores[by.name]) if not math.isnan(v)} if entry.seeds else set()
    return Row(entry, len(got & set(seeds)), summaries([entry])[0])


def _missing(cut_short: Sequence[store.Run], found: Sequence[Entry]) -> list[Entry]:
    """What was begun and did not finish, unless the same strategy finished elsewhere with these seeds."""
    have = [(_spec(run), set(e.seeds)) for e in found for run in e.runs]
    left = [r for r in cut_short if not any(_spec(r) == spec and set(r.manifest["seeds"]) <= s for spec, s in have)]
    nothing: Array = np.array([], dtype=np.float64)
    return [
        Entry(
            run.manifest["strategy"],
            run.manifest["strategy"],
            (run,),
            (),
            {s.name: nothing for s in SCORES},
            state=_state(run),
        )
        for run in left
    ]


def _state(run: store.Run) -> str:
    status = run.manifest.get("status", "")
    return f"failed: {run.manifest.get('error', '')}" if status == "failed" else "not finished"


def _sources(runs: Sequence[store.Run]) -> list[str]:
    made = Counter(str(run.manifest.get("source", ""))[:12] for run in runs)
    if len(made) < 2:
        return []
    told = ", ".join(f"{source or 'unknown'}: {count} run{'s' * (count > 1)}" for source, count in sorted(made.items()))
    return [f"made by {len(made)} versions of the source ({told}), which may differ in what they compute"]


def _apart(boards: Sequence[Board]) -> list[str]:
    """What keeps the settings of one stream from being compared."""
    notes = []
    for stream in dict.fromkeys(b.stream for b in boards):
        same = [b for b in boards if b.stream == stream]
        if len(same) < 2:
            continue
        keys = ("tasks", "classes", "model", "optimizer", "train", "dtype", "pin", "dataset", "threads")
        runs = [next(run for row in b.rows for run in row.entry.runs) for b in same]
        told = told_apart(
            [
                {**{k: run.manifest["config"].get(k) for k in keys}, "stream_version": b.version, "split": b.split}
                for run, b in zip(runs, same)
            ]
        )
        each = "; ".join(f"{b.setting}: {text or 'other data, threads or device'}" for b, text in zip(same, told))
        notes.append(f"{stream}: {len(same)} settings, which are not compared with one another ({each})")
    return notes


def described(facts: Mapping[str, Any]) -> str:
    """A setting in words: length, budget, optimizer, model."""
    cfg = facts["config"]
    steps, epochs = cfg["train"]["steps"], cfg["train"]["epochs"]
    budget = f"{steps} steps" if steps else f"{epochs} epoch{'s' * (epochs != 1)}"
    model = cfg["model"]
    widths = f" {'-'.join(map(str, model['widths']))}" if model.get("widths") else ""
    return (
        f"{cfg['tasks'].get('n_tasks', '?')} tasks, {budget} a task in batches of {cfg['train']['batch_size']},"
        f" {model['_target_'].rpartition('.')[2]}{widths},"
        f" {cfg['optimizer']['_target_'].rpartition('.')[2]} with lr {cfg['optimizer']['lr']}"
    )


# --- over all boards ------------------------------------------------------------------------------


def overall(boards: Sequence[Board], baseline: str) -> tuple[Standing, ...]:
    """Mean rank, IQM and probability of improvement over all boards that compare at least two entries.

    Only entries that are complete on every board are ranked, among themselves. Seeds are drawn anew in each board by
    itself, in it for all entries at once. The IQM and its bootstrap, and the probability of improvement (over all
    pairs of seeds, mean over boards), are those of Agarwal et al. (2021) with boards for tasks.
    """
    boards = [b for b in boards if sum(not math.isnan(r.rank) for r in b.rows) > 1]
    if len(boards) < 2:
        return ()
    tables = [
        {
            r.entry.label: (-1.0 if b.by.better == "lower" else 1.0) * r.entry.scores[b.by.name]
            for r in b.rows
            if not math.isnan(r.rank)
        }
        for b in boards
    ]
    there = Counter(label for table in tables for label in table)
    whole = sorted(label for label, count in there.items() if count == len(boards))
    rest = tuple(Standing(label, there[label]) for label in sorted(there, key=lambda x: (-there[x], x)))
    rest = tuple(standing for standing in rest if standing.label not in whole)
    if not whole:
        return rest
    stacked = [np.stack([table[label] for label in whole]) for table in tables]  # each [entries, seeds]
    rank = np.mean([stats.ranks(x.mean(1)) for x in stacked], 0)
    drawn = [stats.resampled_ranks(x, seed=i) for i, x in enumerate(stacked)]
    several = min(x.shape[1] for x in stacked) > 1
    between = np.stack(stats.limits(np.mean(drawn, 0).T), 1)
    sign = -1.0 if boards[0].by.better == "lower" else 1.0
    base = whole.index(baseline) if baseline in whole else None
    made = []
    for i, label in enumerate(whole):
        mine = [x[i] for x in stacked]
        standing = Standing(
            label=label,
            found=len(boards),
            rank=float(rank[i]),
            rank_interval=_pair(between[i]) if several else (math.nan, math.nan),
            iqm=float(sign * stats.iqm(np.concatenate(mine))),
            iqm_interval=_pair(sorted(sign * float(v) for v in stats.bootstrap(mine, stats.iqm))),
        )
        if base is not None and i != base:
            share, limits = _improvement(mine, [x[base] for x in stacked])
            standing = replace(standing, improvement=share, improvement_interval=limits)
        made.append(standing)
    return (*sorted(made, key=lambda s: (s.rank, s.label)), *rest)


def _improvement(mine: Sequence[Array], base: Sequence[Array]) -> tuple[float, tuple[float, float]]:
    share = float(np.mean([stats.improvement_unpaired(x, y) for x, y in zip(mine, base)]))
    if min(map(len, [*mine, *base])) < 2:
        return share, (math.nan, math.nan)
    drawn = [
        stats.improvement_unpaired(x[stats.draws(len(x), seed=2 * i)], y[stats.draws(len(y), seed=2 * i + 1)])
        for i, (x, y) in enumerate(zip(mine, base))
    ]
    return share, _pair(stats.limits(np.mean(drawn, 0)))


# --- as text ----------------------------------------------------------------------------------------


def cells(board: Board) -> list[dict[str, str]]:
    """The rows as people read them, by title of the column; columns that no row has a value of are left out."""
    scores = [s for s in SCORES if any(row.means[s.name][2] for row in board.rows)]
    timed = any(not math.isnan(row.entry.step) for row in board.rows)
    held = any(not math.isnan(row.entry.memory) for row in board.rows)
    several = sum(not math.isnan(row.rank) for row in board.rows) > 1
    made = []
    for row in board.rows:
        entry = row.entry
        line = {
            "rank": "-" if math.isnan(row.rank) else f"{row.rank:.0f}{_between(row.rank_interval, '.0f')}",
            "strategy": entry.label,
            "seeds": _coverage(row, len(board.seeds)),
        }
        for score in scores:
            line[score.title] = shown(row.means[score.name], len(entry.seeds), score.form)
            if score == board.by:
                line["IQM"] = _number(row.iqm, score.form) + _between(row.iqm_interval, score.form)
        if board.baseline:
            mean, half = row.difference
            line[f"less {board.baseline}"] = "-" if math.isnan(mean) else shown((mean, half, 1), 1, "+.3f")
            line[f"> {board.baseline}"] = _number(row.improvement, ".2f") + _between(row.improvement_interval, ".2f")
            line["detectable"] = _number(row.detectable, ".3f")
        if timed:
            line["step"] = times(entry.step)
        if held:
            line["memory"] = size(entry.memory)
        if several:
            line["front"] = "".join(name[0] for name in row.fronts) or "-"
        made.append(line)
    return made


def _coverage(row: Row, seeds: int) -> str:
    """How many of the seeds are there, and what became of the others."""
    entry = row.entry
    parts = [f"{seeds}" if row.found == seeds else f"{row.found}/{seeds}"]
    parts += [f"{len(entry.diverged)} diverged"] if entry.diverged else []
    return ", ".join([*parts, entry.state] if entry.state != "done" else parts)


def standing_cells(standing: Standing, boards: int, baseline: str, form: str = ".3f") -> dict[str, str]:
    return {
        "mean rank": _number(standing.rank, ".2f") + _between(standing.rank_interval, ".2f"),
        "strategy": standing.label,
        "settings": f"{standing.found}" if standing.found == boards else f"{standing.found}/{boards}",
        "IQM": _number(standing.iqm, form) + _between(standing.iqm_interval, form),
        f"P(> {baseline})": _number(standing.improvement, ".2f") + _between(standing.improvement_interval, ".2f"),
    }


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _between(limits: tuple[float, float], form: str) -> str:
    """` (0.1-0.3)`; nothing where there is no interval.

    >>> _between((1, 3), ".0f"), _between((2, 2), ".0f"), _between((math.nan, math.nan), ".2f")
    (' (1–3)', ' (2)', '')
    """
    if math.isnan(limits[0]):
        return ""
    low, high = (format(v, form) for v in limits)
    return f" ({low})" if low == high else f" ({low}–{high})"


def shown(value: tuple[float, float, int], seeds: int, form: str = ".3f") -> str:
    """Mean ± half width; where values are missing, how many there are and no mean.

    >>> shown((0.91234, 0.01, 5), 5), shown((math.nan, math.nan, 4), 5), shown((math.nan, math.nan, 0), 5)
    ('0.912 ± 0.010', '4/5', '-')
    """
    mean, half, n = value
    if n == 0:
        return "-"
    if n < seeds:
        return f"{n}/{seeds}"
    return format(mean, form) + ("" if math.isnan(half) else f" ± {format(half, form.lstrip('+'))}")


def times(ratio: float) -> str:
    return "-" if np.isnan(ratio) else f"{ratio:.2f}"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(0), size(340e3), size(2.5e6)
    ('0', '340 kB', '2.5 MB')
    """
    if np.isnan(count):
        return "-"
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f}"


def heading(board: Board) -> str:
    """What is compared, in what order, over which seeds."""
    n = len(board.seeds)
    over = f"mean ± 95 % interval over seeds {_listed(board.seeds)} (n = {n})" if n > 1 else f"seed {board.seeds[0]}"
    split = "" if board.split == "test" else f" on the {board.split} split"
    return f"{board.about}. Sorted by {board.by.title}{split}; {over}."


def _listed(seeds: Iterable[int]) -> str:
    """Seeds in words.

    >>> _listed([0, 1, 2, 4]), _listed({3})
    ('0-2, 4', '3')
    """
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and spans[-1][-1] == seed - 1:
            spans[-1][1:] = [seed]
        else:
            spans.append([seed])
    return ", ".join("-".join(map(str, span)) for span in spans)


Table = tuple[list[str], list[list[str]]]  # heads, rows


def table(board: Board, columns: Sequence[str] = ()) -> Table:
    rows = cells(board)
    heads = [h for h in rows[0] if not columns or h in columns]
    return heads, [[row[h] for h in heads] for row in rows]


def overall_table(board: Leaderboard) -> Table:
    boards = max(s.found for s in board.overall)
    rows = [standing_cells(s, boards, board.baseline) for s in board.overall]
    return list(rows[0]), [list(row.values()) for row in rows]


# the others stand in the files: a terminal is narrow
TERMINAL = ("rank", "strategy", "seeds", *(s.title for s in SCORES), "step", "memory", "front")


def text(found: Leaderboard) -> list[str]:
    """Lines for a terminal."""
    lines: list[str] = []
    for board in found.boards:
        lines += [
            f"{board.stream}, setting {board.setting}",
            heading(board),
            *_aligned(*table(board, (*TERMINAL, f"> {board.baseline}"))),
        ]
        lines += [f"note: {note}" for note in board.notes] + [""]
    if found.overall:
        lines += ["all settings", *_aligned(*overall_table(found)), ""]
    return [*lines, *(f"note: {note}" for note in found.notes)]


LEFT = ("strategy",)


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    return [
        "  " + "  ".join(f"{c:<{w}}" if h in LEFT else f"{c:>{w}}" for c, w, h in zip(line, widths, heads)).rstrip()
        for line in [heads, *rows]
    ]


def markdown(found: Leaderboard) -> str:
    """The whole leaderboard as Markdown."""
    parts = ["# Leaderboard", "", "Made by `python -m harness leaderboard`; not edited by hand.", ""]
    if found.overall:
        parts += ["## All settings", "", *piped(*overall_table(found)), ""]
    for board in found.boards:
        parts += [f"## {_escaped(board.stream)}", "", f"Setting {board.setting}: {_escaped(heading(board))}", ""]
        parts += [*piped(*table(board)), "", *(f"* {_escaped(note)}" for note in board.notes), ""]
    parts += [*(f"* {_escaped(note)}" for note in found.notes), "", "## Columns", ""]
    parts += [MEANING.format(baseline=found.baseline)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)) + "\n"


def piped(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    bars = ["---" if h in LEFT else "---:" for h in heads]
    return [f"| {' | '.join(map(_escaped, line))} |" for line in [heads, bars, *rows]]


def _escaped(value: str) -> str:
    """Text that may come from a configuration, so that it is no markup.

    >>> print(_escaped("ewc (a|b <script>)"))
    ewc (a\\|b &lt;script>)
    """
    return " ".join(value.split()).replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


# --- as files ---------------------------------------------------------------------------------------


def flat(found: Leaderboard) -> list[dict[str, Any]]:
    """A record for each entry of each board: numbers, for other programs."""
    return [_record(board, row) for board in found.boards for row in board.rows]


def _record(board: Board, row: Row) -> dict[str, Any]:
    entry = row.entry
    made: dict[str, Any] = {
        "stream": board.stream,
        "scenario": board.scenario,
        "setting": board.setting,
        "stream_version": board.version,
        "split": board.split,
        "strategy": entry.strategy,
        "label": entry.label,
        "run_ids": " ".join(run.manifest["run_id"] for run in entry.runs),
        "state": entry.state,
        "sorted_by": board.by.name,
        "seeds": " ".join(map(str, board.seeds)),
        "n": len(board.seeds),
        "found": row.found,
        "diverged": len(entry.diverged),
        "rank": row.rank,
    }
    pairs = {"rank": row.rank_interval, "iqm": row.iqm_interval, "improvement": row.improvement_interval}
    made |= {"iqm": row.iqm, "baseline": board.baseline, "improvement": row.improvement, "detectable": row.detectable}
    made |= {f"{name}_{end}": v for name, pair in pairs.items() for end, v in zip(("low", "high"), pair)}
    made |= {"difference": row.difference[0], "difference_half_width": row.difference[1]}
    for score in SCORES:
        mean, half, n = row.means[score.name]
        made |= {score.name: mean, f"{score.name}_half_width": half, f"{score.name}_n": n}
    made |= {"step_cost": entry.step, "memory_bytes": entry.memory, "train_seconds_per_seed": entry.seconds}
    return made | {f"front_{name}": name in row.fronts for name in FRONTS}


def flat_seeds(found: Leaderboard) -> list[dict[str, Any]]:
    """A record for each score of each seed: what the means are of."""
    return [
        {
            "stream": board.stream,
            "scenario": board.scenario,
            "setting": board.setting,
            "label": row.entry.label,
            "seed": seed,
            "score": score.name,
            "value": float(value),
            "diverged": seed in row.entry.diverged,
        }
        for board in found.boards
        for row in board.rows
        for score in SCORES
        for seed, value in zip(row.entry.seeds, row.entry.scores[score.name])
    ]


def write(found: Leaderboard, out: Path) -> None:
    """leaderboard.md, .html, .csv and .parquet, and what the means are of as leaderboard_seeds.csv and .parquet."""
    import pandas as pd

    from harness.report import page

    tables = {"leaderboard": pd.DataFrame(flat(found)), "leaderboard_seeds": pd.DataFrame(flat_seeds(found))}
    texts = {"leaderboard.md": markdown(found), "leaderboard.html": page(found)}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        store.write_text(out / name, content)
    for name, frame in tables.items():
        with store.replacing(out / f"{name}.csv") as tmp:
            frame.to_csv(tmp, index=False)
        with store.replacing(out / f"{name}.parquet") as tmp:
            frame.to_parquet(tmp, index=False)
