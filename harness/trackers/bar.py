"""A progress bar for long work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar with the remaining time, on a terminal only; call the yielded function with the name of each part."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda part: None
        return
    from rich import progress
    from rich.console import Console

    shown = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # redirected output is left alone
        speed_estimate_period=600.0,
    )
    with shown:
        task, begun = shown.add_task(title, total=total), 0

        def part(name: str) -> None:
            nonlocal begun
            shown.update(task, description=f"{title}: {name}", completed=begun)
            begun += 1

        yield part
