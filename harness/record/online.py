"""What the steps within a task show: online scores, losses, and whether a penalty or replay contributes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.learner import Learner, mask_logits
from harness.types import Aux, Batch, Out, Step

CHUNK = 50  # steps whose logits are kept and scored together: scoring each costs 5 % of a small step


class Online:
    """The steps of one task. Each fresh batch is scored by the forward pass before its update."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.share = torch.zeros_like(learner.alive, dtype=torch.float64)  # largest share of penalty or replay so far
        self.appended = False  # whether a strategy appended rows
        self._pending: list[tuple[Tensor, Batch, Tensor, Tensor | float]] = []
        self._latest: tuple[Batch, Out] | None = None
        self._scores: list[Tensor] = []
        self._losses: list[Tensor] = []

    def add(self, step: Step, aux: Aux) -> None:
        """Keep a step until it is scored."""
        fresh = step.fresh
        self._pending.append((aux.out.logits.detach()[:, : fresh.y.shape[1]], fresh, aux.loss, aux.penalty))
        self._latest = (step.batch, aux.out)

    @property
    def full(self) -> bool:
        """Whether enough steps are pending to score them."""
        return len(self._pending) == CHUNK

    def flush(self) -> None:
        """Score the pending steps: accuracy before the update (or minus the error), and the loss."""
        if not self._pending:
            return
        logits, batches, losses, penalties = zip(*self._pending)
        self._pending = []
        self.share = self.share.maximum(self._added(losses, penalties, batches[-1].w.shape[1]))
        if self.learner.stream.loss == "mse":
            right = torch.stack([-(a - b.y).square().mean(-1).mean(1) for a, b in zip(logits, batches)])
        else:
            masks = [b.mask for b in batches if b.mask is not None]
            found = mask_logits(torch.stack(logits), torch.stack(masks) if masks else None).argmax(-1)
            right = (found == torch.stack([b.y for b in batches])).double().mean(-1)  # [steps, S]
        self._scores.append(right.T)
        self._losses.append(torch.stack(losses, 1).double())

    @property
    def scores(self) -> Tensor:
        """Online score of each step [S, steps], on the CPU."""
        return torch.cat(self._scores, 1).cpu() if self._scores else torch.empty(self.learner.S, 0)

    @property
    def losses(self) -> Tensor:
        """Training loss of each step [S, steps], on the CPU."""
        return torch.cat(self._losses, 1).cpu() if self._losses else torch.empty(self.learner.S, 0)

    def _added(self, losses: Sequence[Tensor], penalties: Sequence[Tensor | float], fresh: int) -> Tensor:
        """Largest share of the loss that came from penalties or, in the latest step, from appended rows: [S]."""
        total = torch.stack(list(losses))
        share = torch.zeros_like(total[0])
        if any(isinstance(p, Tensor) for p in penalties):
            each = torch.stack([torch.zeros_like(share) + p for p in penalties])
            share = (each / total).abs().amax(0)
        if self._latest is not None and self._latest[0].w.shape[1] > fresh:
            batch, out = self._latest
            self.appended = True
            appended = (batch.w * self.learner.row_loss(out.logits.detach(), batch))[:, fresh:].sum(1)
            share = share.maximum((appended / total[-1]).abs())
        return share.double()
