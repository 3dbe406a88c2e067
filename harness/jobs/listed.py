"""The sweeper of jobs that need not form a grid: a list of them, each with all its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from hydra.core.plugins import Plugins

from harness.jobs.sweep import PLUGINS

Plugins.instance()  # executes Hydra's plugins once more; a class that was derived before is then of another base
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402


class Listed(BasicSweeper):
    """Runs each job of `jobs`, with the settings that were typed after its own."""

    __module__ = PLUGINS

    jobs: ClassVar[Sequence[Sequence[str]]] = ()  # of the command that starts the sweep: an override cannot hold them

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        typed = super().get_job_batch()
        return [[*job, *words] for job in self.jobs for words in typed]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: each job is checked when it starts."""
