"""An independent implementation says the same: curvlinops, on an MLP and a convolutional net, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from harness.landscape.curvature import Hessian, flatten, krylov, moments, quadrature, random_signs, ritz
from harness.landscape.fisher import diagonal_on
from harness.learner import Learner
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rng import fold, keys
from tests.harness.dense import SCRIPTED
from tests.toy import gaussian

F64 = torch.float64


def twins(kind: str) -> tuple[Learner, nn.Module]:
    """The same weights as a net of ours and as plain PyTorch."""
    shape = (8,) if kind == "mlp" else (1, 6, 6)
    make: Any = (lambda s: MLP(s.shape, 2, (7, 5))) if kind == "mlp" else (lambda s: CNN(s.shape, 2, (3,), (6,)))
    learner = gaussian(make, SGD(lr=0.1), shape=shape)
    p = {k: v[1] for k, v in learner.params.items()}
    parts: list[nn.Module] = (
        [] if kind == "mlp" else [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    )
    for layer in learner.model.layers:
        if layer.conv is None:
            out, width = p[layer.weight].shape
            parts += [nn.Linear(width, out), nn.ReLU()]
    net = nn.Sequential(*parts[:-1]).double()
    named = [p[name] for layer in learner.model.layers for name in (layer.weight, layer.bias or "")]
    with torch.no_grad():
        for mine, theirs in zip(named, net.parameters(), strict=True):
            theirs.copy_(mine)
    return learner, net


@pytest.mark.filterwarnings(SCRIPTED)  # it uses what torch deprecates
@pytest.mark.parametrize("kind", ["mlp", pytest.param("cnn", marks=pytest.mark.nightly)])
def test_hessian_spectrum_and_gauss_newton_trace_agree_with_curvlinops(kind: str) -> None:
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    learner, net = twins(kind)
    batch = learner.probe(learner.stream.tasks[0], 50)
    loss, params = learner.objective([batch], learner.stream, 0), learner.params
    data = [(batch.x[1, :11], batch.y[1, :11]), (batch.x[1, 11:], batch.y[1, 11:])]  # unevenly split
    arguments = (net, nn.CrossEntropyLoss(), list(net.parameters()), data)
    theirs, ggn = HessianLinearOperator(*arguments), GGNLinearOperator(*arguments)
    hessian, width = Hessian(loss, params), theirs.shape[0]
    order = [n for layer in learner.model.layers for n in (layer.weight, layer.bias)]

    def ours(v: Tensor) -> Tensor:  # [P], in curvlinops' order of parameters, of seed 1
        pieces = dict(zip(order, v.split([params[n][0].numel() for n in order])))
        full = {n: torch.stack([torch.zeros_like(params[n][0]), pieces[n].view_as(params[n][0])]) for n in params}
        return torch.cat([hessian(full)[n][1].flatten() for n in order])

    v = torch.randn(width, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(v), theirs @ v, rtol=0, atol=1e-12)
    dense = theirs @ torch.eye(width, dtype=F64)
    true = torch.linalg.eigvalsh(dense)
    key = keys([0, 1], "test")
    space = krylov(hessian, random_signs(key, params), 400)
    values = ritz(space).values[1]
    theirs_top = np.sort(eigsh(theirs.to_scipy(), k=5, which="LA", return_eigenvectors=False))[::-1].copy()
    torch.testing.assert_close(values[:5], torch.from_numpy(theirs_top), rtol=1e-9, atol=0)
    torch.testing.assert_close(values[-1], true[0], rtol=1e-9, atol=0)
    m = moments(hessian, krylov(hessian, random_signs(key, params), 60), params, fold(key, "trace"), 20)
    assert abs(m.trace[1] - dense.trace()) < 4 * m.trace_error[1] < 0.3 * dense.trace()
    q = quadrature(hessian, params, key, vectors=30, steps=30)
    means = torch.stack([(q.weights * q.nodes**power).sum(2)[1] * width for power in (1, 2)], 1)
    exact = torch.stack([(true**power).sum() for power in (1, 2)])
    assert ((means.mean(0) - exact).abs() < 4 * means.std(0) / 30**0.5).all()
    fisher = diagonal_on(learner, [batch], "exact", learner.random("probe"))
    gauss_newton = (ggn @ torch.eye(width, dtype=F64)).trace()
    torch.testing.assert_close(flatten(fisher)[1].sum(), gauss_newton, rtol=1e-10, atol=0)
    # a ReLU net is linear in any one of its weights, so that nothing but the Gauss-Newton part is on the diagonal
    torch.testing.assert_close(gauss_newton, dense.trace(), rtol=1e-10, atol=0)
