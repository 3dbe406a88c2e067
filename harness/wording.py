"""How values and errors are written in messages."""

from __future__ import annotations

import math
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNMEASURED, UNDEFINED, DIVERGED = "-", "n/a", "div"  # marks of a value that is missing, by its reason
MARKS = f"{UNMEASURED}: not measured; {UNDEFINED}: undefined, for example without test rows; {DIVERGED}: diverged"
MARKS += "; with 4/5: of 5 seeds, 4 have a value"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # as OWASP lists them
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def first_line(error: BaseException, limit: int | None = None) -> str:
    """First non-empty line of an error's text, cut to `limit` characters; the name of its type if it has no text.

    >>> first_line(ValueError("\\n no such file\\nsecond line")), first_line(ValueError(), limit=200)
    ('no such file', 'ValueError')
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:limit]


def printable(text: str, limit: int | None = None) -> str:
    """Text for a terminal: control characters, line ends and changes of direction as escapes; cut to `limit`.

    >>> print(printable("a\\x1b[2J b\\n"), printable("ewc", limit=2))
    a\\x1b[2J b\\n ew...
    """
    shown = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)
    return shown if limit is None or len(shown) <= limit else f"{shown[:limit]}..."


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width`, broken between words; a word that is longer, such as a path, stays whole.

    >>> print(wrapped("task  3/10  new 0.912  old 0.634", 20))
    task  3/10  new
      0.912  old 0.634
    """
    indent = [" " * (len(line) - len(line.lstrip()) + 2) for line in text.splitlines()]
    parts = [
        textwrap.wrap(line, width, subsequent_indent=more, break_long_words=False, break_on_hyphens=False) or [""]
        for line, more in zip(text.splitlines() or [""], indent or [""])
    ]
    return "\n".join(line for part in parts for line in part)


def markdown(text: str) -> str:
    """Text as Markdown that shows it: one line, without links, images, HTML, code or the end of a table's cell.

    >>> print(markdown("ewc (a|b <script>)"), markdown("![x](http://y)"), markdown("[0, 1]"))
    ewc (a\\|b &lt;script>) ![x\\](http&#58;//y) [0, 1]
    """
    plain = printable(" ".join(text.split())).replace("\\", "\\\\")
    plain = re.sub(r"\](?=[(\[:])", r"\\]", plain)
    plain = re.sub(r"(?i)\b(https?|ftp)://", r"\1&#58;//", plain)
    plain = re.sub(r"(?i)\b(www)\.", r"\1&#46;", plain)
    return plain.replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def spreadsheet(value: Any) -> Any:
    """A cell of a CSV file that no spreadsheet takes for a formula: text that begins like one gets an apostrophe.

    >>> [spreadsheet(v) for v in ("=1+1", "@x", "ewc", -0.5)]
    ["'=1+1", "'@x", 'ewc', -0.5]
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def mean_text(mean: float, half: float, found: int, seeds: int, form: str = ".3f", mark: str = UNMEASURED) -> str:
    """A mean over seeds ± half width; if seeds have no value, the mark that says why, and how many have one.

    >>> mean_text(0.91234, 0.01, 5, 5), mean_text(math.nan, math.nan, 4, 5, mark="div"), mean_text(1, math.nan, 1, 1)
    ('0.912 ± 0.010', 'div 4/5', '1.000')
    """
    if found == seeds:
        return format(mean, form) + ("" if math.isnan(half) else f" ± {format(half, form.lstrip('+'))}")
    return f"{mark} {found}/{seeds}" if found else mark


def warn(line: str) -> None:
    """Print a warning, one line on standard error."""
    print(f"warning: {printable(line)}", file=sys.stderr)


@contextmanager
def exits_refused() -> Iterator[None]:
    """Turns SystemExit, as `sys.exit(0)` in own code raises it, into an error: a run that ends early has failed."""
    try:
        yield
    except SystemExit as stop:
        frames = traceback.extract_tb(stop.__traceback__)
        last = next(f for f in reversed(frames) if "wandb" not in Path(f.filename).parts)  # which wraps sys.exit
        where = f"{Path(last.filename).name}:{last.lineno}"
        raise ValueError(f"{where}: sys.exit({stop.code!r}) during a run; raise an error there instead") from stop


def interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that led to an error: a library that cleans up after Ctrl-C may fail, and raises that instead.

    >>> try:
    ...     try:
    ...         raise KeyboardInterrupt("Ctrl-C")
    ...     finally:
    ...         int("no number")
    ... except ValueError as error:
    ...     print(repr(interruption(error)), interruption(ValueError()))
    KeyboardInterrupt('Ctrl-C') None
    """
    left, seen = [error], set()
    while left:
        at = left.pop()
        if isinstance(at, KeyboardInterrupt):
            return at
        if at is not None and id(at) not in seen:
            seen.add(id(at))
            left += [at.__context__, at.__cause__]
    return None


@contextmanager
def interruptions_kept() -> Iterator[None]:
    """Turns an error back into the interruption that led to it."""
    try:
        yield
    except Exception as error:
        stop = interruption(error)
        if stop is None:
            raise
        raise stop from None
