"""Zhou, Cai, Ye, Zhan & Liu (2025), Revisiting class-incremental learning with pre-trained models: generalizability and
adaptivity are all you need, IJCV (arXiv 2303.07338, 2023).
"""

import torch.nn.functional as F
from torch import Tensor

from harness.learner import Learner
from harness.strategy import HOLD, READOUT, Strategy
from harness.toolbox import class_means, fixed_features, require
from harness.toolbox.fixed_features import FixedFeatures
from harness.toolbox.moments import Means
from harness.types import Model, Net, Stream, Task


class SimpleCIL(Strategy):
    """SimpleCIL: the mean of each class's features is its weight in a cosine classifier (Zhou et al. 2023).

        logit_c = cos(z, μ_c),   μ_c = mean of z over the rows of class c

    z: features that no longer change (harness.toolbox.fixed_features). By default these are the inputs, which are the
    features of a pretrained network with `dataset.features`. Nothing is trained; the order of tasks does not matter.

        features=input     the flattened input; no step
        features=initial   the input of the head in the net as the run starts with it; no step
        features=frozen    the same in the net trained on the first task; later tasks take no step

    The cosine is of raw features in the paper: `dataset.normalise=none` keeps them raw, the default centres them.
    Stores one mean for each class (and a net, unless features=input).

    Differences from the paper:
    * Features come from the data set or the run's own net, not from a ViT.
    * The paper's code scales the cosine by a learnable factor, which changes no prediction.
    * A class without rows is predicted only if no other competes.
    """

    name = "simplecil"
    family = "template-based"
    order = {"begin": HOLD, "deploy": READOUT}

    def __init__(self, *, features: str) -> None:
        require.one_of(fixed_features.SOURCES, features=features)
        self.features = features

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        return fixed_features.remarks(self.features, stream, model, self.name)

    def setup(self, learner: Learner) -> None:
        self.fixed = FixedFeatures(learner, self.features, self.name)
        self.means = Means(learner.S, learner.stream.outputs, self.fixed.width, learner.device)

    def begin(self, learner: Learner, task: Task) -> Task:
        return self.fixed.begin(task)

    def end(self, learner: Learner, task: Task) -> None:
        self.fixed.end(learner, task)
        for batch in learner.scan(task.train):
            self.means.add(self.fixed(batch.x, batch.t), batch.y, (batch.w > 0).double())

    def deploy(self, learner: Learner, net: Net) -> Net:
        if not bool(self.means.count.sum()):
            return net
        weight = F.normalize(self.means.mean, dim=-1).to(learner.dtype)
        unseen = (self.means.count == 0)[:, None]

        def logits(z: Tensor) -> Tensor:
            return (F.normalize(z, dim=-1) @ weight.mT).masked_fill(unseen, -class_means.FAR)

        return self.fixed.readout(learner, net, logits, probabilistic=False)
