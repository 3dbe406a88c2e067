"""The "freezing" baseline of Masana et al. (2022), Class-incremental learning: survey and performance evaluation on
image classification, TPAMI 45.
"""

from dataclasses import replace

from harness import require, tree
from harness.learner import Learner
from harness.strategy import Strategy
from harness.types import Step, Task

HEADS = ("trained", "frozen")


class Frozen(Strategy):
    """Frozen: the first task's net, body fixed from then on (the control of full stability; Masana 2022).

        head=trained   later tasks train the head alone, on the first task's features
        head=frozen    later tasks take no step: what the first task's net knows of them

    With separate heads (scenario=task) head=trained cannot forget, and head=frozen leaves later heads untrained.

    Costs no less than naive: the body's gradient is computed and its update undone, so that it holds under every
    optimizer. Batch norm's running statistics stay too; in training a batch is still normalised by its own.

    Differences from the survey: none of its methods trains a head that tasks share; here the scenario decides.
    """

    family = "control"
    needs = frozenset({"before"})
    order = {"begin": 90, "step": 90}

    def __init__(self, *, head: str) -> None:
        require.one_of(HEADS, "frozen", head=head)
        self.head = head

    def setup(self, learner: Learner) -> None:
        if self.head == "trained" and not learner.model.head:
            raise ValueError(f"frozen: {type(learner.model).__name__} declares no head; use frozen.head=frozen")
        self.statistics = tree.copy(learner.buffers)

    def begin(self, learner: Learner, task: Task) -> Task:
        self.statistics = tree.copy(learner.buffers)
        return replace(task, nominal=0) if task.index and self.head == "frozen" else task

    def step(self, learner: Learner, step: Step) -> None:
        if learner.now:
            assert step.before is not None
            tree.assign(learner.params, {k: v for k, v in step.before.items() if k not in learner.model.head})
            learner.buffers = tree.copy(self.statistics)
