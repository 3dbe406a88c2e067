"""The diagonal Fisher information against closed forms and a loop over samples and labels, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import counting
from harness.landscape.fisher import backward, cotangents, diagonal, sensitivity
from harness.learner import Budget, Learner, mask_logits
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.recurrent import GRU, LSTM
from harness.models.resnet18 import ResNet18
from harness.models.vit import ViT
from harness.optim import SGD
from harness.rng import RandomStream, keys
from harness.rows import Rows
from harness.types import Batch, Params, Stream, Task


def learner(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    seeds: tuple[int, ...] = (0,),
    outputs: int = 4,
    size: Tensor | None = None,
    masks: Tensor | None = None,
    loss: str = "cross_entropy",
) -> Learner:
    """One task whose rows are x [N, ...] in order, y [S, N] or [S, N, C]."""
    S, n = y.shape[:2]
    size = torch.full((S,), n) if size is None else size
    rows = Rows(x, torch.arange(n).expand(S, n), y, torch.zeros(S, 1, dtype=torch.int64), size)
    stream = Stream(
        "toy", 1, "task", (Task(0, rows, rows, rows, n),), x.shape[1:], outputs, seeds, "", masks, loss=loss
    )
    made = Learner(model, stream, SGD(lr=0.1), Budget(), dtype=torch.float64)
    for k, v in made.params.items():  # move norms and biases off their starting values
        noise = torch.randn(v.shape[1:], generator=torch.Generator().manual_seed(len(k)), dtype=v.dtype)
        v += 0.3 * noise
    return made


def stream_of(made: Learner) -> RandomStream:
    return RandomStream(keys(made.seeds, "fisher"))


def loop(made: Learner, kind: str) -> Params:
    """Seed by seed, row by row, label by label."""
    total = {k: torch.zeros_like(v) for k, v in made.params.items()}
    source = made.stream.tasks[0].train
    for s in range(made.S):
        for i in range(int(source.size[s])):
            x, y, t = source.take(torch.full((made.S, 1), i))
            leaves = {k: v.clone().requires_grad_() for k, v in made.params.items()}
            out = made.apply(leaves, made.buffers, x, t)
            logp = mask_logits(out.logits, made.stream.mask(t, 0)).log_softmax(-1)[s, 0]
            labels = range(len(logp)) if kind == "exact" else [int(y[s, 0])]
            for c in labels:
                if logp[c] == -torch.inf:
                    continue
                p = 1.0 if kind == "empirical" else logp[c].exp().detach()
                grads = torch.autograd.grad(logp[c], list(leaves.values()), retain_graph=True)
                for k, g in zip(leaves, grads):
                    total[k][s] += p * g[s].square() / source.size[s]
    return total


def assert_close(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    for k in a:
        scale = b[k].abs().max()
        assert scale > 0, k
        assert (a[k] - b[k]).abs().max() <= 1e-10 * scale, k


def images(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def labels(S: int, n: int, outputs: int = 4) -> Tensor:
    return torch.randint(0, outputs, (S, n), generator=torch.Generator().manual_seed(1))


MODELS = {
    "mlp": (lambda: MLP((6,), 4, (5, 3), "tanh"), (6,)),
    "crelu_layer_norm": (lambda: MLP((6,), 4, (5, 3), "crelu", True), (6,)),
    "cnn": (lambda: CNN((2, 8, 8), 4), (2, 8, 8)),
    "resnet18_batch": (lambda: ResNet18((3, 8, 8), 4, 2), (3, 8, 8)),
    "lstm": (lambda: LSTM((5, 3), 4, (4, 3)), (5, 3)),
    "gru": (lambda: GRU((5, 3), 4, (4,)), (5, 3)),
    "vit": (lambda: ViT((2, 4, 4), 4, 2, 6, 1, 2, 5), (2, 4, 4)),
}


@pytest.mark.parametrize("kind", ["exact", "empirical", "weighted"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_loop_over_samples(name: str, kind: str) -> None:
    make, shape = MODELS[name]
    seeds = (0,) if "resnet" in name else (0, 1, 2)
    n = 3
    made = learner(make(), images(n, *shape), labels(len(seeds), n), seeds=seeds)
    assert_close(diagonal(made, made.stream.tasks[0].train, kind, stream_of(made), size=2), loop(made, kind))


@pytest.mark.parametrize("name", ["cnn", "gru"])
def test_shared_weights_in_chunks_and_several_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS[name]
    made = learner(make(), images(5, *shape), labels(2, 5), seeds=(0, 1))
    source = made.stream.tasks[0].train
    whole = diagonal(made, source, "exact", stream_of(made))
    monkeypatch.setattr("harness.landscape.fisher._CHUNK", 1)
    assert_close(diagonal(made, source, "exact", stream_of(made)), whole)


def test_all_of_a_vit_has_a_closed_form() -> None:
    make, shape = MODELS["vit"]
    made = learner(make(), images(2, *shape), labels(1, 2))
    batch = made.make_batch(*made.stream.tasks[0].train.take(torch.arange(2)[None]))
    assert backward(made, batch).rest(made.params) == {}


@pytest.mark.parametrize("kind", ["exact", "empirical", "weighted"])
def test_labels_outside_the_mask_do_not_count(kind: str) -> None:
    masks = torch.tensor([[[True, False, True, False]], [[True, False, True, True]]])
    y = labels(2, 4, 2) * 2
    made = learner(MLP((6,), 4, (5,)), images(4, 6), y, seeds=(0, 1), masks=masks)
    F = diagonal(made, made.stream.tasks[0].train, kind, stream_of(made))
    reference = loop(made, kind)
    for k in F:
        torch.testing.assert_close(F[k], reference[k], rtol=1e-10, atol=1e-14)
    assert (F["head.bias"][:, 1] == 0).all() and F["head.bias"][1, 3] > 0 == F["head.bias"][0, 3]


def test_softmax_regression_has_the_closed_form() -> None:
    # E_y (1[y=c] - p_c)² = p_c (1 - p_c), hence F of w_ci is the mean of p_c (1 - p_c) x_i²
    x = images(50, 6)
    made = learner(MLP((6,), 4, ()), x, labels(2, 50), seeds=(0, 1))
    F = diagonal(made, made.stream.tasks[0].train, "exact", stream_of(made))
    p = (x @ made.params["head.weight"].mT + made.params["head.bias"][:, None]).softmax(-1)
    spread = p * (1 - p)
    torch.testing.assert_close(F["head.weight"], torch.einsum("snc,ni->sci", spread, x**2) / 50, rtol=1e-12, atol=0)
    torch.testing.assert_close(F["head.bias"], spread.mean(1), rtol=1e-12, atol=0)


def test_does_not_depend_on_the_batch_size() -> None:
    # the fault of libraries that square the gradient of a batch's mean loss
    made = learner(MLP((6,), 4, (5,)), images(23, 6), labels(1, 23))
    source = made.stream.tasks[0].train
    for kind in ("exact", "empirical"):
        whole = diagonal(made, source, kind, stream_of(made))
        for size in (1, 7):
            assert_close(diagonal(made, source, kind, stream_of(made), size=size), whole)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_sampled_labels_estimate_the_exact_information(loss: str) -> None:
    n, S = 4000, 2
    x = images(3, 6).repeat(n // 3 + 1, 1)[:n]
    y = labels(S, n) if loss == "cross_entropy" else torch.zeros(S, n, 4, dtype=torch.float64)
    made = learner(MLP((6,), 4, (5,), "tanh"), x, y, seeds=(0, 1), loss=loss)
    source = made.stream.tasks[0].train
    exact, sampled = (diagonal(made, source, k, stream_of(made)) for k in ("exact", "sampled"))
    for k in exact:
        assert not torch.equal(exact[k], sampled[k])
        assert (sampled[k] - exact[k]).abs().sum() < 0.05 * exact[k].sum()


def test_sampled_labels_compete() -> None:
    mask = torch.tensor([False, True, False, True]).expand(1, 1, 4)
    x = torch.zeros(1, 5000, 2)
    batch = Batch(x, torch.zeros(1, 5000).long(), torch.zeros(1, 5000).long(), torch.ones(1, 5000), mask)
    logits = torch.tensor([9.0, 1.0, 9.0, 0.0]).expand(1, 5000, 4)
    (v,) = cotangents("sampled", "cross_entropy", logits, batch, RandomStream(keys([0], "fisher")))
    drawn = v.argmax(-1).bincount(minlength=4) if v.dim() == 1 else v[0].argmax(-1).bincount(minlength=4)
    assert drawn[[0, 2]].sum() == 0
    assert abs(drawn[1] / 5000 - 0.7311) < 0.025  # 1 / (1 + exp(-1)), 4 standard errors


@pytest.mark.parametrize("scale", [1.0, 20.0, 1000.0])  # at 1000 all but one label underflow
@pytest.mark.parametrize("masked", [False, True])
def test_exact_cotangents_are_a_factor_of_the_labels_covariance(scale: float, masked: bool) -> None:
    g = torch.Generator().manual_seed(2)
    logits = scale * torch.randn(2, 50, 5, generator=g, dtype=torch.float64)
    mask = (torch.rand(2, 50, 5, generator=g) < 0.5) if masked else torch.ones(2, 50, 5, dtype=torch.bool)
    mask[..., 3] = not masked  # one label competes in no row
    mask[..., 1] = True
    w = torch.rand(2, 50, generator=g, dtype=torch.float64)
    zero = torch.zeros(2, 50, dtype=torch.int64)
    batch = Batch(torch.zeros(2, 50, 1), zero, zero, w, mask)
    p = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    vectors = torch.stack(list(cotangents("exact", "cross_entropy", logits, batch, RandomStream(keys([0, 1], "f")))))
    assert len(vectors) == (3 if masked else 4)
    expected = w[..., None, None] * (torch.diag_embed(p) - p[..., None] * p[..., None, :])
    found = torch.einsum("vsbi,vsbj->sbij", vectors, vectors)
    assert (found - expected).abs().max() < 1e-15
    # nor does a confident row lose its small entries
    sure = found.diagonal(dim1=2, dim2=3)[..., 1]
    torch.testing.assert_close(sure, w * p[..., 1] * (p.sum(-1) - p[..., 1]), rtol=1e-9, atol=1e-15)


def test_two_labels_that_compete_take_one_backward_pass_and_one_label_has_no_information() -> None:
    for competing in (2, 1):
        masks = torch.tensor([c < competing for c in range(4)]).expand(1, 1, 4)
        made = learner(MLP((6,), 4, (5, 3), "tanh", True), images(3, 6), labels(1, 3, competing), masks=masks)
        with counting.counting() as counted:
            F = diagonal(made, made.stream.tasks[0].train, "exact", stream_of(made))
        assert counted["gradients"] == competing - 1
        assert all((v > 0).any() == (competing > 1) for v in F.values())


def test_squared_error_is_a_gaussian_of_variance_half_the_outputs() -> None:
    x, C = images(9, 6), 4
    y = images(9, C)[None].expand(2, -1, -1) * torch.tensor([1.0, 2.0])[:, None, None]
    made = learner(MLP((6,), C, ()), x, y, seeds=(0, 1), loss="mse")
    source = made.stream.tasks[0].train
    exact = diagonal(made, source, "exact", stream_of(made))
    torch.testing.assert_close(exact["head.weight"], (2 / C * x.square().mean(0)).expand(2, C, 6), rtol=1e-12, atol=0)
    error = made.net(x.expand(2, -1, -1), torch.zeros(2, 9)).logits - y
    empirical = diagonal(made, source, "empirical", stream_of(made))
    reference = (2 / C) ** 2 * torch.einsum("snc,ni->sci", error**2, x**2) / 9
    torch.testing.assert_close(empirical["head.weight"], reference, rtol=1e-12, atol=0)


def test_seeds_with_fewer_rows_average_over_their_own() -> None:
    x, y = images(9, 6), labels(2, 9)
    both = learner(MLP((6,), 4, (5,)), x, y, seeds=(3, 5), size=torch.tensor([9, 4]))
    alone = learner(MLP((6,), 4, (5,)), x[:4], y[1:, :4], seeds=(5,))
    for kind in ("exact", "sampled"):
        for samples in (None, 3, 6):
            a = diagonal(both, both.stream.tasks[0].train, kind, stream_of(both), samples=samples, size=4)
            b = diagonal(alone, alone.stream.tasks[0].train, kind, stream_of(alone), samples=samples, size=4)
            for k in a:
                torch.testing.assert_close(a[k][1:], b[k], rtol=1e-10, atol=1e-14)
    source = both.stream.tasks[0].train
    every, six = (diagonal(both, source, "exact", stream_of(both), samples=n) for n in (None, 6))
    for k in every:  # six were asked for, the second seed has four
        torch.testing.assert_close(six[k][1], every[k][1], rtol=1e-10, atol=1e-14)
        assert not torch.allclose(six[k][0], every[k][0], rtol=1e-3)


def test_a_subset_is_drawn_at_random_without_replacement() -> None:
    made = learner(MLP((30,), 4, ()), torch.eye(30, dtype=torch.float64), labels(2, 30), seeds=(0, 1))
    F = diagonal(made, made.stream.tasks[0].train, "exact", stream_of(made), samples=12, size=5)
    used = (F["head.weight"] > 0).all(1)  # each input excites the weights of one row
    assert used.sum(1).tolist() == [12, 12] and not torch.equal(used[0], used[1])
    assert not used[0, :12].all()
    logits = made.params["head.weight"].mT + made.params["head.bias"][:, None]
    p = logits.softmax(-1)
    expected = torch.where(used[..., None], p * (1 - p) / 12, 0).mT
    torch.testing.assert_close(F["head.weight"], expected, rtol=1e-12, atol=0)


def test_a_diverged_seed_takes_no_other_down() -> None:
    made = learner(MLP((6,), 4, (5,)), images(4, 6), labels(2, 4), seeds=(0, 1))
    source = made.stream.tasks[0].train
    before = diagonal(made, source, "exact", stream_of(made))
    made.params["fc1.weight"][0] = torch.nan
    after = diagonal(made, source, "exact", stream_of(made))
    for k in after:
        assert after[k][0].isnan().any() and torch.equal(after[k][1], before[k][1])


def test_an_unknown_kind_is_refused() -> None:
    made = learner(MLP((6,), 4, ()), images(2, 6), labels(1, 2))
    with pytest.raises(ValueError, match="fisher=batch"):
        diagonal(made, made.stream.tasks[0].train, "batch", stream_of(made))


@pytest.mark.parametrize("name", MODELS)
def test_sensitivity_is_the_mean_of_each_row_s_absolute_gradient(name: str) -> None:
    make, shape = MODELS[name]
    seeds, n = ((0,) if "resnet" in name else (0, 1)), 3
    masks = torch.tensor([True, False, True, True]).expand(1, 1, 4)
    made = learner(make(), images(n, *shape), labels(len(seeds), n), seeds=seeds, masks=masks)
    source = made.stream.tasks[0].train
    reference = {k: torch.zeros_like(v) for k, v in made.params.items()}
    for i in range(n):
        x, _, t = source.take(torch.full((made.S, 1), i))
        leaves = {k: v.clone().requires_grad_() for k, v in made.params.items()}
        norm = made.apply(leaves, made.buffers, x, t).logits[..., [0, 2, 3]].square().sum()
        for k, g in zip(leaves, torch.autograd.grad(norm, list(leaves.values()))):
            reference[k] += g.abs() / n
    for size in (2, 500):  # nor does it depend on the batch size
        assert_close(sensitivity(made, source, stream_of(made), size=size), reference)


def test_a_regression_has_no_probability_to_weight_with() -> None:
    made = learner(MLP((6,), 2, ()), images(4, 6), torch.zeros(1, 4, 2), seeds=(0,), loss="mse")
    with pytest.raises(ValueError, match="fisher=weighted: needs classes"):
        diagonal(made, made.stream.tasks[0].train, "weighted", stream_of(made))
