"""Compositions of conf/, remembered: Hydra takes 0.2 s to choose and merge the files of each."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from harness.config.catalogue import CONF, GROUPS


@cache
def _files(choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", list(choices))


def composed(*overrides: str) -> DictConfig:
    """What Hydra composes of these overrides: it chooses files once, and values are set in a copy."""
    choices = tuple(o for o in overrides if o.partition("=")[0] in GROUPS)
    cfg = deepcopy(_files(choices))
    OmegaConf.set_struct(cfg, False)
    for value in OverridesParser.create().parse_overrides([o for o in overrides if o not in choices]):
        OmegaConf.update(cfg, value.key_or_group, value.value(), merge=False)
    return cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolved, as dicts."""
    made = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(made, dict)
    return {str(k): v for k, v in made.items()}
