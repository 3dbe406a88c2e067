"""The command line: commands, help, Hydra's entry, and errors in one line.

Nothing heavy is imported before it is known that there is something to run.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness import ROOT
from harness.config import catalogue
from harness.config.catalogue import CONF, LISTED, nearest

if TYPE_CHECKING:
    import argparse

    from omegaconf import DictConfig

HELP = """\
Train a continual learner on a stream of tasks. At every task boundary, measure what it forgot, how
well it can still learn, and the loss landscape where it stands.

  {run} strategy=ewc                  ten permuted tasks of digits, five seeds, no download
  {run} strategy=naive                the same without a method, for comparison
  {run} strategy=[replay,ewc]         both together, in this order
  {run} strategy=ewc strategy.ewc.strength=10   (every method has such settings)
  {run} tasks=split dataset=mnist scenario=class
  {run} experiment=permuted_fashion   a preset protocol in one word
  {run} -m strategy=ewc,naive         a sweep: every combination, side by side

The same command again resumes a run that was cut short, and skips one that is done.

What to run         (`{run} ls` says a line about each)
{groups}

Settings            (`{run} --cfg job` shows all of them with their values)
  seeds=[0,1,2]           trained together; every interval is over them
  scenario=domain         task, domain or class: what the learner is told
  boundaries=announced    or hidden: no strategy is told of a task's beginning and end
  tasks.n_tasks=10        length of the stream
  train.epochs=10         or train.steps=100, for each task
  train.batch_size=32     rows of a step
  optimizer.lr=0.1        learning rate
  metrics=standard        or off, fast, atlas; metrics=[fast,sharpness] adds one metric to a tier
  metrics.sharpness=null  leave one out (`{run} ls metrics`)
  metrics_every=1         measure around every k-th task, the first and the last
  dataset.root=FOLDER     where data sets are looked for and downloaded to
  results=FOLDER          where runs are written
  device=auto             auto, cpu, cuda or cuda:1
  threads=1               CPU threads; 0 for all cores
  tracker.mode=offline    Weights & Biases: online, offline or disabled
  force=true              run again although the results are there

Commands and flags
  ls [WHAT]               {listed}
  leaderboard [FOLDER...] finished runs side by side, and as files in FOLDER/leaderboard
                          (--by SCORE, --baseline STRATEGY, --out FOLDER)
  tune [FOLDER...]        choose each strategy's values by its trials (-m experiment=tune), as a
                          preset, and all trials as a table and a figure
                          (--out FOLDER of the preset, --tables FOLDER)
  explain [FOLDER...]     does geometry explain forgetting? What experiment=geometry's grid says,
                          claim by claim (--out FOLDER)
  report [RUN|FOLDER...]  one HTML file with all figures, to open offline (--out FILE); with --wandb
                          a report on a Weights & Biases server, where the runs were sent
  show RUN...             a run on the terminal, by its folder or the beginning of its id
  sync [RUN|FOLDER...]    finished runs to a Weights & Biases server (tracker.project=NAME)
  catalogue [FOLDER]      the page about all strategies, with the runs in FOLDER
  catalogue metrics       the page about all metrics: direction, unit, tier, cost
  catalogue tasks         the page about all streams
  measure RUN metrics=... more measures of a finished run, from the nets that it kept
  atlas RUN               barriers, planes, spectra of a finished run as tables and figures
  card RUN [out=FOLDER]   ledger, path card, and sharpness beside forgetting of a finished run
  --cfg job               show the configuration and stop
  -m, --multirun          run every combination of comma-separated values side by side, each in a
                          process of its own; hydra.launcher.n_jobs=2 limits how many at a time
  --config-dir FOLDER     also choose from your own FOLDER/strategy/*.yaml and the like
  HARNESS_TRACEBACK=1     (environment) show where an error came from
  --hydra-help            what Hydra, which reads this command line, can do besides
"""


def main() -> int:
    """Run the command line in sys.argv; returns the exit code: 0, 2 for bad input, 130 or 143 when interrupted.

    Of a sweep: 1 where a job failed, 2 where none did but some were refused.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script lacks it, and users' own strategies live there
    try:
        code = _dispatch(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # what reads us has seen enough; the interpreter flushes once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program killed by SIGPIPE
    except KeyboardInterrupt as stop:
        training = sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS
        resumes = ": the same command again resumes the run at its last finished task"
        _say(str(stop) or f"interrupted{resumes if training else ''}")
        return _stopped(stop)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except _Reported as error:
        return error.code
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get("HARNESS_TRACEBACK"):
            raise
        _say(line)
        return 2


def _stopped(stop: KeyboardInterrupt) -> int:
    return 143 if isinstance(stop, _Terminated) else 130


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what a scheduler sends before it kills. Ends a run as Ctrl-C does."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


class _Reported(Exception):
    """A job of a sweep failed and has said so."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _say(line: str) -> None:
    print(f"harness: {line}", file=sys.stderr)


def _dispatch(argv: Sequence[str]) -> int:
    word = argv[0] if argv and re.fullmatch(r"[A-Za-z][\w-]*", argv[0]) else None
    if any(a in ("-h", "--help") for a in argv):
        return _help(argv)
    if list(argv) == ["--version"]:
        return _version()
    if word in COMMANDS:
        return COMMANDS[word](argv[1:])
    if word is not None:
        raise ValueError(f"{word}: no such command; {_meant(word)}")
    return _run(argv)


def _meant(word: str) -> str:
    for group in catalogue.GROUPS:
        if word in catalogue.options(group):
            return f"did you mean {group}={word}?"
    close = nearest(word, COMMANDS)
    return f"did you mean {close}?" if close else f"there is {', '.join(COMMANDS)}; a setting is key=value"


# help and ls


def _help(argv: Sequence[str]) -> int:
    run = "harness" if Path(sys.argv[0]).name == "harness" else "python -m harness"
    groups = "\n".join(_wrapped(g, list(catalogue.options(g))) for g in catalogue.GROUPS)
    print(HELP.format(run=run, groups=groups, listed=", ".join(LISTED)), end="")
    return 0


def _version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"harness {version('harness')}")
    except PackageNotFoundError:
        print(f"harness, not installed, from {ROOT}")
    return 0


def _wrapped(group: str, names: Sequence[str]) -> str:
    import textwrap

    text = f"{group + '=':<12}{' '.join(names)}"
    return textwrap.fill(text, 96, initial_indent="  ", subsequent_indent=" " * 14)


def _ls(argv: Sequence[str]) -> int:
    args = list(argv)
    folders = [CONF]
    if "--config-dir" in args:
        at = args.index("--config-dir")
        folders = [Path(f) for f in args[at + 1 : at + 2]] + folders
        del args[at : at + 2]
    for word in args:
        if word not in LISTED:
            close = nearest(word, LISTED)
            hint = f"did you mean {close}?" if close else f"one of {', '.join(LISTED)}"
            raise ValueError(f"ls {word}: nothing of that name to list; {hint}")
    for what in args or LISTED:
        lines = catalogue.describe(LISTED[what], folders)
        if not args:
            print(what)
        if what == "strategies":
            family = catalogue.families(folders)
            wide = max(map(len, family.values()), default=0)
            lines = {n: f"{family[n]:<{wide}}  {lines[n]}" for n in sorted(lines, key=lambda n: (family[n], n))}
        width = max(map(len, lines), default=0)
        for name, text in lines.items():
            print(f"{'' if args else '  '}{name:<{width}}  {text}".rstrip())
    return 0


def _leaderboard(argv: Sequence[str]) -> int:
    given = _given("leaderboard", argv, "folders", {"--by": "average_accuracy", "--baseline": "naive", "--out": None})
    folders = _folders("leaderboard", given.folders or ["results"])
    out = Path(given.out) if given.out else folders[0] / "leaderboard"
    from harness.leaderboard import leaderboard, text
    from harness.report.leaderboard_files import write
    from harness.store import reporting

    found = leaderboard(folders, by=given.by, baseline=given.baseline)
    if not found.boards:
        print(f"no finished run in {', '.join(map(str, folders))}")
        return 0
    print("\n".join(text(found)), flush=True)
    with reporting(out, "--out FOLDER"):
        write(found, out)
    print(f"\nwritten: {out / 'leaderboard'}.md .html .csv .parquet")
    return 0


def _tune(argv: Sequence[str]) -> int:
    options = {"--out": None, "--tables": None, "--config-dir": None}
    given = _given("tune", argv, "folders", options)
    folders = [Path(name) for name in given.folders or ["results/tuning"]]
    for folder in folders:
        if not (folder / "runs").is_dir():
            words = folder if "=" in str(folder) else "strategy=..."
            raise ValueError(
                f"tune {folder}: holds no trials; run them with python -m harness -m experiment=tune {words}"
            )
    from harness.store import reporting, write_text
    from harness.tuning import tune
    from harness.tuning.files import text, write

    settings = tune(folders, given.config_dir)
    if not settings:
        print(f"no finished trial in {', '.join(map(str, folders))}")
        return 0
    print("\n".join(text(settings)), flush=True)
    presets, tables = Path(given.out or CONF / "experiment"), Path(given.tables or folders[0] / "sensitivity")
    with reporting(tables, "--tables FOLDER"):
        written = write(settings, tables)
    with reporting(presets, "--out FOLDER"):
        presets.mkdir(parents=True, exist_ok=True)
        for name, content in (item for setting in settings for item in setting.presets.items()):
            write_text(presets / f"{name}.yaml", content)
            written.append(presets / f"{name}.yaml")
    print("\n".join(["", *(f"written: {path}" for path in written)]))
    return 0


def _explain(argv: Sequence[str]) -> int:
    given = _given("explain", argv, "folders", {"--out": None})
    folders = _folders("explain", given.folders or ["results"])
    out = Path(given.out) if given.out else folders[0] / "explain"
    from harness.geometry.claims import explain
    from harness.geometry.texts import text, write
    from harness.store import reporting

    found = explain(folders)
    print("\n".join(text(found)), flush=True)
    with reporting(out, "--out FOLDER"):
        write(found, out)
    print(f"\nwritten: {out / 'explain'}.md .parquet, {out / 'explain_rows'}.parquet")
    return 0


def _page(argv: Sequence[str]) -> int:
    options = {"--by": "average_accuracy", "--baseline": "naive"}
    online = "--wandb" in argv
    overrides = [a for a in argv if online and a.startswith("tracker.")]
    words = [a for a in argv if a != "--wandb" and a not in overrides]
    given = _given("report", words, "runs", options if online else {**options, "--out": "report.html"})
    names = given.runs or ["results"]
    for name in names:
        if not ((Path(name) / "runs").is_dir() or (Path(name) / "manifest.json").is_file()):
            raise ValueError(f"report {name}: neither a results folder nor the folder of a run")
    if online:
        changes = _target("report --wandb", overrides)
        from harness.report import wandb_report

        print(wandb_report.publish([Path(name) for name in names], changes, by=given.by, baseline=given.baseline))
        return 0
    from harness.report import report
    from harness.store import reporting, write_text

    out = Path(given.out)
    text = report([Path(name) for name in names], by=given.by, baseline=given.baseline)
    with reporting(out, "--out FILE"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    print(f"written: {out} ({len(text.encode()) / 1e3:.0f} kB); open it in a browser, it needs no network")
    return 0


def _show(argv: Sequence[str]) -> int:
    runs = _given("show", argv, "runs", {}).runs
    if not runs:
        raise ValueError("show: name a run by its folder or the beginning of its id")
    from harness.finished.show import show
    from harness.store.readers import find_run

    for path in [find_run(name, command="show") for name in runs]:
        show(path)
    return 0


SENT = ("project", "entity", "group", "tags", "init_timeout", "finish_timeout")  # what `sync` may be told of a tracker


def _sync(argv: Sequence[str]) -> int:
    names, overrides = ([a for a in argv if ("=" in a) == given] for given in (False, True))
    if flags := [a for a in names if a.startswith("-")]:
        raise ValueError(f"sync {flags[0]}: no such option; {_sendable()}")
    changes = _target("sync", overrides)
    from harness.trackers.sync import chosen, sync

    found = chosen(names or ["results"])
    for note in found.notes:
        print(f"note: {note}")
    if not found.runs:
        print(f"no finished run in {', '.join(names or ['results'])}")
        return 0
    count = {"sent": 0, "FAILED": 0}
    try:
        for run in sync(found.runs, changes):
            kind = "FAILED" if run.error else "sent"
            count[kind] += 1
            print(f"{kind:<7} {run.path}  {run.error or run.url}", flush=True)
    except KeyboardInterrupt as stop:
        _say(f"interrupted: {count['sent']} of {len(found.runs)} runs are sent; the same command again sends them all")
        os._exit(_stopped(stop))  # at the interpreter's end W&B would wait for the server that keeps us waiting
    for run in found.skipped:
        print(f"skipped {run.path}  {run.error}")
    return 1 if count["FAILED"] else 0


def _target(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What was said of a tracker, each value checked."""
    from harness.config.preflight import composed

    for one in overrides:
        if one.partition("=")[0] not in [f"tracker.{key}" for key in SENT]:
            raise ValueError(f"{command} {one}: the run stays as it is; {_sendable()}")
    values = composed(overrides)["tracker"]
    return {key: values[key] for key in SENT if any(o.startswith(f"tracker.{key}=") for o in overrides)}


def _sendable() -> str:
    return f"what can be said is {', '.join(f'tracker.{key}=...' for key in SENT)}"


def _catalogue(argv: Sequence[str]) -> int:
    from harness.pages import PAGES, page

    what = argv[0] if len(argv) == 1 and argv[0] in PAGES else "strategies"
    print(page(what, [] if [what] == list(argv) else _folders("catalogue", argv)), end="")
    return 0


CHANGED = ("metrics", "metrics_every", "device", "dataset.root")  # what `measure` may be told beside the run


def _measure(argv: Sequence[str]) -> int:
    from harness.config.preflight import composed

    config_dir, args = _config_dir(argv)
    paths = [a for a in args if "=" not in a and not a.startswith(("-", "~", "+"))]
    overrides = [a for a in args if a not in paths]
    if not paths:
        raise ValueError("measure: name a finished run by its folder or the beginning of its id, then metrics=NAME")
    for one in overrides:
        key = one.lstrip("+~").partition("=")[0]
        if key not in CHANGED and not key.startswith("metrics."):
            raise ValueError(f"measure {one}: the run stays as it is; what can be said is {', '.join(CHANGED)}")
    values = composed(overrides, config_dir)
    changes = {k: _at(values, k) for k in CHANGED[2:] if any(o.startswith(f"{k}=") for o in overrides)}
    from harness.finished.measure import measure
    from harness.store.readers import find_run

    for path in [find_run(name, command="measure") for name in paths]:
        try:
            print(measure(path, values["metrics"], every=values["metrics_every"], changes=changes), flush=True)
        except KeyboardInterrupt as stop:
            _say(f"interrupted: {path} is as it was")
            return _stopped(stop)
    return 0


def _atlas(argv: Sequence[str]) -> int:
    import dataclasses

    paths = [a for a in argv if "=" not in a]
    if not paths:
        raise ValueError("atlas: name a finished run by its folder or the beginning of its id")
    from harness.finished.atlas import AtlasOptions, atlas
    from harness.finished.atlas_figures import draw
    from harness.store.readers import find_run

    given = dict(a.split("=", 1) for a in argv if "=" in a)
    known = [f.name for f in dataclasses.fields(AtlasOptions)]
    for key, value in given.items():
        if key not in (*known, "force"):
            close = nearest(key, [*known, "force"])
            hint = f"did you mean {close}?" if close else f"there is {', '.join([*known, 'force'])}"
            raise ValueError(f"atlas {key}={value}: no such setting; {hint}")
        if key == "force" and value not in ("true", "false"):
            raise ValueError(f"atlas force={value}: must be true or false")
        if key != "force" and not value.isdigit():
            raise ValueError(f"atlas {key}={value}: must be a whole number")
    options = AtlasOptions(**{k: int(v) for k, v in given.items() if k != "force"})
    for path in [find_run(name, command="atlas") for name in paths]:
        try:
            parts, remarks = atlas(path, options, force=given.get("force") == "true")
        except KeyboardInterrupt as stop:
            _say("interrupted: the same command again goes on after the last part that is done")
            return _stopped(stop)
        figures = draw(path / "atlas")
        print(f"{len(parts)} tables ({', '.join(parts)}) and {len(figures)} figures in {path / 'atlas'}", flush=True)
        for line in remarks:
            print(line)
    return 0


def _card(argv: Sequence[str]) -> int:
    from harness.finished.card import card
    from harness.store.readers import find_run

    paths = [a for a in argv if "=" not in a]
    given = dict(a.split("=", 1) for a in argv if "=" in a)
    if unknown := sorted(given.keys() - {"out"}):
        raise ValueError(f"card {unknown[0]}={given[unknown[0]]}: no such setting; there is out=FOLDER")
    if len(paths) != 1:
        raise ValueError("card: name one finished run by its folder or the beginning of its id")
    for file in card(find_run(paths[0], command="card"), Path(given["out"]) if "out" in given else None):
        print(file)
    return 0


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _config_dir(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """What --config-dir names, and the arguments without it."""
    args = list(argv)
    if "--config-dir" not in args:
        return None, args
    at = args.index("--config-dir")
    if at + 1 == len(args):
        raise ValueError("--config-dir: name a folder; it holds metrics/*.yaml, ...")
    return args[at + 1], [*args[:at], *args[at + 2 :]]


def _given(command: str, argv: Sequence[str], rest: str, options: Mapping[str, str | None]) -> argparse.Namespace:
    """What was typed behind a command: its options, with their defaults, and the `rest`."""
    import argparse

    parser = argparse.ArgumentParser(prog=command, add_help=False, allow_abbrev=False)
    parser.error = _usage  # type: ignore[method-assign]
    parser.add_argument(rest, nargs="*")
    for name, default in options.items():
        parser.add_argument(name, default=default)
    return parser.parse_intermixed_args(list(argv))


def _folders(command: str, names: Sequence[str]) -> list[Path]:
    for name in names:
        if not (Path(name) / "runs").is_dir():
            raise ValueError(f"{command} {name}: holds no runs; name a folder that results=FOLDER wrote to")
    return [Path(name) for name in names]


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "ls": _ls,
    "leaderboard": _leaderboard,
    "tune": _tune,
    "explain": _explain,
    "report": _page,
    "show": _show,
    "sync": _sync,
    "catalogue": _catalogue,
    "measure": _measure,
    "atlas": _atlas,
    "card": _card,
    "help": _help,
}


# run


def _run(argv: Sequence[str]) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser

    from harness.config.preflight import preflight

    parser = get_args_parser()
    parser.error = _usage  # type: ignore[method-assign]
    args = parser.parse_args(list(argv))
    if not (args.hydra_help or args.shell_completion or args.info or args.experimental_rerun):
        preflight(args)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints errors itself and exits with 1
    from harness.jobs import sweep, trials

    sweep.register(sweep.Processes, trials.Trials)
    sweep.Processes.ended.clear()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    if not sweep.Processes.ended:
        return 0
    lines, code = sweep.summary(sweep.Processes.ended)
    print("\n".join(lines))
    return code


def _usage(message: str) -> NoReturn:
    raise ValueError(f"{message}; see --help")


def job(cfg: DictConfig) -> None:
    """What Hydra calls with each composed configuration."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from harness.run import from_config

    try:
        from_config(cfg, progress=True)
    except Exception as error:
        code = _report(error, OmegaConf.to_container(cfg, resolve=False))
        if HydraConfig.get().mode == RunMode.RUN:
            raise SystemExit(code) from None  # past Hydra, which would add lines of its own
        raise _Reported(code if _refusal(error) else 1) from None


def _report(error: Exception, cfg: Any) -> int:
    line = explain(error, cfg)
    if line is None or os.environ.get("HARNESS_TRACEBACK"):
        traceback.print_exception(error)
        return 1
    _say(line)
    return 2


def _refusal(error: Exception) -> bool:
    """Whether a job's own settings were at fault, before it began: not a disk, a lock or what training ran into."""
    from harness.store import StoreError

    begun = getattr(error, "__notes__", [])  # RunFolder says there what it had open
    return not begun and not isinstance(error, (OSError, StoreError))


def explain(error: BaseException, cfg: Any = None) -> str | None:
    """One line for an error that the user can mend; None for a bug, ours or in a user's code."""
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InstantiationException):
        return _instantiation(error, cfg)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {_first_line(error)}"
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
        return _first_line(error)
    if type(error).__module__.startswith("yaml"):
        return " ".join(str(error).split())  # the place stands in its last line
    if isinstance(error, ValueError) and _deliberate(error):
        return _qualified(_first_line(error), cfg)
    return None


def _qualified(said: str, cfg: Any) -> str:
    """`widths=[0]: ...` under the key that is typed, model.widths, where only one has that name."""
    from harness.config.preflight import dotted

    word = re.match(r"(\w+)=", said)
    unclear = word and word[1] not in (cfg or {})  # tasks=rotated is what is typed, eval.tasks another setting
    found = [k for k in dotted(cfg or {}) if unclear and word and k.endswith(f".{word[1]}")]
    return f"{found[0].rpartition('.')[0]}.{said}" if len(found) == 1 else said


def _instantiation(error: Exception, cfg: Any) -> str | None:
    """Hydra wraps what a constructor raised, and names its target: the user knows it by its key."""
    target = re.search(r"target '([^']+)'", str(error))
    key = _key_of(target.group(1), cfg) if target else ""
    cause: BaseException = error
    unwanted = Exception if "Error locating" in str(error) else type(error)
    while isinstance(cause, unwanted) and cause.__cause__ is not None:
        cause = cause.__cause__
    if target and unwanted is Exception:
        reason = "" if cause is error else f": {type(cause).__name__}: {_first_line(cause)}"
        where = f"{key}._target_" if key else "_target_"
        return f"{where}={target.group(1)}: not found in {Path.cwd()} or what is installed{reason}"
    if not isinstance(cause, (ValueError, TypeError, OSError)):
        return None
    said = _first_line(cause)
    parent, _, name = key.rpartition(".")
    if not key or re.match(rf"{key.partition('.')[0]}[.=]", said):
        return said
    if parent and said.startswith(name + "."):
        return f"{parent}.{said}"
    return f"{key}.{said}" if re.match(r"\w+=", said) else f"{key}: {said}"


def _key_of(target: str, node: Any) -> str:
    """Dotted key of the mapping that names `target`; '' if there is none."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            if value.get("_target_") == target:
                return str(key)
            below = _key_of(target, value)
            if below:
                return f"{key}.{below}"
    return ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _deliberate(error: BaseException) -> bool:
    """Whether a `raise` of this project or of a user's file made it: those of libraries are bugs."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return True
    file = Path(frames[-1].filename).resolve()
    ours = any(ROOT / folder in file.parents for folder in ("harness", "strategies", "tasks"))
    library = any(Path(sysconfig.get_path(p)).resolve() in file.parents for p in ("stdlib", "purelib", "platlib"))
    return (ours or not library) and (frames[-1].line or "").startswith("raise")
