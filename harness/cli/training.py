"""A command line that trains: checked, then handed to Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from harness.cli.errors import Reported, refused, report
from harness.config.catalogue import CONF
from harness.wording import exits_refused, interruptions_kept

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(argv: Sequence[str]) -> int:
    """Train what this command line says; returns the exit code, 1 or 2 if jobs of a sweep failed or were refused."""
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
    from harness.jobs import listed, sweep, trials

    sweep.register(sweep.Processes, trials.Trials, listed.Listed)
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
