"""Features of a net, their class means, and read-outs that replace the head.

Features are the input of the head (without dropout in evaluation mode): the last hidden layer of an MLP, the
pooled maps of a residual net, the inputs themselves for a linear model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.types import Buffers, How, Layer, Model, Net, Out, Params, Stream

if TYPE_CHECKING:
    from harness.learner import Learner

INPUT = ""  # as a layer name: the flattened input
BETWEEN = "inputs are vectors, as features are, but it classifies a hidden layer's; use {} to classify the inputs"
FAR = 1e18  # squared distance of a class without a mean: finite, to keep losses finite


def head_layer(learner: Learner, method: str) -> tuple[str, int]:
    """Name in Out.inputs of the input of the head, and its width.

    Raises ValueError for a model that declares no layer as its head, and for regression, which has no classes.
    """
    if learner.stream.loss == "mse":
        raise ValueError(f"{method}: regression has no classes; use a stream of classes")
    layer = head(learner.model)
    if layer is None:
        raise ValueError(f"{method}: {type(learner.model).__name__} declares no layer as its head; use model=mlp")
    return layer.input, learner.params[layer.weight].shape[2]


def head(model: Model) -> Layer | None:
    """The linear layer that a model declares as its head, if any."""
    return next((m for m in model.layers if m.weight in model.head and m.conv is None), None)


def between(stream: Stream, model: Model) -> bool:
    """Whether inputs are vectors, as the features of a data set are, with hidden units between them and the head."""
    return len(stream.shape) == 1 and bool(model.units)


@torch.no_grad()
def features(net: Net, layer: str, x: Tensor, t: Tensor, *, unit: bool = False) -> Tensor:
    """Input of a layer in evaluation mode: [S, B, D]; scaled to length 1 if `unit`."""
    z = net(x, t, record=True).inputs[layer] if layer else x.flatten(2)
    return F.normalize(z, dim=-1) if unit else z


def class_sums(z: Tensor, y: Tensor, w: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weighted sum of the rows of each class and their weight: z [S, B, D] -> [S, classes, D], [S, classes].

    >>> z, y = torch.tensor([[[1.0], [2.0], [5.0]]]), torch.tensor([[0, 2, 0]])
    >>> class_sums(z, y, torch.tensor([[1.0, 1.0, 0.0]]), 3)
    (tensor([[[1.],
             [0.],
             [2.]]]), tensor([[1., 0., 1.]]))
    """
    share = F.one_hot(y, classes).to(z.dtype) * w.to(z.dtype)[:, :, None]  # [S, B, classes]
    return share.mT @ z, share.sum(1)


def nearest(z: Tensor, mean: Tensor, seen: Tensor) -> Tensor:
    """Minus the squared distance to each class mean: z [S, B, D], mean [S, C, D], seen [S, C] -> [S, B, C].

    >>> nearest(torch.tensor([[[3.0]]]), torch.tensor([[[1.0], [2.0], [0.0]]]), torch.tensor([[True, True, False]]))
    tensor([[[-4.0000e+00, -1.0000e+00, -1.0000e+18]]])
    """
    # differences of z and mean, not |z|² - 2 z·mean + |mean|²: the latter loses digits where classes are close
    distance = torch.cdist(z, mean, compute_mode="donot_use_mm_for_euclid_dist").square()
    return -distance.masked_fill(~seen[:, None], FAR)


def readout(net: Net, layer: str, logits: Callable[[Tensor], Tensor], *, probabilistic: bool = True) -> Net:
    """The net with its logits replaced by `logits` of a layer's input: [S, B, D] -> [S, B, C].

    `probabilistic`: whether their softmax is a posterior: true for log-likelihoods, false for distances.
    """

    def apply(params: Params, buffers: Buffers, x: Tensor, t: Tensor, **how: Unpack[How]) -> Out:
        record = how.get("record", False)
        how["record"] = record or layer != INPUT
        out = net.apply(params, buffers, x, t, **how)
        z = out.inputs[layer] if layer else x.flatten(2).to(out.logits.dtype)
        out = out._replace(logits=logits(z))
        return out if record else out._replace(inputs={}, preacts={})

    return Net(net.params, net.buffers, apply, probabilistic)


def herd(z: Tensor, valid: Tensor, count: int) -> Tensor:
    """Herding (Welling 2009): rows whose running mean stays closest to the mean of all, in order of choice.

    z [..., n, D], valid [..., n] bool -> [..., count] row numbers. No valid row is chosen twice; after the last
    valid one the numbers are arbitrary. The k-th row minimises |μ - (z + z_1 + ... + z_{k-1}) / k|, μ the mean
    over the valid rows; ties (two rows are equally far from their mean) go to the first.

    >>> herd(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([True, True, True]), 2)  # mean 2
    tensor([1, 2])
    """
    n = z.shape[-2]
    z = (z * valid[..., None]).double()
    mean = z.sum(-2) / valid.sum(-1, keepdim=True).clamp_min(1)
    length, number = z.square().sum(-1), torch.arange(n, device=z.device)
    free, total, picked = valid.clone(), torch.zeros_like(mean), []
    for k in range(1, count + 1):
        # |k μ - total - z|² minus the terms common to all rows
        score = length - 2 * (z @ (k * mean - total)[..., None])[..., 0]
        score = score.masked_fill(~free, torch.inf)
        tie = score <= score.amin(-1, keepdim=True) + 1e-12 * k * length.amax(-1, keepdim=True)
        row = torch.where(tie & free, number, n).amin(-1).clamp_max(n - 1)
        picked.append(row)
        free = free.scatter(-1, row[..., None], False)
        total = total + z.gather(-2, row[..., None, None].expand(*row.shape, 1, z.shape[-1]))[..., 0, :]
    return torch.stack(picked, -1)
