"""How values and errors are written in messages."""

from __future__ import annotations

import sys


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
