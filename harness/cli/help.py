"""`python -m harness --help`, `--version` and `ls`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from harness import ROOT
from harness.config import aliases, catalogue
from harness.config.catalogue import CONF, LISTED, nearest
from harness.wording import wrapped

HELP = """\
Train a continual learner on a stream of tasks. At every task boundary, measure what it has
forgotten, how well it can still learn, and the loss landscape around its parameters.

  {run} strategy=ewc                  ten permuted tasks of digits, five seeds
  {run} strategy=naive                the same without a method, for comparison
  {run} strategy=[replay,ewc]         both together, in this order
  {run} strategy=ewc strategy.ewc.strength=3   (each method has such settings)
  {run} tasks=split dataset=mnist scenario=class
  {run} experiment=permuted_fashion   a preset protocol in one word
  {run} -m strategy=ewc,naive         a sweep: every combination, in parallel

Repeating a command resumes an interrupted run and skips a finished one.

What to run         (`{run} ls` describes each option in a line)
{groups}

Settings            (`{run} --cfg job` shows all of them with their values)
  seeds=[0,1,2]           trained together; intervals are over seeds
  scenario=domain         task, domain or class: what the learner knows of the task
  boundaries=announced    or hidden: the strategy is not told where a task begins or ends
  tasks.n_tasks=10        length of the stream
  train.epochs=10         or train.steps=100, for each task
  train.batch_size=32     examples in a step
  optimizer.lr=0.2        learning rate
  metrics=standard        or off, fast, atlas; metrics=[fast,sharpness] adds one metric to a tier
  metrics.sharpness=null  leave one metric out (`{run} ls metrics`)
  metrics_every=1         measure every k-th task, the first and the last
  dataset.root=FOLDER     where data sets are looked for and downloaded to
  results=FOLDER          where runs are written
  device=auto             auto, cpu, cuda or cuda:1
  threads=1               CPU threads; 0 for all cores
  tracker.mode=offline    Weights & Biases: online, offline or disabled
  force=true              rerun even if the results exist; beside: keep both if the code changed

Commands            (`{run} COMMAND --help` has the options of each)
{commands}

Flags
  --cfg job               show the configuration and stop
  -m, --multirun          run every combination of comma-separated values in parallel processes;
                          hydra.launcher.n_jobs=2 limits how many run at a time
  --config-dir FOLDER     also read your own options from FOLDER/strategy/*.yaml and so on
  HARNESS_TRACEBACK=1     (environment) show the traceback of an error
  --hydra-help            flags of Hydra, which parses this command line
"""


def program() -> str:
    """The program as it was started."""
    return "harness" if Path(sys.argv[0]).name == "harness" else "python -m harness"


def show_help(commands: Sequence[tuple[str, str]]) -> int:
    """Print the general help; `commands` are names with summaries."""
    groups = "\n".join(_options(g, list(catalogue.options(g))) for g in catalogue.GROUPS)
    listed = "\n".join(f"  {name:<22}  {summary}" for name, summary in commands)
    text = HELP.format(run=program(), groups=groups, commands=listed)
    print(wrapped(text, max(20, shutil.get_terminal_size((10**6, 24)).columns)))
    return 0


def show_version() -> int:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"harness {version('harness')}")
    except PackageNotFoundError:
        print(f"harness, not installed, from {ROOT}")
    return 0


def ls(words: Sequence[str], config_dir: str | None = None) -> int:
    """Print a line about each option of these kinds, or of all."""
    folders = [*([Path(config_dir)] if config_dir is not None else []), CONF]
    for word in words:
        if word not in LISTED:
            close = nearest(word, LISTED)
            hint = f"did you mean {close}?" if close else f"choose from {', '.join(LISTED)}"
            raise ValueError(f"ls {word}: cannot be listed; {hint}")
    for folder in folders:
        aliases.check(folder, catalogue.GROUPS)
    for what in words or LISTED:
        lines = catalogue.describe(LISTED[what], folders)
        if not words:
            print(what)
        if what == "strategies":
            family = catalogue.families(folders)
            wide = max(map(len, family.values()), default=0)
            lines = {n: f"{family[n]:<{wide}}  {lines[n]}" for n in sorted(lines, key=lambda n: (family[n], n))}
        width = max(map(len, lines), default=0)
        for name, text in lines.items():
            print(f"{'' if words else '  '}{name:<{width}}  {text}".rstrip())
    return 0


def _options(group: str, names: Sequence[str]) -> str:
    text = f"{group + '=':<12}{' '.join(names)}"
    return textwrap.fill(text, 96, initial_indent="  ", subsequent_indent=" " * 14)
