"""Does the geometry of the landscape explain forgetting and loss of plasticity? A designed grid asked, claim by claim.

Only a grid in which the method is fixed and a few knobs move the geometry can say: between methods, geometry and
everything else change together. So a stratum is one stream, strategy, learning rate and boundary, and a third of what
its runs reach in training loss, whose rank is taken out besides (`association`). A row is a run's task t, each quantity
its mean over the seeds, which are the same in every run. Every test below counts in the correction.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness import store
from harness.geometry.association import Association, Labels, associate, thirds
from harness.leaderboard import piped
from harness.leaderboard.naming import leaves, listed
from harness.stats import LEVEL, RESAMPLES, holm
from harness.store.readers import Wanted, snapshot

if TYPE_CHECKING:
    import pandas as pd

RATE = "optimizer.lr"
KNOBS = (RATE, "train.batch_size", "strategy.sam.rho", "model.dropout")  # what may differ within a strategy
SETTINGS = ("tasks", "scenario", "classes", "boundaries", "dataset", "model", "optimizer", "train", "eval", "strategy",
            "seeds", "dtype", "pin")  # fmt: skip
REMEDY = "`python -m harness experiment=geometry results=FOLDER` makes one"


class Source(NamedTuple):
    """Where a quantity of row t stands in the metrics table."""

    metric: str
    ahead: int = 0  # boundary - t
    task: int | None = None  # evaluated task - boundary; None: the metric is of no single task
    phase: str = "end"
    coord: str = ""


SOURCES = {
    "loss": Source("probe_loss_current"),
    "sharpness": Source("lambda_max_current"),
    "sharpness_adaptive": Source("lambda_max_adaptive_current"),
    "ece": Source("ece_task", task=0),
    "learnt": Source("learning_accuracy"),
    "forgetting": Source("forgetting_task", ahead=1, task=-1),
    "rise": Source("ledger_loss", ahead=1, task=-1),
    "first": Source("ledger_first", ahead=1, task=-1),
    "second": Source("ledger_second", ahead=1, task=-1),
    "barrier": Source("anchor_barrier_entezari_loss", ahead=1, task=-1),
    "barrier_error": Source("anchor_barrier_entezari_error", ahead=1, task=-1),
    "rank": Source("next_curvature_rank", ahead=1, phase="start", coord="0.01"),
    "gap": Source("trainability_gap"),
    "gap_next": Source("trainability_gap", ahead=1),
}

MEANING = {
    "sharpness": "lambda_max_current after task t: largest Hessian eigenvalue of that task's loss",
    "sharpness_adaptive": "lambda_max_adaptive_current after task t: the same, blind to rescaled layers",
    "barrier": "anchor_barrier_entezari_loss: highest rise of task t's loss above the chord, on the line from the net "
    "after task t to the net after task t+1",
    "barrier_error": "anchor_barrier_entezari_error: the same of task t's error",
    "rank": "next_curvature_rank (0.01) at the start of task t+1: eigenvalues of its loss above 0.01 of the largest",
    "ledger": "ledger_first + ledger_second of task t after task t+1: the quadratic forecast made at the net after t",
    "rise": "ledger_loss of task t after task t+1: what its loss has risen by",
    "share_lost": "forgetting_task of task t after task t+1 over learning_accuracy of t: share of its accuracy lost",
    "gap_next": "trainability_gap of task t+1",
    "gap": "trainability_gap of task t",
    "ece": "ece_task of task t after it: expected calibration error on test rows",
    "loss": "probe_loss_current: training loss of task t after it",
}


class Claim(NamedTuple):
    """One test: x goes with y, as `sign` says, given the controls."""

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
    """What the grid says of one claim."""

    claim: Claim
    found: Association
    p_holm: float
    verdict: str  # supported, contradicted, undecided
    detectable: float


class Design(NamedTuple):
    """A grid in which every knob is crossed with every other."""

    levels: dict[str, list[float]]
    streams: list[str]
    strategies: list[str]
    seeds: list[int]


class Explained(NamedTuple):
    design: Design
    findings: list[Finding]
    rows: pd.DataFrame
    notes: list[str]


def explain(folders: Sequence[Path]) -> Explained:
    """What the grid in results folders says of every claim. ValueError for what is no designed grid."""
    import pyarrow.dataset as ds

    names = sorted({source.metric for source in SOURCES.values()})
    columns = ("seed", "boundary", "phase", "task", "metric", "coord", "value")
    read = snapshot(folders, {"metrics": Wanted(columns, ds.field("metric").isin(names))}, purpose="run")
    where = " ".join(map(str, folders))
    runs = [run for run in read.runs if run.manifest["strategy"] != "reset"]  # a control that somebody ran by name
    plan = design(runs, where)
    rows = table(runs, read.tables["metrics"], where)
    return Explained(plan, judge(rows), rows, [*read.notes, *remarks(runs, rows)])


def design(runs: Sequence[store.Run], where: str) -> Design:
    """The grid that these runs are. ValueError for what is none: a knob not crossed, another value that differs."""
    settings = [dict(leaves({k: run.manifest["config"].get(k) for k in SETTINGS})) for run in runs]
    places = [(run.path.parent.parent.name, run.manifest["strategy"]) for run in runs]
    levels = {knob: sorted({s[knob] for s in settings if knob in s}) for knob in KNOBS}
    varied = [knob for knob in KNOBS if len(levels[knob]) > 1]
    if len(set(varied) - {RATE}) < 2:
        raise ValueError(
            f"explain {where}: no designed grid: within a strategy fewer than two of {', '.join(KNOBS[1:])} vary, so "
            f"that geometry is confounded with method; {REMEDY}"
        )
    for place in sorted(set(places)):
        own = [s for s, p in zip(settings, places) if p == place]
        for key in sorted({key for s in own for key in s} - set(KNOBS)):
            if len({json.dumps(s.get(key)) for s in own}) > 1:
                raise ValueError(
                    f"explain {where}: no designed grid: {key} differs between runs of {place[1]} on {place[0]}, and "
                    f"its effect would count as geometry's; {REMEDY}"
                )
    streams, strategies = (sorted({place[i] for place in places}) for i in (0, 1))
    cells = {(*place, *(s.get(knob) for knob in varied)) for place, s in zip(places, settings)}
    wanted = list(itertools.product(streams, strategies, *(levels[knob] for knob in varied)))
    missing = [cell for cell in wanted if cell not in cells]
    if missing:
        stream, strategy, *values = missing[0]
        first = ", ".join([f"{strategy} on {stream}", *(f"{knob}={v}" for knob, v in zip(varied, values))])
        raise ValueError(
            f"explain {where}: {len(missing)} of {len(wanted)} cells of a crossed grid are not done, the first {first};"
            " the same sweep again runs what is missing, and other runs belong in another folder"
        )
    return Design({k: levels[k] for k in varied}, streams, strategies, list(runs[0].manifest["seeds"]))


def table(runs: Sequence[store.Run], metrics: pd.DataFrame, where: str) -> pd.DataFrame:
    """A row for each run and task t: the strata it belongs to, and the quantities of `SOURCES` and what comes of them.

    Each is the mean over all seeds of the run, NaN if one seed's is.
    """
    import pandas as pd

    for name in sorted({source.metric for source in SOURCES.values()}):
        lacking = {run.manifest["run_id"] for run in runs} - set(metrics.loc[metrics.metric == name, "run_id"])
        if lacking:
            raise ValueError(
                f"explain {where}: {len(lacking)} runs lack {name}, {min(lacking)} is one; experiment=geometry records "
                "it, and where it is a metric that was left out `python -m harness measure RUN metrics=...` adds it"
            )
    each = pd.DataFrame({name: _column(metrics, source) for name, source in SOURCES.items()})
    each["share_lost"] = (each["forgetting"] / each["learnt"]).where(each["learnt"] > 0)
    each["ledger"] = each["first"] + each["second"]
    made = each.groupby(["run_id", "t"]).mean(skipna=False).reset_index()
    of = {run.manifest["run_id"]: run for run in runs}
    made = made[made.run_id.isin(list(of))]
    place = {
        "stream": [of[i].path.parent.parent.name for i in made.run_id],
        "strategy": [of[i].manifest["strategy"] for i in made.run_id],
        "lr": [of[i].manifest["config"]["optimizer"]["lr"] for i in made.run_id],
    }
    return pd.concat([pd.DataFrame(place), made.reset_index(drop=True)], axis=1)


def _column(metrics: pd.DataFrame, source: Source) -> pd.Series:
    m = metrics[(metrics.metric == source.metric) & (metrics.phase == source.phase) & (metrics.coord == source.coord)]
    of = -1 if source.task is None else m.boundary + source.task
    m = m.assign(t=m.boundary - source.ahead)[m.task == of]
    column: pd.Series = m.loc[m.t >= 0].set_index(["run_id", "t", "seed"])["value"]
    return column


def judge(rows: pd.DataFrame, *, resamples: int = RESAMPLES) -> list[Finding]:
    """The verdict on every claim: 5 % is the chance that any of them is decided where nothing goes with anything."""
    found = [measure(rows, claim, resamples=resamples) for claim in CLAIMS]
    adjusted = holm(np.array([a.p for a in found]))
    return [
        Finding(claim, a, float(p), verdict(a.rho * claim.sign, float(p)), a.detectable(len(CLAIMS)))
        for claim, a, p in zip(CLAIMS, found, adjusted)
    ]


def verdict(along: float, p: float) -> str:
    """What an association in the claimed direction (`along` above 0) or against it says at this corrected p.

    >>> verdict(0.3, 0.01), verdict(-0.3, 0.01), verdict(0.3, 0.2), verdict(math.nan, math.nan)
    ('supported', 'contradicted', 'undecided', 'undecided')
    """
    if not p < 1 - LEVEL:
        return "undecided"
    return "supported" if along > 0 else "contradicted"


def measure(rows: pd.DataFrame, claim: Claim, *, resamples: int = RESAMPLES) -> Association:
    """The pooled rank correlation of one claim, over the rows that have all it needs."""
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


def remarks(runs: Sequence[store.Run], rows: pd.DataFrame) -> list[str]:
    """What must be known to read the verdicts."""
    diverged = sum(bool(run.manifest.get("diverged")) for run in runs)
    versions = len({run.manifest.get("source") for run in runs})
    gap, barrier = rows.gap_next.dropna(), rows.barrier.dropna()
    lines = [
        f"plasticity was lost, a trainability gap above 0, in {(gap > 0).sum()} of {len(gap)} rows",
        f"a barrier in the loss, above 0, stands in {(barrier > 0).sum()} of {len(barrier)} rows",
    ]
    if diverged:
        lines.append(f"{diverged} runs have seeds that diverged: their rows from there on are left out")
    if versions > 1:
        lines.append(f"the runs were made by {versions} versions of the source")
    return lines


# --- for people ---------------------------------------------------------------------------------------

HEADS = ("x", "goes with", "given", "expected", "rho", "95 %", "p (Holm)", "verdict", "rows", "runs", "strata", "seen")

READING = """\
A row is a run's task t, each quantity its mean over the run's seeds. A stratum is a stream, strategy, learning rate and
t, and within it a third by training loss. rho: Spearman's correlation within strata, of rank
covariances pooled over them, the ranks of `given` partialled out; strata in which x or y does not vary are left out
(strata: k of n vary). The interval and p are of a bootstrap that draws whole runs, {resamples:,} times, within stream,
strategy and learning rate (Fisher's z against Student's t). p (Holm) is corrected for all {tests} tests; below 0.05 a
claim is supported, or contradicted where the sign is the other one. Otherwise it is undecided, which is no evidence
for 0: seen is the |rho| that the grid would have shown with probability 0.8 at the corrected level. None of it is
causal: the knobs that move x may move y by another way."""


def text(found: Explained) -> list[str]:
    """Lines for a terminal."""
    lines = [*heading(found.design), ""]
    for name, group in itertools.groupby(found.findings, lambda f: f.claim.claim):
        lines.append(name)
        for f in group:
            c = dict(zip(HEADS, cells(f)))
            said = f"rho {c['rho']} {c['95 %']}, {c['expected']} expected; p {c['p (Holm)']}"
            seen = f"; |rho| of {c['seen']} would have been seen"
            lines += [
                f"  {c['verdict']:<12} " + ("too little varies" if math.isnan(f.found.p) else said + seen),
                f"    {c['x']} with {c['goes with']}, given {c['given']}: "
                f"{c['rows']} rows of {c['runs']} runs in {c['strata']} strata",
            ]
    return [*lines, "", *(f"note: {note}" for note in found.notes)]


def heading(plan: Design) -> list[str]:
    """The grid in words."""
    knobs = ", ".join(f"{knob} {' '.join(f'{v:g}' for v in values)}" for knob, values in plan.levels.items())
    return [
        f"{', '.join(plan.strategies)} on {', '.join(plan.streams)}, seeds {listed(plan.seeds)} in each run; crossed:",
        knobs,
    ]


def cells(f: Finding) -> list[str]:
    """A finding under `HEADS`."""
    a = f.found
    return [
        f.claim.x,
        f.claim.y,
        ", ".join(f.claim.controls),
        "+" if f.claim.sign > 0 else "-",
        _signed(a.rho),
        f"[{_signed(a.low)}, {_signed(a.high)}]",
        "-" if math.isnan(f.p_holm) else f"{f.p_holm:.3f}" if f.p_holm >= 0.001 else "< 0.001",
        f.verdict,
        str(a.rows),
        str(a.runs),
        f"{a.strata} of {a.of}",
        "-" if math.isnan(f.detectable) else f"{f.detectable:.2f}",
    ]


def _signed(v: float) -> str:
    return "-" if math.isnan(v) else f"{v:+.2f}"


def markdown(found: Explained) -> str:
    """The whole answer as Markdown."""
    parts = ["# What the geometry explains", "", "Made by `python -m harness explain`; not edited by hand.", ""]
    parts += [*heading(found.design), ""]
    for name, group in itertools.groupby(found.findings, lambda f: f.claim.claim):
        parts += [f"## {name[0].upper()}{name[1:]}", "", *piped(HEADS, [cells(f) for f in group]), ""]
    parts += [*(f"* {note}" for note in found.notes), "", "## How to read it", ""]
    parts += [READING.format(resamples=RESAMPLES, tests=len(CLAIMS)), ""]
    return "\n".join([*parts, *(f"* `{name}`: {meaning}" for name, meaning in MEANING.items())]) + "\n"


def records(findings: Sequence[Finding]) -> list[Mapping[str, object]]:
    """A record for each test: numbers, for other programs."""
    return [
        {
            **f.claim._asdict(),
            "controls": " ".join(f.claim.controls),
            **f.found._asdict(),
            "p_holm": f.p_holm,
            "verdict": f.verdict,
            "detectable": f.detectable,
        }
        for f in findings
    ]


def write(found: Explained, out: Path) -> None:
    """explain.md, the tests as explain.parquet, and the rows that they are of as explain_rows.parquet."""
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    store.write_text(out / "explain.md", markdown(found))
    for name, frame in {"explain": pd.DataFrame(records(found.findings)), "explain_rows": found.rows}.items():
        with store.replacing(out / f"{name}.parquet") as tmp:
            frame.to_parquet(tmp, index=False)
