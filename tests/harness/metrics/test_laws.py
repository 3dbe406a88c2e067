"""Laws that every measure of the net's units, features and answers obeys, whatever its formula."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.metrics.calibration import calibration
from harness.metrics.collapse import collapse
from harness.metrics.plasticity import plasticity
from harness.metrics.representation import representation
from harness.metrics.trainability import random_labels
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.rows import Rows
from harness.types import Batch, Net, Reading, Stream

METRICS: dict[str, Callable[..., Any]] = {
    "plasticity": partial(plasticity, size=40, duplicates=True, rank=True, gradient=True),
    "random_labels": partial(random_labels, size=30, steps=3, batch_size=10),
    "collapse": partial(collapse, size=40, tasks=3),
    "representation": partial(representation, size=40, test_size=40, tasks=3, ridge=0.1),
    "calibration": partial(calibration, size=40, tasks=3),
}


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def images(s: Stream) -> tuple[int, int, int]:
    return (2, 2, 2)


class Square:
    """A model over images that reads the toy stream's eight inputs as two channels of 2 x 2."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.units, self.layers, self.head = inner.units, inner.layers, inner.head
        self.outputs, self.stochastic, self.init = inner.outputs, inner.stochastic, inner.init

    def __call__(self, params: Any, buffers: Any, x: Tensor, t: Tensor, **how: Any) -> Any:
        return self.inner(params, buffers, x.unflatten(2, (2, 2, 2)), t, **how)


MODELS: dict[str, Callable[[Stream], Any]] = {
    "dropout": lambda s: MLP(s.shape, s.outputs, (10, 6), dropout=0.3),
    "tanh": lambda s: MLP(s.shape, s.outputs, (10, 6), activation="tanh", layer_norm=True),
    "crelu": lambda s: MLP(s.shape, s.outputs, (10, 6), activation="crelu"),
    "conv": lambda s: Square(CNN(images(s), s.outputs, channels=(5,), hidden=(6,))),
    "batch norm": lambda s: Square(ResNet18(images(s), s.outputs, width=2)),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_changed_and_a_second_call_says_the_same(boundary, name: str, model: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(dtype=torch.float32, model=MODELS[model])
    b.learner.random("dropout").key()
    nets = [b.trained, b.nets.initial, b.nets[0], b.learner.net]
    kept = [(tree.copy(n.params), tree.copy(n.buffers)) for n in nets]
    rng, mode = torch.get_rng_state(), torch.is_grad_enabled()
    state = {k: s.count for k, s in b.learner.streams.items()} | {"own": b.random.count}
    settings = (b.learner.now, b.learner.steps, b.learner.planned, dict(b.learner.optimizer.state))
    first, second = METRICS[name](b), METRICS[name](b)
    assert first and all(torch.equal(value(first[n]).nan_to_num(), value(second[n]).nan_to_num()) for n in first)
    for net, (params, buffers) in zip(nets, kept):
        assert all(torch.equal(v, params[k]) and v.grad is None and not v.requires_grad for k, v in net.params.items())
        assert all(torch.equal(v, buffers[k]) for k, v in net.buffers.items())
    assert torch.equal(torch.get_rng_state(), rng) and torch.is_grad_enabled() == mode
    assert {k: s.count for k, s in b.learner.streams.items()} | {"own": b.random.count} == state
    assert (b.learner.now, b.learner.steps, b.learner.planned, dict(b.learner.optimizer.state)) == settings
    assert not any(value(r).requires_grad for r in first.values())


@pytest.mark.parametrize("model", ["dropout", "crelu", "batch norm"])
@pytest.mark.parametrize("name", METRICS)
def test_row_s_is_seed_s_alone(boundary, name: str, model: str) -> None:  # type: ignore[no-untyped-def]
    for scenario in ("domain", "class"):
        together, alone = (
            METRICS[name](boundary(seeds, scenario=scenario, model=MODELS[model])) for seeds in ((3, 5, 8), (5,))
        )
        for column, r in together.items():
            torch.testing.assert_close(
                value(r)[1:2], value(alone[column]), rtol=1e-7, atol=1e-9, equal_nan=True, msg=column
            )


@pytest.mark.parametrize("name", METRICS)
def test_diverged_seed_is_nan_and_leaves_the_other_alone(boundary, name: str) -> None:  # type: ignore[no-untyped-def]
    given = {"control": torch.ones(2, 4, dtype=torch.float64), "gap": torch.zeros(2, dtype=torch.float64)}
    sound = METRICS[name](boundary(**given))
    b: Boundary = boundary(**given)
    b.trained.params["fc1.weight"][1, 0, 0] = torch.nan
    for found in (METRICS[name](b), METRICS[name](boundary(**given, alive=torch.tensor([True, False])))):
        assert set(found) == set(sound)
        for column, r in found.items():
            assert value(r)[1].isnan().all(), column
            assert torch.equal(value(r)[0], value(sound[column])[0]), column


def relabelled(b: Boundary) -> Boundary:
    """The same functions with the units of both hidden layers in another order."""
    first, second = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7]), torch.tensor([5, 0, 3, 1, 2, 4])

    def moved(net: Net) -> Net:
        p = dict(net.params)
        p["fc1.weight"], p["fc1.bias"] = p["fc1.weight"][:, first], p["fc1.bias"][:, first]
        p["fc2.weight"], p["fc2.bias"] = p["fc2.weight"][:, second][:, :, first], p["fc2.bias"][:, second]
        p["head.weight"] = p["head.weight"][:, :, second]
        return Net(p, {}, net.apply)

    class Moved:
        initial = moved(b.nets.initial)

        def __contains__(self, task: int) -> bool:
            return task in b.nets

        def __getitem__(self, task: int) -> Net:
            return moved(b.nets[task])

    return replace(b, trained=moved(b.trained), deployed=moved(b.deployed), nets=Moved())


@pytest.mark.parametrize("name", METRICS)
def test_relabelling_the_units_changes_nothing(boundary, name: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    before, after = METRICS[name](b), METRICS[name](relabelled(b))
    for column, r in before.items():
        torch.testing.assert_close(value(after[column]), value(r), rtol=1e-9, atol=1e-11, equal_nan=True, msg=column)


class Turned(Boundary):
    """A boundary whose probes come in two pieces that change places."""

    def probe(self, task: int, size: int = 512, split: str = "train") -> Batch:
        whole = super().probe(task, size, split)
        cut = whole.w.shape[1] // 3
        x, y, t, w = (torch.cat([v[:, cut:], v[:, :cut]], 1) for v in (whole.x, whole.y, whole.t, whole.w))
        return replace(whole, x=x, y=y, t=t, w=w)


@pytest.mark.parametrize("name", [n for n in METRICS if n != "random_labels"])  # whose labels belong to places
def test_the_order_of_the_rows_does_not_matter(boundary, name: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(scenario="class")
    before, after = METRICS[name](b), METRICS[name](Turned(**vars(b)))
    for column, r in before.items():
        torch.testing.assert_close(value(after[column]), value(r), rtol=1e-9, atol=1e-11, equal_nan=True, msg=column)


@pytest.mark.parametrize("name", ["collapse", "representation", "calibration"])
def test_a_seed_with_fewer_rows_counts_each_once(boundary, name: str) -> None:  # type: ignore[no-untyped-def]
    """Beside a longer seed its val and test probes repeat rows, weighted; alone they do not. CKA takes no weights."""

    def short(b: Boundary, size: int) -> Boundary:
        def cut(s: Rows) -> Rows:
            return replace(s, size=torch.tensor([size, 60])[: len(s.size)])

        tasks = tuple(replace(t, train=cut(t.train), val=cut(t.val), test=cut(t.test)) for t in b.stream.tasks)
        stream = replace(b.stream, tasks=tasks)
        b.learner.stream = stream
        return replace(b, stream=stream)

    more = {"test_size": 60} if name == "representation" else {}
    metric = partial(METRICS[name], size=60, **more)
    padded, alone = metric(short(boundary((3, 5)), 25)), metric(short(boundary((3,)), 25))
    for column, r in alone.items():
        if column != "cka_task":
            torch.testing.assert_close(
                value(padded[column])[:1], value(r), rtol=1e-9, atol=1e-11, equal_nan=True, msg=column
            )
