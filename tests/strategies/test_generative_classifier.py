"""Generative classifier: Bayes' rule in closed form, and that classes leave each other alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from harness import tree
from harness.learner import Learner
from harness.loop import prepare
from harness.strategy import Chain
from strategies.generative_classifier import UNSEEN, GenerativeClassifier
from tests.strategies.by_hand import learner_of, run


def classifier(**changed: Any) -> GenerativeClassifier:
    settings: dict[str, Any] = {"steps": 4, "batch_size": 6, "samples": 3, "widths": [7], "latent": 3}
    settings |= {"likelihood": "bernoulli", "answer": "trained", "lr": 0.01}
    return GenerativeClassifier(**{**settings, **changed})


def test_the_answer_is_bayes_rule_on_known_gaussians() -> None:
    # linear Gaussian models with the exact posterior: p_c = N(b_c, W_c W_cᵀ + I), and one sample is exact
    learner = learner_of("class")
    part = classifier(widths=[], latent=1, likelihood="gaussian", samples=2)
    prepare(learner, Chain([part]))
    g = torch.Generator().manual_seed(0)
    w, b = (torch.randn(2, 10, 64, generator=g).double() / 4 for _ in range(2))
    precision = w.square().sum(2) + 1
    part.bank["decoder.fc1.weight"][:] = w[..., None]
    part.bank["decoder.fc1.bias"][:] = b
    part.bank["encoder.fc1.weight"][:, :, 0] = w / precision[..., None]
    part.bank["encoder.fc1.bias"][:, :, 0] = -(w * b).sum(2) / precision
    part.bank["encoder.fc1.bias"][:, :, 1] = -precision.log()
    part.seen[:, :6] = True
    net = part.deploy(learner, learner.net)
    batch = next(learner.batches(learner.stream.tasks[0]))
    posterior = net(batch.x, batch.t).logits.softmax(2)
    eye = torch.eye(64).double()
    for s in range(2):
        x, cov = batch.x[s].flatten(1).double(), [w[s, c][:, None] * w[s, c] + eye for c in range(6)]
        p = [MultivariateNormal(b[s, c], cov[c]).log_prob(x).exp() for c in range(6)]
        likelihood = torch.stack(p, 1)
        torch.testing.assert_close(posterior[s, :, :6], likelihood / likelihood.sum(1, keepdim=True))
        assert (posterior[s, :, 6:] == 0).all()


def test_a_gaussian_answer_is_the_mean_density_around_the_decoded_pixels() -> None:
    learner, part = learner_of("class"), classifier(answer="gaussian", samples=3)
    prepare(learner, Chain([part]))
    for k, v in part.model.init(learner.key("x"))[0].items():
        part.bank[k][:, 0] = v if k.startswith("decoder") else 0  # q(z|x) = N(0, I): every draw counts the same
    part.seen[:, 0] = True
    batch = next(learner.batches(learner.stream.tasks[0]))
    found = part.deploy(learner, learner.net)(batch.x, batch.t).logits[:, :, 0]
    for s in range(2):
        (w, b), (v, c) = (
            (part.bank[f"decoder.fc{i}.weight"][s, 0], part.bank[f"decoder.fc{i}.bias"][s, 0]) for i in (1, 2)
        )
        h = (part.noise[s] @ w.T + b).relu() @ v.T + c
        means = 1 / (1 + (-h).exp())
        density = [Normal(mean, 1).log_prob(batch.x[s].flatten(1)).sum(1).exp() for mean in means]
        torch.testing.assert_close(found[s], (torch.stack(density).sum(0) / 3).log())


def test_each_vae_is_trained_on_rows_of_its_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, part = learner_of("class", tasks=2), classifier(steps=8)
    prepare(learner, Chain([part]))
    met: list[Tensor] = []
    ascend = part.ascend
    monkeypatch.setattr(part, "ascend", lambda p, x, key, o: (met.append(x), ascend(p, x, key, o))[1])
    for task in learner.stream.tasks:
        met.clear()
        learner.enter(task)
        part.end(learner, task)
        assert [x.shape for x in met] == [torch.Size([2 * 2, 6, 1, 8, 8])] * 8
        every = torch.stack(met).view(8, 2, 2, 6, 64)
        position = torch.arange(int(task.train.size.max())).minimum(task.train.size[:, None] - 1)
        x, y, _ = task.train.take(position)
        for s in range(2):
            for i in range(2):
                own = {tuple(row.tolist()) for row in x[s][y[s] == 2 * task.index + i].flatten(1)}
                drawn = {tuple(row.tolist()) for row in every[:, s, i].flatten(0, 1)}
                assert drawn <= own and len(drawn) > 3


def test_what_was_learned_of_a_class_is_not_touched_again() -> None:
    learner, part = learner_of("class"), classifier()
    prepare(learner, Chain([part]))
    kept: dict[str, Tensor] = {}
    for task in learner.stream.tasks:
        learner.enter(task)
        part.end(learner, task)
        n = 2 * task.index + 2
        assert part.seen.sum(1).tolist() == [n, n]
        for k, v in part.bank.items():
            assert task.index == 0 or torch.equal(v[:, : n - 2], kept[k])
            assert (v[:, :n].flatten(2).abs().sum(2) > 0).all() and (v[:, n:] == 0).all()
        kept = {k: v[:, :n].clone() for k, v in part.bank.items()}


def test_a_class_that_comes_again_goes_on_from_its_vae() -> None:
    results = []
    for steps, rounds in ((4, 1), (4, 2)):
        learner, part = learner_of("class"), classifier(steps=steps, lr=1e-9)  # steps too small to move it
        prepare(learner, Chain([part]))
        for _ in range(rounds):
            part.end(learner, learner.stream.tasks[0])
        results.append(part.bank)
    assert all(torch.allclose(v, results[1][k], atol=1e-6) for k, v in results[0].items())


def test_classes_without_a_vae_never_win() -> None:
    learner, part = learner_of("class", tasks=1), classifier()
    prepare(learner, Chain([part]))
    batch = next(learner.batches(learner.stream.tasks[0]))
    assert (part.deploy(learner, learner.net)(batch.x, batch.t).logits == UNSEEN).all()  # no NaN before the first task
    part.end(learner, learner.stream.tasks[0])
    logits = part.deploy(learner, learner.net)(batch.x, batch.t).logits
    assert (logits[:, :, 2:] == UNSEEN).all() and (logits[:, :, :2] > UNSEEN / 2).all()


def test_the_net_of_the_run_is_not_trained() -> None:
    learner, part = learner_of("class"), classifier()
    before = tree.copy(learner.params)
    run(part, learner)
    assert learner.planned == learner.steps == 0
    assert all(torch.equal(v, before[k]) for k, v in learner.params.items())
    assert part.deploy(learner, learner.net).params is part.bank


def test_it_tells_digits_apart() -> None:
    learner = learner_of("class")
    part = classifier(steps=150, batch_size=16, samples=5, widths=[30], latent=5)
    run(part, learner)
    learner.now = 2
    net = part.deploy(learner, learner.net)
    for task in learner.stream.tasks:
        assert (learner.evaluate(net, task.test)[0] > 0.6).all()  # by chance 1 in 6


def test_what_it_cannot_do_is_refused() -> None:
    assert GenerativeClassifier.scenarios == ("class",)
    learner: Learner = learner_of()
    object.__setattr__(learner.stream, "loss", "mse")
    with pytest.raises(ValueError, match="generative_classifier: regression has no classes"):
        prepare(learner, Chain([classifier()]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"samples": 0}, "samples=0"),
        ({"lr": 0.0}, "lr=0"),
        ({"latent": 0}, "latent=0"),
        ({"likelihood": "poisson"}, "likelihood=poisson"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        classifier(**changed)
