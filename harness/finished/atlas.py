"""The landscape of a finished run from its boundary nets: barriers, planes, seeds, the joint net, spectra.

Every part is a table RUN/atlas/<part>.parquet, which `harness.finished.atlas_figures` draws. A part whose table was
computed with the same options is not recomputed. A row is one number of one seed; losses are means over frozen probes,
in nat or the stream's unit, in evaluation mode and without any strategy's penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import store
from harness.boundary import Boundary
from harness.finished.atlas_options import AtlasOptions
from harness.finished.measure import Opened, opened
from harness.landscape import alignment, paths
from harness.landscape.curvature import Hessian, density, quadrature
from harness.metrics import mixture, objective, spaced
from harness.metrics.connectivity import BARRIERS, losses_and_errors
from harness.rng import fold
from harness.trackers.bar import bar
from harness.types import Net

LongTable = dict[str, list[Any]]
KINDS = ("loss", "error")
ALIGNED = ("as they are", "weights", "activations")  # how seed b's units are matched before the line to seed a


@dataclass(frozen=True)
class View:
    """A finished run and its anchors, the tasks that the atlas uses."""

    run: Opened
    options: AtlasOptions

    @property
    def last(self) -> int:
        return len(self.run.stream.tasks) - 1

    @property
    def anchors(self) -> tuple[int, ...]:
        return spaced(self.last, self.options.tasks)

    @property
    def three(self) -> tuple[int, ...]:
        """The first, the middle and the last task."""
        return tuple(sorted({0, self.last // 2, self.last}))

    def boundary(self, t: int) -> Boundary:
        """The end of task t; losses are under that task's mask."""
        learner, net = self.run.learner, self.run.net(t)
        learner.enter(self.run.stream.tasks[t])
        empty = torch.empty(learner.S, 0)
        nets: Any = None
        random = learner.random("atlas")
        return Boundary(t, "end", self.run.stream, learner, net, net, nets, empty, empty, random)


Tick = Callable[[], None]
Part = Callable[[View, Tick], LongTable]


def atlas(
    path: Path, options: AtlasOptions, *, force: bool = False, trust: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Compute the missing tables of the run at `path`; returns the names of all its parts, and remarks, a line each.

    ValueError if the run is not finished, did not keep its nets, needs state that was not kept to evaluate them, or
    names code that is not allowed (`trust.safe`).
    """
    remarks: list[str] = []
    with store.RunFolder.reopen(path) as folder:
        folder.needs_nets()
        about = {**asdict(options), "run": folder.manifest["run_id"], "ended": folder.manifest["ended_at"]}
        inputs = dict.fromkeys(PARTS, about)
        if (other := companion(path, folder.manifest)) is not None:
            inputs["joint"] = {**about, "joint": other.manifest["run_id"], "joint_ended": other.manifest["ended_at"]}
        todo = [name for name in PARTS if force or store.read_about(path / "atlas" / f"{name}.parquet") != inputs[name]]
        if todo:
            run = opened(folder, {}, trust)
            if run.learner.apply != run.learner.model.__call__:
                raise ValueError(f"{path}: its nets need state of the strategy that was not kept")
            view = View(run, options)
            for name, (what, why_not) in ABSENT.items():
                if name in todo and (reason := why_not(view)):
                    remarks.append(f"no {what}: {reason}")
                    todo.remove(name)
            ticks = {name: UNITS[name](view) for name in todo}
            with bar("atlas", sum(ticks.values())) as part:
                for name in todo:
                    table = PARTS[name](view, lambda name=name: part(name))  # type: ignore[misc]
                    (path / "atlas").mkdir(exist_ok=True)
                    store.write_frame(path / "atlas" / f"{name}.parquet", table, inputs[name])
    return [name for name in PARTS if (path / "atlas" / f"{name}.parquet").exists()], remarks


def long_table(seeds: Sequence[int], values: Tensor, **where: Sequence[Any]) -> LongTable:
    """Values [S, A, B, ...] as columns: seed, one column for each further axis (its coordinates), value.

    >>> long_table([7, 8], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), alpha=(0, 1))
    {'seed': [7, 7, 8, 8], 'alpha': [0, 1, 0, 1], 'value': [1.0, 2.0, 3.0, 4.0]}
    """
    axes = {"seed": list(seeds), **{k: list(v) for k, v in where.items()}}
    if tuple(map(len, axes.values())) != tuple(values.shape):
        raise ValueError(f"values of shape {tuple(values.shape)} for axes {', '.join(axes)}")
    index = torch.cartesian_prod(*(torch.arange(n) for n in values.shape)).view(-1, values.dim())
    columns: LongTable = {k: [v[i] for i in index[:, a].tolist()] for a, (k, v) in enumerate(axes.items())}
    return {**columns, "value": values.detach().cpu().double().flatten().tolist()}


def stack(tables: Sequence[LongTable]) -> LongTable:
    """Concatenate tables with the same columns."""
    return {k: [x for table in tables for x in table[k]] for k in tables[0]}


def labelled(table: LongTable, **constant: Any) -> LongTable:
    n = len(table["value"])
    return {**{k: [v] * n for k, v in constant.items()}, **table}


# --- parts ------------------------------------------------------------------------------------------


def pairs(view: View) -> Iterator[tuple[int, int]]:
    return ((i, j) for j in view.anchors for i in view.anchors if i < j)


def barriers(view: View, tick: Tick) -> LongTable:
    """The line between every two anchors i < j, under task i's loss, task j's and their mean: path and barriers.

    `of` is the loss: earlier, later or both. Rows with measure loss or error and a number for alpha are the path. The
    others are its barriers, defined in `landscape.paths` and named as in `metrics.connectivity`; their alpha is NaN.
    """
    tables = []
    alphas = paths.grid(view.options.points)
    for i, j in pairs(view):
        tick()
        b, start = view.boundary(j), view.run.net(i).params
        batches = [b.probe(k, view.options.size) for k in (i, j)]
        path = paths.line(start, b.trained.params, lambda p: losses_and_errors(b, p, batches), alphas)  # noqa: B023  [S, K, 2, 2]
        path = torch.cat([path, path.mean(2, keepdim=True)], 2)
        tables += walked(view, path, ("earlier", "later", "both"), start=i, end=j)
    return stack(tables)


def walked(view: View, path: Tensor, of: Sequence[str], **where: Any) -> list[LongTable]:
    """A path [S, K, len(of), 2] of losses and errors, and its barriers, with alpha NaN."""
    tables, alphas, seeds = [], paths.grid(view.options.points), view.run.stream.seeds
    for k, kind in enumerate(KINDS):
        tables.append(labelled(long_table(seeds, path[..., k], alpha=alphas, of=of), **where, measure=kind))
        for name, barrier in BARRIERS.items():
            each = torch.stack([barrier(path[:, :, m, k], alphas) for m in range(len(of))], 1)[:, None]
            tables.append(labelled(long_table(seeds, each, alpha=[math.nan], of=of), **where, measure=f"{name}_{kind}"))
    return tables


def planes(view: View, tick: Tick) -> LongTable:
    """Losses of the first, the middle and the last task on the plane through the nets after these tasks."""
    if len(view.three) < 3:
        return labelled(long_table([], torch.empty(0, 0, 0), x=[], y=[]), of=0, corner=-1)
    b = view.boundary(view.last)
    flat = paths.plane(*(view.run.net(t).params for t in view.three))
    return on_plane(view, b, flat, {f"{t}": [t] for t in view.three}, tick)


def random_planes(view: View, tick: Tick) -> LongTable:
    """Mean loss of the tasks seen around the first and the last net, along filter-normalised random directions."""
    tables = []
    for t in sorted({0, view.last}):
        b = view.boundary(t)
        flat = paths.random_plane(b.trained.params, fold(b.random.base, "plane"))
        tables.append(on_plane(view, b, flat, {f"{t}": list(spaced(t, 5))}, tick))
    return stack(tables)


def on_plane(view: View, b: Boundary, flat: paths.Plane, of: dict[str, list[int]], tick: Tick) -> LongTable:
    """Mean loss of each group of tasks at every point of a plane, and the positions of its corners (corner 0, 1, 2)."""
    x, y = paths.axes(flat, view.options.grid)
    seeds, tables = view.run.stream.seeds, []
    for name, tasks in of.items():
        tick()
        batches = [b.probe(t, view.options.size) for t in tasks]
        values = paths.surface(flat, lambda p: losses_and_errors(b, p, batches)[..., 0].mean(1), x, y)  # noqa: B023
        tables.append(labelled(long_table(seeds, values, x=x, y=y), of=name, corner=-1))
        for c in range(flat.corners.shape[1]):
            at = flat.corners[:, c].tolist()
            found = {"seed": list(seeds), "x": [a for a, _ in at], "y": [a for _, a in at]}
            tables.append(labelled({**found, "value": [math.nan] * len(at)}, of=name, corner=c))
    return stack(tables)


def strangers(view: View) -> str:
    """Why nets of different seeds are not comparable; empty if they are. Tasks are compared by sums over test rows."""
    seeds = view.run.stream.seeds
    if len(seeds) < 2:
        return "the run has one seed; train several, for example seeds=[0,1,2]"
    learner = view.run.learner
    if not learner.model.units:
        return "the model declares no units"
    for t in view.anchors:
        total: Tensor | float = 0.0
        for batch in learner.scan(view.run.stream.tasks[t].test):
            y = batch.y.double() if batch.y.dim() > 2 else 1 + batch.y[..., None].double()
            total = total + torch.einsum("sb,sbi,sbj->sij", batch.w.double(), batch.x.flatten(2).double(), y)
        assert isinstance(total, Tensor)
        if not torch.allclose(total, total.roll(1, 0), rtol=1e-6, atol=1e-9):
            return "each seed has different tasks; train with pin.stream=0, which gives all seeds the same stream"
    return ""


def seeds(view: View, tick: Tick) -> LongTable:
    """The line from each seed's last net to the next seed's, under the last task; units as they are and aligned.

    `seed` is the seed at alpha = 0, whose probe rows are used. Only the last task is known well by both nets: on
    half-forgotten tasks the mean of two nets may be better than either.
    """
    b = view.boundary(view.last)
    batch, here = b.probe(view.last, view.options.size), b.trained
    params, buffers = ({k: v.roll(-1, 0) for k, v in part.items()} for part in (here.params, here.buffers))
    there = Net(params, buffers, here.apply)
    alphas, tables = paths.grid(view.options.points), []
    for how in ALIGNED:
        tick()
        moved = there
        if how != ALIGNED[0]:
            moved, orders = alignment.align(here, there, b.learner.model.units, batch.x, batch.t, by=how)
            share = alignment.moved_share(orders)[:, None]
            found = long_table(view.run.stream.seeds, share, alpha=[math.nan])
            tables.append(labelled(found, aligned=how, measure="moved share"))
        path = paths.line(here.params, moved.params, lambda p: losses_and_errors(b, p, [batch])[:, 0], alphas)
        for k, kind in enumerate(KINDS):
            found = long_table(view.run.stream.seeds, path[..., k], alpha=alphas)
            tables.append(labelled(found, aligned=how, measure=kind))
    return stack(tables)


def companion(path: Path, manifest: dict[str, Any]) -> store.Run | None:
    """The finished run of strategy=joint with the same setting and seeds in the same results folder as `path`."""
    same = {key: manifest[key] for key in ("setting", "seeds", "stream_hash")}
    found = (run for root in path.resolve().parents[3:4] for run in store.find_runs(root, strategy="joint", **same))
    return next(found, None)


def unaccompanied(view: View) -> str:
    """Why there is no joint net; empty if there is one."""
    folder = view.run.folder
    if folder.manifest["strategy"] == "joint":
        return "this run is the joint run"
    if companion(folder.path, folder.manifest) is None:
        return "no finished run of strategy=joint with this setting and these seeds in the results folder; train one"
    return ""


def joint(view: View, tick: Tick) -> LongTable:
    """The line from each anchor to the net trained jointly on all tasks: loss `of` its own task, or of all anchors.

    The joint net has a different initialisation, so the line is also computed with its units matched to the anchor's by
    weights, if the model declares units. All losses are under the last task's mask.
    """
    other = companion(view.run.folder.path, view.run.folder.manifest)
    assert other is not None
    with store.RunFolder.reopen(other.path) as folder:
        there = view.run.loaded(folder.net(view.last))
    b, tables = view.boundary(view.last), []
    batches = [b.probe(t, view.options.size) for t in view.anchors]
    for i, t in enumerate(view.anchors):
        tick()
        here = view.run.net(t)
        for how in ALIGNED[: 2 if b.learner.model.units else 1]:
            moved = there
            if how != ALIGNED[0]:
                moved, _ = alignment.align(here, there, b.learner.model.units, batches[i].x, batches[i].t, by=how)
            alphas = paths.grid(view.options.points)
            path = paths.line(
                here.params, moved.params, lambda p: losses_and_errors(b, p, batches), alphas
            )  # [S, K, A, 2]
            path = torch.stack([path[:, :, i], path.mean(2)], 2)
            tables += walked(view, path, ("own", "all"), start=t, aligned=how)
    return stack(tables)


def spectra(view: View, tick: Tick) -> LongTable:
    """Spectral density of the Hessian of the mean loss over the tasks seen, after the first, middle and last task.

    By stochastic Lanczos quadrature; `eigenvalue` is a multiple of the largest absolute node of each seed.
    """
    tables = []
    grid = torch.linspace(-1.1, 1.1, 401, dtype=torch.float64)
    for t in view.three:
        tick()
        b = view.boundary(t)
        batch = mixture(b, spaced(t, 5), view.options.size)
        hessian = Hessian(objective(b, batch), b.trained.params)
        how = {"vectors": view.options.vectors, "steps": view.options.steps}
        q = quadrature(hessian, b.trained.params, fold(fold(b.random.base, "spectrum"), t), **how)
        value, radius = density(q, grid.to(q.nodes.device), 0.01)
        found = long_table(view.run.stream.seeds, value / radius[:, None], share=grid.tolist())
        found["eigenvalue"] = (grid * radius[:, None].cpu()).flatten().tolist()
        tables.append(labelled(found, after=t))
    return stack(tables)


PARTS: dict[str, Part] = {
    "barriers": barriers,
    "planes": planes,
    "random_planes": random_planes,
    "seeds": seeds,
    "joint": joint,
    "spectra": spectra,
}
ABSENT: dict[str, tuple[str, Callable[[View], str]]] = {  # optional parts, and why they are missing
    "seeds": ("seed-to-seed barriers", strangers),
    "joint": ("line to the joint solution", unaccompanied),
}
UNITS: dict[str, Callable[[View], int]] = {  # steps of the progress bar
    "barriers": lambda view: len(list(pairs(view))),
    "planes": lambda view: 3 if len(view.three) == 3 else 0,
    "random_planes": lambda view: len({0, view.last}),
    "seeds": lambda view: len(ALIGNED),
    "joint": lambda view: len(view.anchors),
    "spectra": lambda view: len(view.three),
}
