"""The methods by name, with the values of their coefficients that validation rows choose from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from harness.merging import means, vectors
from harness.types import Layer, Params, Unit

Values = Mapping[str, float]  # of the coefficients of a method


@dataclass(frozen=True)
class Given:
    """What a method may use: nets of one model, their base, and statistics of each net on the rows that it learnt."""

    nets: Sequence[Params]
    base: Params | None  # None: they have none in common
    units: Sequence[Unit]
    layers: Sequence[Layer]
    moments: Sequence[Mapping[str, Tensor]]  # of each net, from `means.grams`
    information: Sequence[Params]  # diagonal Fisher information of each net
    key: Tensor  # [S] of random masks

    def of(self, places: Sequence[int]) -> Given:
        """The same for some of the nets."""
        return replace(
            self,
            nets=[self.nets[i] for i in places],
            moments=[self.moments[i] for i in places],
            information=[self.information[i] for i in places],
        )

    @property
    def start(self) -> Params:
        """The base. ValueError if there is none."""
        if self.base is None:
            raise ValueError("merging: the nets have no initial net in common")
        return self.base

    @property
    def matrices(self) -> list[str]:
        """The weights of linear layers."""
        return [layer.weight for layer in self.layers if layer.conv is None]


@dataclass(frozen=True)
class Method:
    """A merge, and the grid of its coefficients."""

    merge: Callable[..., Params]  # (Given, **values)
    grid: Mapping[str, Sequence[float]]
    based: bool = False  # whether it needs the base

    @property
    def candidates(self) -> list[Values]:
        """Every combination of the grid's values; one without coefficients if it has none.

        >>> Method(max, {"a": (1, 2), "b": (3,)}).candidates, Method(max, {}).candidates
        ([{'a': 1, 'b': 3}, {'a': 2, 'b': 3}], [{}])
        """
        return [dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values())]


TENTHS = tuple(i / 10 for i in range(1, 11))

METHODS: dict[str, Method] = {
    "average": Method(lambda g: means.average(g.nets), {}),
    "task_arithmetic": Method(
        lambda g, alpha: vectors.task_arithmetic(g.start, g.nets, alpha=alpha),
        {"alpha": tuple(i / 20 for i in range(1, 21))},
        based=True,
    ),
    "ties": Method(
        lambda g, **values: vectors.ties(g.start, g.nets, **values),
        {"density": (0.1, 0.2, 0.5, 1.0), "scale": (0.3, 0.5, 0.7, 1.0, 1.5, 2.0)},
        based=True,
    ),
    "magmax": Method(lambda g, scale: vectors.magmax(g.start, g.nets, scale=scale), {"scale": TENTHS}, based=True),
    "dare": Method(
        lambda g, **values: vectors.dare(g.start, g.nets, key=g.key, **values),
        {"rate": (0.1, 0.5, 0.9), "alpha": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)},
        based=True,
    ),
    "regmean": Method(
        lambda g, keep: means.regmean(g.nets, g.moments, g.layers, keep=keep), {"keep": (0.1, 0.5, 0.7, 0.9, 1.0)}
    ),
    "fisher": Method(lambda g: means.fisher(g.nets, g.information), {}),
    "opcm": Method(
        lambda g, share: vectors.opcm(g.start, g.nets, g.matrices, share=share),
        {"share": (0.0, 0.25, 0.5, 0.75, 1.0)},
        based=True,
    ),
    "rebasin": Method(lambda g: means.rebasin(g.nets, g.units), {}),
}
