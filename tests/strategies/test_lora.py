"""LoRA: what moves, by which rank, and what a merged adapter leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.optim import SGD, Adam
from harness.strategy import Chain, Strategy
from harness.types import Params, Task
from strategies.lora import LoRA
from tests.observer import Blind
from tests.toy import gaussian

NETS: dict[str, Any] = {
    "mlp": (lambda s: MLP(s.shape, 2, (9, 8), layer_norm=True), (6,)),
    "cnn": (lambda s: CNN(s.shape, 2, (6,), (8,)), (1, 4, 4)),
}


class Ends(Blind):
    """Parameters, and weights as they are used, at each task's end."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.params = learner, list[Params]()

    def end(self, task: Task) -> None:
        self.params.append(tree.copy(self.learner.params))


def run(net: str, parts: list[Strategy], optimizer: Any = None) -> Ends:
    make, shape = NETS[net]
    learner = gaussian(make, optimizer or SGD(lr=0.1, momentum=0.9, weight_decay=0.01), shape=shape, tasks=3, steps=5)
    chain, ends = Chain(parts), Ends(learner)
    prepare(learner, chain)
    train(learner, chain, ends)
    return ends


def lora(**changes: Any) -> LoRA:
    return LoRA(**{"rank": 2, "alpha": 3.0, "adapter": "merged", "first": "whole", **changes})


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("adapter", ["merged", "shared"])
def test_later_tasks_move_weights_by_the_rank_and_nothing_else_but_the_read_out(net: str, adapter: str) -> None:
    part = lora(adapter=adapter)
    naive, ends = run(net, []), run(net, [part])
    assert all(torch.equal(ends.params[0][k], v) for k, v in naive.params[0].items()), "the first task is naive"
    used = [{**p, **part.weights(p)} for p in ends.params]
    assert all(len(w.shape) > 2 and w.shape[1] > 2 for w in part.weights(ends.params[0]).values())
    for t in (1, 2):
        for k, before in used[t - 1].items():
            moved = used[t][k] - before
            if k.startswith("head"):
                assert moved.abs().amax() > 1e-4
            elif k in part.adapted:
                since = moved if adapter == "merged" else used[t][k] - used[0][k]
                values = torch.linalg.svdvals(since.flatten(2))
                assert (values[:, 1] > 1e-5).all() and (values[:, 2] < 1e-12).all(), "of rank 2"
            elif not k.startswith("lora"):
                assert torch.equal(ends.params[t][k], ends.params[0][k]), k


def test_merging_changes_no_output() -> None:
    x, said = torch.randn(2, 5, 6, dtype=torch.float64), list[tuple[torch.Tensor, torch.Tensor]]()

    class Watched(LoRA):
        def end(self, learner: Learner, task: Task) -> None:
            def logits() -> torch.Tensor:
                return learner.net(x, torch.zeros(2, 5, dtype=torch.int64)).logits.detach().clone()

            before, moved = logits(), max(learner.params[f"lora.{k}.b"].abs().max() for k in self.adapted)
            super().end(learner, task)
            said.append((before, logits()))
            assert (moved > 0) == (task.index > 0)
            for k in self.adapted:
                assert (learner.params[f"lora.{k}.b"] == 0).all()
                assert all((slot[f"lora.{k}.a"] == 0).all() for slot in learner.optimizer.state.values())
            assert learner.optimizer.state

    run("mlp", [Watched(rank=2, alpha=3.0, adapter="merged", first="whole")])
    assert len(said) == 3
    for one, other in said:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_the_product_is_scaled_by_alpha_over_rank() -> None:
    part = lora(rank=2, alpha=3.0)
    part.adapted = ["w"]
    a, b, w = torch.randn(1, 2, 4), torch.randn(1, 5, 2), torch.randn(1, 5, 4)
    found = part.weights({"w": w, "lora.w.a": a, "lora.w.b": b})["w"]
    torch.testing.assert_close(found, w + 1.5 * torch.einsum("sor,sri->soi", b, a))


def test_adapters_may_train_from_the_first_task() -> None:
    make, shape = NETS["mlp"]
    start = gaussian(make, SGD(lr=0.1), shape=shape, tasks=3, steps=5).params["fc1.bias"]
    ends = run("mlp", [lora(first="adapters")], Adam(lr=0.01))
    assert all(torch.equal(p["fc1.bias"], start) for p in ends.params)
    assert not torch.equal(ends.params[0]["fc1.weight"], ends.params[1]["fc1.weight"]), "it takes the products"


def test_a_net_without_hidden_layers_is_refused() -> None:
    learner = gaussian(lambda s: MLP(s.shape, 2, ()), SGD(lr=0.1))
    with pytest.raises(ValueError, match="lora: MLP has no layer before its read-out to adapt"):
        prepare(learner, Chain([lora()]))
