"""Names of entries and settings: the values in which they differ, and the setting in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import store
from harness.store.entries import entry_of, leaves


def labels(groups: Sequence[Sequence[store.Run]], notes: list[str]) -> list[str]:
    """The entry of each group of runs with the same values, as their tables name it.

    Defaults that have changed since can give different values one name; then it is followed by what differs.
    """
    found = [min(entry_of(run.manifest) for run in runs) for runs in groups]
    for name in [name for name, count in Counter(found).items() if count > 1]:
        same = [i for i, other in enumerate(found) if other == name]
        texts = told_apart([groups[i][0].manifest["config"]["strategy"] for i in same])
        notes.append(
            f"{name}: the tables give {len(same)} strategies with different values this entry ({'; '.join(texts)}),"
            " because defaults have changed; rerun them before a query by entry"
        )
        for i, text in zip(same, texts):
            found[i] = f"{name} ({text})"
    return found


def shared(boards: Sequence[Sequence[tuple[str, str]]]) -> list[dict[str, str]]:
    """Names by which entries, given as (entry, strategy), are compared across boards: for each board entry -> name.

    A strategy that has one entry on each board is compared under its name, whatever its values (a tuned strategy has
    others in each setting); else an entry is compared with the same entry.

    >>> shared([[("ewc[strength=3]", "ewc"), ("si", "si")], [("ewc", "ewc"), ("si", "si"), ("si[strength=2]", "si")]])
    [{'ewc[strength=3]': 'ewc', 'si': 'si'}, {'ewc': 'ewc', 'si': 'si', 'si[strength=2]': 'si[strength=2]'}]
    """
    several = {
        strategy
        for entries in boards
        for strategy, count in Counter(strategy for _, strategy in entries).items()
        if count > 1
    }
    return [{entry: entry if strategy in several else strategy for entry, strategy in entries} for entries in boards]


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
