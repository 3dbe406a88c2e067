"""What is merged: the nets of one run, or the last nets of several, with their base and their statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import store, tree
from harness.boundary import Boundary
from harness.finished.measure import Opened, opened
from harness.finished.merge_options import MergeOptions
from harness.landscape import paths
from harness.landscape.fisher import diagonal_on
from harness.merging.means import grams
from harness.merging.table import Given
from harness.metrics import score, spaced
from harness.rng import fold
from harness.types import Batch, Net, Params

PROBED = 5  # tasks that a loss is a mean over, where a net has learnt more


@dataclass(frozen=True)
class Pool:
    """Nets of one model on one stream. All losses and scores are under the last task's mask, in evaluation mode."""

    run: Opened  # the first one: its stream, model and base
    names: tuple[str, ...]  # of the nets
    nets: tuple[Net, ...]
    own: tuple[tuple[int, ...], ...]  # tasks that each net has learnt: its own, or all
    base: Params | None  # the initial net; None: they have none in common
    options: MergeOptions

    @property
    def last(self) -> int:
        return len(self.run.stream.tasks) - 1

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.run.stream.seeds

    @property
    def anchors(self) -> tuple[int, ...]:
        """Places of the nets that are compared in pairs."""
        return spaced(len(self.nets) - 1, self.options.pairs)

    @property
    def classes(self) -> bool:
        return self.run.stream.loss != "mse"

    @cached_property
    def boundary(self) -> Boundary:
        """The end of the last task."""
        learner, net = self.run.learner, self.nets[-1]
        learner.enter(self.run.stream.tasks[self.last])
        empty, random = torch.empty(learner.S, 0), learner.random("merge")
        nets: Any = None
        return Boundary(self.last, "end", self.run.stream, learner, net, net, nets, empty, empty, random)

    def tasks(self, places: Sequence[int]) -> tuple[int, ...]:
        """The tasks that these nets have learnt."""
        return tuple(sorted({t for i in places for t in self.own[i]}))

    def probes(self, tasks: Sequence[int], split: str = "train") -> list[Batch]:
        """A fixed sample of each task's training or validation rows."""
        size = self.options.size if split == "train" else self.options.rows
        return [self.boundary.probe(t, size, split) for t in tasks]

    def few(self, tasks: Sequence[int]) -> tuple[int, ...]:
        """At most `PROBED` of the tasks, spread evenly."""
        return tuple(tasks[i] for i in spaced(len(tasks) - 1, PROBED))

    def fitted(self, params: Params, tasks: Sequence[int]) -> Net:
        """A net with these parameters; running statistics are those of training rows of the tasks."""
        net = Net(params, self.nets[0].buffers, self.nets[0].apply)
        if not net.buffers:
            return net
        batches = self.probes(self.few(tasks))
        return paths.refresh(net, [(torch.cat([b.x for b in batches], 1), torch.cat([b.t for b in batches], 1), None)])

    def validated(self, params: Params, tasks: Sequence[int]) -> Tensor:
        """Mean score over the tasks on validation rows: accuracy, or minus the squared error: [S]."""
        net = self.fitted(params, tasks)
        found = torch.stack([score(self.boundary, net, batch) for batch in self.probes(tasks, "val")], 1)  # [S, m, 2]
        value = (1 - found[..., 1] if self.classes else -found[..., 0]).mean(1)
        return value.masked_fill(~tree.finite(params), math.nan)

    def tested(self, net: Net, tasks: Sequence[int], samples: int | None = None) -> tuple[Tensor, Tensor]:
        """Score and loss on test rows of each task: [S, tasks] each."""
        learner, size = self.run.learner, self.run.setting.evaluation.batch_size
        found = [learner.evaluate(net, self.run.stream.tasks[t].test, size=size, samples=samples) for t in tasks]
        lost = ~tree.finite(net.params)[:, None]  # NaN for all logits would be a vote for the first class
        scores, losses = (torch.stack(part, 1).masked_fill(lost, math.nan) for part in zip(*found))
        return scores, losses

    @cached_property
    def given(self) -> Given:
        """What the methods may use, without the statistics of `measured`."""
        model, nets = self.run.learner.model, [net.params for net in self.nets]
        return Given(nets, self.base, model.units, model.layers, (), (), fold(self.boundary.random.base, "dare"))

    def measured(self, moments: bool, information: bool) -> Given:
        """`given` with each net's input moments or Fisher information, on probes of the tasks that it has learnt.

        The labels of the Fisher information are those that competed when the net was trained.
        """
        given, learner = self.given, self.run.learner
        found: tuple[list[Mapping[str, Tensor]], list[Params]] = ([], [])
        for net, own in zip(self.nets, self.own):
            tasks = self.few(own)
            learner.enter(self.run.stream.tasks[own[-1]])
            batches = [learner.probe(self.run.stream.tasks[t], self.options.size) for t in tasks]
            batches = [replace(b, w=b.w / len(batches)) for b in batches]
            if moments:
                found[0].append(grams(net, given.layers, batches))
            if information:
                learner.params, learner.buffers = net.params, net.buffers
                found[1].append(diagonal_on(learner, batches, "exact", self.boundary.random))
        learner.enter(self.run.stream.tasks[self.last])
        return replace(given, moments=found[0] or [{}] * len(self.nets), information=found[1] or [{}] * len(self.nets))


@contextmanager
def pooled(
    runs: Sequence[Path], options: MergeOptions, changes: Mapping[str, Any], trust: Sequence[str]
) -> Iterator[Pool]:
    """The nets of one run, or the last nets of several, with the runs locked.

    ValueError if a run is not finished, did not keep its nets, was scored on validation rows, needs state that was not
    kept to evaluate them, names code that is not allowed (`trust.safe`), or has another stream or model than the first.
    """
    if len({path.resolve() for path in runs}) < len(runs):
        raise ValueError("merge: a run is named twice; name different runs")
    with ExitStack() as stack:
        folders = [stack.enter_context(store.RunFolder.reopen(path)) for path in runs]
        first = folders[0]
        if len(folders) == 1:
            first.needs_nets()
        for other in folders[1:]:
            _comparable(first, other)
        run = opened(first, changes, trust)
        if run.setting.split != "test":
            raise ValueError(
                f"{first.path}: eval.split=val leaves no other rows to choose coefficients on; merge a run with"
                " eval.split=test"
            )
        if run.learner.apply != run.learner.model.__call__:
            raise ValueError(f"{first.path}: its nets need state of the strategy that was not kept")
        if int(run.stream.tasks[0].val.size.min()) == 0:
            raise ValueError(
                f"{first.path}: has no validation rows to choose coefficients on; rerun it with dataset.val=0.1"
            )
        pool = _of_one(run, options) if len(folders) == 1 else _of_several(run, folders, options)
        run.learner.enter(run.stream.tasks[pool.last])
        run.learner.alive = torch.stack([tree.finite(net.params) for net in pool.nets]).all(0)
        yield pool


def _of_one(run: Opened, options: MergeOptions) -> Pool:
    total = len(run.stream.tasks)
    if total < 2:
        raise ValueError(f"{run.folder.path}: has one task, and so one net; merge it with other runs")
    nets = tuple(run.net(t) for t in range(total))
    names, own = tuple(f"task {t + 1}" for t in range(total)), tuple((t,) for t in range(total))
    return Pool(run, names, nets, own, run.net(store.INITIAL).params, options)


def _of_several(run: Opened, folders: Sequence[store.RunFolder], options: MergeOptions) -> Pool:
    last = len(run.stream.tasks) - 1
    nets = tuple(run.loaded(folder.net(last)) for folder in folders)
    names = tuple(str(folder.manifest["run_id"]) for folder in folders)
    base: Params | None = None
    if all(folder.has_net(store.INITIAL) for folder in folders):
        base, *others = (run.loaded(folder.net(store.INITIAL)).params for folder in folders)
        if any(not torch.equal(v, other[k]) for other in others for k, v in base.items()):
            base = None
    return Pool(run, names, nets, (tuple(range(last + 1)),) * len(nets), base, options)


def _comparable(first: store.RunFolder, other: store.RunFolder) -> None:
    a, b = first.manifest, other.manifest
    if a["stream_hash"] != b["stream_hash"] or len(a["seeds"]) != len(b["seeds"]):
        raise ValueError(
            f"{other.path}: has another stream or number of seeds than {first.path}; merge runs on one stream"
            " (equal seeds, or pin.stream=0)"
        )
    if a["config"]["model"] != b["config"]["model"]:
        raise ValueError(f"{other.path}: has another model than {first.path}; merge nets of one model")
