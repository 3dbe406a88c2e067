"""Time and error of our curvature numbers beside those of curvlinops: one net, one probe, one machine.

    python -m tests.benchmarks curvature [--rounds 3] [--threads 1 [--cpu-time]] [--nets 784-100-100 784-400-400]

The nets are trained first, in float32. curvlinops gets the same weights and rows, its operator is made beforehand and
untimed, without its check for determinism; of ours the graph of the gradient is part of every time. The truth is dense
and float64 where the net is small. Else the eigenvalues are those that 100 steps of ours and scipy's eigsh to machine
precision find, both in float64 (the first line of a net says how far they agree), the trace is that of the Fisher
information, which for a ReLU net is the Hessian's, exactly: a ReLU net is linear in any one weight. The error of the
eigenvalues is the largest relative one of the five; of trace and spectrum the root mean square over the rounds, each
with draws of its own; that of a spectrum is the area between its density and the dense one (0 ... 2, both blurred
alike; unknown on a large net). Contenders take turns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan, pi, sqrt
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from harness import rng
from harness.landscape.curvature import (
    Hessian,
    density,
    flatten,
    krylov,
    moments,
    quadrature,
    random_signs,
    ritz,
    top_of,
    unflatten,
)
from harness.landscape.fisher import diagonal_on
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.types import Batch, Loss, Params
from tasks.datasets import load
from tasks.permuted import permuted
from tests.benchmarks import timing
from tests.benchmarks.timing import clock

K, DENSE, POINTS, WIDTH = 5, 2000, 400, 0.02


@dataclass(frozen=True)
class Line:
    net: str
    what: str
    who: str
    seconds: float
    ratio: float  # to curvlinops on the same number; NaN: nothing to compare with
    error: float


@dataclass
class Case:
    """A trained net of some seeds, and its loss on the frozen probe."""

    name: str
    learner: Learner
    batch: Batch
    loss: Loss

    def double(self) -> tuple[Loss, Params]:
        """Seed 0 alone, in float64."""
        learner, batch = self.learner, self.batch
        x, y, t = batch.x[:1].double(), batch.y[:1], batch.t[:1]

        def loss(p: Params) -> Tensor:
            logits = learner.model(p, {}, x, t).logits[0]
            return nn.functional.cross_entropy(logits, y[0])[None]

        return loss, {k: v[:1].double() for k, v in learner.params.items()}

    def alone(self) -> tuple[Loss, Params]:
        """Seed 0 alone, in float32."""
        learner, batch = self.learner, self.batch

        def loss(p: Params) -> Tensor:
            logits = learner.model(p, {}, batch.x[:1], batch.t[:1]).logits[0]
            return nn.functional.cross_entropy(logits, batch.y[0])[None]

        return loss, {k: v[:1].clone() for k, v in learner.params.items()}


def trained(name: str, seeds: int, steps: int, rows: int) -> Case:
    """`name`: inputs-hidden-...; 64 inputs are digits, 784 Fashion-MNIST."""
    inputs, *widths = (int(n) for n in name.split("-"))
    dataset = load("digits" if inputs == 64 else "fashion_mnist")
    stream = permuted(dataset=dataset, seeds=range(seeds), n_tasks=1, fixed=True, scenario="domain")
    learner = Learner(MLP(stream.shape, 10, widths), stream, SGD(lr=0.05), Budget(steps=steps, batch_size=128))
    (task,) = stream.tasks
    learner.plan(task)
    for _ in learner.descend(learner.batches(task)):
        pass
    batch = learner.probe(stream.tasks[0], rows)
    return Case(f"{name}-10", learner, batch, learner.objective([batch], stream, 0))


def by_curvlinops(case: Case) -> Any:
    """Their Hessian of seed 0's loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its dependency uses what torch deprecates
        from curvlinops import HessianLinearOperator
    params = case.learner.params
    parts: list[nn.Module] = []
    for layer in case.learner.model.layers:
        weight, bias = params[layer.weight][0], params[layer.bias or ""][0]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        parts += [linear, nn.ReLU()]
    net = nn.Sequential(nn.Flatten(), *parts[:-1])
    data = [(case.batch.x[0], case.batch.y[0])]
    return HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), data, check_deterministic=False)


@dataclass(frozen=True)
class Truth:
    top: Tensor  # [K]
    trace: float
    eigenvalues: Tensor | None  # [P], of a small net
    agreement: float  # of two ways to the top, relative


def truth(case: Case) -> Truth:
    loss, params = case.double()
    hessian, width = Hessian(loss, params), flatten(params).shape[1]

    def product(v: np.ndarray) -> np.ndarray:
        return flatten(hessian(unflatten(torch.from_numpy(v.reshape(1, -1).copy()), params)))[0].numpy()

    long = ritz(krylov(hessian, random_signs(rng.keys([7], "truth"), params), 100)).values[0, :K]
    if width <= DENSE:
        rows = [product(e) for e in np.eye(width)]
        eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(np.stack(rows)))
        return Truth(
            eigenvalues.flip(0)[:K], float(eigenvalues.sum()), eigenvalues, _worst(long, eigenvalues.flip(0)[:K])
        )
    other = eigsh(LinearOperator((width, width), product, dtype=np.float64), k=K, which="LA", return_eigenvectors=False)
    other = torch.from_numpy(np.sort(other)[::-1].copy())
    twin = case.learner.clone()
    twin.params = {k: v.double() for k, v in twin.params.items()}
    batch = Batch(case.batch.x.double(), case.batch.y, case.batch.t, case.batch.w.double())
    fisher = flatten(diagonal_on(twin, [batch], "exact", rng.RandomStream(rng.keys([0], "none"))))[0].sum()
    return Truth(other, float(fisher), None, _worst(long, other))


def _worst(found: Tensor, true: Tensor) -> float:
    return float(((found - true) / true).abs().max())


def _apart(grid: Tensor, phi: Tensor, true: Tensor | None) -> float:
    """Area between a density on a grid of eigenvalues and the dense one, blurred by WIDTH x the range of the grid."""
    if true is None:
        return nan
    width = WIDTH * float(true.abs().max())
    bumps = (-((grid[:, None] - true) / width).square() / 2).exp().mean(1) / (width * sqrt(2 * pi))
    return float((phi - bumps).abs().sum() * (grid[1] - grid[0]))


def contenders(case: Case, known: Truth, steps: int, vectors: int) -> dict[str, dict[str, Callable[[int], float]]]:
    """Number -> who -> a run with draws of its own, which returns its error."""
    operator = by_curvlinops(case)
    from curvlinops import hutchpp_trace
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    loss, params = case.alone()
    scipy, width = operator.to_scipy(), operator.shape[0]
    radius = float(known.top[0])
    grid = torch.linspace(-1.05, 1.05, POINTS, dtype=torch.float64)

    def key(i: int) -> Tensor:
        return rng.keys([i], "benchmark")

    def ours_top(n: int) -> Callable[[int], float]:
        return lambda i: _worst(top_of(Hessian(loss, params), params, key(i), k=K, steps=n).values[0], known.top)

    def theirs_top(tolerance: float) -> Callable[[int], float]:
        def run(i: int) -> float:
            start = np.random.default_rng(i).standard_normal(width).astype(np.float32)
            found = eigsh(scipy, k=K, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
            return _worst(torch.from_numpy(np.sort(found)[::-1].astype(np.float64)), known.top)

        return run

    def ours_trace(i: int) -> float:
        hessian = Hessian(loss, params)
        space = krylov(hessian, random_signs(key(i), params), 12)
        return float(moments(hessian, space, params, rng.fold(key(i), "trace"), 18).trace[0]) / known.trace - 1

    def theirs_trace(i: int) -> float:
        torch.manual_seed(i)
        return float(hutchpp_trace(operator, 30)) / known.trace - 1

    def ours_spectrum(i: int) -> float:
        q = quadrature(Hessian(loss, params), params, key(i), vectors=vectors, steps=steps)
        phi, scale = density(q, grid * radius / q.nodes.abs().max(), WIDTH * radius / float(q.nodes.abs().max()))
        return _apart(grid * radius, phi[0] / scale, known.eigenvalues)

    def theirs_spectrum(i: int) -> float:
        torch.manual_seed(i)
        phi = torch.zeros_like(grid)
        for _ in range(vectors):
            values, s = fast_lanczos(operator, steps)
            bumps = (-((grid[:, None] * radius - values) / (WIDTH * radius)).square() / 2).exp()
            phi += (bumps * s[0].square()).sum(1) / (WIDTH * radius * sqrt(2 * pi)) / vectors
        return _apart(grid * radius, phi, known.eigenvalues)

    return {
        "top 5": {
            "curvlinops, tol 0": theirs_top(0),
            "curvlinops, tol 1e-4": theirs_top(1e-4),
            "ours, 20 products": ours_top(20),
            "ours, 30 products": ours_top(30),
        },
        "trace, 30 products": {"curvlinops": theirs_trace, "ours": ours_trace},
        f"spectrum, {vectors} x {steps} products": {"curvlinops": theirs_spectrum, "ours": ours_spectrum},
    }


def compare(case: Case, runs: dict[str, dict[str, Callable[[int], float]]], rounds: int) -> list[Line]:
    lines = []
    for what, who in runs.items():
        seconds: dict[str, list[float]] = {name: [] for name in who}
        errors: dict[str, list[float]] = {name: [] for name in who}
        for run in who.values():
            run(0)  # caches
        for i in range(rounds):
            for name, run in who.items():
                began = clock()
                error = run(i + 1)
                seconds[name].append(clock() - began)
                errors[name].append(error)
        first = next(iter(who))
        for name in who:
            ratio = median(b / a for a, b in zip(seconds[name], seconds[first]))
            error = max(errors[name]) if what == "top 5" else sqrt(sum(e * e for e in errors[name]) / rounds)
            lines.append(Line(case.name, what, name, median(seconds[name]), ratio, error))
    return lines


def per_seed(name: str, case: Case, many: int, training: int, rows: int, rounds: int) -> Line:
    """Our top 5 of `many` seeds at once: seconds a seed, and how many times less than one seed alone takes."""
    whole = trained(name, many, training, rows)
    runs = {}
    for seeds, (loss, params) in ((1, case.alone()), (many, (whole.loss, whole.learner.params))):
        runs[seeds] = (loss, params, rng.keys(range(seeds), "benchmark"))
    seconds: dict[int, list[float]] = {1: [], many: []}
    for i in range(rounds + 1):
        for seeds, (loss, params, key) in runs.items():
            began = clock()
            top_of(Hessian(loss, params), params, key, k=K, steps=20)
            if i:  # the first fills caches
                seconds[seeds].append((clock() - began) / seeds)
    ratio = median(a / b for a, b in zip(seconds[1], seconds[many]))
    return Line(case.name, "top 5", f"ours, a seed of {many}", median(seconds[many]), ratio, nan)


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = timing.parser(__doc__, rounds=3)
    parser.add_argument("--nets", nargs="+", default=["64-16-16", "784-100-100", "784-400-400"])
    parser.add_argument("--training", type=int, default=300, help="steps that the nets are trained for")
    parser.add_argument("--rows", type=int, default=512, help="of the probe")
    parser.add_argument("--seeds", type=int, default=10, help="measured at once in the last line of a net")
    parser.add_argument("--steps", type=int, default=40, help="of each quadrature")
    parser.add_argument("--vectors", type=int, default=2, help="of the spectrum")
    options = parser.parse_args(arguments)
    timing.begin(options)
    found: list[Line] = []
    for name in options.nets:
        case = trained(name, 1, options.training, options.rows)
        known = truth(case)
        size = flatten(case.learner.params).shape[1]
        kind = "dense" if known.eigenvalues is not None else "eigsh"
        print(
            f"\n{case.name}: {size} parameters; 100 steps of ours and {kind} agree to {known.agreement:.0e} (float64)"
        )
        print(f"{'what':<28}{'who':<24}{'ms':>10}{'x faster':>10}{'error':>10}", flush=True)
        lines = compare(case, contenders(case, known, options.steps, options.vectors), options.rounds)
        lines.append(per_seed(name, case, options.seeds, options.training, options.rows, options.rounds))
        for line in lines:
            print(
                f"{line.what:<28}{line.who:<24}{1e3 * line.seconds:>10.1f}{line.ratio:>10.2f}{line.error:>10.1e}",
                flush=True,
            )
        found += lines
    return found


if __name__ == "__main__":
    main()
