"""Running means and scatters of classes, exact for any order and division into batches.

For n rows of a class with mean m and scatter s about it, beside N rows with mean μ (Chan, Golub & LeVeque 1983)

    scatter <- scatter + s + N n / (N + n) (m - μ)(m - μ)ᵀ,   μ <- μ + n / (N + n) (m - μ),   N <- N + n
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.toolbox import class_means


class Means:
    """Count [S, C] and mean [S, C, D] of every class, in float64."""

    def __init__(self, seeds: int, classes: int, width: int, device: torch.device | str) -> None:
        self.count = torch.zeros(seeds, classes, dtype=torch.float64, device=device)
        self.mean = self.count.new_zeros(seeds, classes, width)

    def add(self, z: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Add rows z [S, B, D] of classes y [S, B]; w [S, B] is 1, or 0 on padding.

        Returns the rows' differences from the mean of their class in the batch, 0 on padding [S, B, D], and for every
        class √(N n / (N + n)) (m - μ), whose outer products are the second part of the scatter [S, C, D].
        """
        total, n = class_means.class_sums(z, y, w, self.count.shape[1])
        mean = total / n.clamp_min(1)[:, :, None]
        inside = (z - mean.gather(1, y[:, :, None].expand_as(z))) * w[:, :, None]
        away = (mean - self.mean) * (self.count * n / (self.count + n).clamp_min(1)).sqrt()[:, :, None]
        self.count += n
        self.mean += (mean - self.mean) * (n / self.count.clamp_min(1))[:, :, None]
        return inside, away

    def state_dict(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for k, v in state.items():
            setattr(self, k, v.to(self.count.device, copy=True))


class SharedScatter(Means):
    """And the scatter within classes, summed over them: [S, D, D]."""

    def __init__(self, seeds: int, classes: int, width: int, device: torch.device | str) -> None:
        super().__init__(seeds, classes, width, device)
        self.scatter = self.count.new_zeros(seeds, width, width)

    def add(self, z: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        inside, away = super().add(z, y, w)
        self.scatter += inside.mT @ inside + away.mT @ away
        return inside, away

    @property
    def covariance(self) -> Tensor:
        """Scatter over rows: the covariance within classes [S, D, D]."""
        return self.scatter / self.count.sum(1).clamp_min(1)[:, None, None]


class ClassScatter(Means):
    """And the scatter of each class: [S, C, D, D]."""

    def __init__(self, seeds: int, classes: int, width: int, device: torch.device | str) -> None:
        super().__init__(seeds, classes, width, device)
        self.scatter = self.count.new_zeros(seeds, classes, width, width)

    def add(self, z: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        inside, away = super().add(z, y, w)
        for c in y[w > 0].unique().tolist():
            mine = inside * (y == c)[:, :, None]
            self.scatter[:, c] += mine.mT @ mine + away[:, c, :, None] * away[:, c, None, :]
        return inside, away

    def covariance(self, c: int) -> Tensor:
        """Unbiased covariance of a class: [S, D, D]; 0 for fewer than two rows."""
        return self.scatter[:, c] / (self.count[:, c] - 1).clamp_min(1)[:, None, None]
