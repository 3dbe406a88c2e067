"""Does the geometry of the landscape explain forgetting and loss of plasticity? Tests each claim on a designed grid.

Only a grid that fixes the method and moves the geometry by a few knobs can answer: between methods, geometry changes
together with everything else. A stratum is one stream, strategy, learning rate and boundary, and within it one third
of the runs by training loss; the rank of the training loss is also partialled out (`association`). A row is task t of
one run; each quantity is its mean over the seeds, which are the same in every run. The correction counts every test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness import store
from harness.geometry.association import Association, Labels, associate, thirds
from harness.geometry.design import Design, design, stream_and_strategy
from harness.stats import LEVEL, RESAMPLES, holm
from harness.store.readers import Wanted, snapshot

if TYPE_CHECKING:
    import pandas as pd


class Quantity(NamedTuple):
    """Where the metrics table has a quantity of row t."""

    metric: str
    ahead: int = 0  # boundary - t
    task: int | None = None  # evaluated task - boundary; None: the metric belongs to no single task
    phase: str = "end"
    coord: str = ""


QUANTITIES = {
    "loss": Quantity("probe_loss_current"),
    "sharpness": Quantity("lambda_max_current"),
    "sharpness_adaptive": Quantity("lambda_max_adaptive_current"),
    "ece": Quantity("ece_task", task=0),
    "learnt": Quantity("learning_accuracy"),
    "forgetting": Quantity("forgetting_task", ahead=1, task=-1),
    "rise": Quantity("ledger_loss", ahead=1, task=-1),
    "first": Quantity("ledger_first", ahead=1, task=-1),
    "second": Quantity("ledger_second", ahead=1, task=-1),
    "barrier": Quantity("anchor_barrier_entezari_loss", ahead=1, task=-1),
    "barrier_error": Quantity("anchor_barrier_entezari_error", ahead=1, task=-1),
    "rank": Quantity("next_curvature_rank", ahead=1, phase="start", coord="0.01"),
    "gap": Quantity("trainability_gap"),
    "gap_next": Quantity("trainability_gap", ahead=1),
}

METRICS = sorted({quantity.metric for quantity in QUANTITIES.values()})

MEANING = {
    "sharpness": "lambda_max_current after task t: largest Hessian eigenvalue of that task's loss",
    "sharpness_adaptive": "lambda_max_adaptive_current after task t: the same, invariant to rescaled layers",
    "barrier": "anchor_barrier_entezari_loss: highest rise of task t's loss above the chord, on the line from the "
    "net after task t to the net after task t+1",
    "barrier_error": "anchor_barrier_entezari_error: the same for task t's error",
    "rank": "next_curvature_rank (0.01) at the start of task t+1: eigenvalues of its loss above 0.01 of the largest",
    "ledger": "ledger_first + ledger_second of task t after task t+1: the quadratic forecast at the net after task t",
    "rise": "ledger_loss of task t after task t+1: the rise of its loss",
    "share_lost": "forgetting_task of task t after task t+1 over learning_accuracy of t: share of accuracy lost",
    "gap_next": "trainability_gap of task t+1",
    "gap": "trainability_gap of task t",
    "ece": "ece_task of task t after it: expected calibration error on test rows",
    "loss": "probe_loss_current: training loss of task t after it",
}


class Claim(NamedTuple):
    """One test: x and y are associated, with this sign, given the controls."""

    claim: str
    x: str
    y: str
    sign: int
    controls: tuple[str, ...] = ("loss",)


CLAIMS = (
    Claim("flat minima forget less", "sharpness", "rise", 1),
    Claim("flat minima forget less", "sharpness", "share_lost", 1),
    Claim("flat minima forget less", "sharpness_adaptive", "rise", 1),
    Claim("flat minima forget less", "sharpness_adaptive", "share_lost", 1),
    Claim("connected minima forget less", "barrier", "rise", 1),
    Claim("connected minima forget less", "barrier_error", "share_lost", 1),
    Claim("collapse of next-task curvature precedes loss of plasticity", "rank", "gap_next", -1, ("loss", "gap")),
    Claim("the quadratic ledger predicts forgetting", "ledger", "rise", 1),
    Claim("the quadratic ledger predicts forgetting", "ledger", "share_lost", 1),
    Claim("flat is better calibrated", "sharpness", "ece", 1),
    Claim("flat is better calibrated", "sharpness_adaptive", "ece", 1),
)


class Finding(NamedTuple):
    """What the grid says about one claim."""

    claim: Claim
    found: Association
    p_holm: float
    verdict: str  # supported, contradicted, undecided
    detectable: float


class Explained(NamedTuple):
    design: Design
    findings: list[Finding]
    rows: pd.DataFrame
    notes: list[str]


def explain(folders: Sequence[Path]) -> Explained:
    """What the grid in results folders says about every claim. ValueError if it is not a designed grid."""
    columns = ("seed", "boundary", "phase", "task", "metric", "coord", "value")
    read = snapshot(folders, {"metrics": Wanted(columns, {"metric": METRICS})}, purpose="run")
    where = " ".join(map(str, folders))
    runs = [run for run in read.runs if run.manifest["strategy"] != "reset"]  # a control that was run by name
    try:
        plan = design(runs, where)
    except ValueError as error:
        if read.notes:  # the missing run may be one that cannot be read
            raise ValueError(f"{error}; left out: {read.notes[0]}") from error
        raise
    rows = grid_rows(runs, read.tables["metrics"], where)
    return Explained(plan, judge(rows), rows, [*read.notes, *caveats(runs, rows)])


def grid_rows(runs: Sequence[store.Run], metrics: pd.DataFrame, where: str) -> pd.DataFrame:
    """A row for each run and task t: its strata, all `QUANTITIES`, and those computed from them.

    Each is the mean over all seeds of the run, NaN if it is NaN for one seed.
    """
    import pandas as pd

    for name in METRICS:
        lacking = {run.manifest["run_id"] for run in runs} - set(metrics.loc[metrics.metric == name, "run_id"])
        if lacking:
            raise ValueError(
                f"explain {where}: {len(lacking)} runs lack {name}, for example {min(lacking)}; experiment=geometry "
                "records it, and `python -m harness measure RUN metrics=...` adds a metric that was left out"
            )
    each = pd.DataFrame({name: _column(metrics, quantity) for name, quantity in QUANTITIES.items()})
    each["share_lost"] = (each["forgetting"] / each["learnt"]).where(each["learnt"] > 0)
    each["ledger"] = each["first"] + each["second"]
    means = each.groupby(["run_id", "t"]).mean(skipna=False).reset_index()
    by_id = {run.manifest["run_id"]: run for run in runs}
    means = means[means.run_id.isin(list(by_id))]
    strata = {
        "stream": [stream_and_strategy(by_id[i])[0] for i in means.run_id],
        "strategy": [stream_and_strategy(by_id[i])[1] for i in means.run_id],
        "lr": [by_id[i].manifest["config"]["optimizer"]["lr"] for i in means.run_id],
    }
    return pd.concat([pd.DataFrame(strata), means.reset_index(drop=True)], axis=1)


def _column(metrics: pd.DataFrame, q: Quantity) -> pd.Series:
    m = metrics[(metrics.metric == q.metric) & (metrics.phase == q.phase) & (metrics.coord == q.coord)]
    task = -1 if q.task is None else m.boundary + q.task
    m = m.assign(t=m.boundary - q.ahead)[m.task == task]
    column: pd.Series = m.loc[m.t >= 0].set_index(["run_id", "t", "seed"])["value"]
    return column


def judge(rows: pd.DataFrame, *, resamples: int = RESAMPLES) -> list[Finding]:
    """The verdict on every claim. If nothing is associated, the chance that any claim is decided is 5 %."""
    found = [correlation(rows, claim, resamples=resamples) for claim in CLAIMS]
    adjusted = holm(np.array([a.p for a in found]))
    return [
        Finding(claim, a, float(p), verdict(a.rho * claim.sign, float(p)), a.detectable(len(CLAIMS)))
        for claim, a, p in zip(CLAIMS, found, adjusted)
    ]


def verdict(rho: float, p: float) -> str:
    """What rho, positive in the claimed direction, says at this corrected p.

    >>> verdict(0.3, 0.01), verdict(-0.3, 0.01), verdict(0.3, 0.2), verdict(float("nan"), float("nan"))
    ('supported', 'contradicted', 'undecided', 'undecided')
    """
    if not p < 1 - LEVEL:
        return "undecided"
    return "supported" if rho > 0 else "contradicted"


def correlation(rows: pd.DataFrame, claim: Claim, *, resamples: int = RESAMPLES) -> Association:
    """The pooled rank correlation of one claim, over the rows that have every value."""
    needed = list(dict.fromkeys([claim.x, claim.y, *claim.controls, "loss"]))
    rows = rows.loc[np.isfinite(rows[needed].to_numpy(np.float64)).all(1)]
    family = _labels(rows, ["stream", "strategy", "lr"])
    block = _labels(rows, ["stream", "strategy", "lr", "t"])
    x, y, loss = (rows[name].to_numpy(np.float64) for name in (claim.x, claim.y, "loss"))
    return associate(
        x,
        y,
        rows[list(claim.controls)].to_numpy(np.float64),
        3 * block + thirds(loss, block),
        _labels(rows, ["run_id"]),
        family,
        resamples=resamples,
    )


def _labels(rows: pd.DataFrame, by: Sequence[str]) -> Labels:
    return np.asarray(rows.groupby(list(by)).ngroup(), np.int64)


def caveats(runs: Sequence[store.Run], rows: pd.DataFrame) -> list[str]:
    """What a reader of the verdicts must know."""
    diverged = sum(bool(run.manifest.get("diverged")) for run in runs)
    versions = len({run.manifest.get("source") for run in runs})
    gap, barrier = rows.gap_next.dropna(), rows.barrier.dropna()
    lines = [
        f"plasticity was lost (trainability gap above 0) in {(gap > 0).sum()} of {len(gap)} rows",
        f"the line has a loss barrier (above 0) in {(barrier > 0).sum()} of {len(barrier)} rows",
    ]
    if diverged:
        lines.append(f"{diverged} runs have diverged seeds: their rows are left out from the divergence on")
    if versions > 1:
        lines.append(f"the runs come from {versions} versions of the source")
    return lines
