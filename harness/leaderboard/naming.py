"""Names of entries and settings: the values in which they differ, and the setting in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import store


def labels(runs: Sequence[store.Run]) -> list[str]:
    """The strategy's name; if several runs share it, with the values in which they differ."""
    names = [run.manifest["strategy"] for run in runs]
    found = list(names)
    for name in {n for n, count in Counter(names).items() if count > 1}:
        same = [i for i, n in enumerate(names) if n == name]
        for i, text in zip(same, told_apart([runs[i].manifest["config"]["strategy"] for i in same])):
            found[i] = f"{name} ({text})"
    return found


def told_apart(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What distinguishes each configuration from the others: the keys whose values differ.

    >>> told_apart([{"ewc": {"strength": 1, "decay": 0}}, {"ewc": {"strength": 2, "decay": 0}}, {"ewc": {"decay": 0}}])
    ['strength=1', 'strength=2', 'no strength']
    """
    flat = [dict(leaves(config)) for config in configs]
    keys = sorted({key for one in flat for key in one})
    absent = object()
    differing = [key for key in keys if any(one.get(key, absent) != flat[0].get(key, absent) for one in flat)]
    ends = Counter(key.rpartition(".")[2] for key in differing)
    short = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in differing}
    return [", ".join(f"{short[k]}={one[k]}" if k in one else f"no {short[k]}" for k in differing) for one in flat]


def leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The values of a configuration by dotted key.

    >>> dict(leaves({"ewc": {"strength": 1.0, "options": {"mode": None}}}))
    {'ewc.strength': 1.0, 'ewc.options.mode': None}
    """
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def setting_in_words(facts: Mapping[str, Any]) -> str:
    """A setting in words: length, budget, optimizer, model."""
    cfg = facts["config"]
    steps, epochs = cfg["train"]["steps"], cfg["train"]["epochs"]
    budget = f"{steps} steps" if steps else f"{epochs} epoch{'s' * (epochs != 1)}"
    model = cfg["model"]
    widths = f" {'-'.join(map(str, model['widths']))}" if model.get("widths") else ""
    return (
        f"{cfg['tasks'].get('n_tasks', '?')} tasks, {budget} a task in batches of {cfg['train']['batch_size']},"
        f" {model['_target_'].rpartition('.')[2]}{widths},"
        f" {cfg['optimizer']['_target_'].rpartition('.')[2]} with lr {cfg['optimizer']['lr']}"
    )


def listed(seeds: Iterable[int]) -> str:
    """Seeds in words.

    >>> listed([0, 1, 2, 4]), listed({3})
    ('0-2, 4', '3')
    """
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and spans[-1][-1] == seed - 1:
            spans[-1][1:] = [seed]
        else:
            spans.append([seed])
    return ", ".join("-".join(map(str, span)) for span in spans)
