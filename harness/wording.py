"""How values and errors are written in messages."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def first_line(error: BaseException, limit: int | None = None) -> str:
    """First non-empty line of an error's text, cut to `limit` characters; the name of its type if it has no text.

    >>> first_line(ValueError("\\n no such file\\nsecond line")), first_line(ValueError(), limit=200)
    ('no such file', 'ValueError')
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:limit]


def warn(line: str) -> None:
    """Print a warning, one line on standard error."""
    print(f"warning: {line}", file=sys.stderr)


@contextmanager
def exits_refused() -> Iterator[None]:
    """Turns SystemExit, as `sys.exit(0)` in own code raises it, into an error: a run that ends early has failed."""
    try:
        yield
    except SystemExit as stop:
        last = traceback.extract_tb(stop.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        raise ValueError(f"{where}: sys.exit({stop.code!r}) during a run; raise an error there instead") from stop
