"""Lines between points: worked numbers, a convex model, batch-norm statistics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness import paths
from harness.models.layers import batch_norm
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.random import RandomStream, keys
from harness.types import Net, Out, Params
from tests.toy import gaussian

F64 = torch.float64


def test_line_evaluates_every_seed_between_its_own_ends() -> None:
    a = {"w": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "b": torch.tensor([[1.0], [0.0]])}
    b = {"w": torch.tensor([[4.0, 1.0], [2.0, 8.0]]), "b": torch.tensor([[3.0], [0.0]])}
    path = paths.line(a, b, lambda p: p["w"].sum(1) + p["b"][:, 0], (0, 0.25, 1))
    assert path.tolist() == [[2, 3.5, 8], [2, 4, 10]]
    pair = paths.line(a, b, lambda p: p["w"], (0, 0.5, 1))  # any trailing shape
    assert pair.tolist() == [[[0, 1], [2, 1], [4, 1]], [[2, 0], [2, 4], [2, 8]]]


def test_three_definitions_answer_three_questions_on_a_monotone_slide() -> None:
    # the step of a naive learner seen from the old task: no hill, yet Frankle's number is half the fall
    slide = torch.tensor([[0.1, 0.2, 0.6, 1.5, 3.3]], dtype=F64)
    alphas = paths.grid(5)
    assert paths.entezari(slide, alphas).item() == pytest.approx(0)
    assert paths.frankle(slide, alphas).item() == pytest.approx(1.6)
    assert paths.excess(slide, alphas).item() == 0
    alpha, gain = paths.best(slide, alphas)
    assert (alpha.item(), gain.item()) == (0, 0)
    # trapezoids of width 1/4: (0/2 + 0.1 + 0.5 + 1.4 + 3.2/2) / 4
    assert paths.area(slide, alphas).item() == pytest.approx(0.9)


def test_hill_and_valley_by_hand() -> None:
    path = torch.tensor([[1.0, 4.0, 2.0, 3.0], [4.0, 1.0, 0.5, 2.0]], dtype=F64)
    alphas = (0.0, 0.5, 0.75, 1.0)
    # chord of the first: 1 + 2 alpha = 2 at the hill; the second lies below its chord
    assert paths.entezari(path, alphas).tolist() == [2, 0]
    assert paths.frankle(path, alphas).tolist() == [2, 1]
    assert paths.excess(path, alphas).tolist() == [1, 0]
    alpha, gain = paths.best(path, alphas)
    assert alpha.tolist() == [0, 0.75] and gain.tolist() == [0, 1.5]
    # above the better end: 0, 3, 1, 2 and 2, -1, -1.5, 0
    expected = [0.5 * 1.5 + 0.25 * 2 + 0.25 * 1.5, 0.5 * 0.5 - 0.25 * 1.25 - 0.25 * 0.75]
    assert paths.area(path, alphas).tolist() == pytest.approx(expected)


def test_convex_model_has_no_barrier_of_entezari() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 50, 6, dtype=F64, generator=g), torch.randint(0, 4, (3, 50), generator=g)
    a, b = ({"w": 3 * torch.randn(3, 6, 4, dtype=F64, generator=g)} for _ in range(2))

    def loss(p: dict[str, Tensor]) -> Tensor:
        return -(x @ p["w"]).log_softmax(2).gather(2, y[..., None]).mean((1, 2))

    alphas = paths.grid(11)
    path = paths.line(a, b, loss, alphas)
    torch.testing.assert_close(paths.entezari(path, alphas), torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(paths.excess(path, alphas), torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)
    assert (paths.frankle(path, alphas) > 0.1).any()


@pytest.mark.parametrize("measure", [paths.entezari, paths.frankle, paths.excess, paths.area])
def test_nan_anywhere_is_nan_and_stays_in_its_row(measure: Callable[[Tensor, Sequence[float]], Tensor]) -> None:
    path = torch.tensor([[1.0, math.nan, 0.0], [1.0, 3.0, 0.0]])
    assert measure(path, (0, 0.5, 1)).isnan().tolist() == [True, False]
    assert [v.isnan().tolist() for v in paths.best(path, (0, 0.5, 1))] == [[True, False]] * 2


def test_a_grid_that_does_not_span_the_path_is_refused() -> None:
    for alphas in ((0, 0.5), (0, 0.5, 0.9), (0.1, 0.5, 1)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            paths.entezari(torch.zeros(1, 3), alphas)
    with pytest.raises(ValueError, match="points=2"):
        paths.grid(2)


def bn_net() -> tuple[Net, Tensor, Tensor]:
    """One batch norm behind a linear map, and rows [2, 30, 3]; a counter beside the statistics."""

    def apply(p, buffers, x, t, *, train=False, key=None, record=False):  # type: ignore[no-untyped-def]
        z = (x @ p["w"])[..., None, None]
        z, mean, var = batch_norm(z, p["gain"], p["shift"], buffers["mean"], buffers["var"], train)
        return Out(z.flatten(2), {}, {"mean": mean, "var": var, "count": buffers["count"] + train})

    g = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(2, 3, 4, dtype=F64, generator=g)}
    params |= {"gain": torch.rand(2, 4, dtype=F64, generator=g), "shift": torch.rand(2, 4, dtype=F64, generator=g)}
    buffers = {"mean": torch.full((2, 4), 7.0, dtype=F64), "var": torch.full((2, 4), 0.3, dtype=F64)}
    buffers["count"] = torch.tensor([5, 5])
    return Net(params, buffers, apply), torch.randn(2, 30, 3, dtype=F64, generator=g), torch.zeros(2, 30).long()


def test_refresh_gives_exactly_the_statistics_of_the_rows() -> None:
    net, x, t = bn_net()
    kept = {k: v.clone() for k, v in net.buffers.items()}
    renewed = paths.refresh(net, [(x, t, None)])
    z = x @ net.params["w"]
    torch.testing.assert_close(renewed.buffers["mean"], z.mean(1))
    torch.testing.assert_close(renewed.buffers["var"], z.var(1))  # unbiased, as training tracks it
    assert renewed.buffers["count"].tolist() == [5, 5]
    assert all(torch.equal(v, kept[k]) for k, v in net.buffers.items())
    assert renewed(x, t).logits.std() > 0


def test_refresh_undoes_the_variance_collapse_between_two_independent_nets() -> None:
    # with the end's statistics a midpoint's features are too small: the barrier would be an artefact
    net, x, t = bn_net()
    ends = [
        {**net.params, "w": torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(s))} for s in (1, 2)
    ]
    mid = Net({**net.params, "w": (ends[0]["w"] + ends[1]["w"]) / 2}, net.buffers, net.apply)
    stale = Net(mid.params, paths.refresh(Net(ends[0], net.buffers, net.apply), [(x, t, None)]).buffers, net.apply)
    fresh = paths.refresh(mid, [(x, t, None)])
    spread = fresh(x, t).logits.var(1, correction=1)
    torch.testing.assert_close(spread, net.params["gain"] ** 2, rtol=1e-3, atol=0)
    assert (stale(x, t).logits.var(1) - net.params["gain"] ** 2).abs().max() > 0.05


def test_refresh_leaves_a_net_without_statistics_alone() -> None:
    net, x, t = bn_net()
    plain = Net(net.params, {}, net.apply)
    assert paths.refresh(plain, [(x, t, None)]) is plain


def test_refresh_is_the_mean_over_batches() -> None:
    net, x, t = bn_net()
    parts = [(x[:, i : i + 10], t[:, i : i + 10], None) for i in (0, 10, 20)]
    found = paths.refresh(net, parts).buffers
    each = [paths.refresh(net, [part]).buffers for part in parts]
    for k in ("mean", "var"):
        torch.testing.assert_close(found[k], torch.stack([one[k] for one in each]).mean(0))


class Toy:
    """A model whose running mean has a momentum of 0.3, beside a counter that is a floating number."""

    stochastic = False

    def __call__(self, params: Params, buffers: Params, x: Tensor, t: Tensor, **_: object) -> Out:
        new = {"mean": 0.7 * buffers["mean"] + 0.3 * x.mean(1), "count": buffers["count"] + 1}
        return Out(x, {}, new)


def test_remeasure_averages_what_training_would_average() -> None:
    """For b <- (1 - m) b + m s the result is the mean of s, whatever m and the buffers were."""
    made = gaussian(lambda s: MLP(s.shape, s.outputs, (5,)), SGD(lr=0.1), rows=400)
    task = made.stream.tasks[0]
    task.train.data.add_(10)  # type: ignore[attr-defined]
    made.model = Toy()  # type: ignore[assignment]
    made.apply = made.model.__call__
    made.buffers = {"mean": torch.full((2, 4), 99.0).double(), "count": torch.full((2,), 5.0).double()}
    random = RandomStream(keys([0, 1], "remeasure"))
    got = paths.remeasure(made, made.params, task, random, size=8)
    rows = task.train.take(torch.arange(400).expand(2, 400))[0]
    assert ((got["mean"] - rows.mean(1)).abs() < 5 * rows.std(1) / 400**0.5).all()  # 50 batches of 8
    assert torch.equal(got["count"], made.buffers["count"])  # no running average: kept
    assert random.count == 50
    made.buffers = {}
    assert paths.remeasure(made, made.params, task, random) == {} and random.count == 50


def test_follow_is_in_place_and_copies_counters() -> None:
    slow = {"w": torch.tensor([1.0, 2.0], dtype=F64), "n": torch.tensor([3])}
    kept = slow["w"]
    paths.follow(slow, {"w": torch.tensor([2.0, 0.0], dtype=F64), "n": torch.tensor([7])}, 0.25)
    assert slow["w"] is kept and kept.tolist() == [1.25, 1.5] and slow["n"].tolist() == [7]
    paths.follow({}, {}, 0.5)


def test_competing_rows_of_the_read_out() -> None:
    made = gaussian(lambda s: MLP(s.shape, s.outputs, (5,)), SGD(lr=0.1), tasks=2)
    assert paths.competing(made) == {}
    masks = torch.tensor([[[True, False], [False, True]]])
    for scenario, after in (("task", [[False, True]]), ("class", [[True, True]])):
        made.stream = replace(made.stream, scenario=scenario, masks=masks)
        made.enter(made.stream.tasks[0])
        found = paths.competing(made)
        assert found["head.weight"][0, :, 0].tolist() == [True, False]
        assert found["head.bias"][:1].tolist() == [[True, False]]
        made.enter(made.stream.tasks[1])
        assert paths.competing(made)["head.bias"][:1].tolist() == after
