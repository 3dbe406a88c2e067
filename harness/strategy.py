"""A method as eight hooks, each the identity by default, and a chain of methods."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from harness import returns
from harness.rng import RandomStream
from harness.types import Aux, Batch, GradFn, Model, Net, Out, Params, Step, Stream, Task

if TYPE_CHECKING:
    from harness.learner import Learner

HOOKS = ("setup", "begin", "batch", "loss", "grad", "step", "end", "deploy")

# Ranks for Strategy.order, hook by hook. A lower rank belongs earlier in the list (for grad: further in).
# begin
RENEW = 0  # change weights, data or optimizer state: joint, reset, shrink_perturb
HOLD = 90  # keep the first task's weights, against whatever came before: frozen, slda (also in step and end)
# batch
READ = 40  # use the rows as they are: lwf
APPEND = 50  # add rows: replay
# grad
RECORD = 0  # look at the plain gradient: si
PERTURB = 20  # take it at other weights: sam, cflat
PROJECT = 40  # constrain it: agem, gem
RESCALE = 90  # scale single entries: hat
# step
GATE = -10  # change the update itself: upgd
CONSTRAIN = 0  # restrict or measure the update: gpm, owm, hat, si
REPLACE = 50  # change weights further: cbp, redo, shrink_perturb
AVERAGE = 90  # follow the weights: ema, hare_tortoise
# end
EDIT = 0  # change weights: interpolate, mcsgd, gdumb
ESTIMATE = 50  # measure at the final weights: ewc, mas, si, lwf, gpm
# deploy
WEIGHTS = 0  # other weights: ema, imm
READOUT = 50  # another read-out: ncm, icarl, slda


class Strategy:
    """Identity in every hook: the base class is naive fine-tuning.

    Its attributes are its state: tensors, numbers, strings, lists and dicts of these, Nets, and objects with a
    state_dict. Attributes listed in `transient` are not saved; `setup` must rebuild them.
    """

    name: str = "strategy"  # its key in the configuration; by default the class name in snake case
    family: str = "control"  # one of van de Ven, Soures & Kudithipudi's (2024) six, or plasticity, control
    scenarios: tuple[str, ...] = ("task", "domain", "class")
    why: str = ""  # reason for excluding the other scenarios, as a clause
    needs: frozenset[str] = frozenset()  # types.BEFORE, types.INPUTS
    order: dict[str, int] = {}  # hook -> rank, one of those above
    transient: tuple[str, ...] = ()
    grid: Mapping[str, Sequence[Any]] = {}  # argument -> values that tuning tries; the main argument comes first
    alone: bool = False  # replaces the training loop; cannot be combined
    random: RandomStream  # for its draws; set before setup

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def setup(self, learner: Learner) -> None:
        """Once: allocate state as zeros, which avoids a special first task; may add parameters."""

    def begin(self, learner: Learner, task: Task) -> Task:
        """Before a task's first step: may edit parameters or return different data (epoch=0: no step)."""
        return task

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        """Once a step: draw random numbers and read memories here, never in loss or grad."""
        return batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        """A penalty [S], differentiable in params and pure: sharpness-aware methods call it twice a step."""
        return 0.0

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        """Wrap the gradient function. Called once; the wrapper may call `inner` several times."""
        return inner

    def step(self, learner: Learner, step: Step) -> None:
        """After the optimizer's update, without gradients: may edit parameters, fill memories."""

    def end(self, learner: Learner, task: Task) -> None:
        """After a task's last step, before the metrics: estimate, merge, distil."""

    def deploy(self, learner: Learner, net: Net) -> Net:
        """The net whose accuracy is measured; changes nothing."""
        return net

    def curvature(self, learner: Learner) -> Tensor | float:
        """Largest eigenvalue of its penalty's Hessian in this task [S], if the penalty is quadratic; otherwise 0."""
        return 0.0

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        """What to say before a run that works, but not as the method is meant on this stream or model, with remedy."""
        return []

    @property
    def purpose(self) -> str:
        """Key of its random stream and its saved state: changing it changes results."""
        return type(self).__name__

    @property
    def needs_boundaries(self) -> bool:
        """Whether it acts at task boundaries; if so, boundaries=hidden refuses it."""
        return self.overrides("begin") or self.overrides("end")

    def overrides(self, hook: str) -> bool:
        """Whether this strategy defines `hook`."""
        return getattr(type(self), hook) is not getattr(Strategy, hook)

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.name

    def holds(self) -> Any:
        """What counts as its memory: anything that contains tensors, or types.Bytes."""
        return self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, as tensors and primitives."""
        skip = {*self.transient, "random", "name"}
        return {k: _pack(v, f"{self.name}.{k}") for k, v in vars(self).items() if k not in skip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for k, v in state.items():
            setattr(self, k, _unpack(v, getattr(self, k, None)))


def _pack(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Net):
        return {"__net__": {"params": value.params, "buffers": value.buffers}}
    if isinstance(value, (list, tuple)):
        kind = "__tuple__" if isinstance(value, tuple) else "__list__"
        return {kind: [_pack(v, f"{where}[{i}]") for i, v in enumerate(value)]}
    if isinstance(value, dict):
        return {"__dict__": [[k, _pack(v, f"{where}[{k!r}]")] for k, v in value.items()]}
    if hasattr(value, "state_dict"):
        return {"__state__": value.state_dict()}
    raise TypeError(
        f"{where} is a {type(value).__name__}: only tensors and numbers can be saved; list it in `transient`"
    )


def _unpack(value: Any, present: Any) -> Any:
    if isinstance(value, Tensor):  # a checkpoint comes back on the CPU
        return value.to(present.device if isinstance(present, Tensor) else value.device, copy=True)
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == "__net__":
        if not isinstance(present, Net):
            raise ValueError("a saved Net needs a Net to load into; allocate it in setup")
        return Net(inner["params"], inner["buffers"], present.apply)
    if kind == "__state__":
        present.load_state_dict(inner)
        return present
    if kind == "__dict__":
        old = present if isinstance(present, dict) else {}
        return {k: _unpack(v, old.get(k)) for k, v in inner}
    old_items = list(present) if isinstance(present, (list, tuple)) else []
    items = [_unpack(v, old_items[i] if i < len(old_items) else None) for i, v in enumerate(inner)]
    return tuple(items) if kind == "__tuple__" else items


class Chain(Strategy):
    """Strategies in list order.

    `begin`, `batch` and `deploy` thread left to right, `loss` sums, `grad` nests (the last is
    outermost), `step` and `end` run in order. A part that does not define a hook costs nothing there. In the first step
    of every task, what each part returns is checked; the shape of a penalty always is.
    """

    checking = True  # until the first step of a task is done
    unproven = True  # until the net that is deployed has been tried

    def __init__(self, parts: Sequence[Strategy]) -> None:
        self.parts = list(parts)
        listed = f"strategy=[{','.join(p.name for p in self.parts)}]"
        for a, b in itertools.combinations(self.parts, 2):
            if a.purpose == b.purpose:
                raise ValueError(
                    f"{listed}: {a.name} is listed twice"
                    if a.name == b.name
                    else f"{listed}: {a.name} and {b.name} cannot be combined: both are {a.purpose}"
                )
        for p in self.parts:
            if p.alone and len(self.parts) > 1:
                raise ValueError(f"{listed}: {p.name} replaces the training loop; use strategy={p.name} alone")
        self.active = {h: [p for p in self.parts if p.overrides(h)] for h in HOOKS}
        self.needs = frozenset().union(*(p.needs for p in self.parts))

    def disorder(self) -> list[str]:
        """A sentence for each order known to be wrong. The chain never sorts: the order is the user's choice."""
        found = []
        for hook in HOOKS:
            ranked = [p for p in self.active[hook] if hook in p.order]
            for a, b in itertools.pairwise(ranked):
                if a.order[hook] > b.order[hook]:
                    found.append(f"{b.name} should come before {a.name} (both act in `{hook}`)")
        return found

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        return [f"{p.name}: {line}" for p in self.parts for line in p.remarks(stream, model)]

    def setup(self, learner: Learner) -> None:
        for p in self.parts:
            p.random = learner.random(f"strategy/{p.purpose}")
        for p in self.active["setup"]:
            known, form = set(learner.params), returns.form(learner)
            try:
                returns.nothing(p.name, "setup", p.setup(learner))  # type: ignore[func-returns-value]
            except ValueError as error:
                if said := full_key(p.name, inspect.signature(type(p)).parameters, error):
                    raise ValueError(said) from error
                raise
            if set(learner.params) != known and p is not self.parts[0]:
                names = [p.name, *(other.name for other in self.parts if other is not p)]
                raise ValueError(
                    f"strategy={p.name}: adds parameters, so it must come first; use strategy=[{','.join(names)}]"
                )
            returns.added(p.name, form, learner)

    def begin(self, learner: Learner, task: Task) -> Task:
        self.checking = self.unproven = True
        for p in self.active["begin"]:
            form = returns.form(learner)
            data = p.begin(learner, task)
            returns.begun(p.name, data)
            returns.kept(p.name, "begin", form, learner)
            task = replace(data, epoch=0) if task.epoch == 0 else data  # a skipped task stays skipped
        return task

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        for p in self.active["batch"]:
            given, batch = batch, p.batch(learner, batch)
            if self.checking:
                returns.batch(p.name, batch, given, learner)
        return batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        total: Tensor | float = 0.0
        for p in self.active["loss"]:
            extra = p.loss(learner, params, batch, out)
            returns.penalty(p.name, extra, learner, params, values=self.checking)
            total = total + extra
        return total

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        for p in self.active["grad"]:
            inner = self._checked(p, learner, p.grad(learner, inner))
        return inner

    def _checked(self, part: Strategy, learner: Learner, gradient: GradFn) -> GradFn:
        if not callable(gradient):
            returns.refuse(part.name, "grad", f"returned {returns.shown(gradient)}; expected a function as `inner` is")

        def checked(params: Params, batch: Batch) -> tuple[Params, Aux]:
            made = gradient(params, batch)
            if self.checking:
                returns.gradients(part.name, made, params, learner)
            return made

        return checked

    def step(self, learner: Learner, step: Step) -> None:
        for p in self.active["step"]:
            form = returns.form(learner) if self.checking else None
            made = p.step(learner, step)  # type: ignore[func-returns-value]
            if form is not None:
                returns.nothing(p.name, "step", made)
                returns.kept(p.name, "step", form, learner)
        self.checking = False

    def end(self, learner: Learner, task: Task) -> None:
        self.unproven = True
        for p in self.active["end"]:
            form = returns.form(learner)
            returns.nothing(p.name, "end", p.end(learner, task))  # type: ignore[func-returns-value]
            returns.kept(p.name, "end", form, learner)

    def deploy(self, learner: Learner, net: Net) -> Net:
        for p in self.active["deploy"]:
            net = p.deploy(learner, net)
            if self.unproven:
                returns.deployed(p.name, net, learner)
        self.unproven = False
        return net

    @property
    def plain(self) -> bool:
        """Whether no part defines a hook: naive fine-tuning."""
        return not any(self.active.values())

    def state_dict(self) -> dict[str, Any]:
        return {p.purpose: p.state_dict() for p in self.parts}

    def holds(self) -> Any:
        return [p.holds() for p in self.parts]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for p in self.parts:
            p.load_state_dict(state[p.purpose])


def full_key(name: str, arguments: Container[str], error: BaseException | None) -> str:
    """A strategy's complaint about an argument, under its full key; "" for any other error.

    >>> full_key("online_ewc", {"gamma"}, ValueError("gamma=2: must be in [0, 1]"))
    'strategy.online_ewc.gamma=2: must be in [0, 1]'
    """
    word = re.match(r"(\w+)[=.]", str(error)) if isinstance(error, ValueError) else None
    return f"strategy.{name}.{error}" if word and word[1] in arguments else ""
