"""Recurrent networks: GRU and LSTM, with their cells unrolled, so that second derivatives exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.models import layers, sequences
from harness.types import Buffers, Gates, Out, Params, Slice, Unit

State = tuple[Tensor, ...]  # [S, B, H] each, the hidden units first


class Recurrent(ABC):
    """Recurrent layers over a sequence, dropout (optional) between them, and a linear read-out of the last position.

    `shape` is [L, F] of one input, or that of an image, whose rows are the positions; `widths` are hidden units of each
    layer. Every layer has a map of its input and one of its own last state, both with a bias, and starts at 0. Weights
    and biases of a layer of H units are drawn from U(-a, a) with a = 1 / sqrt(H), as torch's.

    A unit is a hidden unit with all its gates: its act [S, B, H, L] is the state that the next position, the next layer
    and the read-out see, after its gate. Its own state also reaches itself from one position to the next.
    With record=True the outputs of the map of the state are leaves of the graph: derivatives by them are those of the
    whole sequence, and they have none by the parameters.
    Raises ValueError for an option out of range, for data that are neither sequences nor images, and for training with
    dropout without a key.
    """

    GATES: int  # blocks of H outputs of each map

    def __init__(
        self, shape: Sequence[int], outputs: int, widths: Sequence[int] = (128,), dropout: float = 0.0
    ) -> None:
        name = type(self).__name__.lower()
        _, features = sequences.shape_of(shape, name)
        if not widths or any(w < 1 for w in widths):
            raise ValueError(f"widths={list(widths)}: model={name} needs one or more layers of at least 1 unit")
        layers.check_rate(dropout)
        self.outputs, self.dropout, self.stochastic = outputs, dropout, dropout > 0
        self.names = [f"layer{i}" for i in range(1, len(widths) + 1)]
        self.sizes = list(zip(self.names, widths, [features, *widths], strict=False))
        self.head: tuple[str, ...] = ("head.weight", "head.bias")
        maps = [f"{name}.{part}" for name in self.names for part in ("input", "state")]
        self.layers = tuple(sequences.layer(name) for name in (*maps, "head"))
        readers = [*(f"{name}.input" for name in self.names[1:]), "head"]
        self.units: tuple[Unit, ...] = tuple(
            Unit(
                name,
                size,
                tuple(s for part in ("input", "state") for s in self._writes(f"{name}.{part}", size)),
                (*layers.reads(f"{name}.state"), *layers.reads(reader)),
                asymptote=1.0,
            )
            for (name, size, _), reader in zip(self.sizes, readers, strict=True)
        )

    def _writes(self, name: str, size: int) -> list[Slice]:
        return [s._replace(offset=i * size) for i in range(self.GATES) for s in layers.writes(name)]

    @abstractmethod
    def cell(self, x: Tensor, z: Tensor, state: State) -> State:
        """The next state, of the two maps' outputs [S, B, GATES H] and the last state."""

    @abstractmethod
    def start(self, h: Tensor) -> State:
        """The first state, of zeros [S, B, H]."""

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        params: Params = {}
        for name, size, fan_in in self.sizes:
            for part, inputs in (("input", fan_in), ("state", size)):
                for leaf, shape in (("weight", (self.GATES * size, inputs)), ("bias", (self.GATES * size,))):
                    own = f"{name}.{part}.{leaf}"
                    params[own] = (2 * rng.uniform(rng.fold(key, own), *shape) - 1) * size**-0.5
        return params | layers.draw_map(key, "head", self.outputs, self.sizes[-1][1]), {}

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
        gates: Gates | None = None,
    ) -> Out:
        acts: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}
        preacts: dict[str, Tensor] = {}
        h = sequences.rows(x).to(params["head.weight"].dtype)
        for name in self.names:
            own = f"{name}.input", f"{name}.state"
            mapped = sequences.linear(h, *(params[f"{own[0]}.{leaf}"] for leaf in ("weight", "bias")))
            if record:
                inputs[own[0]], preacts[own[0]] = h, mapped
                inputs[own[1]], preacts[own[1]] = self._taped(params, mapped, gates, name)
            states = self._unrolled(params, mapped, gates, name, preacts.get(own[1]))
            h = torch.stack(states, 2)
            acts[name] = h.mT
            if train and self.dropout:
                h = layers.dropped(h, self.dropout, key, name)
        last = h[:, :, -1]
        logits = layers.linear(last, params["head.weight"], params["head.bias"])
        if record:
            inputs["head"], preacts["head"] = last, logits
        return Out(logits.contiguous(), acts, buffers, inputs, preacts)

    def _unrolled(
        self, params: Params, mapped: Tensor, gates: Gates | None, name: str, tap: Tensor | None
    ) -> list[Tensor]:
        """The hidden units [S, B, H] at each position, of the mapped input [S, B, L, GATES H].

        A tap [S, B, L, GATES H] has the values of the state's map: derivatives by it are those by the map's outputs.
        """
        weight, bias = params[f"{name}.state.weight"].mT, params[f"{name}.state.bias"][:, None]
        state = self.start(mapped.new_zeros(*mapped.shape[:2], weight.shape[1]))
        found = []
        for i, now in enumerate(mapped.unbind(2)):
            z = torch.baddbmm(bias, state[0], weight)
            if tap is not None:
                z = z + (tap[:, :, i] - tap[:, :, i].detach())
            h, *rest = self.cell(now, z, state)
            state = (layers.gate(h, gates, name), *rest)
            found.append(state[0])
        return found

    def _taped(self, params: Params, mapped: Tensor, gates: Gates | None, name: str) -> tuple[Tensor, Tensor]:
        """What the map of the state reads [S, B, L, H], and what it gives, as a leaf of the graph."""
        wanted = torch.is_grad_enabled()
        with torch.no_grad():
            found = torch.stack(self._unrolled(params, mapped, gates, name, None), 2)
            before = torch.cat([torch.zeros_like(found[:, :, :1]), found[:, :, :-1]], 2)
            z = sequences.linear(before, *(params[f"{name}.state.{leaf}"] for leaf in ("weight", "bias")))
        return before, z.requires_grad_(wanted)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014), as torch's: the reset gate acts on the mapped state.

        r, u = σ(x_r + z_r), σ(x_u + z_u)    n = tanh(x_n + r z_n)    h' = (1 - u) n + u h

    with x the map of the input and z that of the state h.
    """

    GATES = 3

    def start(self, h: Tensor) -> State:
        return (h,)

    def cell(self, x: Tensor, z: Tensor, state: State) -> State:
        size = state[0].shape[2]
        ru = (x[..., : 2 * size] + z[..., : 2 * size]).sigmoid()
        n = torch.addcmul(x[..., 2 * size :], ru[..., :size], z[..., 2 * size :]).tanh()
        return (torch.lerp(n, state[0], ru[..., size:]),)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000), as torch's.

        i, f, o = σ(x_i + z_i), σ(x_f + z_f), σ(x_o + z_o)    g = tanh(x_g + z_g)    c' = f c + i g    h' = o tanh c'

    with x the map of the input and z that of the state h. A gate of a unit acts on h, not on its cell c.
    """

    GATES = 4

    def start(self, h: Tensor) -> State:
        return h, h

    def cell(self, x: Tensor, z: Tensor, state: State) -> State:
        i, f, g, o = (x + z).chunk(4, -1)
        c = torch.addcmul(f.sigmoid() * state[1], i.sigmoid(), g.tanh())
        return o.sigmoid() * c.tanh(), c
