"""Merges of kept nets: each method's net, tested on all tasks, beside the landscape between the nets that it merges.

The rows are one table, FOLDER/merge.parquet (results/SCHEMA.md), which `harness.finished.merge_texts` prints and draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import store, tree
from harness.finished.merge_options import MergeOptions
from harness.finished.merge_pool import Pool, pooled
from harness.landscape import alignment, paths
from harness.landscape.curvature import Hessian, top_of
from harness.merging.table import METHODS, Given, Method, Values
from harness.merging.vectors import conflicts, cosines, task_vectors
from harness.metrics.connectivity import BARRIERS, losses_and_errors
from harness.rng import fold
from harness.trackers.bar import bar
from harness.types import Net, Params

COLUMNS = ("seed", "method", "first", "second", "aligned", "task", "measure", "alpha", "settings", "value")
OWN, LAST, BASE = "own nets", "last net", "base"  # what merges are compared with
ALIGNED = ("as they are", "weights")


@dataclass
class Rows:
    """Rows of the table, seed by seed."""

    seeds: Sequence[int]
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})

    def add(self, measure: str, value: Tensor, **where: Any) -> None:
        """A row for each seed of `value` [S]."""
        fixed = {"method": "", "first": -1, "second": -1, "aligned": "", "task": -1, "alpha": math.nan, "settings": ""}
        for seed, one in zip(self.seeds, value.detach().cpu().double().tolist(), strict=True):
            for name, cell in {**fixed, **where, "measure": measure, "seed": seed, "value": one}.items():
                self.columns[name].append(cell)


@dataclass(frozen=True)
class Merged:
    """What `merge` found."""

    columns: Mapping[str, list[Any]]
    about: Mapping[str, Any]
    notes: Sequence[str]  # what was left out, and why
    folder: Path


def merge(
    runs: Sequence[Path],
    methods: Sequence[str],
    options: MergeOptions,
    *,
    out: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> Merged:
    """Merge the nets of a run, or the last nets of several, and write the rows into `out` (default: `place`).

    A method that does not apply (no units, no common initial net) is left out with a note. `changes` to the runs'
    configuration: device, dataset.root. ValueError as `merge_pool.pooled`, or if no method applies.
    """
    with pooled(runs, options, changes or {}, trust) as pool:
        names, notes = applicable(pool, methods)
        given = pool.measured("regmean" in names, "fisher" in names)
        rows = Rows(pool.seeds)
        pairs = list(itertools.combinations(pool.anchors, 2))
        with bar("merge", len(names) + len(pairs) + 1) as part:
            part("the nets")
            unmerged(pool, rows)
            for name in names:
                part(name)
                every(pool, rows, name, given)
            for first, second in pairs:
                part(f"{pool.names[first]} and {pool.names[second]}")
                between(pool, rows, first, second)
                for name in names:
                    pair(pool, rows, name, given, first, second)
        about = {
            "runs": [run.name for run in runs],
            "nets": list(pool.names),
            "base": "" if pool.base is None else f"the initial net of {runs[0].name}",
            "diverged": [seed for seed, alive in zip(pool.seeds, pool.run.learner.alive.tolist()) if not alive],
            "batch_norm": bool(pool.nets[0].buffers),
            "tasks": len(pool.run.stream.tasks),
            "unit": "accuracy" if pool.classes else "minus squared error",
            "stream": pool.run.stream.name,
            "scenario": pool.run.stream.scenario,
            "strategy": pool.run.folder.manifest["strategy"],
            "grids": {name: METHODS[name].grid for name in names},
            **asdict(options),
        }
        folder = out or place(runs)
        with store.reporting(folder, "--out FOLDER"):
            folder.mkdir(parents=True, exist_ok=True)
        store.write_frame(folder / "merge.parquet", rows.columns, about)
    return Merged(rows.columns, about, notes, folder)


def place(runs: Sequence[Path]) -> Path:
    """The folder `merge` of a run, or `merge_ID_...` of the first, with the ids of the others.

    >>> [place([Path("a"), *more]).as_posix() for more in ([], [Path("b")])]
    ['a/merge', 'a/merge_b']
    """
    return runs[0] / "_".join(["merge", *(run.name[:12] for run in runs[1:])])


def applicable(pool: Pool, methods: Sequence[str]) -> tuple[list[str], list[str]]:
    """The methods that apply, and why the others do not. ValueError if none does."""
    notes, units = [], pool.run.learner.model.units
    if based := [name for name in methods if METHODS[name].based and pool.base is None]:
        notes.append(f"no {', '.join(based)}: the runs have no initial net in common (pin.init=0 gives them one)")
    if not units:
        notes.append(f"no {'rebasin, ' if 'rebasin' in methods else ''}alignment: the model declares no units")
    if not pool.run.learner.model.layers and "regmean" in methods:
        notes.append("no regmean: the model declares no layers")
    lacking = {"rebasin": not units, "regmean": not pool.run.learner.model.layers}
    names = [name for name in methods if name not in based and not lacking.get(name, False)]
    if not names:
        raise ValueError(f"merge --with {','.join(methods)}: nothing to do: {'; '.join(notes)}")
    return names, notes


# --- all nets -----------------------------------------------------------------------------------------


def unmerged(pool: Pool, rows: Rows) -> None:
    """Each net on the tasks that it has learnt; the last net and the base on all tasks."""
    for i, net in enumerate(pool.nets):
        for t, value, loss in on_test_rows(pool, net, pool.own[i]):
            rows.add("accuracy", value, method=OWN, first=i, task=t)
            rows.add("loss", loss, method=OWN, first=i, task=t)
    whole(pool, rows, LAST, pool.nets[-1])
    if pool.base is not None:
        whole(pool, rows, BASE, pool.fitted(pool.base, range(pool.last + 1)))


def every(pool: Pool, rows: Rows, name: str, given: Given) -> None:
    """The merge of all nets by one method."""
    params, chosen, values = tuned(pool, METHODS[name], given, range(len(pool.nets)))
    candidates = METHODS[name].candidates
    for candidate, value in zip(candidates, values.unbind(1)):
        rows.add("validation", value, method=name, settings=in_words(candidate))
    for key in METHODS[name].grid:
        of = torch.tensor([candidates[i][key] for i in chosen.tolist()], dtype=torch.float64)
        rows.add(f"chosen_{key}", of, method=name)
    whole(pool, rows, name, pool.fitted(params, range(pool.last + 1)))


def whole(pool: Pool, rows: Rows, name: str, net: Net) -> None:
    """A net on test rows of all tasks, and the top Hessian eigenvalue of its mean loss over probes of them."""
    tasks = range(pool.last + 1)
    for t, value, loss in on_test_rows(pool, net, tasks):
        rows.add("accuracy", value, method=name, task=t)
        rows.add("loss", loss, method=name, task=t)
    loss_of = pool.run.learner.objective(
        pool.probes(pool.few(tasks)), pool.run.stream, pool.last, net.buffers, net.apply
    )
    key, steps = fold(pool.boundary.random.base, "lambda"), pool.options.steps
    top = top_of(Hessian(loss_of, net.params), net.params, key, k=1, steps=steps)
    rows.add("lambda_max", top.values[:, 0], method=name)


def on_test_rows(
    pool: Pool, net: Net, tasks: Sequence[int], samples: int | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Task, score [S] and loss [S] on its test rows."""
    scores, losses = pool.tested(net, tasks, samples)
    return zip(tasks, scores.unbind(1), losses.unbind(1))


def tuned(pool: Pool, method: Method, given: Given, places: Sequence[int]) -> tuple[Params, Tensor, Tensor]:
    """The merge of some nets with each seed's best candidate on validation rows of their tasks.

    Returns the parameters, the place of the candidate [S], and the mean validation score of every candidate [S, n]. Of
    equal candidates the first is chosen. One that is not finite is chosen only if all are.
    """
    given, tasks, candidates = given.of(places), pool.tasks(places), method.candidates
    best: Params = {}
    values: list[Tensor] = []
    chosen = torch.zeros(len(pool.seeds), dtype=torch.int64)
    for i, candidate in enumerate(candidates):
        params = method.merge(given, **candidate)
        values.append(pool.validated(params, tasks).double())
        if not best:
            best, top = params, values[0]
            continue
        better = (values[i] > top) | (top.isnan() & ~values[i].isnan())
        best = {k: torch.where(better.view(-1, *[1] * (v.dim() - 1)), v, best[k]) for k, v in params.items()}
        top, chosen = torch.where(better, values[i], top), torch.where(better.cpu(), i, chosen)
    return best, chosen, torch.stack(values, 1)


def in_words(values: Values) -> str:
    """
    >>> in_words({"density": 0.2, "scale": 1.0})
    'density=0.2 scale=1'
    """
    return " ".join(f"{key}={value:g}" for key, value in values.items())


# --- pairs --------------------------------------------------------------------------------------------


def between(pool: Pool, rows: Rows, first: int, second: int) -> None:
    """The line between two nets, as they are and after alignment by weights; their task vectors.

    Losses and errors are means over probes of the tasks that the two have learnt (task -1). Barriers are of that mean,
    and of each task.
    """
    where, b = {"first": first, "second": second}, pool.boundary
    tasks = pool.few(pool.tasks([first, second]))
    batches = pool.probes(tasks)
    here, there = pool.nets[first], pool.nets[second]
    alphas = paths.grid(pool.options.points)
    units = pool.run.learner.model.units
    evaluate: Callable[[Params], Tensor] = lambda p: losses_and_errors(b, p, batches)  # noqa: E731
    for how in ALIGNED[: 2 if units else 1]:
        moved = there
        if how != ALIGNED[0]:
            moved, orders = alignment.align(here, there, units, batches[0].x, batches[0].t, by=how)
            rows.add("moved_share", alignment.moved_share(orders), aligned=how, **where)
        path = paths.line(here.params, moved.params, evaluate, alphas)  # [S, K, tasks, 2]
        for k, kind in enumerate(("loss", "error")[: 1 + pool.classes]):
            mean = path[..., k].mean(2)
            for alpha, value in zip(alphas, mean.unbind(1)):
                rows.add(kind, value, aligned=how, alpha=alpha, **where)
            for name, barrier in BARRIERS.items():
                for t, one in ((-1, mean), *zip(tasks, path[..., k].unbind(2))):
                    rows.add(f"{name}_{kind}", barrier(one, alphas), aligned=how, task=t, **where)
    rows.add("distance", tree.norm(tree.sub(there.params, here.params)), **where)
    if pool.base is not None:
        a, c = task_vectors(pool.base, [here.params, there.params])
        rows.add("cosine", cosines([a, c])[:, 0, 1], **where)
        rows.add("sign_conflicts", conflicts(a, c), **where)


def pair(pool: Pool, rows: Rows, name: str, given: Given, first: int, second: int) -> None:
    """The merge of two nets by one method, and what is lost: each net's score on its own tasks minus the merge's.

    Means over nets and tasks, on `tested` test rows of each task, with coefficients chosen for the pair.
    """
    samples, places = pool.options.tested, (first, second)
    params, _, _ = tuned(pool, METHODS[name], given, places)
    tasks = pool.tasks(places)
    score = pool.tested(pool.fitted(params, tasks), tasks, samples)[0].mean(1)
    own = torch.stack([pool.tested(pool.nets[i], pool.own[i], samples)[0].mean(1) for i in places]).mean(0)
    rows.add("accuracy", score, method=name, first=first, second=second)
    rows.add("lost", own - score, method=name, first=first, second=second)
