"""An observer for tests that look at the learner alone."""

from harness.types import Aux, Step, Task


class Blind:
    """Watches nothing."""

    def start(self, task: Task) -> None: ...
    def step(self, step: Step, aux: Aux) -> None: ...
    def end(self, task: Task) -> None: ...
