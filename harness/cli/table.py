"""The commands behind `python -m harness`, with what each accepts."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from harness.cli.commands import (
    CHECKED,
    MEASURE,
    MERGE,
    TRACKER,
    atlas,
    card,
    catalogue,
    check,
    explain,
    leaderboard,
    ls,
    measure,
    merge,
    new,
    report,
    show,
    sync,
    tune,
)  # fmt: skip
from harness.cli.parsing import Argument, Command, argument
from harness.cli.verifying import verify
from harness.finished.atlas_options import HELP as ATLAS
from harness.finished.atlas_options import AtlasOptions
from harness.finished.merge_options import ABOUT as MERGED
from harness.finished.merge_options import HELP as MERGING
from harness.finished.merge_options import METHODS, MergeOptions


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number")
    return int(text)


FOLDERS = argument("folders", nargs="*", metavar="FOLDER", help="results folders (default: results)")
RUNS = argument("runs", nargs="+", metavar="RUN", help="a run folder, or the beginning of a run id in results")
BY = argument("--by", default="average_accuracy", metavar="SCORE", help="score to sort by (default: %(default)s)")
BASELINE = argument(
    "--baseline", default="naive", metavar="STRATEGY", help="strategy to compare with (default: %(default)s)"
)
TRUST = argument(
    "--trust",
    action="append",
    default=[],
    metavar="MODULE",
    help="allow the runs to name classes and functions of this module, which must be safe to run; repeatable",
)
CONFIG_DIR = argument("--config-dir", metavar="FOLDER", help="also read your own options from FOLDER")


def _out(default: str, metavar: str = "FOLDER") -> Argument:
    return argument("--out", metavar=metavar, help=f"where to write (default: {default})")


COMMANDS: dict[str, Command] = {
    "ls": Command(
        ls,
        "list strategies, tasks, datasets, models, metrics or experiments",
        (argument("what", nargs="*", metavar="WHAT", help="what to list (default: everything)"), CONFIG_DIR),
    ),
    "leaderboard": Command(
        leaderboard,
        "compare finished runs, on the terminal and as files",
        (FOLDERS, BY, BASELINE, _out("leaderboard in the first FOLDER")),
    ),
    "tune": Command(
        tune,
        "choose each strategy's values by its trials, and write them as a preset",
        (
            argument("folders", nargs="*", metavar="FOLDER", help="folders of trials (default: results/tuning)"),
            _out("conf/experiment"),
            argument("--tables", metavar="FOLDER", help="where tables go (default: sensitivity in the first FOLDER)"),
            CONFIG_DIR,
            TRUST,
        ),
        "Trials are run with `python -m harness -m experiment=tune`.",
        settings=True,
    ),
    "explain": Command(
        explain,
        "test on a designed grid whether geometry explains forgetting",
        (FOLDERS, _out("explain in the first FOLDER")),
        "The grid is run with `python -m harness experiment=geometry`.",
    ),
    "report": Command(
        report,
        "write all figures as one HTML file, or as a report on Weights & Biases",
        (
            argument("runs", nargs="*", metavar="RUN|FOLDER", help="runs or results folders (default: results)"),
            BY,
            BASELINE,
            _out("report.html", "FILE"),
            argument("--wandb", action="store_true", help="write a report on a Weights & Biases server instead"),
        ),
        f"With --wandb, the server is chosen as in training: {', '.join(f'tracker.{key}=...' for key in TRACKER)}.",
        settings=True,
    ),
    "verify": Command(
        verify,
        "run published protocols, and compare our numbers with the published ones",
        (
            argument("rows", nargs="*", metavar="PROTOCOL[/ROW]|key=value", help="what to run (default: all)"),
            _out("results"),
            argument("--plan", action="store_true", help="only say what is missing, and how long it takes"),
        ),
        "Settings: dataset.root=..., results=..., hydra.launcher.n_jobs=...; finished rows are not run again.",
        settings=True,
    ),
    "show": Command(show, "print finished or unfinished runs", (RUNS,)),
    "sync": Command(
        sync,
        "send finished runs to a Weights & Biases server",
        (argument("runs", nargs="*", metavar="RUN|FOLDER|key=value", help="runs, results folders, settings"),),
        f"Settings: {', '.join(f'tracker.{key}=...' for key in TRACKER)}.",
        settings=True,
    ),
    "measure": Command(
        measure,
        "take more metrics of a finished run, from the nets that it kept",
        (
            argument("runs", nargs="*", metavar="RUN|key=value", help="runs (folder or id), and settings"),
            CONFIG_DIR,
            TRUST,
        ),
        f"Settings: {', '.join(f'{key}=...' for key in MEASURE)}, and any metrics.NAME.KEY=VALUE.",
        settings=True,
    ),
    "atlas": Command(
        atlas,
        "barriers, planes and spectra of a finished run, as tables and figures",
        (
            RUNS,
            *(
                argument(f"--{key}", type=_whole, default=n, metavar="N", help=f"{ATLAS[key][1]} (default: {n})")
                for key, n in asdict(AtlasOptions()).items()
            ),
            argument("--force", action="store_true", help="redo parts that exist"),
            TRUST,
        ),
    ),
    "merge": Command(
        merge,
        "merge the nets that a run kept, or the last nets of several runs, into one",
        (
            argument("runs", nargs="*", metavar="RUN|key=value", help="runs (folder or id), and settings"),
            argument(
                "--with",
                dest="methods",
                default=",".join(METHODS),
                metavar="METHODS",
                help="separated by commas (default: all: %(default)s)",
            ),
            _out("merge in the first RUN's folder; of several runs merge_ID_..."),
            *(
                argument(f"--{key}", type=_whole, default=n, metavar="N", help=f"{MERGING[key][1]} (default: {n})")
                for key, n in asdict(MergeOptions()).items()
            ),
            TRUST,
        ),
        f"{' '.join(MERGED.split())} Settings: {', '.join(f'{key}=...' for key in MERGE)}.",
        settings=True,
    ),
    "card": Command(
        card,
        "forgetting ledger, path card and sharpness of a finished run",
        (
            argument("run_name", metavar="RUN", help="a run folder, or the beginning of a run id"),
            _out("the run's folder"),
        ),
    ),
    "check": Command(
        check,
        "try the promises of your own code and data, on toy runs",
        (
            argument(
                "settings", nargs="+", metavar="key=value", help=f"{'=NAME, '.join(CHECKED)}=NAME, and their settings"
            ),
            CONFIG_DIR,
        ),
        "One line for each promise; the exit code is 1 if one is broken. The toy data are ten classes of 1x8x8 images;"
        " a stream is tried on a few rows of a data set if you name one.",
        settings=True,
    ),
    "new": Command(
        new,
        "write a strategy, metric, stream or model of your own to begin with",
        (
            argument("kind", choices=("strategy", "metric", "stream", "model"), help="what to write"),
            argument("name", metavar="NAME", help="its name, as in strategy=NAME"),
            argument("--to", default=".", metavar="FOLDER", help="where to write (default: the working directory)"),
        ),
        "Writes NAME.py, a file of settings in the folder `mine` for --config-dir, and a test; all of it runs at once.",
    ),
    "catalogue": Command(
        catalogue,
        "print the page about all strategies, metrics or tasks",
        (
            argument(
                "what",
                nargs="*",
                metavar="metrics|tasks|FOLDER",
                help="a page; a folder of runs is the table of the page about strategies",
            ),
        ),
    ),
}
