"""The entry point: a command of ours, or a command line for Hydra that trains.

Nothing heavy is imported before the command line has been checked.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from harness.cli.errors import Reported, catch_sigterm, code_of, discard_output, say, sentence, usable_streams
from harness.cli.help import show_help, show_version
from harness.cli.parsing import execute
from harness.cli.table import COMMANDS
from harness.cli.training import train
from harness.config import catalogue
from harness.config.catalogue import nearest
from harness.wording import interruptions_kept


def main() -> int:
    """Run the command line in sys.argv; returns the exit code: 0, 2 for bad input, 130 or 143 when interrupted.

    A sweep returns 1 if a job failed, 2 if none failed but some were refused.
    """
    usable_streams()
    catch_sigterm()
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script lacks it, and users' own strategies are there
    try:
        with interruptions_kept():
            code = _dispatch(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        discard_output()
        return 141  # the reader closed the pipe: like a program killed by SIGPIPE
    except KeyboardInterrupt as stop:
        training = sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS
        resumes = ": repeat the command to resume the run after its last finished task"
        say(str(stop) or f"interrupted{resumes if training else ''}")
        return code_of(stop)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Reported as error:
        return error.code
    except Exception as error:
        line = sentence(error)
        if line is None or os.environ.get("HARNESS_TRACEBACK"):
            raise
        say(line)
        try:
            sys.stdout.flush()
        except OSError:  # the disk is full
            discard_output()
        return 2


def _dispatch(argv: Sequence[str]) -> int:
    word = argv[0] if argv and re.fullmatch(r"[A-Za-z][\w-]*", argv[0]) else None
    if word == "help" and argv[1:2] and argv[1] in COMMANDS:
        return execute(argv[1], COMMANDS[argv[1]], ["--help"])
    if word == "help" or (word not in COMMANDS and any(a in ("-h", "--help") for a in argv)):
        return show_help([(name, command.summary) for name, command in COMMANDS.items()])
    if list(argv) == ["--version"]:
        return show_version()
    if word in COMMANDS:
        return execute(word, COMMANDS[word], argv[1:])
    if word is not None:
        raise ValueError(f"{word}: unknown command; {_meant(word)}")
    return train(argv)


def _meant(word: str) -> str:
    for group in catalogue.GROUPS:
        if word in catalogue.options(group):
            return f"did you mean {group}={word}?"
    close = nearest(word, COMMANDS)
    return f"did you mean {close}?" if close else f"the commands are {', '.join(COMMANDS)}; a setting is key=value"
