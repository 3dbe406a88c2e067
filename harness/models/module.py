"""A user's torch.nn.Module, with the seed axis added by vmap."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from harness import rng
from harness.types import Buffers, Layer, Out, Params, Unit

# leading axes of a mask; None: all of them
_DROPOUTS: dict[Any, int | None] = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}


class Module:
    """Your own torch.nn.Module, unchanged: vmap adds the seed axis.

    `factory()` builds one; its forward(x) or forward(x, t) maps x [B, *shape] and task ids t [B] to logits
    [B, C], or to (logits, acts) with acts a dict of hidden activations. The module may declare `units`,
    `layers` and `head` as types.Model does (names as in named_parameters), which are empty by default, and
    `stochastic`, by default whether it has a dropout layer.

    The module initialises row s itself, after torch's global generator is seeded from key[s]; the generator
    is restored. Buffers that forward changes in place (batch norm) are kept, buffers that it reassigns are
    not. Dropout draws from `key`: row s of S seeds equals seed s alone.
    Raises ValueError for any other random operation in forward, and for training a stochastic module without
    a key. Costs 1.5-2.5 times the plain module at S = 1; MLP, CNN and ResNet18 cost the same as plain ones.
    """

    def __init__(self, factory: Callable[[], nn.Module], outputs: int) -> None:
        self.factory, self.outputs = factory, outputs
        with torch.random.fork_rng(devices=()):
            self.template = factory()
        if not isinstance(self.template, nn.Module):
            raise ValueError(f"model: {factory} returned a {type(self.template).__name__}, not a torch.nn.Module")
        self.units: tuple[Unit, ...] = tuple(self._declared("units"))
        self.layers: tuple[Layer, ...] = tuple(self._declared("layers"))
        self.head: tuple[str, ...] = tuple(self._declared("head"))
        drops = any(isinstance(m, _DropoutNd) and m.p > 0 for m in self.template.modules())
        self.stochastic = bool(getattr(self.template, "stochastic", drops))
        self.reads_task = "t" in inspect.signature(self.template.forward).parameters

    def _declared(self, name: str) -> Sequence[Any]:
        found: Sequence[Any] = getattr(self.template, name, ())
        return () if isinstance(found, nn.Module) else found  # many nets have a layer called head

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        nets = []
        with torch.random.fork_rng(devices=()):
            for seed in key.tolist():
                torch.default_generator.manual_seed(seed)
                nets.append(self.factory())

        def stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {k: torch.stack([r[k].detach() for r in rows]).to(key.device) for k in rows[0]}

        params = stack([dict(n.named_parameters()) for n in nets])
        return params, stack([dict(n.named_buffers()) for n in nets])

    def __call__(
        self,
        params: Params,
        buffers: Buffers,
        x: Tensor,
        t: Tensor,
        *,
        train: bool = False,
        key: Tensor | None = None,
        record: bool = False,
    ) -> Out:
        if train and self.stochastic and key is None:
            raise ValueError("the model has dropout: training needs a key that fixes the masks")
        if self.template.training != train:
            self.template.train(train)
        if train:
            buffers = {k: v.clone() for k, v in buffers.items()}  # forward writes into them
        if x.is_floating_point():
            x = x.to(next(iter(params.values())).dtype)

        def one(p: Params, b: Buffers, x: Tensor, t: Tensor, key: Tensor | None) -> tuple[Any, ...]:
            draws = nullcontext() if key is None or not train else _KeyedDropout(key)
            with draws, self._recorded(record) as (inputs, preacts):
                out = functional_call(self.template, (p, b), (x,), {"t": t} if self.reads_task else {})
            logits, acts = out if isinstance(out, tuple) else (out, {})
            return logits, acts, inputs, preacts

        try:
            mapped = vmap(one, (0, 0, 0, 0, None if key is None else 0))
            logits, acts, inputs, preacts = mapped(params, buffers, x, t, key)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            name = type(self.template).__name__
            raise ValueError(
                f"{name} draws random numbers in forward that no key fixes; use dropout layers "
                "(declaring stochastic = True where they are called as functions)"
            ) from error
        return Out(logits, acts, buffers, inputs, preacts)

    @contextmanager
    def _recorded(self, record: bool) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Input and output of each declared layer during one forward pass."""
        inputs: dict[str, Tensor] = {}
        preacts: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for layer in self.layers if record else ():

                def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, layer: Layer = layer) -> None:
                    inputs[layer.input], preacts[layer.preact] = args[0], out

                owner = self.template.get_submodule(layer.weight.rpartition(".")[0])
                hooks.callback(owner.register_forward_hook(keep).remove)
            yield inputs, preacts


class _KeyedDropout(TorchFunctionMode):
    """Makes every dropout draw its mask from a key: the i-th call from the key folded with i."""

    def __init__(self, key: Tensor) -> None:
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _DROPOUTS:
            return self._drop(_DROPOUTS[func], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(
        self, axes: int | None, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return x
        self.calls += 1
        shape = x.shape[:axes]
        key = rng.fold(self.key[None], self.calls)
        mask = (rng.uniform(key, *shape)[0] >= p).view(*shape, *[1] * (x.dim() - len(shape)))
        return x * mask / (1 - p) if p < 1 else x * 0
