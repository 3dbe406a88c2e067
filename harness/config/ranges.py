"""Ranges of the settings that all runs have."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.config.catalogue import nearest

_ABSENT = object()
LARGEST = 2**63 - 1  # that a tensor can hold
TASKS = 10**6  # of a stream, also when tables are read: a larger number would fill the memory
ROWS = 10**7  # of a batch; beyond, its indices alone exhaust memory


def check(cfg: Mapping[str, Any]) -> None:
    """Raise ValueError for the first setting out of range: one line with key, value and remedy.

    `cfg` is the composed configuration as plain dicts. Strategies, models and data sets check their own settings when
    they are made.

    >>> check({"train": {"batch_size": 0}})
    Traceback (most recent call last):
    ValueError: train.batch_size=0: must be at least 1
    """
    _seeds(cfg)
    _one_of(cfg, "scenario", ("task", "domain", "class"))
    _one_of(cfg, "classes", ("seen", "all"))
    _one_of(cfg, "boundaries", ("announced", "hidden"))
    _one_of(cfg, "dtype", ("float32", "float64"))
    _one_of(cfg, "precision", (None, "bf16"))
    if cfg.get("precision") and cfg.get("dtype") != "float32":
        raise ValueError(f"precision={cfg['precision']}: needs dtype=float32, not {cfg.get('dtype')}")
    _one_of(cfg, "compile", ("auto", True, False))
    _one_of(cfg, "keep", ("all", "last"))
    _device(cfg)
    _folder(cfg)
    _one_of(cfg, "force", (True, False, "beside"))
    for key in ("gap", "control"):
        _one_of(cfg, key, (True, False))
    _whole(cfg, "threads", 0, most=max(256, os.cpu_count() or 1))  # beyond, BLAS crashes the process
    _whole(cfg, "metrics_every", 1)
    _whole(cfg, "train.epochs", 1, null=_get(cfg, "train.steps") not in (None, _ABSENT))
    _whole(cfg, "train.steps", 1, null=True)
    _whole(cfg, "train.batch_size", 1, most=ROWS)
    if _get(cfg, "eval.tasks") not in ("seen", "all", _ABSENT):
        _whole(cfg, "eval.tasks", 1, remedy="seen, all, or a number of at least 1")
    _one_of(cfg, "eval.split", ("test", "val"))
    _whole(cfg, "eval.samples", 1, null=True)
    _whole(cfg, "eval.batch_size", 1, most=ROWS)
    _whole(cfg, "eval.every", 1, null=True)
    for purpose in ("init", "order", "stream", "probe"):
        _whole(cfg, f"pin.{purpose}", 0, null=True)
    if not isinstance(cfg.get("tuned", {}), Mapping):
        raise ValueError(f"tuned={cfg['tuned']}: must be a mapping, as in tuned.ewc.strength")
    _whole(cfg, "tasks.n_tasks", 1, most=TASKS)
    _optimizer(cfg)
    _one_of(cfg, "tracker.mode", ("offline", "online", "disabled"))
    if _get(cfg, "tracker.project") in ("", None):
        raise ValueError(f"tracker.project={show(cfg['tracker']['project'])}: must name a project")
    for wait in ("init_timeout", "finish_timeout"):
        _number(cfg, f"tracker.{wait}", lambda v: v > 0, "must be above 0")


def _seeds(cfg: Mapping[str, Any]) -> None:
    seeds = cfg.get("seeds", [0])
    if not isinstance(seeds, list):
        raise ValueError(f"seeds={show(seeds)}: must be a list, as in seeds=[0] or seeds=[0,1,2]")
    if not seeds:
        raise ValueError("seeds=[]: must contain at least one seed, as in seeds=[0,1,2]")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"seeds={show(seeds)}: {show(seed)} must be a whole number of at least 0")
        if seeds.count(seed) > 1:
            raise ValueError(f"seeds={show(seeds)}: {seed} is listed twice")


def _device(cfg: Mapping[str, Any]) -> None:
    device = cfg.get("device", "auto")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(device)):
        raise ValueError(f"device={show(device)}: must be auto, cpu, cuda or cuda:N")


def _folder(cfg: Mapping[str, Any]) -> None:
    results = cfg.get("results", "results")
    if not isinstance(results, str) or not results:
        raise ValueError(f"results={show(results)}: must name a folder, as in results=results")


def _optimizer(cfg: Mapping[str, Any]) -> None:
    _number(cfg, "optimizer.lr", lambda v: v > 0, "must be above 0")
    _number(cfg, "optimizer.momentum", lambda v: 0 <= v < 1, "must be at least 0 and below 1")
    _number(cfg, "optimizer.weight_decay", lambda v: v >= 0, "must be at least 0")
    _number(cfg, "optimizer.eps", lambda v: v > 0, "must be above 0")
    _number(cfg, "optimizer.gamma", lambda v: v > 0, "must be above 0")
    _number(cfg, "optimizer.floor", lambda v: v >= 0, "must be at least 0")
    betas = _get(cfg, "optimizer.betas")
    if betas is not _ABSENT and not (_numbers(betas) and len(betas) == 2 and all(0 <= b < 1 for b in betas)):
        raise ValueError(f"optimizer.betas={show(betas)}: must be two numbers, each at least 0 and below 1")
    milestones = _get(cfg, "optimizer.milestones")
    if milestones is not _ABSENT and not (_numbers(milestones) and all(0 < m < 1 for m in milestones)):
        raise ValueError(f"optimizer.milestones={show(milestones)}: must be fractions between 0 and 1")
    _one_of(cfg, "optimizer.schedule", ("constant", "step", "cosine", "task"))
    _one_of(cfg, "optimizer.scope", ("task", "stream"))
    if _get(cfg, "optimizer.nesterov") is True and _get(cfg, "optimizer.momentum") == 0:
        raise ValueError("optimizer.nesterov=true: needs a momentum, as in optimizer.momentum=0.9")


def _get(cfg: Mapping[str, Any], key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def _one_of(cfg: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> None:
    value = _get(cfg, key)
    # by type too: 1 == True, and YAML's yes is not a boolean in Hydra
    if value is _ABSENT or any(value == a and type(value) is type(a) for a in allowed):
        return
    names = [show(a) for a in allowed]
    close = nearest(str(value), names)
    hint = f"; did you mean {close}?" if close else ""
    raise ValueError(f"{key}={show(value)}: must be {_or(names)}{hint}")


def _whole(
    cfg: Mapping[str, Any], key: str, least: int, *, most: int = LARGEST, null: bool = False, remedy: str = ""
) -> None:
    value = _get(cfg, key)
    if value is _ABSENT or (null and value is None):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        kind = remedy or ("a whole number or null" if null else "a whole number")
        raise ValueError(f"{key}={show(value)}: must be {kind}")
    if value < least:
        raise ValueError(f"{key}={value}: must be {remedy or f'at least {least}'}")
    if value > most:
        raise ValueError(f"{key}={value}: must be at most {most}")


def _number(cfg: Mapping[str, Any], key: str, fits: Callable[[float], bool], range_: str) -> None:
    value = _get(cfg, key)
    if value is _ABSENT:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key}={show(value)}: must be a number")
    if not fits(value):
        raise ValueError(f"{key}={value}: {range_}")


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _or(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def show(value: Any) -> str:
    """A value as a user types it."""
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{show(v)}" for k, v in value.items()) + "}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
