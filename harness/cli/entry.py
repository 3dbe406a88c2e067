"""The entry point: a command of ours, or a command line for Hydra that trains.

Nothing heavy is imported before the command line has been checked.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from harness.cli.commands import COMMANDS
from harness.cli.errors import (
    Reported,
    catch_sigterm,
    code_of,
    discard_output,
    refused,
    report,
    say,
    sentence,
    usable_streams,
)
from harness.cli.help import show_help, show_version
from harness.cli.parsing import execute
from harness.config import catalogue
from harness.config.catalogue import CONF, nearest
from harness.wording import exits_refused, interruptions_kept

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
    return _train(argv)


def _meant(word: str) -> str:
    for group in catalogue.GROUPS:
        if word in catalogue.options(group):
            return f"did you mean {group}={word}?"
    close = nearest(word, COMMANDS)
    return f"did you mean {close}?" if close else f"the commands are {', '.join(COMMANDS)}; a setting is key=value"


def _train(argv: Sequence[str]) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser

    from harness.config.preflight import preflight

    parser = get_args_parser()
    parser.error = _usage  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(list(argv))
    if args.multirun and args.cfg:
        raise ValueError("--cfg: shows the configuration of one job; leave out --multirun, and give one value a key")
    flags = list(argv)
    for override in args.overrides:
        flags.remove(override)
    sys.argv[1:] = [*flags, *args.overrides]  # Hydra's own parser wants the flags first
    if not (args.hydra_help or args.shell_completion or args.info or args.experimental_rerun):
        preflight(args)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors itself and exits with 1
    from harness.jobs import sweep, trials

    sweep.register(sweep.Processes, trials.Trials)
    sweep.Processes.ended.clear()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    if not sweep.Processes.ended:
        return 0
    lines, code = sweep.summary(sweep.Processes.ended)
    print("\n".join(lines))
    return code


def _usage(message: str) -> NoReturn:
    raise ValueError(f"{message}; see --help")


def job(cfg: DictConfig) -> None:
    """Called by Hydra with each composed configuration."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from harness.jobs.identity import finished

    try:
        with interruptions_kept(), exits_refused():  # otherwise a strategy's sys.exit(0) would pass for success
            own = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
            if finished(cast("dict[str, Any]", OmegaConf.to_container(own, resolve=True))) is None:
                from harness.jobs.job import from_config

                from_config(cfg, progress=True)
    except Exception as error:
        code = report(error, OmegaConf.to_container(cfg, resolve=False))
        if HydraConfig.get().mode == RunMode.RUN:
            raise SystemExit(code) from None  # past Hydra, which would add lines to the message
        raise Reported(code if refused(error) else 1) from None
