"""Naive fine-tuning."""

from harness.strategy import Strategy


class Naive(Strategy):
    """Naive fine-tuning: each task is trained on in turn and nothing guards the old ones (the lower reference).

        θ <- θ - lr ∇ L_t(θ),   t the current task

    Every other strategy is measured against it: it forgets most and costs least.
    """

    family = "control"
