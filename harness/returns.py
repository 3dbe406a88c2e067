"""Checks of what own code returns, where it enters. A complaint names the strategy, the hook and the remedy.

Shapes are compared at every call, since that costs no synchronisation; values only if asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from harness.types import Aux, Batch, Net, Out, Params, Reading, Task

if TYPE_CHECKING:
    from harness.learner import Learner

SUM = "sum over everything but the first axis, as in (p - a).square().flatten(1).sum(1)"
TAME = 1e3  # parameters below it do not overflow a penalty: one that is not finite is at fault itself
Form = dict[str, tuple[torch.Size, torch.dtype, torch.device]]


def refuse(name: str, hook: str, what: str) -> NoReturn:
    """Raise one line about a strategy's hook."""
    raise ValueError(f"strategy={name}: `{hook}` {what}")


def shown(value: Any) -> str:
    """A value in a message: a tensor by its shape, anything else by its type.

    >>> shown(torch.zeros(2, 3)), shown(torch.tensor(1.0)), shown(None), shown(Net)
    ('a tensor [2, 3]', 'a 0-dim tensor', 'None', 'a type')
    """
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}" if value.dim() else "a 0-dim tensor"
    return "None" if value is None else f"a {type(value).__name__}"


def nothing(name: str, hook: str, value: Any) -> None:
    """A hook that acts in place returned a value, which would be lost."""
    if value is not None:
        refuse(name, hook, f"returned {shown(value)}, which is not used; edit learner.params in place instead")


def begun(name: str, value: Any) -> None:
    """What `begin` returned."""
    if not isinstance(value, Task):
        refuse(name, "begin", f"returned {shown(value)}; expected a Task: end it with `return task`")


def penalty(name: str, value: Any, learner: Learner, params: Params, *, values: bool = True) -> None:
    """What `loss` returned: 0.0, or a differentiable tensor [S]. `values`: also look at its numbers."""
    if not values and isinstance(value, Tensor) and value.dim() == 1 and len(value) == learner.S:
        return  # in every later step
    if isinstance(value, (int, float)):
        if value != 0:
            refuse(name, "loss", f"returned the number {value}, which has no gradient; return a tensor [S] of `params`")
        return
    S = learner.S
    if not isinstance(value, Tensor):
        refuse(name, "loss", f"returned {shown(value)}; expected 0.0 or a tensor [S] = [{S}]")
    if value.shape != (S,):
        refuse(name, "loss", f"returned {shown(value)}; expected one penalty for each seed, [{S}]: {SUM}")
    if value.device.type != learner.device.type or not value.is_floating_point():
        refuse(
            name,
            "loss",
            f"returned {value.dtype} on {value.device}; expected a floating-point tensor on {learner.device}",
        )
    value = value.detach() if (attached := value.requires_grad) else value
    wanted = torch.is_grad_enabled() and any(p.requires_grad for p in params.values())
    if wanted and not attached and bool((value != 0).any()):
        refuse(name, "loss", "does not depend on `params`; compute it from that argument, without no_grad or detach")
    wrong = ~value.isfinite() & learner.alive
    if bool(wrong.any()):
        small = torch.stack(
            [p.detach().reshape(len(p), -1).abs().amax(1) < TAME for p in params.values() if p.numel()]
        ).all(0)
        if bool((wrong & small).any()):
            refuse(name, "loss", f"is not finite: {value.tolist()}; look for a division by 0 or the log of 0 in it")


def batch(name: str, value: Any, given: Batch, learner: Learner) -> None:
    """What `batch` returned for the batch `given`."""
    if not isinstance(value, Batch):
        refuse(name, "batch", f"returned {shown(value)}; expected a Batch: end it with `return batch`")
    for field in ("x", "y", "t", "w"):
        if not isinstance(getattr(value, field), Tensor):
            refuse(name, "batch", f"returned {shown(getattr(value, field))} as {field}; expected a tensor [S, B, ...]")
    S, B = learner.S, value.x.shape[1] if value.x.dim() > 1 else 0
    for field in ("x", "y", "t", "w"):
        tensor, like = getattr(value, field), getattr(given, field)
        if tensor.shape != (S, B, *like.shape[2:]):
            expected = f"expected {[S, B, *like.shape[2:]]}, because x has {B} rows a seed"
            refuse(name, "batch", f"returned {field} {list(tensor.shape)}; {expected}")
        if tensor.device != like.device:
            refuse(name, "batch", f"returned {field} on {tensor.device}; expected {like.device}")
        if tensor.is_floating_point() != like.is_floating_point():
            refuse(name, "batch", f"returned {field} as {tensor.dtype}; expected {like.dtype}")
    if B < 1:
        refuse(name, "batch", "returned no row; to train on none, set w to 0")
    C = learner.stream.outputs
    mask = value.mask
    if mask is not None:
        fits = isinstance(mask, Tensor) and mask.dim() == 3 and mask.dtype == torch.bool
        fits = fits and all(a in (1, b) for a, b in zip(mask.shape, (S, B))) and mask.shape[2] == C
        if not fits:
            refuse(name, "batch", f"returned {shown(mask)} as mask; expected None or a bool tensor [{S}, {B}, {C}]")
    if value.key is not None and value.key.shape != (S,):
        refuse(name, "batch", f"returned {shown(value.key)} as key; expected one key for each seed, [{S}]")
    if not bool(value.w.isfinite().all()):
        refuse(name, "batch", "returned weights w that are not finite; a row that does not count has w = 0")
    if learner.stream.loss != "mse" and not bool(((value.y >= 0) & (value.y < C)).all()):
        refuse(name, "batch", f"returned labels y outside 0 ... {C - 1}")


def gradients(name: str, value: Any, params: Params, learner: Learner) -> None:
    """What the function returned that `grad` made."""
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Aux)):
        refuse(name, "grad", f"made a function that returned {shown(value)}; expected (gradients, aux) as from `inner`")
    grads, aux = value
    if not isinstance(grads, Mapping) or set(grads) != set(params):
        missing = sorted(set(params) ^ set(grads if isinstance(grads, Mapping) else ()))
        refuse(name, "grad", f"made gradients of other names than the parameters; they differ in {', '.join(missing)}")
    for k, v in params.items():
        if not isinstance(grads[k], Tensor) or grads[k].shape != v.shape:
            refuse(name, "grad", f"made {shown(grads[k])} as the gradient of {k}; expected {list(v.shape)}")
        if (grads[k].dtype, grads[k].device) != (v.dtype, v.device):
            refuse(
                name,
                "grad",
                f"made the gradient of {k} as {grads[k].dtype} on {grads[k].device}; expected {v.dtype} on {v.device}",
            )
    if not isinstance(aux.loss, Tensor) or aux.loss.shape != (learner.S,):
        refuse(name, "grad", f"made aux.loss {shown(aux.loss)}; expected one loss for each seed, [{learner.S}]: {SUM}")


def form(learner: Learner) -> Form:
    """Names, shapes, types and devices of parameters and buffers."""
    return {k: (v.shape, v.dtype, v.device) for part in (learner.params, learner.buffers) for k, v in part.items()}


def kept(name: str, hook: str, before: Form, learner: Learner) -> None:
    """That a hook left the form of parameters and buffers as it was."""
    after = form(learner)
    if after == before:
        return
    for k in {**before, **after}:
        if k not in after or k not in before:
            refuse(name, hook, f"{'removed' if k in before else 'added'} {k}; only `setup` may add parameters")
        (shape, dtype, device), (was, kind, place) = after[k], before[k]
        if shape != was:
            refuse(name, hook, f"changed {k} from {list(was)} to {list(shape)}; edit it in place, as in p.mul_(0.9)")
        if (dtype, device) != (kind, place):
            refuse(name, hook, f"changed {k} from {kind} on {place} to {dtype} on {device}; edit it in place")


def added(name: str, before: Form, learner: Learner) -> None:
    """That parameters which `setup` added have the seed axis."""
    for k, v in learner.params.items():
        if k not in before and (v.dim() < 1 or len(v) != learner.S or not v.is_floating_point()):
            refuse(name, "setup", f"added {k} {list(v.shape)} as {v.dtype}; expected floating-point [{learner.S}, ...]")


def deployed(name: str, value: Any, learner: Learner) -> None:
    """What `deploy` returned, tried on two training rows of each seed."""
    if not isinstance(value, Net):
        refuse(name, "deploy", f"returned {shown(value)}; expected a Net: end it with `return net`")
    if what := _misfit(value, learner):
        refuse(name, "deploy", f"returned a net whose {what}")


def model(learner: Learner) -> None:
    """That parameters have the seed axis and the forward pass returns logits [S, B, C], tried on two rows of a seed."""
    name = type(learner.model).__name__
    if not learner.params:
        raise ValueError(f"model: {name} has no parameter to train; leave at least one that requires a gradient")
    for k, v in learner.params.items():
        if v.dim() < 1 or len(v) != learner.S:
            raise ValueError(
                f"model: {name}.init made {k} {list(v.shape)}; expected a row for each seed, [{learner.S}, ...]"
            )
    if what := _misfit(learner.net, learner):
        raise ValueError(f"model: {name}'s {what}")


def _misfit(net: Net, learner: Learner) -> str:
    """What is wrong with a net's output, if anything."""
    S, C = learner.S, learner.stream.outputs
    source = learner.stream.tasks[learner.now].train
    x, _, t = source.take(torch.zeros(S, 2, dtype=torch.int64, device=learner.device))
    with torch.no_grad():
        out = net(x, t)
    if not isinstance(out, Out):
        return f"forward pass returned {shown(out)}; expected an Out"
    if not isinstance(out.logits, Tensor) or out.logits.shape != (S, 2, C):
        return f"logits of two rows a seed are {shown(out.logits)}; expected [seeds, rows, outputs] = [{S}, 2, {C}]"
    return ""


def readings(name: str, value: Any, seeds: int) -> None:
    """What a metric returned."""
    if not isinstance(value, Mapping):
        raise ValueError(f"metrics.{name}: returned {shown(value)}; expected a dict of column -> tensor [{seeds}]")
    for column, one in value.items():
        table = one.value if isinstance(one, Reading) else one
        if not isinstance(table, Tensor):
            raise ValueError(
                f"metrics.{name}: {column} is {shown(table)}; expected a tensor [{seeds}], one row for each seed"
            )
        axes = (1, 2) if isinstance(one, Reading) and (one.axis or one.coords) else (1,)
        if table.dim() not in axes or len(table) != seeds:
            wanted = f"[{seeds}]" if axes == (1,) else f"[{seeds}, K]"
            raise ValueError(f"metrics.{name}: {column} is {shown(table)}; expected {wanted}, one row for each seed")
        if isinstance(one, Reading) and one.stderr is not None and one.stderr.shape != table.shape:
            raise ValueError(f"metrics.{name}: stderr of {column} is {shown(one.stderr)}; expected {list(table.shape)}")
        if isinstance(one, Reading) and one.coords and table[0].numel() != len(one.coords):
            raise ValueError(
                f"metrics.{name}: {column} has {table[0].numel()} values a seed but {len(one.coords)} coords; name each"
            )
