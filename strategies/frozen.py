"""The "freezing" baseline of Masana et al. (2022), Class-incremental learning: survey and performance evaluation on
image classification, TPAMI 45.
"""

from dataclasses import replace

from harness import tree
from harness.learner import Learner
from harness.strategy import HOLD, Strategy
from harness.toolbox import require
from harness.types import Step, Task

HEADS = ("trained", "frozen")


class Frozen(Strategy):
    """Frozen: the body is fixed after the first task (the control of full stability; Masana 2022).

        head=trained   later tasks train only the head, on the first task's features
        head=frozen    later tasks take no step: the first task's net, tested on them

    With separate heads (scenario=task) head=trained cannot forget, and head=frozen leaves later heads untrained.

    The body is restored before, during and after every later task. This works with every optimizer, and after
    strategies that edit or reinitialise the net: joint then adds data and a fresh head. Costs as much as naive, and
    stores the body once. Batch norm keeps its running statistics; training still uses batch statistics.

    Differences from the survey: none of its methods trains a shared head; here the scenario decides.
    """

    family = "control"
    order = {"begin": HOLD, "step": HOLD, "end": HOLD}

    def __init__(self, *, head: str) -> None:
        require.one_of(HEADS, head=head)
        self.head = head

    def setup(self, learner: Learner) -> None:
        if self.head == "trained" and not learner.model.head:
            raise ValueError(f"head=trained: {type(learner.model).__name__} declares no head; use head=frozen")
        free = learner.model.head if self.head == "trained" else ()
        self.body = {k: v.clone() for k, v in learner.params.items() if k not in free}
        self.statistics = tree.copy(learner.buffers)

    def begin(self, learner: Learner, task: Task) -> Task:
        self.hold(learner)
        return replace(task, epoch=0) if task.index and self.head == "frozen" else task

    def step(self, learner: Learner, step: Step) -> None:
        self.hold(learner)

    def end(self, learner: Learner, task: Task) -> None:
        self.hold(learner)
        if task.index == 0:
            tree.assign(self.body, {k: learner.params[k] for k in self.body})
            self.statistics = tree.copy(learner.buffers)

    def hold(self, learner: Learner) -> None:
        """Put the first task's body back, once there is one."""
        if learner.now:
            tree.assign(learner.params, self.body)
            learner.buffers = tree.copy(self.statistics)
