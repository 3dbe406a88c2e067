"""Lines between points: worked numbers, a convex model, batch-norm statistics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.landscape import paths
from harness.models.cnn import CNN
from harness.models.maps import apart, batch_norm, together
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rng import RandomStream, keys
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
    alpha, gain = paths.lowest(slide, alphas)
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
    alpha, gain = paths.lowest(path, alphas)
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
    assert [v.isnan().tolist() for v in paths.lowest(path, (0, 0.5, 1))] == [[True, False]] * 2


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
        scaled, mean, var = batch_norm(apart(z), p["gain"], p["shift"], buffers["mean"], buffers["var"], train)
        return Out(
            together(scaled, len(x)).flatten(2), {}, {"mean": mean, "var": var, "count": buffers["count"] + train}
        )

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


def points_of(widths: tuple[int, ...] = (7, 5), count: int = 3) -> tuple[MLP, list[Params]]:
    """Independent parameters of an MLP, two seeds each, in float64."""
    model = MLP((4,), 3, widths)
    made = [model.init(keys([3, 5], f"point{i}"))[0] for i in range(count)]
    return model, [{k: v.double() for k, v in p.items()} for p in made]


def test_a_plane_goes_through_its_points_and_its_axes_are_at_right_angles() -> None:
    model, (a, b, c) = points_of()
    found = paths.plane(a, b, c)
    torch.testing.assert_close(tree.dot(found.u, found.v), torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)
    lengths = [tree.norm(found.u), tree.norm(found.v)]
    torch.testing.assert_close(found.lengths, torch.stack(lengths, 1))
    for point, corner in zip((a, b, c), found.corners.unbind(1)):
        at = tree.add(tree.add(found.origin, found.u, corner[:, 0]), found.v, corner[:, 1])
        torch.testing.assert_close(at, point, rtol=1e-12, atol=1e-12)
    # distances in the plane are those of the points
    flat = found.corners * found.lengths[:, None]
    for i, j, p, q in ((0, 1, a, b), (0, 2, a, c), (1, 2, b, c)):
        torch.testing.assert_close((flat[:, i] - flat[:, j]).norm(dim=1), tree.norm(tree.sub(p, q)))
    x, y = paths.axes(found, 5)
    low, high = found.corners.amin((0, 1)), found.corners.amax((0, 1))
    assert x[0] == pytest.approx(float(low[0] - 0.2 * (high - low)[0])) and y[-1] == pytest.approx(1.2)
    assert len(x) == len(y) == 5 and x[2] == pytest.approx((x[0] + x[4]) / 2)
    # evaluated, the corners give what the nets themselves give
    batch = torch.randn(2, 9, 4, dtype=F64, generator=torch.Generator().manual_seed(0))

    def total(p: Params) -> Tensor:
        return model(p, {}, batch, torch.zeros(2, 9).long()).logits.square().sum((1, 2))

    grid = paths.surface(found, total, (0.0, 1.0, float(found.corners[0, 2, 0])), (0.0, 1.0))
    torch.testing.assert_close(grid[:, 0, 0], total(a))
    torch.testing.assert_close(grid[:, 1, 0], total(b))
    torch.testing.assert_close(grid[0, 2, 1], total(c)[0])


def test_planes_that_are_none() -> None:
    _, (a, b, _) = points_of()
    line = paths.plane(a, b, tree.lerp(a, b, 0.25))
    assert line.lengths[:, 1].max() < 1e-12
    torch.testing.assert_close(line.corners[:, 2, 0], torch.full((2,), 0.25, dtype=F64))
    point = paths.plane(a, a, b)
    assert point.lengths[:, 0].tolist() == [0, 0] and point.corners[:, 2].tolist() == [[0, 1]] * 2
    torch.testing.assert_close(tree.add(a, point.v), b)
    lost = tree.copy(b)
    lost["fc1.bias"][0, 0] = math.nan
    broken = paths.plane(a, lost, tree.lerp(a, b, 0.25))
    assert broken.lengths[0].isnan().all() and torch.equal(broken.corners[1], line.corners[1])
    assert paths.axes(broken, 3)[0] == pytest.approx((-0.2, 0.5, 1.2))


def test_random_directions_have_every_filter_as_long_as_the_weights() -> None:
    model = CNN((2, 8, 8), 3, (4, 5), (6,), layer_norm=True)
    params = {k: v.double() for k, v in model.init(keys([3, 5], "net"))[0].items()}
    params["conv1.weight"][:, 1] = 0
    d = paths.filter_normalised(params, keys([3, 5], "d"))
    for name, w in params.items():
        if name.endswith("weight"):
            torch.testing.assert_close(d[name].flatten(2).norm(dim=2), w.flatten(2).norm(dim=2))
        else:
            assert not d[name].any(), name
    assert d["head.weight"].std() > 0 and not torch.equal(d["head.weight"][0], d["head.weight"][1])
    square = paths.filter_normalised({k: torch.ones(1, 3, 3) for k in "ab"}, keys([3], "d"))
    assert not torch.equal(square["a"], square["b"])
    alone = paths.filter_normalised({k: v[1:] for k, v in params.items()}, keys([5], "d"))
    assert all(torch.equal(v[1:], alone[k]) for k, v in d.items())
    found = paths.random_plane(params, keys([3, 5], "d"))
    assert (tree.dot(found.u, found.v).abs() < 0.5 * found.lengths.prod(1)).all()
    assert found.corners.tolist() == [[[0, 0]]] * 2 and paths.axes(found, 3) == ((-1, 0, 1), (-1, 0, 1))


def test_rescaling_a_relu_layer_leaves_the_picture_and_moves_the_one_without_normalisation() -> None:
    model, (params, *_) = points_of()
    scaled = {
        **params,
        **{k: 10 * params[k] for k in ("fc1.weight", "fc1.bias")},
        "fc2.weight": params["fc2.weight"] / 10,
    }
    x = torch.randn(2, 9, 4, dtype=F64, generator=torch.Generator().manual_seed(0))

    def total(p: Params) -> Tensor:
        return model(p, {}, x, torch.zeros(2, 9).long()).logits.square().sum((1, 2))

    key, at = keys([3, 5], "d"), (-1.0, 0.0, 1.0)
    before, after = (paths.surface(paths.random_plane(p, key), total, at, at) for p in (params, scaled))
    torch.testing.assert_close(after, before)
    raw = paths.random_plane(params, key)._replace(origin=scaled)
    assert (paths.surface(raw, total, at, at)[:, 0, 0] - before[:, 0, 0]).abs().min() > 1e-3
