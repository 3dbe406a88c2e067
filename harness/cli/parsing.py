"""Commands as values: their arguments, and how what was typed after one is parsed.

Options have one spelling, `--out FOLDER`. The older spelling, `out=FOLDER`, is still understood.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.cli import help
from harness.config.catalogue import nearest
from harness.wording import exits_refused

Argument = tuple[tuple[str, ...], dict[str, Any]]  # of ArgumentParser.add_argument


@dataclass(frozen=True)
class Command:
    """A word that may follow `python -m harness`."""

    run: Callable[[argparse.Namespace], int]
    summary: str  # one line, for the general help
    arguments: tuple[Argument, ...]
    about: str = ""  # further sentences, for its own help
    settings: bool = False  # whether it also takes key=value


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting: every error is one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def execute(name: str, command: Command, argv: Sequence[str]) -> int:
    """Parse the arguments of a command, and run it; returns the exit code."""
    parser = Parser(
        prog=f"{help.program()} {name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}. {command.about}",
        allow_abbrev=False,
    )
    for names, options in command.arguments:
        parser.add_argument(*names, **options)
    args = parser.parse_intermixed_args(_respelled(argv, parser, command.settings))
    with exits_refused():
        return command.run(args)


def _respelled(argv: Sequence[str], parser: Parser, settings: bool) -> list[str]:
    """`out=F` as `--out F`, `force=true` as `--force`. ValueError for an unknown key, unless it may be a setting."""
    made: list[str] = []
    for word in argv:
        key, equals, value = word.partition("=")
        option = parser._option_string_actions.get(f"--{key}")
        if equals and option is None and not settings and re.fullmatch(r"\w+", key) and not Path(word).exists():
            close = nearest(f"--{key}", parser._option_string_actions)
            hint = f"did you mean {close}?" if close else f"see {parser.prog} --help"
            raise ValueError(f"{parser.prog.split()[-1]} {word}: unknown option; {hint}")
        if not equals or option is None:
            made.append(word)
        elif option.nargs != 0:
            made += [f"--{key}", value]
        elif value in ("true", "false"):
            made += [f"--{key}"] * (value == "true")
        else:
            raise ValueError(f"{parser.prog.split()[-1]} {word}: must be true or false")
    return made


def argument(*names: str, **options: Any) -> Argument:
    return names, options


def settings_apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of runs or folders, and settings: key=value, unless a file has this name."""
    names = [w for w in words if Path(w).exists() or not ("=" in w or w.startswith(("~", "+")))]
    return names, [w for w in words if w not in names]
