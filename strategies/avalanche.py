"""Avalanche's strategies with our streams, budget and metrics.

Carta, Pellegrini, Cossu, Hemati & Lomonaco 2023, "Avalanche: a PyTorch library for deep continual learning",
JMLR 24(363).
"""

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness import rng
from harness.learner import Learner
from harness.rows import order
from harness.strategy import Strategy
from harness.toolbox import require
from harness.toolbox.avalanche_bridge import Criterion, apart, benchmark, masked, network, rows
from harness.types import Bytes, Task
from harness.wording import warn

OWN_LOSS = ("ER_ACE", "DER")  # they ignore the criterion, and with it every mask
OWN_ROWS = ("Cumulative", "GDumb")  # they choose their own training rows
WORK = (
    "Naive", "Cumulative", "FromScratchTraining", "Replay", "GDumb", "MIR", "MER", "AGEM", *OWN_LOSS, "EWC", "MAS",
    "LwF", "SynapticIntelligence", "CWRStar",
)  # fmt: skip
FAIL = {  # with Avalanche 0.6 and torch 2.15; strategies/AVALANCHE.md lists their errors
    "GEM": "it needs quadprog, which is not a dependency; use AGEM",
    "BiC": "it passes verbose to torch's MultiStepLR, which no longer accepts it",
    "GSS_greedy": "it takes the maximum of an empty list",
    "ICaRL": "it needs a separate feature extractor and classifier",
    "CoPE": "it predicts with prototypes, which are not part of the network",
    "LFL": "it needs a network that returns features",
    "GenerativeReplay": "its generator supports only 28x28 images",
    "JointTraining": "it needs the whole stream at once; use strategy=joint or Cumulative",
    "AETraining": "it trains an autoencoder, not a classifier",
    "VAETraining": "it trains a generator, not a classifier",
    "AR1": "it downloads its own network",
    "ER_AML": "it needs a separate feature extractor",
    "ExpertGateStrategy": "it needs its own network, with one expert per task",
    "FeatureReplay": "it needs Avalanche's growing head",
    "LearningToPrompt": "it uses its own pretrained transformer, and needs timm",
    "PNNStrategy": "it needs its own network, with one column per task",
    "PackNet": "it needs its own network, with masked layers",
    "SCR": "it needs its own network, with a projection",
    "StreamingLDA": "it needs its own network that returns features",
}
_STEP = (  # attributes of Avalanche's template that do not count as memory
    "experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "feed", "clock",
    "current_eval_stream",
)  # fmt: skip
GIVEN = (  # arguments that the run sets
    "model", "optimizer", "criterion", "train_mb_size", "train_epochs", "eval_mb_size", "device", "plugins",
    "evaluator", "eval_every", "peval_mode",
)  # fmt: skip


class Avalanche(Strategy):
    """Avalanche: train with a strategy of the library Avalanche 0.6, for comparison with ours (Carta 2023).

    Our loop takes no step. At the end of a task one Avalanche strategy per seed trains on the seed's rows, with the
    same initial weights, optimizer, batch size, number of steps and order of rows as naive (Replay shuffles by
    itself; Cumulative and GDumb choose their rows: an epoch is then a pass over those). Its weights and batch-norm
    statistics are copied back: boundary metrics and tables are computed as for our strategies.

    * Heads are masks, as everywhere here: the criterion is our masked cross-entropy. With scenario=task the net
      is a MultiTaskModule that sets outputs of other tasks to 0. ER_ACE and DER compute cross-entropy themselves
      over all outputs, and are refused if outputs are masked.
    * Resuming: Avalanche's state cannot be saved as tensors. A resumed run retrains the past tasks, and stops if the
      weights differ from the checkpoint.
    * No curves within a task and no step times. `memory` counts its plugins and buffers.
    * Costs: seeds train one after the other, at Avalanche's speed, with a copy of each seed's stream.

    Known faults of Avalanche are kept, for comparison: SynapticIntelligence equals naive on a CPU, MAS estimates
    and LwF distils in training mode, EWC's strength shrinks as batches grow.
    """

    family = "control"
    alone = True
    transient = ("agents", "experiences", "trained")

    @property
    def label(self) -> str:
        return f"avalanche_{self.method}"

    def __init__(self, *, name: str, options: dict[str, Any]) -> None:
        if name in FAIL:
            raise ValueError(f"name={name}: does not run here, because {FAIL[name]}")
        require.one_of(WORK, name=name)
        for key in options:
            if key in GIVEN:
                raise ValueError(f"options.{key}: the run sets it; use train, optimizer or model instead")
        self.method, self.options = name, {k: v for k, v in options.items() if v is not None}

    @property
    def purpose(self) -> str:
        return f"Avalanche[{self.method}]"

    def setup(self, learner: Learner) -> None:
        if self.method in OWN_LOSS and masked(learner.stream):
            raise ValueError(
                f"name={self.method}: its loss lets all outputs compete; "
                "use scenario=domain, or scenario=class with classes=all"
            )
        if self.method == "SynapticIntelligence" and learner.dtype != torch.float32:
            raise ValueError("name=SynapticIntelligence: keeps its state in float32; use dtype=float32")
        if self.method == "SynapticIntelligence" and learner.device.type == "cpu":
            warn(f"strategy.{self.name}.name={self.method}: its importances stay 0 on a CPU, so it equals naive")
        if any(getattr(task.train, "augmented", False) for task in learner.stream.tasks):
            raise ValueError(
                "dataset.augment: Avalanche trains on a copy of the unaugmented data; use dataset.augment=[]"
            )
        self.trained = 0  # tasks that the agents have trained on
        with apart(0):
            self.experiences = [benchmark(learner.stream, s).train_stream for s in range(learner.S)]
            self.agents = [self.agent(learner, s) for s in range(learner.S)]

    def agent(self, learner: Learner, s: int) -> Any:
        """The strategy of seed s, with a network that starts from the seed's weights."""
        from avalanche.training import supervised
        from avalanche.training.plugins import EvaluationPlugin

        base = getattr(supervised, self.method)
        known = [k for k in inspect.signature(base).parameters if k not in (*GIVEN, "base_kwargs", "kwargs")]
        for key in self.options:
            if key not in known:
                there = f"use one of {', '.join(known)}" if known else "it has none"
                raise ValueError(f"options.{key}: not an argument of {self.method}; {there}")
        parameters = inspect.signature(base).parameters
        for key in known:
            if parameters[key].default is inspect.Parameter.empty and key not in self.options:
                raise ValueError(f"options.{key}=null: {self.method} needs a value, and Avalanche has no default")
        net = network(learner, s)
        return _fed(base, learner)(
            model=net,
            optimizer=_optimizer(learner, net),
            criterion=Criterion(learner.stream, s),
            train_mb_size=learner.budget.batch_size,
            eval_mb_size=learner.budget.batch_size,
            device=learner.device,
            evaluator=EvaluationPlugin(),
            **self.options,
        )

    def begin(self, learner: Learner, task: Task) -> Task:
        if self.trained < task.index:  # a resumed run
            for past in learner.stream.tasks[self.trained : task.index]:
                self.train(learner, past)
            for s, agent in enumerate(self.agents):
                for k, v in agent.model.named_parameters():
                    if not torch.allclose(v, learner.params[k][s], rtol=0, atol=0, equal_nan=True):
                        raise ValueError(
                            f"{self.name}: retraining the past tasks did not reproduce the checkpoint's weights; "
                            "use force=true to restart the run"
                        )
        return replace(task, epoch=0)

    def end(self, learner: Learner, task: Task) -> None:
        self.train(learner, task)
        buffers = {k: v.clone() for k, v in learner.buffers.items()}
        with torch.no_grad():
            for s, agent in enumerate(self.agents):
                for k, v in agent.model.named_parameters():
                    learner.params[k][s] = v
                for k, v in agent.model.named_buffers():
                    buffers[k][s] = v
        learner.buffers = buffers

    def holds(self) -> Any:
        return [_held(agent) for agent in self.agents]

    def train(self, learner: Learner, task: Task) -> None:
        """Train every seed's strategy on one experience."""
        size, planned = learner.budget.batch_size, learner.budget.of(task)
        where = rng.fold(learner.key("order"), task.index)
        for s, (agent, seed) in enumerate(zip(self.agents, rng.fold(self.random.base, task.index).tolist())):
            position = order(where[s : s + 1], task.train.size[s : s + 1], 0, planned * size)[0]
            experience = self.experiences[s][task.index]
            agent.feed = None if self.method in OWN_ROWS else Feed(task, s, position.split(size))
            agent._criterion.now = task.index
            with apart(seed, learner.device):
                try:
                    agent.train(experience, eval_streams=[], reset_optimizer_state=learner.optimizer.reset_each_task)
                except Exception as error:
                    place = f"seed {learner.seeds[s]}, task {task.index}"
                    raise ValueError(f"strategy.{self.name}.name={self.method}: failed at {place}: {error}") from error
        self.trained = task.index + 1


class Feed:
    """The batches of naive in Avalanche's form: lists of inputs, targets, task labels."""

    def __init__(self, task: Task, s: int, positions: Sequence[Tensor]) -> None:
        self.x, self.y = rows(task.train, s)
        self.t = task.train.take(torch.zeros(len(task.train.size), 1, dtype=torch.int64, device=self.x.device))[2][s]
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for p in self.positions:
            yield [self.x[p], self.y[p], self.t.expand(len(p))]


def _fed(base: Any, learner: Learner) -> Any:
    """An Avalanche strategy class that uses our batches and number of steps."""

    class Fed(base):  # type: ignore[misc]
        feed: Feed | None = None
        dataloader: Any

        def make_train_dataloader(self, **how: Any) -> None:
            super().make_train_dataloader(**how)
            if self.feed is not None:
                self.dataloader = self.feed

        def training_epoch(self, **how: Any) -> None:
            """The whole budget at once: a loader other than ours is repeated for every epoch."""
            loader, budget = self.dataloader, learner.budget
            if loader is not self.feed:
                count = budget.steps or budget.epochs * len(loader)
                self.dataloader = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), count)
            super().training_epoch(**how)

    return Fed


def _held(agent: Any) -> list[Any]:
    """Memory of an Avalanche strategy besides the network: tensors, further networks, and buffered rows."""
    from avalanche.benchmarks.utils import AvalancheDataset
    from avalanche.training.storage_policy import ExemplarsBuffer
    from avalanche.training.templates import SupervisedTemplate
    from avalanche.training.utils import ParamData

    found: list[Any] = []
    own = (agent, agent.model, agent._criterion, *agent.model.parameters(), *agent.model.buffers())
    seen = {id(node) for node in own}

    def visit(node: Any) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, Tensor):
            found.append(node.detach())
        elif isinstance(node, ParamData):
            found.append(node.data.detach())
        elif isinstance(node, nn.Module):
            found.extend(v.detach() for v in (*node.parameters(), *node.buffers()))
        elif isinstance(node, ExemplarsBuffer):
            visit(node.buffer)
        elif isinstance(node, AvalancheDataset):
            if len(node):
                row = [v if isinstance(v, Tensor) else torch.tensor(v) for v in node[0]]
                found.append(Bytes(len(node) * sum(v.nbytes for v in row)))
        elif isinstance(node, dict):
            for value in node.values():
                visit(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                visit(value)
        elif type(node).__module__.startswith("avalanche.training"):
            visit(vars(node))

    # the template's own attributes belong to the current step and do not count
    plain = set(inspect.signature(SupervisedTemplate.__init__).parameters) | set(_STEP)
    for key, value in vars(agent).items():
        if key not in plain and not key.startswith(("_", "mb_")):
            visit(value)
        visit(agent.plugins)

    return found


def _optimizer(learner: Learner, net: nn.Module) -> torch.optim.Optimizer:
    """The torch optimizer with the same name and settings, which equals ours."""
    ours = learner.optimizer
    how = {k: v for k, v in ours.settings().items() if k != "name"} | {"weight_decay": ours.weight_decay}
    theirs = getattr(torch.optim, type(ours).__name__, None)
    if theirs is None or ours.schedule != "constant":
        raise ValueError(
            f"optimizer.schedule={ours.schedule}: {type(ours).__name__} with it has no counterpart in Avalanche; "
            "use sgd, adam or adamw with schedule=constant"
        )
    made: torch.optim.Optimizer = theirs(net.parameters(), **how)
    return made
