"""Ash & Adams (2020), On warm-starting neural network training, NeurIPS, on the cost of a warm start."""

from harness.toolbox.union import Union


class Cumulative(Union):
    """Cumulative training: one net, trained in task t on the union of all tasks so far (Ash & Adams 2020).

        θ <- θ - lr ∇ Σ_{i <= t} n_i L_i(θ) / Σ_{i <= t} n_i

    Replay with an unlimited memory, which `memory` counts. It breaks the rule that old data are gone. The net and the
    optimizer's state continue from the last boundary; a warm start may generalise worse than `joint`, which starts
    from scratch.

    Budget, of T equal tasks of k steps:
        steps=proportional   (t + 1) k for task t, T (T + 1) k / 2 in all: each epoch is a pass over the union, and
                             the last net has seen task 0 T times as often as the last task.
        steps=equal          k for task t, T k in all: as many as naive.

    Differences from the paper: it trains on half of one data set and then on all of it, each to convergence.
    """

    family = "control"
