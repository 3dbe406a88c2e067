"""What a run knows of the stream's classes before its first step: whether a pretrained net has met them.

A net that was pretrained on the stream's classes, or on others like them, makes learning them easy. The accuracy at
the end does not show this: it counts as continual learning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.boundary import Boundary
from harness.metrics import Readings, blank, own_key, spaced
from harness.metrics.representation import probe_accuracy
from harness.rng import fold, permutation
from harness.toolbox import class_means
from harness.types import Batch, Column, cat

WHERE = {"input": "the inputs", "head": "the input of the net's head"}
COLUMNS: dict[str, Column] = {
    "leak_readout": Column("", "accuracy", "of the untrained net's outputs, best matched to classes", "train"),
    **{
        name: column
        for k, what in WHERE.items()
        for name, column in {
            f"leak_clusters_{k}": Column("", "accuracy", f"of k-means on {what}, best matched to classes", "train"),
            f"leak_chance_{k}": Column("", "accuracy", f"the same for shuffled classes ({what})", "train"),
            f"leak_neighbour_{k}": Column("", "accuracy", f"of the nearest labelled row by {what}", "test"),
            f"leak_linear_{k}": Column("", "accuracy", f"of a ridge probe on {what}", "test"),
        }.items()
    },
}


def leak(b: Boundary, *, size: int, tasks: int, restarts: int, ridge: float) -> Readings:
    """What is known of the classes of all tasks before the first step: [S] each, at the start of the first task only.

    Rows: `size` training rows of each of at most `tasks` tasks (evenly spaced). Without labels: k-means with one
    cluster for each class that occurs (scikit-learn, k-means++, the best of `restarts`), and the net's own outputs
    (argmax). Both are matched to the classes one to one by the Hungarian method, which makes accuracy as large as it
    can be; `leak_chance` is that accuracy for classes shuffled among the rows, somewhat above 1 / classes. With labels,
    as upper comparators: the nearest training row and a ridge probe, on as many test rows.

    Measured on the inputs, which are a pretrained net's features with `dataset.features`, and on the input of the head,
    which a net that starts from given weights brings; a net without hidden units has only the first. Cost: two forward
    passes over the rows, and for each seed `restarts` k-means of them. Regression has nothing.
    """
    if b.phase != "start" or b.t > 0 or b.stream.loss == "mse":
        return {}
    measured = spaced(len(b.stream.tasks) - 1, tasks)
    train, test = (joined([b.probe(i, size, split) for i in measured]) for split in ("train", "test"))
    key = own_key(b, "leak", "clusters")
    head = class_means.head(b.learner.model)
    layers = {"input": class_means.INPUT, **({"head": head.input} if head and b.learner.model.units else {})}
    with torch.no_grad():
        said = b.trained(train.x, train.t).logits.argmax(2)
    found = {"leak_readout": per_seed(said, train.y)}
    for k, layer in layers.items():
        z, new = (class_means.features(b.trained, layer, part.x, part.t).double() for part in (train, test))
        seeds = [int(v) for v in (key & 0x7FFFFFFF).tolist()]
        groups = torch.stack([torch.as_tensor(clusters(a, y, n, restarts)) for a, y, n in zip(z, train.y, seeds)])
        found[f"leak_clusters_{k}"] = per_seed(groups, train.y)
        mixed = permutation(fold(key, "shuffled"), train.y.shape[1])
        found[f"leak_chance_{k}"] = per_seed(groups, train.y.gather(1, mixed))
        nearest = torch.cdist(new, z).argmin(2)
        found[f"leak_neighbour_{k}"] = (train.y.gather(1, nearest) == test.y).double().mean(1)
        found[f"leak_linear_{k}"] = probe_accuracy(z, new, train, test, b.stream.outputs, ridge)
    return blank(b, {name: v.to(train.x.device) for name, v in found.items()})


def joined(parts: list[Batch]) -> Batch:
    """The rows of all parts, each part with the same weight."""
    whole = parts[0]
    for part in parts[1:]:
        whole = cat(whole, part).batch
    return Batch(whole.x, whole.y, whole.t, whole.w / len(parts))


def clusters(z: Tensor, y: Tensor, seed: int, restarts: int) -> NDArray[Any]:
    """k-means of rows z [n, D] into as many clusters as y has classes, or z distinct rows: cluster of each row [n]."""
    from sklearn.cluster import KMeans

    rows = z.cpu().numpy()
    count = min(len(y.unique()), len(np.unique(rows, axis=0)))
    made: NDArray[Any] = KMeans(count, n_init=restarts, random_state=seed).fit_predict(rows)
    return made


def per_seed(groups: Tensor, y: Tensor) -> Tensor:
    """`matched` for every seed: [S, n], [S, n] -> [S]."""
    return torch.tensor([matched(g, c) for g, c in zip(groups.cpu().numpy(), y.cpu().numpy())], dtype=torch.float64)


def matched(groups: NDArray[Any], y: NDArray[Any]) -> float:
    """The largest accuracy of groups as classes, each group being at most one class and each class at most one group.

    >>> matched(np.array([5, 5, 5, 7, 7, 9]), np.array([0, 0, 1, 1, 1, 1]))  # 5 is 0, 7 is 1
    0.6666666666666666
    """
    from scipy.optimize import linear_sum_assignment

    _, g = np.unique(groups, return_inverse=True)
    _, c = np.unique(y, return_inverse=True)
    table = np.zeros((g.max() + 1, c.max() + 1), np.int64)
    np.add.at(table, (g, c), 1)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(y))
