"""How values and errors are written in messages."""

from __future__ import annotations


def first_line(error: BaseException, limit: int | None = None) -> str:
    """First non-empty line of an error's text, or the name of its type.

    >>> first_line(ValueError("  no such file\\nhint")), first_line(KeyError()), first_line(OSError("abcdef"), 3)
    ('no such file', 'KeyError', 'abc')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:limit]
