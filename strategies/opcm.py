"""Tang et al. (2025), Merging models on the fly without retraining: a sequential approach to scalable continual model
merging, NeurIPS.
"""

import torch

from harness import tree
from harness.landscape import paths
from harness.learner import Learner
from harness.merging.vectors import apart, rescaled
from harness.strategy import ESTIMATE, RENEW, WEIGHTS, Strategy
from harness.toolbox import require
from harness.types import Net, Task


class OPCM(Strategy):
    """OPCM: train each task from the initial net, and add what is orthogonal to the earlier tasks' changes (Tang 2025).

        τ_t = θ_t - θ_0,   A_t = A_{t-1} + P(τ_t),   deployed: θ_0 + A_t · mean_k |τ_k| / |A_t|

    P removes from each weight matrix of a linear layer what lies along the singular vectors of A_{t-1}: the leading
    ones together, up to a `share` of the sum of singular values, and each pair u_i v_iᵀ of the others
    (harness.merging.vectors.apart). Other parameters are added. Memory: four copies of the net, for any number of
    tasks.

    Every task starts from θ_0 with a fresh optimizer, so the nets that the run keeps are independent experts from one
    initialisation. Batch-norm statistics are re-estimated on the task's training rows.

    Differences from the paper:
    * θ_0 is a pretrained net there, and the run's initialisation here.
    * The authors' code also removes what lies along directions in which A_{t-1} is 0, a basis that the decomposition
      chooses arbitrarily. Here these are free.
    """

    name = "opcm"
    family = "optimization-based"
    order = {"begin": RENEW, "end": ESTIMATE, "deploy": WEIGHTS}
    grid = {"share": (0.0, 0.25, 0.5, 0.9)}  # 0.5 is the paper's

    def __init__(self, *, share: float) -> None:
        require.within("[0, 1]", share=share)
        self.share = share
        self.count = 0  # tasks merged

    def setup(self, learner: Learner) -> None:
        self.initial, self.fresh = tree.copy(learner.params), tree.copy(learner.buffers)
        self.total = tree.zeros(learner.params)
        self.length = torch.zeros_like(tree.norm(learner.params))  # sum of |τ_k|
        self.merged, self.buffers = tree.copy(learner.params), tree.copy(learner.buffers)

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index:
            tree.assign(learner.params, self.initial)
            learner.buffers = tree.copy(self.fresh)
            learner.optimizer.reset()
        return task

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        tau = tree.sub(learner.params, self.initial)
        matrices = [layer.weight for layer in learner.model.layers if layer.conv is None]
        self.count += 1
        self.length = self.length + tree.norm(tau)
        self.total = tree.add(self.total, apart(tau, self.total, matrices, self.share))
        self.merged = rescaled(self.initial, self.total, self.length / self.count)
        self.buffers = tree.copy(paths.remeasure(learner, self.merged, task, self.random))

    def deploy(self, learner: Learner, net: Net) -> Net:
        return Net(self.merged, self.buffers, net.apply) if self.count else net
