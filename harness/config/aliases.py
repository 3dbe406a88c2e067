"""YAML files that grow beyond reason when their aliases are expanded, refused before anything expands them.

`a: &a [x, x]`, `b: &b [*a, *a]` and so on doubles with every line: thirty lines fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

LARGEST = 20_000  # values of a file
DEEPEST = 40  # levels


def check(folder: Path, groups: tuple[str, ...]) -> None:
    """ValueError for the first file of a configuration folder that has too many values, or refers to itself."""
    for file in [*sorted(folder.glob("*.yaml")), *(f for g in groups for f in sorted((folder / g).rglob("*.yaml")))]:
        text = file.read_bytes()
        if b"&" in text and b"*" in text and (why := excess(text)):
            raise ValueError(f"{file}: {why}; write it without aliases (&, *)")


def excess(text: bytes) -> str:
    """What is wrong with the aliases of a YAML text; "" if nothing, or if it is no YAML, which its reader says.

    >>> excess(b"a: &a [1, 2]\\nb: [*a, *a]"), excess(b"a: &a [*a]")
    ('', 'the alias *a refers to itself')
    >>> excess(b"b0: &b0 [1, 1]\\n" + b"".join(b"b%d: &b%d [*b%d, *b%d]\\n" % (i + 1, i + 1, i, i) for i in range(30)))
    'its aliases stand for more than 20,000 values'
    """
    import yaml

    try:
        return next(_faults(text), "")
    except (yaml.YAMLError, UnicodeError):
        return ""


def _faults(text: bytes) -> Iterator[str]:
    """Read as events, which are as many as the text has words: what aliases stand for is counted, not made."""
    import yaml

    size: dict[str, int] = {}  # of what an anchor names
    inside: list[tuple[str | None, int]] = [(None, 0)]  # anchor and values so far of the lists and mappings around
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, 0))
            if len(inside) > DEEPEST:
                yield f"it is nested more than {DEEPEST} levels deep"
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in inside]:
                yield f"the alias *{event.anchor} refers to itself"
            n = size.get(event.anchor, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, n = inside.pop()
            size[anchor or ""] = n
        elif isinstance(event, yaml.ScalarEvent):
            n = size[event.anchor or ""] = 1
        else:
            continue
        anchor, before = inside.pop()
        inside.append((anchor, before + n))
        if before + n > LARGEST:
            yield f"its aliases stand for more than {LARGEST:,} values"
