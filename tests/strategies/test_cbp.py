"""Continual backpropagation against an independent implementation, unit by unit in numpy."""

from typing import Any

import numpy as np
import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Step
from strategies.cbp import CBP
from tests.observer import Blind
from tests.toy import gaussian

DEFAULTS: dict[str, Any] = {
    "rate": 0.05,
    "maturity": 3,
    "decay": 0.9,
    "utility": "contribution",
    "bias_transfer": False,
}


def learner_of(seeds: tuple[int, ...] = (0, 1), steps: int = 40, activation: str = "relu") -> Learner:
    optimizer = SGD(lr=0.2, momentum=0.9)
    return gaussian(lambda s: MLP(s.shape, 2, (7, 5), activation=activation), optimizer, steps=steps, seeds=seeds)


class Reference:
    """Unit by unit, from the paper's equations, for nets whose activations have `copies` halves."""

    def __init__(self, sizes: list[int], copies: int, utility: str, decay: float) -> None:
        self.age = [np.zeros(h) for h in sizes]
        self.f = [np.zeros((copies, h)) for h in sizes]
        self.u = [np.zeros(h) for h in sizes]
        self.utility, self.decay = utility, decay

    def observe(self, layer: int, h: np.ndarray, w_in: np.ndarray, w_out: np.ndarray) -> None:
        copies, size = self.f[layer].shape
        self.age[layer] += 1
        for i in range(size):
            y, debias = 0.0, 1 - self.decay ** self.age[layer][i]
            for c in range(copies):
                act = h[:, c * size + i]
                self.f[layer][c, i] = self.decay * self.f[layer][c, i] + (1 - self.decay) * act.mean()
                centre = 0.0 if self.utility == "contribution" else self.f[layer][c, i] / debias
                y += np.abs(act - centre).mean() * np.abs(w_out[:, c * size + i]).sum()
            if self.utility == "adaptable_contribution":
                y /= np.abs(w_in[i]).sum()
            self.u[layer][i] = self.decay * self.u[layer][i] + (1 - self.decay) * y

    def worst(self, layer: int, maturity: int) -> int:
        ranked = self.u[layer] / (1 - self.decay ** np.maximum(self.age[layer], 1))
        return int(np.where(self.age[layer] > maturity, ranked, np.inf).argmin())

    def forget(self, layer: int, i: int) -> None:
        self.age[layer][i] = self.u[layer][i] = 0
        self.f[layer][:, i] = 0


class Watched(CBP):
    """Records which units each step replaced and compares them with the reference."""

    transient = (*CBP.transient, "references", "counts")

    def setup(self, learner: Learner) -> None:
        super().setup(learner)
        copies = 2 if learner.model.units[0].consumers[1:] else 1
        self.references = [
            Reference([u.size for u in self.units], copies, self.utility, self.decay) for _ in range(learner.S)
        ]
        self.counts: list[list[int]] = []  # replacements of each step, for each layer

    def step(self, learner: Learner, step: Step) -> None:
        w = {k: v.numpy().copy() for k, v in learner.params.items()}
        super().step(learner, step)
        self.counts.append([0] * len(self.units))
        for layer, (unit, name, reader) in enumerate(zip(self.units, ("fc1", "fc2"), ("fc2", "head"), strict=True)):
            now = (self.age[:, self.spans[layer]] == 0).numpy()  # [S, size]
            self.counts[-1][layer] = int(now[0].sum())
            for s, reference in enumerate(self.references):
                h = step.out.acts[unit.act].detach().numpy()[s]
                reference.observe(layer, h, w[f"{name}.weight"][s], w[f"{reader}.weight"][s])
                assert now[s].sum() == self.counts[-1][layer]  # as many in every seed
                expected = []
                for _ in range(int(now[s].sum())):
                    expected.append(reference.worst(layer, self.maturity))
                    reference.forget(layer, expected[-1])
                assert sorted(expected) == list(np.flatnonzero(now[s]))


@pytest.mark.parametrize("activation", ["tanh", "crelu"])
@pytest.mark.parametrize("utility", ["contribution", "zero_contribution", "adaptable_contribution"])
def test_it_replaces_the_units_that_the_papers_equations_name(utility: str, activation: str) -> None:
    learner, cbp = learner_of(steps=60, activation=activation), Watched(**{**DEFAULTS, "utility": utility})
    prepare(learner, Chain([cbp]))
    train(learner, Chain([cbp]), Blind())
    assert np.sum(cbp.counts) > 20


@pytest.mark.parametrize(("rate", "maturity"), [(0.05, 3), (0.3, 3), (1.0, 5), (0.01, 40), (0.02, 0)])
def test_replacements_are_rate_times_mature_units(rate: float, maturity: int) -> None:
    learner, cbp = learner_of(steps=120), Watched(**{**DEFAULTS, "rate": rate, "maturity": maturity})
    prepare(learner, Chain([cbp]))
    train(learner, Chain([cbp]), Blind())
    for layer, size in enumerate((7, 5)):
        ages, total = np.zeros(size), 0.0
        for n in (c[layer] for c in cbp.counts):
            ages += 1
            total += rate * (ages > maturity).sum()
            for _ in range(n):
                mature = np.flatnonzero(ages > maturity)
                ages[mature[0]] = 0  # raises where more were replaced than were mature
        done = sum(c[layer] for c in cbp.counts)
        assert done == pytest.approx(total, abs=1.0001)
        assert done > 0
        assert not any(c[layer] for c in cbp.counts[:maturity])  # nothing is due before anything is mature


@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution"])
def test_without_averaging_nothing_is_nan(utility: str) -> None:
    """decay = 0: the utility is that of the last batch, and 1 - decay^age is 1 from the first step on."""
    learner, cbp = learner_of(activation="tanh"), Watched(**{**DEFAULTS, "decay": 0.0, "utility": utility})
    prepare(learner, Chain([cbp]))
    train(learner, Chain([cbp]), Blind())
    assert sum(n for c in cbp.counts for n in c) > 0
    assert cbp.trace.isfinite().all() and all(v.isfinite().all() for v in learner.params.values())


def test_at_rate_zero_the_run_is_naive_bit_for_bit() -> None:
    def run(chain: Chain) -> dict[str, torch.Tensor]:
        learner = learner_of()
        prepare(learner, chain)
        train(learner, chain, Blind())
        return learner.params

    naive, cbp = run(Chain([])), run(Chain([CBP(**{**DEFAULTS, "rate": 0.0})]))
    assert all(torch.equal(naive[k], cbp[k]) for k in naive)


def still(cbp: CBP, learner: Learner, steps: int, act_of: Any = lambda h: h) -> Step:
    """Call cbp.step on one batch without updating anything."""
    batch = next(iter(learner.batches(learner.stream.tasks[0])))
    _, out = learner.task_loss(learner.params, batch)
    out = out._replace(acts={k: act_of(h.detach()) for k, h in out.acts.items()})
    step = Step(batch, batch, out, tree.zeros(learner.params), None)
    with torch.no_grad():
        for _ in range(steps):
            cbp.step(learner, step)
    return step


def test_dead_units_are_drawn_by_lot_not_by_index() -> None:
    learner = learner_of(seeds=tuple(range(200)))
    cbp = CBP(**{**DEFAULTS, "rate": 1 / 7, "maturity": 0})
    prepare(learner, Chain([cbp]))
    still(cbp, learner, 1, act_of=torch.zeros_like)  # every utility is exactly 0; one unit of the first layer is due
    replaced = cbp.age[:, cbp.spans[0]] == 0
    assert torch.equal(replaced.sum(1), torch.ones(200).long())
    # 200 lots among 7: 28.6 each, standard deviation 4.9
    assert (replaced.sum(0) - 200 / 7).abs().max() < 20


def test_fresh_rows_come_from_the_models_initialisation_and_none_twice() -> None:
    learner, seen = learner_of(), []
    cbp = CBP(**{**DEFAULTS, "rate": 1 / 7, "maturity": 0})
    prepare(learner, Chain([cbp]))
    for _ in range(30):  # more than a deck holds
        before = learner.params["fc1.weight"].clone()
        still(cbp, learner, 1)
        changed = (learner.params["fc1.weight"] != before).any(2)
        assert torch.equal(changed.sum(1), torch.ones(2).long())
        seen.append(learner.params["fc1.weight"][changed])
        assert torch.equal(learner.params["fc1.bias"][changed], torch.zeros(2).double())
    rows = torch.stack(seen, 1)  # [S, 30, inputs]
    assert all(len(r.unique(dim=0)) == 30 for r in rows)
    assert 0.4 < rows.abs().max() <= 0.5  # U(-1/sqrt(4), 1/sqrt(4))
    assert rows.std() == pytest.approx(0.5 / 3**0.5, rel=0.15)
    assert not torch.equal(rows[0], rows[1])


def test_outputs_are_never_replaced() -> None:
    learner, cbp = learner_of(), CBP(**{**DEFAULTS, "rate": 1.0, "maturity": 0})
    prepare(learner, Chain([cbp]))
    bias = learner.params["head.bias"].clone()
    still(cbp, learner, 2)
    assert torch.equal(learner.params["head.bias"], bias)
    assert all((learner.params[f"{k}.weight"] == 0).all() for k in ("fc2", "head"))  # every hidden unit was
    assert (learner.params["fc1.weight"] != 0).all()


@pytest.mark.parametrize("activation", ["tanh", "crelu"])  # a dead unit of relu would have no mean to hand over
@pytest.mark.parametrize("transfer", [True, False])
def test_bias_transfer_keeps_the_mean_over_the_trace(transfer: bool, activation: str) -> None:
    # the authors' code clears the mean before it uses it and transfers 0
    learner = learner_of(activation=activation)
    cbp = CBP(**{**DEFAULTS, "rate": 0.2, "maturity": 4, "bias_transfer": transfer})
    prepare(learner, Chain([cbp]))
    p = learner.params

    step = still(cbp, learner, 4)
    before = tree.copy(p)
    still(cbp, learner, 1)  # the first replacement: one unit in each layer
    mean = {k: h.detach().mean(1) for k, h in step.out.acts.items()}  # [S, H]; the trace saw this batch only
    assert torch.equal((cbp.age == 0).sum(1), torch.full((2,), 2))

    def reading(params: Any, reader: str, layer: str) -> torch.Tensor:
        return (params[f"{reader}.weight"] @ mean[layer][..., None])[..., 0] + params[f"{reader}.bias"]

    kept = torch.allclose(reading(p, "head", "fc2"), reading(before, "head", "fc2"), atol=1e-12)
    assert kept == transfer
    lived = cbp.age[:, cbp.spans[1]] > 0  # a second-layer unit that was itself replaced reads fresh weights
    kept = torch.allclose(reading(p, "fc2", "fc1")[lived], reading(before, "fc2", "fc1")[lived], atol=1e-12)
    assert kept == transfer


@pytest.mark.parametrize(
    ("key", "value"), [("rate", -0.1), ("rate", 1.5), ("maturity", -1), ("decay", 1.0), ("utility", "none")]
)
def test_a_value_out_of_range_is_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={value}: (must be|choose one of)"):
        CBP(**{**DEFAULTS, key: value})
