"""A setting and the values chosen in it, as a preset: a file of conf/experiment."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config.catalogue import CONF, options
from harness.leaderboard.naming import leaves
from harness.tuning.choice import Trial, Tried, Values

FILES = ("tasks", "dataset", "model", "optimizer")  # groups of which a setting has one file each
KEYS = ("scenario", "classes", "boundaries", "dtype", "threads", "train", "pin", "eval")  # what it says beside them
OWN = ("dataset.root", "eval.split")  # a machine's own, and the trials'


def preset(cfg: Mapping[str, Any], tried: Sequence[Tried], about: str, name: str, config_dir: str | None) -> str:
    """The preset's text. `cfg` is the configuration of a trial, whose setting it is."""
    import yaml

    from harness.config.preflight import composed

    files = {group: option(group, cfg[group], config_dir) for group in FILES}
    plain = composed([f"{group}={file}" for group, file in files.items()], config_dir)
    rest = {"scenario": cfg["scenario"], "seeds": plain["seeds"]}
    rest |= difference({k: cfg[k] for k in (*KEYS, *FILES)}, plain)
    text = yaml.safe_dump(rest, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
    head = [
        f"Each strategy at the values that did best on validation rows: {about}.",
        "Made by `python -m harness tune`; not edited by hand.",
    ]
    chain = ",".join(tried[0].parts)
    run = f"# python -m harness experiment={name} strategy=[{chain}]"
    if len(tried) > 1:
        run = f"# All of them: python -m harness -m experiment={name} 'strategy=glob(*)'"
    lines = ["# @package _global_", *commented(head), run, "", "defaults:"]
    lines += [f"  - override /{group}: {file}" for group, file in files.items()]
    lines += [
        "",
        text.rstrip(),
        "",
        "# Score: average accuracy at the end, mean over the trials' seeds and its 95 % interval.",
    ]
    return "\n".join([*lines, *_tuned(tried)]) + "\n"


def _tuned(tried: Sequence[Tried]) -> list[str]:
    import yaml

    lines = ["tuned:"]
    for one in tried:
        values = nested({**one.fixed, **one.best.values})
        if values:
            lines += commented([rationale(one)], indent=2)
        for part, own in values.items():
            flow = yaml.safe_dump(own, default_flow_style=True, sort_keys=False, width=10_000).strip()
            lines += [f"  {part}: {flow}"]
    if len(lines) == 1:
        lines = ["tuned: {}"]
    alone = [f"{one.label} {scored(one.trials[0])}" for one in tried if not one.main]
    return [*lines, *commented([f"Nothing to tune, one trial of the defaults: {', '.join(alone)}."] if alone else [])]


def rationale(one: Tried) -> str:
    """What stands behind a choice: every trial, how far the default is, and what is to be doubted."""
    n = len(one.seeds)
    parts = [f"{one.label}, n = {n}: " + "; ".join(f"{valued(t)} {scored(t)}" for t in one.trials) + "."]
    mean, half = one.gain
    if one.lost:
        parts += ["Every seed of every trial diverged: nothing was chosen."]
    elif one.best.default:
        parts += ["No value did better than the default."]
    elif one.default is not None:
        parts += [f"Best less default, paired by seed: {mean:.3f} ± {half:.3f}."]
    if one.edge:
        more = "more" if one.edge == "largest" else "less"
        parts += [f"The best is the {one.edge} value tried: {more} may do better."]
    if one.missing:
        parts += [f"Not tried: {'; '.join(worded(v) for v in one.missing)}."]
    return " ".join(parts)


def valued(trial: Trial) -> str:
    """Its values in words, and whether they are the default."""
    return worded(trial.values) + (" (default)" if trial.default else "")


def worded(values: Values) -> str:
    """Values in words, each under the last part of its name.

    >>> worded({"ewc.strength": 20.0, "replay.weighting": "sum", "imm.alpha": None})
    'strength=20.0, weighting=sum, alpha=null'
    """
    from harness.jobs.trials import written

    return ", ".join(f"{key.rpartition('.')[2]}={written(value)}" for key, value in values.items())


def scored(trial: Trial) -> str:
    """Mean and interval, and how many seeds diverged."""
    lost = f", {len(trial.diverged)} diverged" if trial.diverged else ""
    return f"{trial.mean:.3f} ± {trial.half:.3f}{lost}"


def option(group: str, node: Mapping[str, Any], config_dir: str | None = None) -> str:
    """The file of conf/<group> that a run's configuration came from: the same target, the fewest other values."""
    from omegaconf import OmegaConf

    wanted = dict(leaves(node))
    found = {}
    for name, file in options(group, [*([Path(config_dir)] if config_dir else []), CONF]).items():
        own = dict(leaves(OmegaConf.to_container(OmegaConf.load(file))))
        if own.get("_target_") == wanted["_target_"]:
            found[name] = sum(wanted.get(key, ...) != value for key, value in own.items())
    if not found:
        raise ValueError(f"{group}: no file names {node['_target_']}; say where it is with --config-dir FOLDER")
    return min(found, key=lambda name: (found[name], name))


def difference(wanted: Mapping[str, Any], plain: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """What has to be said of `wanted` to somebody who knows `plain`."""
    made: dict[str, Any] = {}
    for key, value in wanted.items():
        full = f"{above}{key}"
        if full in OWN or (key in plain and plain[key] == value):
            continue
        inside = isinstance(value, Mapping) and isinstance(plain.get(key), Mapping)
        made[key] = difference(value, plain[key], f"{full}.") if inside else value
    return {key: value for key, value in made.items() if value != {}}


def nested(values: Values) -> dict[str, Any]:
    """Dotted keys as nested mappings: `leaves` the other way round.

    >>> nested({"ewc.strength": 1.0, "ewc.options.mode": None})
    {'ewc': {'strength': 1.0, 'options': {'mode': None}}}
    """
    made: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        node = made
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return made


def commented(paragraphs: Iterable[str], indent: int = 0) -> list[str]:
    """Lines of a comment, none too long."""
    start = " " * indent + "# "
    wrap = textwrap.TextWrapper(
        120, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )
    return [line for text in paragraphs for line in wrap.wrap(text)]
