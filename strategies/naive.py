"""Naive fine-tuning."""

from harness.strategy import Strategy


class Naive(Strategy):
    """Naive fine-tuning: train on each task in turn, without protecting earlier ones (the lower reference).

        θ <- θ - lr ∇ L_t(θ),   t the current task

    The baseline of every other strategy: it forgets most and costs least.
    """

    family = "control"
