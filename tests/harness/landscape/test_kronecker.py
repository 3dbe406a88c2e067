"""Kronecker factors against dense Fisher information, definitions written as loops, and a dense nearest product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.landscape import kronecker
from harness.landscape.fisher import diagonal
from harness.learner import mask_logits
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.recurrent import GRU
from harness.models.resnet18 import ResNet18
from harness.models.transformer import Transformer
from harness.types import Params
from tests.harness.landscape.test_fisher import images, labels, learner, stream_of


def dense(pair: kronecker.Pair) -> Tensor:
    """A ⊗ G of each seed, for vec that stacks columns: [S, i o, i o]."""
    return torch.stack([torch.kron(a, g) for a, g in zip(*pair)])


@pytest.mark.parametrize("n", [1, 30])
def test_softmax_regression_is_exact_with_one_sample(n: int) -> None:
    made = learner(MLP((3,), 4, ()), images(n, 3), labels(2, n), seeds=(0, 1))
    pairs, rest = kronecker.factors(made, made.stream.tasks[0].train, "exact", stream_of(made))
    x = torch.cat([images(n, 3), torch.ones(n, 1, dtype=torch.float64)], 1)
    p = made.net(images(n, 3).expand(2, n, 3), torch.zeros(2, n)).logits.softmax(-1)
    H = torch.diag_embed(p) - p[..., None] * p[..., None, :]  # E_y δ δᵀ = diag(p) - p pᵀ
    F = torch.stack([torch.stack([torch.kron(torch.outer(x[i], x[i]), H[s, i]) for i in range(n)]) for s in (0, 1)])
    close = torch.allclose(dense(pairs["head.weight"]), F.mean(1), rtol=1e-10, atol=1e-14)
    assert close == (n == 1) and not rest
    torch.testing.assert_close(pairs["head.weight"][0], (x.mT @ x / n).expand(2, 4, 4), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(pairs["head.weight"][1], H.mean(1), rtol=1e-12, atol=1e-14)


def test_every_layer_s_diagonal_is_the_fisher_information_s_with_one_sample() -> None:
    made = learner(MLP((6,), 4, (5, 3), "tanh"), images(1, 6), labels(2, 1), seeds=(0, 1))
    source = made.stream.tasks[0].train
    pairs, _ = kronecker.factors(made, source, "exact", stream_of(made))
    F = diagonal(made, source, "exact", stream_of(made))
    for layer in made.model.layers:
        A, G = pairs[layer.weight]
        product = G.diagonal(dim1=1, dim2=2)[..., None] * A.diagonal(dim1=1, dim2=2)[:, None]
        torch.testing.assert_close(product, kronecker.matrix(F, layer), rtol=1e-10, atol=1e-16)


def by_loops(made, name: str, n: int) -> kronecker.Pair:  # type: ignore[no-untyped-def]
    """A and G of a convolution: rows, labels and positions one at a time."""
    (layer,) = (m for m in made.model.layers if m.weight == name)
    weight = made.params[name]
    S, o, c, k, _ = weight.shape
    stride, padding = layer.conv["stride"], layer.conv["padding"]
    size = c * k * k + bool(layer.bias)
    A, G = torch.zeros(S, size, size).double(), torch.zeros(S, o, o).double()
    x, _, t = made.stream.tasks[0].train.take(torch.arange(n).expand(S, n))
    leaves = {key: v.clone().requires_grad_() for key, v in made.params.items()}
    out = made.apply(leaves, made.buffers, x, t, record=True)
    z, h = out.preacts[layer.preact], torch.nn.functional.pad(out.inputs[layer.input].detach(), (padding,) * 4)
    logp = mask_logits(out.logits, None).log_softmax(-1)
    _, _, _, height, width = z.shape
    for s in range(S):
        for b in range(n):
            for i in range(height):
                for j in range(width):
                    patch = h[s, b, :, i * stride : i * stride + k, j * stride : j * stride + k].flatten()
                    a = torch.cat([patch, torch.ones(int(bool(layer.bias)), dtype=patch.dtype)])
                    A[s] += torch.outer(a, a) / n
            for y in range(logp.shape[-1]):
                delta = torch.autograd.grad(logp[s, b, y], z, retain_graph=True)[0][s, b].flatten(1)
                G[s] += logp[s, b, y].exp().detach() * delta @ delta.mT / (n * height * width)
    return A, G


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_convolutions_have_the_factors_of_the_definition(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, net = 3, CNN((2, 8, 8), 4) if model == "cnn" else ResNet18((2, 8, 8), 4, 2)
    made = learner(net, images(n, 2, 8, 8), labels(1, n))
    convs = [m.weight for m in net.layers if m.conv is not None]
    source = made.stream.tasks[0].train
    pairs, rest = kronecker.factors(made, source, "exact", stream_of(made), size=2)
    monkeypatch.setattr("harness.landscape.kronecker._CHUNK", 1)
    chunked, _ = kronecker.factors(made, source, "exact", stream_of(made))
    for name in (convs[0], convs[-1]) if model == "cnn" else (convs[0], next(c for c in convs if "shortcut" in c)):
        for found, same, reference in zip(pairs[name], chunked[name], by_loops(made, name, n)):
            torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(same, reference, rtol=1e-9, atol=1e-13)
    F = diagonal(made, source, "exact", stream_of(made))
    assert set(rest) == {k for k in F if "norm" in k}
    for k, v in rest.items():
        torch.testing.assert_close(v, F[k], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["layer1.state.weight", "block1.qkv.weight"])
def test_maps_of_a_sequence_have_the_factors_of_the_definition(name: str) -> None:
    n, shape = 3, (5, 4)
    net = GRU(shape, 4, (3,)) if name.startswith("layer") else Transformer(shape, 4, 4, 1, 2, 3)
    made = learner(net, images(n, *shape), labels(1, n))
    found = kronecker.factors(made, made.stream.tasks[0].train, "exact", stream_of(made), size=2)[0][name]

    layer = next(m for m in net.layers if m.weight == name)
    x, _, t = made.stream.tasks[0].train.take(torch.arange(n)[None])
    leaves = {k: v.clone().requires_grad_() for k, v in made.params.items()}
    out = made.apply(leaves, made.buffers, x, t, record=True)
    A, G = (torch.zeros_like(v) for v in found)
    logp = out.logits.log_softmax(-1)
    for b in range(n):
        for position in range(shape[0]):
            a = torch.cat([out.inputs[layer.input][0, b, position], torch.ones(1, dtype=torch.float64)]).detach()
            A += torch.outer(a, a) / n
            for y in range(4):
                whole = torch.autograd.grad(logp[0, b, y], out.preacts[layer.preact], retain_graph=True)[0]
                delta = whole[0, b, position]
                G += logp[0, b, y].exp().detach() * torch.outer(delta, delta) / (n * shape[0])
    torch.testing.assert_close(found, (A, G), rtol=1e-9, atol=1e-13)


def test_a_convolution_of_one_position_is_exact_with_one_sample() -> None:
    made = learner(ResNet18((2, 8, 8), 4, 2), images(1, 2, 8, 8), labels(1, 1))
    source, name = made.stream.tasks[0].train, "stage4.block2.conv2.weight"  # its maps are one pixel
    A, G = kronecker.factors(made, source, "exact", stream_of(made))[0][name]
    product = G.diagonal(dim1=1, dim2=2)[..., None] * A.diagonal(dim1=1, dim2=2)[:, None]
    F: Params = diagonal(made, source, "exact", stream_of(made))
    torch.testing.assert_close(product, F[name].flatten(2), rtol=1e-10, atol=1e-16)


def psd(seed: int, n: int, rank: int, S: int = 3) -> Tensor:
    v = torch.randn(S, n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v @ v.mT


def test_a_sum_is_the_nearest_kronecker_product() -> None:
    p, q = (psd(0, 4, 2), psd(1, 3, 1)), (psd(2, 4, 3), psd(3, 3, 2))
    both = dense(p) + dense(q)
    # Van Loan & Pitsianis: rearranged, a Kronecker product has rank one
    arranged = both.view(3, 4, 3, 4, 3).transpose(2, 3).reshape(3, 16, 9)
    u, s, v = torch.linalg.svd(arranged)
    best = s[:, 0, None, None] * u[:, :, :1] @ v[:, :1]
    A, G = kronecker.add(p, q)
    found = dense((A, G)).view(3, 4, 3, 4, 3).transpose(2, 3).reshape(3, 16, 9)
    torch.testing.assert_close(found, best, rtol=1e-9, atol=1e-9)
    assert all((torch.linalg.eigvalsh(m) > -1e-9 * m.abs().max()).all() for m in (A, G))


def test_the_first_term_is_kept_and_equal_terms_add_up() -> None:
    p = (psd(0, 4, 2), psd(1, 3, 1))
    zero = (torch.zeros(3, 4, 4).double(), torch.zeros(3, 3, 3).double())
    torch.testing.assert_close(dense(kronecker.add(zero, p)), dense(p), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dense(kronecker.add(p, zero)), dense(p), rtol=1e-10, atol=1e-12)
    total = p
    for _ in range(4):  # a product of summed factors, (A + A) ⊗ (G + G), would count 4 here, and 25 at the end
        total = kronecker.add(total, p)
    torch.testing.assert_close(dense(total), 5 * dense(p), rtol=1e-9, atol=1e-12)
    assert all((m == 0).all() for m in kronecker.add(zero, zero))


def test_the_form_is_that_of_the_dense_matrix_and_has_its_gradient() -> None:
    pair = (psd(0, 4, 2), psd(1, 3, 1))
    D = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    vec = D.mT.flatten(1)  # columns of D, one after another
    expected = torch.einsum("si,sij,sj->s", vec, dense(pair), vec)
    torch.testing.assert_close(kronecker.quadratic_form(D, pair), expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda d: kronecker.quadratic_form(d, pair), [D])


def test_an_unknown_kind_is_named() -> None:
    made = learner(MLP((3,), 4, ()), images(2, 3), labels(1, 2))
    with pytest.raises(ValueError, match="fisher=batch: choose one of exact, sampled, empirical, weighted"):
        kronecker.factors(made, made.stream.tasks[0].train, "batch", stream_of(made))
