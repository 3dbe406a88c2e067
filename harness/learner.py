"""S seeds of one model trained as one program: stacked parameters, gradients, updates, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from harness import counting, rng, rows, tree
from harness.optim import Optimizer
from harness.rng import RandomStream
from harness.rows import stratified
from harness.types import (
    BEFORE,
    INPUTS,
    Aux,
    Batch,
    Buffers,
    GradFn,
    How,
    Loss,
    Model,
    Move,
    Moved,
    Net,
    Numbers,
    Out,
    Params,
    Source,
    Stream,
    Task,
)

# weights and running statistics of these seeds, which may lack some
Initial = Callable[[Sequence[int]], tuple[Params, Buffers]]

# at most so many bytes of inputs, and steps, are gathered at once; large ones alone, as nothing is gained
CHUNK, STEPS = 2**20, 100
KEPT = 64  # samples whose positions are kept


@dataclass(frozen=True)
class Budget:
    """Training length of a task: `steps`, or `epochs` of ceil(rows in an epoch / batch_size) steps."""

    epochs: int = 10
    steps: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"train.batch_size={self.batch_size}: must be at least 1")
        if self.steps is None and self.epochs < 1:
            raise ValueError(f"train.epochs={self.epochs}: must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"train.steps={self.steps}: must be at least 1")

    def epoch_steps(self, task: Task) -> int:
        """Optimizer steps in an epoch of this task; none if a strategy set its epoch to 0."""
        return math.ceil((task.rows if task.epoch is None else task.epoch) / self.batch_size)

    def of(self, task: Task) -> int:
        """Optimizer steps on this task."""
        steps = self.epoch_steps(task)
        return (self.steps or self.epochs * steps) if steps else 0


class Learner:
    """The nets of all seeds, with their data, randomness, losses, gradients, updates and evaluation."""

    def __init__(
        self,
        model: Model,
        stream: Stream,
        optimizer: Optimizer,
        budget: Budget,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        autocast: torch.dtype | None = None,
        pin: Mapping[str, int | None] | None = None,
        start: Initial | None = None,
    ) -> None:
        self.model, self.stream, self.optimizer, self.budget = model, stream, optimizer, budget
        self.seeds, self.S = stream.seeds, len(stream.seeds)
        self.device, self.dtype, self.autocast = torch.device(device), dtype, autocast
        self.pin = {k: v for k, v in (pin or {}).items() if v is not None}
        self.prefix = ""  # of every purpose: gives a sub-learner separate draws
        self.streams: dict[str, RandomStream] = {}
        self.params, self.buffers = self.fresh(self.key("init"))
        if start is not None:
            self._start(*start(self.seeds))
        self.apply = model.__call__
        self.alive = torch.ones(self.S, dtype=torch.bool, device=self.device)
        self.needs: frozenset[str] = frozenset()  # of the strategy
        self.compiled: Move | None = None  # `move` as one graph (harness/compiling)
        self.now, self.steps, self.planned = 0, 0, 1  # current task, its steps taken and planned
        self.epoch_steps = 1  # in one of its epochs
        self._one = torch.ones(self.S, device=self.device, dtype=dtype)
        self._share: dict[tuple[int, ...], Tensor] = {}
        self._samples: dict[tuple[str, int, int], tuple[ref[Source], tuple[Tensor, Tensor | None]]] = {}

    # --- randomness -------------------------------------------------------------------------------

    def key(self, purpose: str) -> Tensor:
        """The key [S] of a purpose. If the part before its / is pinned, all seeds share one key."""
        pinned = self.pin.get(purpose.partition("/")[0])
        seeds = self.seeds if pinned is None else [pinned] * self.S
        return rng.keys(seeds, self.prefix + purpose, self.device)

    def random(self, purpose: str) -> RandomStream:
        """The stream of a purpose: drawing from one never affects another."""
        if purpose not in self.streams:
            self.streams[purpose] = RandomStream(self.key(purpose))
        return self.streams[purpose]

    def fresh(self, key: Tensor) -> tuple[Params, Buffers]:
        """A fresh initialisation from `key` [S]."""
        made = self.model.init(key)
        params, buffers = ({k: self._cast(v) for k, v in part.items()} for part in made)
        return params, buffers

    def _cast(self, v: Tensor) -> Tensor:
        return v.to(self.device, self.dtype if v.is_floating_point() else None)

    def _start(self, params: Params, buffers: Buffers) -> None:
        """Replace initial weights and statistics. ValueError if the model has none of that name and shape."""
        for given, own in ((params, self.params), (buffers, self.buffers)):
            for name, value in given.items():
                shape = tuple(own[name].shape[1:]) if name in own else None
                if shape != tuple(value.shape[1:]):
                    raise ValueError(
                        f"start: {name} is {list(value.shape[1:])} there, and here {shape and list(shape)}"
                    )
                own[name] = self._cast(value).clone()

    # --- batches ----------------------------------------------------------------------------------

    def make_batch(self, x: Tensor, y: Tensor, t: Tensor, w: Tensor | None = None) -> Batch:
        """A batch under the current task's mask; `w` defaults to 1/B."""
        w = self._mean(t.shape[0], t.shape[1]) if w is None else w
        return Batch(x, y, t, w, self.stream.mask(t, self.now))

    def _mean(self, *shape: int) -> Tensor:
        """The weights [S, B] of a mean: 1 / B."""
        if shape not in self._share:
            self._share[shape] = torch.full(shape, 1 / shape[1], device=self.device, dtype=self.dtype)
        return self._share[shape]

    def batches(self, task: Task) -> Iterator[Batch]:
        """The planned number of fresh batches of the task's training rows: all of them, if those are fewer."""
        size, key = min(self.budget.batch_size, task.rows), rng.fold(self.key("order"), task.index)
        keys = self.random("dropout") if self.model.stochastic else None
        # only training rows are augmented: not tests, probes, or memories filled from a task
        vary = rng.fold(self.key("augment"), task.index) if getattr(task.train, "augmented", False) else None
        block = size * max(1, min(self.planned, self.budget.epoch_steps(task)))  # one epoch's order at a time
        most = 1  # steps whose rows are gathered at once: one, until its bytes are known
        for start in range(0, self.planned * size, block):
            stop = min(start + block, self.planned * size)
            if task.ordered:
                order = torch.arange(start, stop, device=self.device) % task.train.size[:, None]
            else:
                order = rows.order(key, task.train.size, start, stop)
            while start < stop:
                position, order = order.tensor_split([most * size], 1)
                drawn = () if vary is None else (rng.fold(vary, start // size),)
                taken = task.train.take(position, *drawn)
                for batch in self._steps(*taken, position.shape[1] // size):
                    yield replace(batch, key=keys.key()) if keys else batch
                if most == 1 and vary is None:
                    most = min(STEPS, CHUNK // taken[0].nbytes) if taken[0].nbytes <= CHUNK // 8 else 1
                start += position.shape[1]

    def _steps(self, x: Tensor, y: Tensor, t: Tensor, steps: int) -> Iterator[Batch]:
        """The batches of so many steps, from the rows of all of them."""
        if steps == 1:
            yield self.make_batch(x, y, t)
            return
        mask, w = self.stream.mask(t, self.now), self._mean(t.shape[0], t.shape[1] // steps)
        masks = [mask] * steps if mask is None or mask.shape[1] == 1 else rows.by_step(mask, steps)
        for x1, y1, t1, mask1 in zip(*(rows.by_step(v, steps) for v in (x, y, t)), masks):
            yield Batch(x1, y1, t1, w, mask1)

    def scan(self, source: Source, size: int = 1000, limit: int | None = None) -> Iterator[Batch]:
        """The source's rows in order; the sum of (w * nll).sum(1) over the batches is the mean loss.

        w = 1 / (rows of that seed), 0 on padding; `limit` scans only the first rows.
        """
        count = source.size if limit is None else source.size.clamp(max=limit)
        for position in torch.arange(int(count.max()), device=self.device).split(size):
            inside = position < count[:, None]
            x, y, t = source.take(position.minimum((source.size - 1).clamp(min=0)[:, None]))
            yield self.make_batch(x, y, t, inside.to(self.dtype) / count[:, None])

    def probe(self, task: Task, size: int = 512, split: str = "train") -> Batch:
        """A fixed class-stratified sample of the task's train, val or test rows, the same for the whole run."""
        source: Source = getattr(task, split)
        purpose = f"probe/{task.index}" if split == "train" else f"probe/{task.index}/{split}"
        return self._sample(source, min(size, int(source.size.max())), purpose)

    def _sample(self, source: Source, size: int, purpose: str) -> Batch:
        """`size` rows of each seed. A seed with fewer repeats rows; the weights then count each row once.

        The weights of a seed without rows are NaN, and so is every mean. ValueError if no seed has any.
        """
        if not size:
            raise ValueError(f"{purpose}: there are no rows to sample")
        position, w = self._picked(source, size, purpose)
        return self.make_batch(*source.take(position), w)

    def _picked(self, source: Source, size: int, purpose: str) -> tuple[Tensor, Tensor | None]:
        """The positions of a sample, and its weights unless they are equal; the latest are kept: to sort takes long."""
        name = self.prefix + purpose, size, id(source)
        kept = self._samples.get(name)
        if kept is not None and kept[0]() is source:
            return kept[1]
        picked = self._pick(source, size, purpose)
        if len(self._samples) >= KEPT:
            self._samples.clear()
        with suppress(TypeError):  # a source that allows no weak reference is sorted again each time
            self._samples[name] = ref(source), picked
        return picked

    def _pick(self, source: Source, size: int, purpose: str) -> tuple[Tensor, Tensor | None]:
        label, key = source.labels(), self.key(purpose)
        count = (label >= 0).sum(1)
        if int(count.min()) >= size:
            return stratified(label, size, key), None
        slot = torch.arange(size, device=self.device)
        rounds = [slot % max(1, min(size, n)) for n in count.tolist()]
        picked = [stratified(label[s : s + 1], min(size, int(n)), key[s : s + 1])[0] for s, n in enumerate(count)]
        position = torch.stack([p[r] if len(p) else slot * 0 for p, r in zip(picked, rounds)])
        w = torch.stack([r.bincount()[r] * len(p) for p, r in zip(picked, rounds)]).to(self.dtype).reciprocal()
        return position, w.masked_fill(count[:, None] == 0, math.nan)

    # --- loss and gradient ------------------------------------------------------------------------

    def competing(self) -> Tensor | None:
        """Outputs that compete in the current task: [S or 1, C]; None: all of them."""
        mask = self.stream.mask(torch.full((self.S, 1), self.now, device=self.device), self.now)
        return None if mask is None else mask[:, 0]

    def row_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss of each row [S, B]: masked cross-entropy in nats, or mean squared error over outputs."""
        return row_loss(self.stream.loss, logits, batch)

    def task_loss(self, params: Params, batch: Batch, train: bool = True) -> tuple[Tensor, Out]:
        """Weighted loss of each seed [S], and the forward pass: under `autocast`, if the learner has it."""
        how: How = {"train": train, "key": batch.key, "record": train and INPUTS in self.needs}
        if self.autocast is None:
            out = self.apply(params, self.buffers, batch.x, batch.t, **how)
        else:
            with torch.autocast(self.device.type, self.autocast):
                out = self.apply(params, self.buffers, batch.x, batch.t, **how).to(self.dtype)
        return (batch.w * self.row_loss(out.logits, batch)).sum(1), out

    def task_grad(self, params: Params, batch: Batch) -> Params:
        """Gradient of the task loss, without penalties."""
        return self.value_and_grad(lambda *_: 0.0)(params, batch)[0]

    def value_and_grad(self, penalty: Any) -> GradFn:
        """The gradient of task loss plus `penalty(learner, params, batch, out)`."""

        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            counting.count("gradients")
            with torch.enable_grad():
                leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
                loss, out = self.task_loss(leaves, batch)
                extra = penalty(self, leaves, batch, out)
                total = loss + extra if isinstance(extra, Tensor) or extra else loss
                # seeds own disjoint parameters: the gradient of the sum is each seed's own; grad_outputs would do as
                # well, but torch then imports sympy
                grads = torch.autograd.grad(
                    total.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
                )
            added = extra.detach() if isinstance(extra, Tensor) else extra
            return dict(zip(leaves, grads)), Aux(total.detach(), out.detach(), added)

        return gradient

    def set_lr(self) -> None:
        """Set the optimizer's learning rate for the next step, by its schedule."""
        if self.optimizer.schedule != "constant":
            done = self.steps / self.planned
            if self.optimizer.scope == "stream":
                done = (self.now + done) / len(self.stream.tasks)
            self.optimizer.set_progress(done, self.now)

    def advance(self, gradient: GradFn, batch: Batch) -> Moved:
        """One optimizer step on a batch."""
        self.set_lr()
        moved = (self.compiled or self.move)(gradient, self.params, batch, self.optimizer.numbers())
        self.buffers = moved.aux.out.buffers or self.buffers
        self.steps += 1
        return moved

    def move(self, gradient: GradFn, params: Params, batch: Batch, numbers: Numbers) -> Moved:
        """The part of a step that is tensor arithmetic alone: it may be compiled (harness/compiling)."""
        grads, aux = gradient(params, batch)
        before = tree.copy(params) if BEFORE in self.needs else {}
        self.optimizer.move(params, grads, numbers)
        return Moved(grads, aux, before)

    def descend(self, batches: Iterable[Batch]) -> Iterator[None]:
        """One plain step on each batch, without any strategy."""
        gradient = self.value_and_grad(lambda *_: 0.0)
        for batch in batches:
            self.advance(gradient, batch)
            yield

    def enter(self, task: Task) -> None:
        """Make a task the current one."""
        self.now, self.steps = task.index, 0

    def plan(self, task: Task) -> None:
        """Set the number of steps for the task that `begin` returned; reset the optimizer if configured."""
        self.planned, self.epoch_steps = self.budget.of(task), self.budget.epoch_steps(task)
        if self.optimizer.reset_each_task and self.now:
            self.optimizer.reset()

    # --- evaluation -------------------------------------------------------------------------------

    @property
    def net(self) -> Net:
        """The trained net."""
        return Net(self.params, self.buffers, self.apply)

    @torch.no_grad()
    def evaluate(
        self, net: Net, source: Source, *, size: int = 2048, samples: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score and mean loss of each seed over the source's rows: [S], [S].

        The score is accuracy for classification and minus the mean squared error for regression.
        With `samples`, a fixed class-stratified subset is used, else `size` rows at a time, of all seeds together. A
        diverged seed scores NaN.
        """
        if samples is not None:
            whole = self._sample(source, samples, "probe/evaluate")
            batches: Any = [whole]
        else:
            batches = self.scan(source, max(1, size // self.S))
        score = loss = total = torch.zeros(self.S, device=self.device, dtype=torch.float64)
        for batch in batches:
            logits = net(batch.x, batch.t).logits
            nll = self.row_loss(logits, batch)
            if self.stream.loss == "mse":
                right = -nll
            else:
                right = (mask_logits(logits, batch.mask).argmax(-1) == batch.y).to(self.dtype)
            used = batch.w > 0
            score = score + torch.where(used, batch.w * right, 0).sum(1, dtype=torch.float64)
            loss = loss + torch.where(used, batch.w * nll, 0).sum(1, dtype=torch.float64)
            total = total + batch.w.sum(1, dtype=torch.float64)
        # the weights sum to 1 only within 1e-7 in float32: without the division accuracy could exceed 1
        return (score / total).masked_fill(~self.alive, math.nan), (loss / total).masked_fill(~self.alive, math.nan)

    def objective(
        self, batches: Sequence[Batch], stream: Stream, now: int, buffers: Buffers | None = None, apply: Any = None
    ) -> Loss:
        """Mean loss of the batches in evaluation mode, all under the mask of task `now`."""
        masked = [replace(b, mask=stream.mask(b.t, now)) for b in batches]
        apply, buffers = apply or self.apply, self.buffers if buffers is None else buffers

        def loss(params: Params) -> Tensor:
            total = torch.zeros_like(self._one)
            for b in masked:
                logits = apply(params, buffers, b.x, b.t).logits
                total = total + (b.w * row_loss(stream.loss, logits, b)).sum(1)
            return total / len(masked)

        return loss

    def mark_diverged(self) -> None:
        """Mark seeds whose parameters are no longer finite; the mark stays."""
        self.alive = self.alive & tree.finite(self.params)

    # --- copies and state -------------------------------------------------------------------------

    def sub(self, name: str, model: Model, optimizer: Optimizer) -> Learner:
        """A further network for a strategy (a generator, a teacher), with separate parameters, optimizer and draws.

        Create it in `setup` and keep it as an attribute: it has a state_dict.
        """
        other = object.__new__(Learner)
        other.__dict__ = dict(self.__dict__)
        other.model, other.apply, other.optimizer = model, model.__call__, optimizer
        other.prefix, other.streams, other.needs = f"{self.prefix}{name}/", {}, frozenset()
        other.compiled = None
        other.params, other.buffers = other.fresh(other.key("init"))
        other.alive = self.alive.clone()
        return other

    def clone(self) -> Learner:
        """An independent copy that continues with the same draws and shares no tensor."""
        other = object.__new__(Learner)
        other.__dict__ = dict(self.__dict__)
        other.optimizer = object.__new__(type(self.optimizer))
        other.optimizer.__dict__ = dict(self.optimizer.__dict__)
        other.streams = {k: RandomStream(s.base, s.count) for k, s in self.streams.items()}
        other.needs, other.compiled = frozenset(), None
        other.load_state_dict(self.state_dict())
        return other

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, as tensors and primitives."""
        return {
            "params": self.params,
            "buffers": self.buffers,
            "alive": self.alive,
            "optimizer": self.optimizer.state_dict(),
            "random": {k: s.count for k, s in self.streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.params = tree.copy({k: v.to(self.device) for k, v in state["params"].items()})
        self.buffers = tree.copy({k: v.to(self.device) for k, v in state["buffers"].items()})
        self.alive = state["alive"].to(self.device).clone()
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.to(self.device)
        for purpose, count in state["random"].items():
            self.random(purpose).count = count


def mask_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Set logits that do not compete to minus infinity."""
    return logits if mask is None else logits.masked_fill(~mask, -math.inf)


def row_loss(kind: str, logits: Tensor, batch: Batch) -> Tensor:
    """Loss of each row: [S, B]."""
    if kind == "mse":
        return (logits - batch.y).square().mean(-1)
    flat = mask_logits(logits, batch.mask).flatten(0, 1)
    return torch.nn.functional.cross_entropy(flat, batch.y.flatten(), reduction="none").view_as(batch.w)
