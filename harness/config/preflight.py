"""Checks what was typed before Hydra sees it.

Hydra answers a misspelt key with the advice to write `+key`, and says nothing about a wrong type. The composition is
therefore done once in advance (0.1 s), and the first mistake is reported in one line. This relies on hydra._internal,
which is why pyproject.toml caps hydra-core below 1.4.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import aliases
from harness.config.catalogue import CONF, GROUPS, LISTED, nearest
from harness.config.ranges import check, show

if TYPE_CHECKING:
    from argparse import Namespace

    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

NONE = {
    "strategy": "for plain training use strategy=naive",
    "metrics": "for accuracy alone use metrics=off",
    "tracker": "for no tracker use tracker.mode=disabled",
    "experiment": "leave it out",
}
LISTS = ("strategy", "metrics", "tracker", "experiment")  # groups in which several options compose
OPTIONAL = ("metrics",)  # groups whose members can be left out, as in metrics.sharpness=null
HIDDEN = ("_target_", "_partial_")  # keys that users do not set
MANY = 20  # options that fit in one line
_ABSENT = object()


def composed(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """The configuration with these overrides, all of them checked. ValueError as in `preflight`."""
    return compositions([overrides], config_dir)[0]


def compositions(jobs: Sequence[Sequence[str]], config_dir: str | None = None) -> list[dict[str, Any]]:
    """The configuration of each job, as in `composed`; files that they share are read once."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with _loader(config_dir) as loader:
        parser = OverridesParser.create(config_loader=loader)
        known, made = _Known(loader, "config"), []
        for overrides in jobs:
            typed = [_parse(parser, raw) for raw in overrides]
            for o in typed:
                known.look(o)
            made.append(known.job(typed))
        return made


def preflight(args: Namespace) -> None:
    """Raise ValueError for the first override that cannot work, in any job of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    with _loader(args.config_dir) as loader:
        parser = OverridesParser.create(config_loader=loader)
        typed = [_parse(parser, raw) for raw in args.overrides]
        known = _Known(loader, args.config_name or "config")
        for o in typed:
            known.look(o)
        launch = known.compose([_line(o) for o in known.chosen(typed) if not o.is_sweep_override()])[0].hydra
        if not args.multirun and launch.mode != RunMode.MULTIRUN:
            known.job(typed)
            return
        lines = [f"{k}={v}" for k, v in (launch.sweeper.get("params") or {}).items()]
        swept = [_parse(parser, line) for line in lines] + typed
        # an optimising sweeper draws from intervals: those values are not known here
        swept = [o for o in swept if not o.is_sweep_override() or o.is_discrete_sweep()]
        for lines in BasicSweeper.split_arguments(swept, None)[0]:
            job = [_parse(parser, line) for line in lines]
            for o in job:
                known.look(o)
            known.job(job)


@contextmanager
def _loader(config_dir: str | None) -> Iterator[ConfigLoader]:
    """Hydra's view of the configuration files, set up as its own main does."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_automatic_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    path = create_automatic_config_search_path(None, None, str(CONF))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise ValueError(f"--config-dir {config_dir}: folder not found; it should contain strategy/*.yaml, ...")
        aliases.check(folder, (*GROUPS, "hydra"))
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("harness", path).config_loader
    finally:
        GlobalHydra.instance().clear()


def _parse(parser: OverridesParser, raw: str) -> Override:
    from hydra.errors import HydraException

    try:
        override = parser.parse_override(raw)
    except HydraException as error:
        if "=" not in raw:
            raise ValueError(f"{raw}: a setting is key=value, as in strategy=ewc") from error
        if raw.count("[") != raw.count("]"):
            raise ValueError(f"{raw}: a bracket is missing; write a list as key=[a,b], without spaces") from error
        raise ValueError(f"{raw}: cannot be parsed; put special characters in quotes, 'key=\"a=b\"'") from error
    override.config_loader = parser.config_loader
    if not override.key_or_group:
        raise ValueError(f"{raw}: a setting is key=value, as in strategy=ewc")
    return override


def _line(o: Override) -> str:
    return o.input_line or ""


class _Known:
    """The groups, options and keys that exist, and the checks against them."""

    def __init__(self, loader: ConfigLoader, config_name: str) -> None:
        self.loader, self.config_name = loader, config_name
        self.groups = [g for g in loader.list_groups("") if g != "hydra"]
        self.composed: dict[tuple[str, ...], tuple[Any, dict[str, Any]]] = {}
        self.listed: dict[str, list[str]] = {}

    def options(self, group: str) -> list[str]:
        """Names of a group's options; cached, as Hydra takes 40 ms for each."""
        from hydra.core.object_type import ObjectType

        if group not in self.listed:
            found = self.loader.get_group_options(group, results_filter=ObjectType.CONFIG)
            for folder in self.loader.list_groups(group):  # strategy=avalanche/EWC
                found += [f"{folder}/{o}" for o in self.options(f"{group}/{folder}")]
            self.listed[group] = found
        return self.listed[group]

    def compose(self, lines: Sequence[str]) -> tuple[Any, dict[str, Any]]:
        """The configuration with these overrides, and its values as plain dicts; cached."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        key = tuple(lines)
        if key not in self.composed:
            cfg = self.loader.load_configuration(self.config_name, list(lines), RunMode.MULTIRUN)
            HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
            own = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
            values = OmegaConf.to_container(own, resolve=True)
            assert isinstance(values, dict)
            self.composed[key] = cfg, {str(k): v for k, v in values.items()}
        return self.composed[key]

    def look(self, o: Override) -> None:
        """Raise if this override cannot work, whatever the others are."""
        if o.is_hydra_override():
            return
        key = o.key_or_group
        if o.is_delete():
            remedy = f"leave it out with {key}=null" if _optional(key) else f"give {key} a value"
            raise ValueError(f"{_line(o)}: settings cannot be removed; {remedy}")
        if key not in self.groups or o.is_sweep_override():
            return
        value = o.value()
        names = value if isinstance(value, list) else [value]
        options = self.options(key)
        if value in (None, "", []):
            hint = NONE.get(key, _known(key, options))
            raise ValueError(f"{_line(o)}: no {key} is chosen; {hint}")
        if isinstance(value, list) and key not in LISTS:
            raise ValueError(f"{_line(o)}: choose one {key}")
        for name in names:
            if name not in options:
                close = nearest(str(name), options)
                hint = f"did you mean {key}={close}?" if close else _known(key, options)
                raise ValueError(f"{key}={name}: unknown {key}; {hint}")
            if names.count(name) > 1:
                raise ValueError(f"{_line(o)}: {name} is listed twice")

    def chosen(self, overrides: Sequence[Override]) -> list[Override]:
        """The overrides that choose files, and so decide which keys exist."""
        return [o for o in overrides if o.is_hydra_override() or o.key_or_group in self.groups or o.package]

    def job(self, overrides: Sequence[Override]) -> dict[str, Any]:
        """The values with all overrides; raises for the first that does not fit the chosen options."""
        from omegaconf import OmegaConf, open_dict

        for o in overrides:
            if o.is_sweep_override():
                raise ValueError(f"{_line(o)}: {self._instead(o, overrides)}, or add -m for a run of each")
        chosen = self.chosen(overrides)
        cfg, values = self.compose([_line(o) for o in chosen])
        self._leftovers(cfg, values, chosen)
        cfg, values = copy.deepcopy(cfg), _opened(values, [o.key_or_group for o in overrides])
        for o in overrides:
            if o not in chosen:
                for key, value in _leaves(o.key_or_group, o.value(), values):
                    self._fits(o, key, value, values)
                    with open_dict(cfg):
                        OmegaConf.update(cfg, key, value, merge=False)
        own = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
        final = OmegaConf.to_container(own, resolve=True)
        assert isinstance(final, dict)
        plain = {str(k): v for k, v in final.items()}
        for o in overrides:
            if o not in chosen and "${" in _line(o):  # its value is known only now
                for key, _ in _leaves(o.key_or_group, o.value(), values):
                    self._suits(key, _find(plain, key), _find(values, key))
        check(plain)
        return plain

    def _instead(self, o: Override, overrides: Sequence[Override]) -> str:
        """How to write what was typed as a sweep without -m."""
        key = o.key_or_group
        plain = self.compose([_line(c) for c in self.chosen(overrides) if not c.is_sweep_override()])[1]
        if key in LISTS or (key not in self.groups and isinstance(_find(plain, key), list)):
            return f"write {_bracketed(o)} for a list"
        return f"choose one {key}" if key in self.groups else "give one value"

    def _leftovers(self, cfg: Any, values: dict[str, Any], chosen: Sequence[Override]) -> None:
        """Raise if a preset sets a key of an option that another choice replaced: the key would have no effect."""
        choices = cfg.hydra.runtime.choices
        preset = choices.get("experiment")
        if preset is None:
            return
        typed = [o.key_or_group for o in chosen]
        lines = [_line(o) for o in chosen if o.key_or_group != "experiment"]
        free = {"tuned"}
        for group in self.groups:
            if group not in typed and group != "experiment":
                # Hydra does not record a list that a preset chose
                made = [k for k in values.get(group, {}) if k in self.options(group)]
                if choices.get(group) or made:
                    lines.append(f"{group}={choices.get(group) or show(made)}")
                else:
                    free.add(group)
        plain = set(dotted(self.compose(lines)[1]))
        for key in dotted(values):
            if key not in plain and key.partition(".")[0] not in free:
                group = key.partition(".")[0]
                where = f"{group}={choices[group]}" if group in choices else "config.yaml"
                raise ValueError(f"experiment={preset}: sets {key}, which {where} does not have; leave one of them out")

    def _fits(self, o: Override, key: str, value: Any, values: dict[str, Any]) -> None:
        default = _find(values, key)
        if default is _ABSENT:
            if not (_open(values, key) and (o.is_add() or o.is_force_add())):
                raise ValueError(self._unknown(o, key, values))
            return
        if o.is_add():
            raise ValueError(f"{_line(o)}: {key} already exists; write it without the +")
        if value is None and _optional(key):
            return
        if value is None and isinstance(default, list):
            raise ValueError(f"{key}=null: must be a list; for an empty one write {key}=[]")
        if isinstance(default, dict) and default and not isinstance(value, dict):
            raise ValueError(f"{key}={show(value)}: is a group of settings: {_list(default, key + '.')}")
        if "${" not in str(value):
            self._suits(key, value, default)

    def _suits(self, key: str, value: Any, default: Any) -> None:
        """Raise if the value of a group's setting has another type than its default."""
        if key.partition(".")[0] in self.groups and (wanted := _mismatch(default, value)):
            raise ValueError(f"{key}={show(value)}: must be {wanted}")

    def _unknown(self, o: Override, key: str, values: dict[str, Any]) -> str:
        if _open(values, key):
            return f"{key}: a new key needs a +, as in +{_line(o)}"
        first, *rest = key.split(".")
        unchosen = rest and rest[0] not in values.get(first, {})
        if unchosen and first in self.groups and rest[0] in self.options(first):
            return f"{key}: {rest[0]} is not chosen; choose it with {first}={rest[0]} or in a list"
        keys = dotted(values)
        parent, _, leaf = key.rpartition(".")
        near = [k for k in keys if parent and k.startswith(parent + ".")]
        below = _find(values, parent) if near else {}
        beside = {k: f"{parent}.{k}" for k in below if k not in HIDDEN}
        leaves = {k.rpartition(".")[2]: k for k in near or keys} | beside
        close = [k for k in near or keys if k.rpartition(".")[2] == leaf]
        if not close and not near:  # the parent itself may be misspelt
            close = [k for k in [nearest(key, [*keys, *values, *self.groups])] if k]
        if not close:
            close = [leaves[k] for k in [nearest(leaf, leaves)] if k]
        if close:
            return f"{key}: unknown setting; did you mean {' or '.join(close)}?"
        if near:
            return f"{key}: unknown setting; the settings are {_list(beside.values())}"
        return f"{key}: unknown setting; `--cfg job` shows them all"


def dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found: list[str] = []
    for k, v in values.items():
        found += dotted(v, f"{prefix}{k}.") if isinstance(v, dict) and v else [f"{prefix}{k}"]
    return [k for k in found if not k.endswith(HIDDEN)]


def _optional(key: str) -> bool:
    group, _, name = key.partition(".")
    return group in OPTIONAL and "." not in name


def _find(values: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def _open(values: dict[str, Any], key: str) -> bool:
    """Whether `key` is in a mapping that accepts new keys.

    These are empty mappings and, inside a group's file, those with nothing but a `_target_`: its arguments.
    """
    parts = key.split(".")
    above = [(i, _find(values, ".".join(parts[:i]))) for i in range(1, len(parts))]
    call = any(i > 1 and isinstance(node, dict) and list(node) == ["_target_"] for i, node in above)
    return any(node == {} for _, node in above) or (call and parts[0] not in LISTS) or parts[0] == "tuned"


def _opened(values: dict[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """The values, with an empty mapping, which accepts new keys, for every null under which a `_target_` was typed.

    >>> _opened({"a": {"b": None, "c": None}}, ["a.b._target_"])
    {'a': {'b': {}, 'c': None}}
    """
    values = copy.deepcopy(values)
    for key in typed:
        node, _, leaf = key.rpartition(".")
        parent, _, name = node.rpartition(".")
        above = _find(values, parent)
        if leaf == "_target_" and isinstance(above, dict) and above.get(name, _ABSENT) is None:
            above[name] = {}
    return values


def _leaves(key: str, value: Any, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A mapping that was typed as a whole, {a: 1, b: 2}, as single settings."""
    if isinstance(value, dict) and isinstance(_find(values, key), dict):
        for k, v in value.items():
            yield from _leaves(f"{key}.{k}", v, values)
    else:
        yield key, value


def _mismatch(default: Any, value: Any) -> str:
    """What the value should have been, judged by the default; '' if it may pass.

    None always passes, and so does a number in place of a word: the constructor checks what the default cannot show.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if default is None or value is None:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if number and isinstance(value, int) else "a whole number"
    if isinstance(default, float):
        return "" if number else "a number"
    if isinstance(default, list):
        if not isinstance(value, list):
            return f"a list, as in [{show(value)}]"
        kinds = {_mismatch(default[0], v) for v in value} if len({type(d) for d in default}) == 1 else set()
        return "".join(f"a list; each entry {kind}" for kind in kinds if kind)
    return "a word" if isinstance(default, str) and isinstance(value, (list, dict)) else ""


def _bracketed(o: Override) -> str:
    key, _, value = _line(o).partition("=")
    return f"{key}=[{value}]"


def _known(group: str, options: Sequence[str]) -> str:
    """The options, or the command that lists them if they are many."""
    plural = next((word for word, of in LISTED.items() if of == group), "")
    return (
        f"`python -m harness ls {plural}` lists them"
        if len(options) > MANY and plural
        else f"choose from {_list(options)}"
    )


def _list(names: Any, prefix: str = "") -> str:
    return ", ".join(f"{prefix}{n}" for n in names if n not in HIDDEN)
