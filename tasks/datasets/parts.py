"""Names of train, val and test as people spell them, for folders, files, arrays and the values of a split column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher

from tasks.datasets.errors import DataError

PARTS = ("train", "val", "test")
NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
_PART = {name: part for part, names in NAMES.items() for name in names}
_NEAR = {"eval": "val", "evaluation": "test", "holdout": "test", "heldout": "test"}
CLOSE = 0.8  # ratio of difflib from which a word counts as a misspelling


def part_of(name: str) -> str | None:
    """The part that a name means, in any case of letters.

    >>> part_of("Training"), part_of("valid"), part_of("tests")
    ('train', 'val', None)
    """
    return _PART.get(name.strip().casefold())


def resembled(name: str) -> str | None:
    """The part that a name resembles without meaning it.

    >>> resembled("test_set"), resembled("trian"), resembled("x-holdout"), resembled("tent"), resembled("Test")
    ('test', 'train', 'test', None, None)
    """
    if part_of(name):
        return None
    for word in re.findall(r"[^\W\d_]+", name.casefold()):
        if part := _PART.get(word) or _NEAR.get(word):
            return part
        for known, part in _PART.items():
            starts = len(known) > 3 and word.startswith(known)
            alike = SequenceMatcher(None, word, known).ratio() >= CLOSE
            if starts or (alike and word[0] == known[0]):  # not rain
                return part
    return None


def by_part(names: Iterable[str], where: str, what: str) -> dict[str, str]:
    """Part -> the name that means it, in the order of PARTS. DataError if two names mean the same part."""
    found: dict[str, str] = {}
    for name in names:
        part = part_of(name)
        if part in found:
            raise DataError(f"{where}: {what} {found[part]} and {name} both mean {part}; keep one of them")
        if part:
            found[part] = name
    return {part: found[part] for part in PARTS if part in found}


def refuse_near(names: Iterable[str], where: str, what: str) -> None:
    """DataError for a name that resembles a part: it would be left out, or become a class."""
    for name in names:
        if part := resembled(name):
            raise DataError(f"{where}: {what} {name} resembles {part}; rename it to {part}, or move it away")


def arrays_of(names: Iterable[str], where: str) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Part -> names of its inputs and labels, and the names of other arrays.

    x, y are train alone; x_train, X_test, x_valid, train_x and the like are the parts. A missing array keeps the name
    that it should have. DataError for names that mean the same array, or resemble one.

    >>> arrays_of(["X_train", "y_train", "x_valid", "ids"], "a.npz")[0]["val"]
    ('x_valid', 'y_val')
    """
    found: dict[tuple[str, str], str] = {}
    others = []
    for name in names:
        axis, rest = _axis(name)
        part = "" if axis and not rest else part_of(rest)
        if axis and part is not None:
            if (axis, part) in found:
                raise DataError(f"{where}: arrays {found[axis, part]} and {name} mean the same; keep one of them")
            found[axis, part] = name
        elif axis and (near := resembled(rest)):
            raise DataError(f"{where}: array {name} resembles {axis}_{near}; rename it to that, or leave it out")
        else:
            others.append(name)
    whole, parted = ([name for (_, part), name in found.items() if bool(part) == flag] for flag in (False, True))
    if whole and parted:
        raise DataError(f"{where}: has {whole[0]} and {parted[0]}; keep either x and y, or the arrays of each part")
    if whole:
        return {"train": _pair(found, "")}, others
    wanted = [p for p in PARTS if p != "val" or ("x", p) in found or ("y", p) in found]
    return {p: _pair(found, p) for p in wanted}, others


def _pair(found: Mapping[tuple[str, str], str], part: str) -> tuple[str, str]:
    end = f"_{part}" if part else ""
    return found.get(("x", part), f"x{end}"), found.get(("y", part), f"y{end}")


def _axis(name: str) -> tuple[str, str]:
    """x_train or train_x -> ("x", "train"); ("", "") for other names."""
    lower = name.strip().casefold()
    if match := re.fullmatch(r"([xy])(?:[ _.-]?(.+))?", lower):
        return match[1], match[2] or ""
    if match := re.fullmatch(r"(.+)[ _.-]([xy])", lower):
        return match[2], match[1]
    return "", ""
