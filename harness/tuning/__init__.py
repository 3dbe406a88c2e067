"""Choose each strategy's values from its trials on validation rows: `python -m harness tune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import store
from harness.config.catalogue import CONF, options
from harness.finished.trust import safe
from harness.leaderboard.entries import finished
from harness.leaderboard.naming import listed, setting_in_words
from harness.leaderboard.records import Entry
from harness.store.entries import leaves
from harness.tuning.choice import Trial, Tried, Values, place
from harness.tuning.preset import option, preset
from harness.wording import printable

SCORE = "average_accuracy"
AGAIN = "run trials with python -m harness -m experiment=tune"


@dataclass(frozen=True)
class Tuned:
    """The trials of one setting, and the presets made from them."""

    name: str
    about: str
    tried: tuple[Tried, ...]
    presets: Mapping[str, str]  # name -> text
    notes: tuple[str, ...]


def tune(folders: Sequence[Path], config_dir: str | None = None, trust: Sequence[str] = ()) -> list[Tuned]:
    """The trials in results folders by setting, sorted by name.

    Raises ValueError for a run that is not a trial (scored on test rows, or trained with reported seeds) and for one
    whose configuration is not `trust.safe`: its values are copied into presets.
    """
    from harness.config.preflight import composed

    places, notes = finished(folders)
    entries = {where: [e for e in found if e.runs] for where, found in places.items()}
    reported = set(composed([], config_dir)["seeds"])
    runs = [run for found in entries.values() for entry in found for run in entry.runs]
    if notes and not runs:
        raise ValueError(f"tune: no trial that can be read; {notes[0]}")
    for run in runs:
        _refuse(run, reported)
        _safe(run, config_dir, trust)
    parts = sorted({part for run in runs for part in run.manifest["config"]["strategy"]})
    plain = dict(leaves(composed([f"strategy=[{','.join(parts)}]"], config_dir)["strategy"])) if parts else {}
    names = {where: _name(found[0].runs[0].manifest["config"], config_dir) for where, found in entries.items()}
    settings = []
    for where, found in sorted(entries.items(), key=lambda item: (names[item[0]], item[0].setting)):
        name = names[where]
        if list(names.values()).count(name) > 1:  # a different length, budget or learner
            name = f"{name}_{where.setting[:4]}"
        settings.append(_setting(name, found, plain, config_dir, notes))
    return settings


def _refuse(run: store.Run, reported: set[int]) -> None:
    facts = run.manifest
    if facts["split"] != "val":
        raise ValueError(f"tune {run.path}: scored on {facts['split']} rows, which must not choose values; {AGAIN}")
    if shared := sorted(reported & set(facts["seeds"])):
        raise ValueError(f"tune {run.path}: trained with seeds {shared}, which are used for reported results; {AGAIN}")


def _safe(run: store.Run, config_dir: str | None, trust: Sequence[str]) -> None:
    config = safe(run.path, run.manifest["config"], trust, config_dir)
    known = {
        "strategy": options("strategy", [*([Path(config_dir)] if config_dir else []), CONF]),
        "scenario": ("task", "domain", "class"),
    }
    for key, values in known.items():  # they become names of files, and words on a command line
        for value in [config[key]] if isinstance(config[key], str) else config[key]:
            if value not in values:
                raise ValueError(f"tune {run.path}: {key}={printable(value, 80)}: unknown; move this run elsewhere")


def _name(cfg: Mapping[str, Any], config_dir: str | None) -> str:
    tasks, dataset = (option(group, cfg[group], config_dir) for group in ("tasks", "dataset"))
    return f"tuned_{tasks}_{cfg['scenario']}_{dataset}"


def _setting(name: str, entries: Sequence[Entry], plain: Values, config_dir: str | None, notes: Sequence[str]) -> Tuned:
    facts = entries[0].runs[0].manifest
    seeds = tuple(sorted({s for entry in entries for s in entry.seeds}))
    whole = [entry for entry in entries if entry.seeds == seeds]
    notes = [
        *notes,
        *(f"{e.label}: left out because it has only seeds {listed(e.seeds)}" for e in entries if e.seeds != seeds),
    ]
    labels = sorted({entry.strategy for entry in whole})
    tried = tuple(tried_of([e for e in whole if e.strategy == label], plain) for label in labels)
    notes += [f"{one.label}: {len(one.missing)} points of its grid were not tried" for one in tried if one.missing]
    about = f"{facts['stream']}, {setting_in_words(facts)}; trials with seeds {listed(seeds)}"
    presets = {}
    for key, ones in _files(tried).items():
        file = f"{name}_{store.slug(key)}".replace("+", "_") if key else name
        presets[file] = preset(facts["config"], ones, about, file, config_dir)
    return Tuned(name, about, tried, presets, tuple(notes))


def _files(tried: Sequence[Tried]) -> dict[str, list[Tried]]:
    """The strategies of each preset. A preset has one value per setting, so lists of strategies get their own."""
    made: dict[str, list[Tried]] = {"": [one for one in tried if one.parts == (one.label,)]}
    alone = {one.label for one in made[""]}
    for one in tried:
        if one.parts != (one.label,) and (one.main or one.fixed):
            shared = alone & set(one.parts) or sum(bool({*one.parts} & {*two.parts}) for two in tried) > 1
            made.setdefault(one.label if shared else "", []).append(one)
    return {key: ones for key, ones in made.items() if ones}


def tried_of(entries: Sequence[Entry], plain: Values) -> Tried:
    """The trials of one strategy; `plain` has the defaults of all settings of all strategies."""
    from harness.jobs.trials import chosen, grid_of

    cfg = entries[0].runs[0].manifest["config"]
    plain = {key: value for key, value in plain.items() if key.partition(".")[0] in cfg["strategy"]}
    plain |= {key: value for key, value in leaves(cfg["tuned"]) if key in plain}
    grid = grid_of(cfg["strategy"])
    specs = [dict(leaves(entry.runs[0].manifest["config"]["strategy"])) for entry in entries]
    differ = [key for key in plain if len({repr(_number(spec.get(key))) for spec in specs}) > 1]
    knobs = [*(key for key in grid if key in differ), *(key for key in differ if key not in grid)]
    points = chosen(grid, {key: plain[key] for key in grid})
    return Tried(
        label=entries[0].strategy,
        parts=tuple(cfg["strategy"]),
        seeds=entries[0].seeds,
        trials=tuple(sorted((_trial(e, spec, knobs, plain) for e, spec in zip(entries, specs)), key=_place)),
        fixed={key: specs[0].get(key) for key in plain if key not in knobs and specs[0].get(key) != plain[key]},
        missing=tuple(p for p in points if not any(all(spec.get(k) == v for k, v in p.items()) for spec in specs)),
    )


def _trial(entry: Entry, spec: Values, knobs: Sequence[str], plain: Values) -> Trial:
    values = {key: spec.get(key) for key in knobs}
    default = all(value == plain[key] for key, value in values.items())
    ids = tuple(run.manifest["run_id"] for run in entry.runs)
    return Trial(values, np.asarray(entry.scores[SCORE]), default, entry.diverged, ids)


def _place(trial: Trial) -> Any:
    return place(trial.values)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
