"""A user's torch.nn.Module, with the seed axis added by vmap, or by a loop over seeds where vmap fails."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from harness import rng
from harness.types import Buffers, Layer, Model, Out, Params, Stream, Unit
from harness.wording import first_line, warn

# leading axes of a mask; None: all of them
_DROPOUTS: dict[Any, int | None] = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}

One = Callable[..., tuple[Any, ...]]  # the forward pass of one seed


class Unfit(ValueError):
    """A module that cannot be trained here: one line with the remedy."""


class Module:
    """Your own torch.nn.Module, unchanged: vmap adds the seed axis.

    `factory()` builds one; its forward(x) or forward(x, t) maps x [B, *shape] and task ids t [B] to logits
    [B, C], or to (logits, acts) with acts a dict of hidden activations. The module may declare `units`,
    `layers` and `head` as types.Model does (names as in named_parameters), which are empty by default, and
    `stochastic`, by default whether it has dropout.

    The module initialises row s itself, after torch's global generator is seeded from key[s]; the generator
    is restored. Parameters with requires_grad=False are buffers here: nothing trains, decays or perturbs them.
    Buffers that forward changes in place (batch norm) are kept, buffers that it reassigns are not. Dropout
    draws from `key`: row s of S seeds equals seed s alone.

    What vmap cannot do (recurrent layers, control flow that depends on values, dropout inside attention) runs in
    a loop over seeds, after one note. There a stochastic module may draw from torch's global generator, which is
    seeded from `key`.
    Raises ValueError for random operations that no key fixes, for outputs of another form, and for an error in
    forward. Costs 1.5-2.5 times the plain module at S = 1; MLP, CNN and ResNet18 cost the same as plain ones.
    """

    noted: set[str] = set()  # modules whose loop over seeds was announced

    def __init__(self, factory: Callable[[], nn.Module], outputs: int) -> None:
        self.factory, self.outputs = factory, outputs
        with torch.random.fork_rng(devices=()):
            self.template = factory()
        if not isinstance(self.template, nn.Module):
            raise ValueError(f"model: {factory} returned a {type(self.template).__name__}, not a torch.nn.Module")
        self.name, self.loops = type(self.template).__name__, False
        self.frozen = frozenset(k for k, p in self.template.named_parameters() if not p.requires_grad)
        if len(self.frozen) == len(list(self.template.parameters())):
            raise Unfit(f"model: {self.name} has no parameter that requires a gradient; leave at least one to train")
        self.units: tuple[Unit, ...] = tuple(u for u in self._declared("units") if self._trained(u))
        self.layers: tuple[Layer, ...] = tuple(
            layer._replace(bias=None) if layer.bias in self.frozen else layer
            for layer in self._declared("layers")
            if layer.weight not in self.frozen
        )
        self.head: tuple[str, ...] = tuple(k for k in self._declared("head") if k not in self.frozen)
        self.stochastic = bool(getattr(self.template, "stochastic", any(map(_drops, self.template.modules()))))
        self.reads_task = "t" in inspect.signature(self.template.forward).parameters

    def _declared(self, name: str) -> Sequence[Any]:
        found: Sequence[Any] = getattr(self.template, name, ())
        return () if isinstance(found, nn.Module) else found  # many nets have a layer called head

    def _trained(self, unit: Unit) -> bool:
        return self.frozen.isdisjoint(s.name for s in (*unit.producers, *unit.consumers))

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        nets = []
        with torch.random.fork_rng(devices=()):
            for seed in key.tolist():
                torch.default_generator.manual_seed(seed)
                nets.append(self.factory())

        def stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {k: torch.stack([r[k].detach() for r in rows]).to(key.device) for k in rows[0]}

        whole = stack([dict(n.named_parameters()) for n in nets])
        frozen = {k: v for k, v in whole.items() if k in self.frozen}
        params = {k: v for k, v in whole.items() if k not in self.frozen}
        return params, {**stack([dict(n.named_buffers()) for n in nets]), **frozen}

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
        if x.is_floating_point():
            x = x.to(next(iter(params.values())).dtype)

        def one(p: Params, b: Buffers, x: Tensor, t: Tensor, key: Tensor | None) -> tuple[Any, ...]:
            draws = nullcontext() if key is None or not train else _KeyedDropout(key)
            with draws, self._recorded(record) as (inputs, preacts):
                out = functional_call(self.template, (p, b), (x,), {"t": t} if self.reads_task else {})
            return *self._parsed(out, len(x)), inputs, preacts

        def over(seeds: Callable[..., tuple[Any, ...]]) -> Out:
            # forward writes into them
            new = {k: v.clone() if train and k not in self.frozen else v for k, v in buffers.items()}
            logits, acts, inputs, preacts = seeds(one, params, new, x, t, key)
            return Out(logits, acts, new, inputs, preacts)

        loop = _keyed_loop if train and self.stochastic else _still_loop
        try:
            return over(loop if self.loops else _vmapped)
        except (Unfit, torch.OutOfMemoryError):
            raise
        except _Draws as error:
            raise self._draws() from error
        except Exception as error:
            if self.loops:
                raise self._failed(error, x) from error
            if "randomness" in str(error) and loop is _still_loop:
                raise self._draws() from error
            found = self._second(over, loop, x)
            self.loops = True
            if self.name not in self.noted:
                self.noted.add(self.name)
                warn(
                    f"model: {self.name} does not run under vmap ({first_line(error, 80)}); seeds run one after the"
                    f" other, so a step takes as long as {len(x)} single ones"
                )
            return found

    def _second(self, over: Callable[..., Out], loop: Callable[..., Any], x: Tensor) -> Out:
        """The forward pass as a loop, after vmap failed."""
        try:
            return over(loop)
        except (Unfit, torch.OutOfMemoryError):
            raise
        except _Draws as error:
            raise self._draws() from error
        except Exception as error:
            raise self._failed(error, x) from error

    def _parsed(self, out: Any, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and activations of one seed. Unfit if they have another form."""
        logits, acts = out if isinstance(out, tuple) and len(out) == 2 else (out, {})
        if not isinstance(logits, Tensor) or not isinstance(acts, dict):
            kinds = f" of {', '.join(type(v).__name__ for v in out)}" if isinstance(out, (tuple, list)) else ""
            raise Unfit(
                f"model: {self.name}.forward returns a {type(out).__name__}{kinds}; return logits [B, {self.outputs}],"
                ' or (logits, acts) with a dict acts; a wrapper may pick them, as in net(x)["logits"]'
            )
        if logits.shape != (rows, self.outputs):
            raise Unfit(
                f"model: {self.name}.forward returns {list(logits.shape)} for {rows} rows; expected"
                f" [{rows}, {self.outputs}], one logit for each output: take their number from the argument `outputs`"
            )
        return logits, acts

    def _draws(self) -> Unfit:
        return Unfit(
            f"{self.name} draws random numbers in forward that no key fixes; use dropout layers, or declare"
            " stochastic = True and draw only in training"
        )

    def _failed(self, error: Exception, x: Tensor) -> Unfit:
        """An error in a user's forward pass as one line."""
        if "more than 1 value per channel" in str(error):
            return Unfit(
                f"train.batch_size={x.shape[1]}: {self.name} has batch norm, which needs more than one value a channel;"
                " use a larger batch, or nn.GroupNorm"
            )
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "torch" not in Path(f.filename).parts]
        last = frames[-1] if frames else None
        where = f" ({Path(last.filename).name}:{last.lineno})" if last and last.filename != __file__ else ""
        return Unfit(
            f"model: {self.name}.forward failed on x {list(x.shape[1:])}{where}: {type(error).__name__}:"
            f" {first_line(error)}; HARNESS_TRACEBACK=1 shows the traceback"
        )

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


def _drops(module: nn.Module) -> bool:
    """Whether a layer drops in training: dropout, or a recurrent or attention layer with some inside."""
    inside = module.dropout if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) else 0
    return inside > 0 or (isinstance(module, _DropoutNd) and module.p > 0)


# --- ways to run the forward pass of every seed -------------------------------------------------------


class _Draws(Exception):
    """A forward pass moved torch's global generator."""


def _vmapped(one: One, params: Params, buffers: Buffers, x: Tensor, t: Tensor, key: Tensor | None) -> Any:
    return vmap(one, (0, 0, 0, 0, None if key is None else 0))(params, buffers, x, t, key)


def _loop(one: One, params: Params, buffers: Buffers, x: Tensor, t: Tensor, key: Tensor | None) -> Any:
    rows = {k: v.unbind() for k, v in params.items()}  # its gradient is one stack
    each = [
        one(
            {k: v[s] for k, v in rows.items()},
            {k: v[s] for k, v in buffers.items()},  # views: forward writes into them
            x[s],
            t[s],
            None if key is None else key[s],
        )
        for s in range(len(x))
    ]
    logits, *dicts = zip(*each)
    return torch.stack(logits), *({k: torch.stack([d[k] for d in part]) for k in part[0]} for part in dicts)


def _still_loop(one: One, params: Params, buffers: Buffers, x: Tensor, t: Tensor, key: Tensor | None) -> Any:
    """A loop that refuses random numbers."""
    before = _generators(x)
    with torch.random.fork_rng(devices=_device(x)):
        made = _loop(one, params, buffers, x, t, key)
        if not all(map(torch.equal, before, _generators(x))):
            raise _Draws
    return made


def _keyed_loop(one: One, params: Params, buffers: Buffers, x: Tensor, t: Tensor, key: Tensor) -> Any:
    """A loop in which each seed draws from a generator seeded from its key."""

    def seeded(p: Params, b: Buffers, x: Tensor, t: Tensor, key: Tensor) -> tuple[Any, ...]:
        torch.manual_seed(int(key))
        return one(p, b, x, t, key)

    with torch.random.fork_rng(devices=_device(x)):
        return _loop(seeded, params, buffers, x, t, key)


def _device(x: Tensor) -> list[int]:
    return [x.device.index or 0] if x.is_cuda else []


def _generators(x: Tensor) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in _device(x))]


# --- what `run` takes as a model ----------------------------------------------------------------------


def as_model(given: Any, stream: Stream) -> Model:
    """A model, or what makes one: a function or class that returns a model or an nn.Module.

    It is called with `shape` and `outputs` if it has these arguments, as on the command line.
    Raises ValueError for an nn.Module, which is one net: every seed needs its own.
    """
    if isinstance(given, nn.Module):
        raise ValueError(
            f"model: {type(given).__name__} is one net, and each seed needs its own; pass a function that makes it, as"
            " in model=lambda: nn.Sequential(...)"
        )
    if hasattr(given, "init") and callable(given) and not isinstance(given, type):
        made: Model = given
        return made
    if not callable(given):
        raise ValueError(f"model: a {type(given).__name__} is not a model; pass MLP(...), or a function that makes one")
    known = {"shape": stream.shape, "outputs": stream.outputs}
    options = {k: v for k, v in known.items() if k in inspect.signature(given).parameters}

    def factory() -> Any:
        return given(**options)

    with torch.random.fork_rng(devices=()):
        made = factory()
    if isinstance(made, nn.Module):
        return Module(factory, stream.outputs)
    if not hasattr(made, "init"):
        raise ValueError(f"model: {given} returned a {type(made).__name__}; expected an nn.Module or a model")
    return made
