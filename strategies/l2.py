"""L2 regularisation towards the weights of the last task, the control of Kirkpatrick et al. (2017)."""

from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.strategy import ESTIMATE, Strategy
from harness.toolbox import require
from harness.toolbox.penalty import distance
from harness.types import Batch, Out, Params, Task


class L2(Strategy):
    """L2 transfer: the same spring on every weight, towards the last task's weights (Kirkpatrick 2017, a control).

        penalty = strength / 2 |θ - θ*|²        θ*: weights after the last task; none during the first

    Online EWC with Fisher information 1 everywhere: no weight matters more than another.
    Gradient descent on the penalty is stable while lr * strength < 2. Memory: one copy of the parameters.

    Differences from the paper:
    * The paper specifies neither strength nor anchors; here the last task's weights are the only anchor.
    """

    family = "parameter regularization"
    order = {"end": ESTIMATE}
    grid = {"strength": (0.01, 0.03, 0.1, 0.3)}  # half orders of magnitude; lr * strength must stay below 2

    def __init__(self, *, strength: float) -> None:
        require.at_least(0, strength=strength)
        self.strength = strength

    def setup(self, learner: Learner) -> None:
        self.anchor = tree.copy(learner.params)

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        return self.strength / 2 * distance(params, self.anchor) if learner.now else 0.0

    def curvature(self, learner: Learner) -> float:
        return self.strength if learner.now else 0.0

    def end(self, learner: Learner, task: Task) -> None:
        tree.assign(self.anchor, learner.params)
