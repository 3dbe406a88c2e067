"""The commands behind `python -m harness`: what each accepts, and what it calls.

What configures a run is typed as for training, `metrics=standard`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.cli import help
from harness.cli.errors import code_of, each, leave, say
from harness.cli.parsing import settings_apart
from harness.config.catalogue import CONF
from harness.finished.atlas_options import AtlasOptions
from harness.finished.merge_options import MergeOptions, methods_of
from harness.wording import interruptions_kept, printable

# --- what many runs say -------------------------------------------------------------------------------


def leaderboard(args: argparse.Namespace) -> int:
    folders = _folders("leaderboard", args.folders or ["results"])
    out = Path(args.out) if args.out else folders[0] / "leaderboard"
    from harness.leaderboard import leaderboard, text
    from harness.report.leaderboard_files import write
    from harness.store import reporting

    found = leaderboard(folders, by=args.by, baseline=args.baseline)
    if not found.boards:
        print("".join(printable(f"note: {note}") + "\n" for note in found.notes), end="")
        return _no_run(folders)
    print("\n".join(text(found)), flush=True)
    with reporting(out, "--out FOLDER"):
        write(found, out)
    print(f"\nwritten: {out / 'leaderboard'}.md .html .csv .parquet")
    return 0


def tune(args: argparse.Namespace) -> int:
    folders = [Path(name) for name in args.folders or ["results/tuning"]]
    for folder in folders:
        if not (folder / "runs").is_dir():
            words = folder if "=" in str(folder) else "strategy=..."
            raise ValueError(f"tune {folder}: no trials; run them with python -m harness -m experiment=tune {words}")
    from harness.store import reporting, write_text
    from harness.tuning import tune
    from harness.tuning.files import text, write

    settings = tune(folders, args.config_dir, args.trust)
    if not settings:
        print(f"no finished trial in {', '.join(map(str, folders))}")
        return 0
    print("\n".join(text(settings)), flush=True)
    presets, tables = Path(args.out or CONF / "experiment"), Path(args.tables or folders[0] / "sensitivity")
    with reporting(tables, "--tables FOLDER"):
        written = write(settings, tables)
    with reporting(presets, "--out FOLDER"):
        presets.mkdir(parents=True, exist_ok=True)
        for name, content in (item for setting in settings for item in setting.presets.items()):
            write_text(presets / f"{name}.yaml", content)
            written.append(presets / f"{name}.yaml")
    print("\n".join(["", *(f"written: {path}" for path in written)]))
    return 0


def explain(args: argparse.Namespace) -> int:
    folders = _folders("explain", args.folders or ["results"])
    out = Path(args.out) if args.out else folders[0] / "explain"
    from harness.geometry.claims import explain
    from harness.geometry.texts import text, write
    from harness.store import reporting

    found = explain(folders)
    print("\n".join(text(found)), flush=True)
    with reporting(out, "--out FOLDER"):
        write(found, out)
    print(f"\nwritten: {out / 'explain'}.md .parquet, {out / 'explain_rows'}.parquet")
    return 0


def report(args: argparse.Namespace) -> int:
    names, overrides = settings_apart(args.runs or ["results"])
    names = names or ["results"]
    for name in names:
        if not ((Path(name) / "runs").is_dir() or (Path(name) / "manifest.json").is_file()):
            raise ValueError(f"report {name}: neither a results folder nor a run folder")
    if args.wandb:
        if args.out:
            raise ValueError(f"report --out {args.out}: --wandb writes no file; leave one of them out")
        changes = _tracker("report --wandb", overrides)
        from harness.report import wandb_report

        print(wandb_report.publish([Path(name) for name in names], changes, by=args.by, baseline=args.baseline))
        return 0
    if overrides:
        raise ValueError(f"report {overrides[0]}: only `report --wandb` takes settings of a tracker")
    from harness.report import report
    from harness.store import reporting, write_text

    out = Path(args.out or "report.html")
    text = report([Path(name) for name in names], by=args.by, baseline=args.baseline)
    with reporting(out, "--out FILE"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    print(f"written: {out} ({len(text.encode()) / 1e3:.0f} kB); open it in a browser, it works offline")
    return 0


# --- one run, or some ---------------------------------------------------------------------------------


def show(args: argparse.Namespace) -> int:
    from harness.finished.show import show
    from harness.store import find_run

    paths = [find_run(name) for name in args.runs]
    failed = each(paths, show)
    return 2 if failed == len(paths) else 0


TRACKER = ("project", "entity", "group", "tags", "init_timeout", "finish_timeout")  # what `sync` may change


def sync(args: argparse.Namespace) -> int:
    names, overrides = settings_apart(args.runs)
    changes = _tracker("sync", overrides)
    from harness.trackers.sync import chosen, sync

    found = chosen(names or ["results"])
    for note in found.notes:
        print(printable(f"note: {note}"))
    if not found.runs:
        return _no_run(names or ["results"])
    count, sending = {"sent": 0, "FAILED": 0}, sync(found.runs, changes)
    try:
        for run in sending:
            kind = "FAILED" if run.error else "sent"
            count[kind] += 1
            print(printable(f"{kind:<7} {run.path}  {run.error or run.url}"), flush=True)
    except KeyboardInterrupt as stop:
        say(f"interrupted: {count['sent']} of {len(found.runs)} runs were sent; repeat the command to send all of them")
        sending.close()
        leave(code_of(stop))  # at the interpreter's exit W&B would wait for the server that keeps us waiting
    for run in found.skipped:
        print(printable(f"skipped {run.path}  {run.error}"))
    return 1 if count["FAILED"] else 0


def _tracker(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The tracker's settings that were typed, each checked."""
    from harness.config.preflight import composed

    for word in overrides:
        if word.partition("=")[0] not in [f"tracker.{key}" for key in TRACKER]:
            known = ", ".join(f"tracker.{key}=..." for key in TRACKER)
            raise ValueError(f"{command} {word}: cannot be changed here; the settings are {known}")
    values = composed(overrides)["tracker"]
    return {key: values[key] for key in TRACKER if any(o.startswith(f"tracker.{key}=") for o in overrides)}


MEASURE = ("metrics", "metrics_every", "device", "dataset.root")  # what `measure` may change


def measure(args: argparse.Namespace) -> int:
    names, overrides = settings_apart(args.runs)
    if not names:
        raise ValueError("measure: name a finished run by its folder or the beginning of its id, then metrics=NAME")
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key not in MEASURE and not key.startswith("metrics."):
            raise ValueError(f"measure {word}: cannot be changed here; the settings are {', '.join(MEASURE)}")
    from harness.config.preflight import composed
    from harness.store import find_run

    values = composed(overrides, args.config_dir)
    changes = {k: _at(values, k) for k in MEASURE[2:] if any(o.startswith(f"{k}=") for o in overrides)}
    paths = [find_run(name, command="measure") for name in names]
    from harness.finished.measure import measure

    def one(path: Path) -> None:
        how = {"every": values["metrics_every"], "trust": args.trust, "config_dir": args.config_dir}
        try:
            with interruptions_kept():
                print(measure(path, values["metrics"], changes=changes, **how), flush=True)
        except KeyboardInterrupt as stop:
            stop.args = (f"interrupted: {path} is unchanged",)
            raise

    return 2 if each(paths, one) else 0


def atlas(args: argparse.Namespace) -> int:
    from harness.store import find_run

    options = AtlasOptions(**{key: getattr(args, key) for key in asdict(AtlasOptions())})
    paths = [find_run(name, command="atlas") for name in args.runs]
    from harness.finished.atlas import atlas
    from harness.finished.atlas_figures import draw

    def one(path: Path) -> None:
        try:
            with interruptions_kept():
                parts, remarks = atlas(path, options, force=args.force, trust=args.trust)
        except KeyboardInterrupt as stop:
            stop.args = ("interrupted: repeat the command to continue after the last finished part",)
            raise
        figures = draw(path / "atlas")
        print(f"{len(parts)} tables ({', '.join(parts)}) and {len(figures)} figures in {path / 'atlas'}", flush=True)
        for line in remarks:
            print(line)

    return 2 if each(paths, one) else 0


MERGE = ("device", "dataset.root")  # what `merge` may change


def merge(args: argparse.Namespace) -> int:
    names, overrides = settings_apart(args.runs)
    if not names:
        raise ValueError("merge: name a finished run by its folder or the beginning of its id")
    for word in overrides:
        if word.partition("=")[0] not in MERGE:
            raise ValueError(f"merge {word}: cannot be changed here; the settings are {', '.join(MERGE)}")
    options, methods = (
        MergeOptions(**{key: getattr(args, key) for key in asdict(MergeOptions())}),
        methods_of(args.methods),
    )
    from harness.config.preflight import composed
    from harness.store import find_run

    values = composed(overrides)
    changes = {key: _at(values, key) for key in MERGE if any(o.startswith(f"{key}=") for o in overrides)}
    paths = [find_run(name, command="merge") for name in names]
    from harness.finished.merge import merge
    from harness.finished.merge_texts import draw, text

    try:
        with interruptions_kept():
            out = Path(args.out) if args.out else None
            found = merge(paths, methods, options, out=out, changes=changes, trust=args.trust)
    except KeyboardInterrupt as stop:
        stop.args = ("interrupted: nothing was written",)
        raise
    print("\n".join(text(found)), flush=True)
    print(f"written: {found.folder / 'merge.parquet'} and {draw(found).name}")
    return 0


def card(args: argparse.Namespace) -> int:
    from harness.store import find_run

    path = find_run(args.run_name, command="card")
    from harness.finished.card import card

    for file in card(path, Path(args.out) if args.out else None):
        print(file)
    return 0


CHECKED = ("strategy", "model", "metrics", "tasks", "dataset")  # groups whose promises `check` tries


def check(args: argparse.Namespace) -> int:
    from harness.config.preflight import composed

    chosen = [group for group in CHECKED if any(word.startswith(f"{group}=") for word in args.settings)]
    if not chosen:
        raise ValueError(f"check {args.settings[0]}: name what to check, as in {'=NAME, '.join(CHECKED)}=NAME")
    values = composed(args.settings, args.config_dir)
    from harness.contract.check import printed

    return 1 if printed(values, chosen) else 0


def new(args: argparse.Namespace) -> int:
    from harness.cli.new import commands, new

    folder = Path(args.to)
    for path in new(args.kind, args.name, folder):
        print(f"written: {path}")
    print("\n".join(["", "next:", *(f"  {line}" for line in commands(args.kind, args.name, folder))]))
    return 0


# --- pages and lists ----------------------------------------------------------------------------------


def catalogue(args: argparse.Namespace) -> int:
    from harness.pages import PAGES, page

    what = args.what[0] if len(args.what) == 1 and args.what[0] in PAGES else "strategies"
    print(page(what, [] if [what] == args.what else _folders("catalogue", args.what)), end="")
    return 0


def ls(args: argparse.Namespace) -> int:
    return help.ls(args.what, args.config_dir)


# --- shared -------------------------------------------------------------------------------------------


def _folders(command: str, names: Sequence[str]) -> list[Path]:
    for name in names:
        if not (Path(name) / "runs").is_dir():
            what = "contains no runs" if Path(name).is_dir() else "no such folder"
            first = f"run something first, as in `{help.program()} strategy=naive`, or " if name == "results" else ""
            raise ValueError(f"{command} {name}: {what}; {first}name a folder that was given as results=FOLDER")
    return [Path(name) for name in names]


def _no_run(folders: Sequence[Path | str]) -> int:
    print(f"no finished run in {', '.join(map(str, folders))}")
    return 0


def _at(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
