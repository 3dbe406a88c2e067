"""What a stream promises. Each check raises Broken, with what is wrong and the remedy.

A stream's module names the promises that its definition excludes, by the name of the function here, with the reason:
`EXEMPT = {"apart": "memorisation is measured on the training rows"}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.contract.generators import moved
from harness.contract.strategies import Broken
from harness.contract.toy import same
from harness.learner import Budget
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.rng import keys, normal
from harness.rows import Rows
from harness.run import run
from harness.types import Source, Stream, Task
from tasks.datasets import Dataset
from tasks.stream import PARTS

SEEDS = (0, 1, 2)
SETS = 10**6  # from the classes of one data set to those of the next
SHARED = 0.05  # largest share of test inputs that are training inputs as well: tables of few values repeat rows
DRAW = "draw from its seeds, as in rng.permutation(rng.keys(drawn(seeds, fixed, pin), 'stream'), n)"


def toy_data(name: str = "toy", classes: int = 10, shape: tuple[int, ...] = (1, 8, 8)) -> Dataset:
    """Class c has 4 + c % 3 training, 1 validation and 2 test samples; no two inputs are equal."""
    counts = [[4 + c % 3 for c in range(classes)], [1] * classes, [2] * classes]
    labels = [torch.arange(classes).repeat_interleave(torch.tensor(n)) for n in counts]
    labels = [y[torch.randperm(len(y), generator=torch.Generator().manual_seed(i))] for i, y in enumerate(labels)]
    y, ends = torch.cat(labels), torch.tensor([len(part) for part in labels]).cumsum(0).tolist()
    x = normal(keys([0], name), len(y), *shape)[0]
    train, val, test = (torch.arange(a, b) for a, b in zip([0, *ends], ends))
    return Dataset(name, x, y, train, val, test, classes, name)


@dataclass
class Case:
    """A stream in one scenario."""

    make: Callable[..., Stream]  # of what changes: seeds, dataset, and arguments of its own
    scenario: str
    sets: tuple[Dataset, ...]  # whose rows it takes, one after the other
    seeds: tuple[int, ...] = SEEDS
    arguments: Mapping[str, Any] = field(default_factory=dict)  # those that may change, with their values
    exempt: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def stream(self) -> Stream:
        """What several checks look at."""
        return self.make(seeds=self.seeds)

    @cached_property
    def y(self) -> Tensor:
        """The class of every sample; those of a second data set are different classes."""
        return torch.cat([data.y + SETS * i for i, data in enumerate(self.sets)])

    def pool(self, part: str) -> Tensor:
        """The samples of a part, as positions in the data sets one after the other."""
        starts = [sum(len(data.y) for data in self.sets[:i]) for i in range(len(self.sets))]
        return torch.cat([getattr(data, part) + start for data, start in zip(self.sets, starts)])

    def samples(self, source: Source, s: int) -> Tensor | None:
        """The samples of seed s's rows; None for rows that are not those of the data sets."""
        if not isinstance(source, Rows) or source.data.shape[0] != len(self.y):
            return None
        return source.index[s, : int(source.size[s])].cpu()


def read(source: Source, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rows of seed s: x [n, *shape], y [n], t [n]."""
    n = int(source.size[s])
    last = (source.size - 1).clamp_min(0)[:, None]
    x, y, t = source.take(torch.arange(n, device=last.device).expand(len(last), -1).minimum(last))
    return x[s], y[s], t[s]


def sources(task: Task) -> Iterator[tuple[str, Source]]:
    return ((part, getattr(task, part)) for part in PARTS)


def rows(stream: Stream, s: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """All rows of seed s, part by part and task by task."""
    return [read(source, s) for task in stream.tasks for _, source in sources(task)]


def fits(case: Case) -> None:
    """Tasks are numbered, rows have the stream's shape, targets are outputs that compete, `labels` and `take` agree."""
    stream, S = case.stream, len(case.seeds)
    if not isinstance(stream, Stream):
        raise Broken(f"it returned a {type(stream).__name__}; return a harness.types.Stream")
    if stream.scenario != case.scenario or tuple(stream.seeds) != case.seeds:
        raise Broken("the stream's scenario or seeds are others than those given; pass on the arguments")
    for i, task in enumerate(stream.tasks):
        if task.index != i:
            raise Broken(f"task {i} has the index {task.index}; number tasks from 0")
        for part, source in sources(task):
            where = f"{part} of task {i}"
            if source.size.shape != (S,):
                raise Broken(f"{where}: size is {list(source.size.shape)}; expected one number for each seed, [{S}]")
            if part != "val" and int(source.size.min()) < 1:
                raise Broken(f"{where} has no row for some seed; every task needs training and test rows")
            for s in range(S):
                _row(case, where, source, s, i)
    sizes = torch.stack([task.train.size for task in stream.tasks], 1)
    if not torch.equal(sizes[:1].expand_as(sizes) if stream.sizes is None else stream.sizes, sizes):
        raise Broken("seeds have different numbers of training rows; `sizes` [S, T] must give those of each task")


def _row(case: Case, where: str, source: Source, s: int, i: int) -> None:
    """The form of one seed's rows."""
    stream = case.stream
    x, y, t = read(source, s)
    if x.shape[1:] != stream.shape or not x.is_floating_point():
        raise Broken(f"{where}: rows are {x.dtype} {list(x.shape[1:])}; the stream says {list(stream.shape)}, floats")
    if not bool(x.isfinite().all()):
        raise Broken(f"{where} has inputs that are not finite")
    if not torch.equal(t, torch.full_like(t, i if case.scenario == "task" else 0)):
        raise Broken(f"{where}: t must be {'the task' if case.scenario == 'task' else '0 outside of scenario=task'}")
    labels = source.labels()[s, : len(y)]
    if stream.loss == "mse":
        if y.shape[1:] != (stream.outputs,) or not bool(y.isfinite().all()):
            raise Broken(f"{where}: targets are {list(y.shape[1:])}; expected {stream.outputs} finite numbers")
        return
    if y.is_floating_point() or not bool(((y >= 0) & (y < stream.outputs)).all()):
        raise Broken(f"{where}: targets must be whole numbers from 0 to {stream.outputs - 1}, the stream's outputs")
    if not torch.equal(labels, y):
        raise Broken(f"{where}: `labels` gives other classes than `take`")
    mask = stream.mask(t.expand(len(case.seeds), -1), i)
    if mask is not None and len(y):
        own = mask[min(s, len(mask) - 1)].expand(len(y), -1)
        if not bool(own.gather(1, y[:, None]).all()):
            raise Broken(f"{where}: a target is masked out; `masks` must include every target of its task")


def draws(case: Case) -> None:
    """Making and reading it moves no global random generator."""
    _, names = moved(lambda: rows(case.make(seeds=case.seeds), 0))
    if names:
        raise Broken(f"it draws from {names[0]}'s global generator; {DRAW}")


def repeats(case: Case) -> None:
    """Made again, it has the same rows, name and digest; rows come in any order alike."""
    first, second = case.stream, case.make(seeds=case.seeds)
    for word in ("hash", "name", "version"):
        if getattr(first, word) != getattr(second, word):
            raise Broken(f"its {word} is another when it is made again; {DRAW}")
    for s in range(len(case.seeds)):
        if not same(rows(first, s), rows(second, s)):
            raise Broken(f"it has other rows when it is made again; {DRAW}")
    for task in first.tasks:
        for part, source in sources(task):
            n = int(source.size.min())
            if n and not _reversible(source, n):
                raise Broken(f"{part} of task {task.index}: a row depends on the rows that are taken with it")


def _reversible(source: Source, n: int) -> bool:
    position = torch.arange(n, device=source.size.device).expand(len(source.size), -1)
    return same([part.flip(1) for part in source.take(position)], list(source.take(position.flip(1))))


def alone(case: Case) -> None:
    """A seed's rows depend on no other seed."""
    for s, seed in enumerate(case.seeds):
        single = case.make(seeds=(seed,))
        orders = [[task.ordered for task in stream.tasks] for stream in (case.stream, single)]
        if orders[0] != orders[1] or not same(rows(case.stream, s), rows(single, 0)):
            raise Broken(f"the rows of seed {seed} depend on the other seeds; {DRAW}")


def apart(case: Case) -> None:
    """Training, validation and test rows come from these parts of the data set, and none twice within a task."""
    for s in range(len(case.seeds)):
        for task in case.stream.tasks:
            if any(case.samples(source, s) is None for _, source in sources(task)):
                _unseen(task, s)
                continue
            for part, source in sources(task):
                index = case.samples(source, s)
                assert index is not None
                if not bool(torch.isin(index, case.pool(part)).all()):
                    other = next(p for p in PARTS if p != part and bool(torch.isin(index, case.pool(p)).any()))
                    raise Broken(f"{part} of task {task.index} has {other} rows of the data set; use dataset.{part}")
                if len(index.unique()) < len(index):
                    raise Broken(f"{part} of task {task.index} has a sample twice")


def _unseen(task: Task, s: int) -> None:
    """Broken if test inputs that were made, not taken, are training inputs."""
    share = repeated(read(task.test, s)[0], read(task.train, s)[0])
    if share > SHARED:
        raise Broken(f"{share:.0%} of the test inputs of task {task.index} are training inputs; hold test rows out")


def repeated(these: Tensor, those: Tensor) -> float:
    """The share of these inputs that are among those.

    >>> repeated(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [3.0]]))
    0.5
    """
    known = {row.tobytes() for row in those.flatten(1).cpu().numpy()}
    return sum(row.tobytes() in known for row in these.flatten(1).cpu().numpy()) / max(len(these), 1)


def complete(case: Case) -> None:
    """Of every class that the stream has, all samples come."""
    for s in range(len(case.seeds)):
        found = {part: [case.samples(getattr(task, part), s) for task in case.stream.tasks] for part in PARTS}
        known = {part: [index for index in some if index is not None] for part, some in found.items()}
        if any(len(known[part]) < len(found[part]) for part in PARTS):
            return  # rows that were made
        used = case.y[torch.cat(known["train"])].unique()
        for part in PARTS:
            pool = case.pool(part if "apart" not in case.exempt else "train")
            wanted = pool[torch.isin(case.y[pool], used)]
            if lost := len(wanted) - int(torch.isin(wanted, torch.cat(known[part])).sum()):
                raise Broken(f"{lost} of {len(wanted)} {part} samples of its classes are in no task")


def targets(case: Case) -> None:
    """In the validation and test rows of a task a class has one target, and two classes have two."""
    for s in range(len(case.seeds)):
        for task in case.stream.tasks:
            _targets(case, task, s)


def labelled(case: Case) -> None:
    """Training rows have the targets that test rows of their class have."""
    for s in range(len(case.seeds)):
        for task in case.stream.tasks:
            known = _targets(case, task, s)
            for c, target in _pairs(case, task.train, s):
                if known.get(c, target) != target:
                    raise Broken(
                        f"task {task.index} trains class {c % SETS} on the target {target}, and tests it on {known[c]}"
                    )


def _targets(case: Case, task: Task, s: int) -> dict[int, int]:
    """Class -> target of validation and test rows."""
    found: dict[int, int] = {}
    for c, target in (pair for part in ("val", "test") for pair in _pairs(case, getattr(task, part), s)):
        if found.setdefault(c, target) != target:
            raise Broken(f"class {c % SETS} has the targets {found[c]} and {target} in task {task.index}")
    if len(set(found.values())) < len(found):
        raise Broken(f"two classes of task {task.index} have one target")
    return found


def _pairs(case: Case, source: Source, s: int) -> list[tuple[int, int]]:
    """Class and target of each row; none for regression and for rows that were made."""
    index = case.samples(source, s)
    if index is None or case.stream.loss == "mse":
        return []
    return list(zip(case.y[index].tolist(), read(source, s)[1].tolist()))


def pins(case: Case) -> None:
    """`pin`, and `fixed` if it has that argument, give all seeds the same rows."""
    for name, value in (("pin", 5), ("fixed", True)):
        if name in ("pin", *case.arguments):
            stream = case.make(seeds=case.seeds, **{name: value})
            if not all(same(rows(stream, 0), rows(stream, s)) for s in range(1, len(case.seeds))):
                raise Broken(f"{name} leaves seeds different rows; {DRAW}")


def says(case: Case) -> None:
    """Its digest differs if its rows do, and only then."""
    base = case.make(seeds=case.seeds[:1])
    if len(case.seeds) > 1:
        _told(base, case.make(seeds=case.seeds[1:2]), "of another seed")
        first, second = (case.make(seeds=(seed,), pin=5) for seed in case.seeds[:2])
        _told(first, second, "of another seed with pin")
    data = case.sets[0]
    other = replace(data, name="other", digest="other", x=-data.x[:])
    _told(base, case.make(seeds=case.seeds[:1], dataset=other), "of other data")
    count = case.arguments.get("n_tasks")
    for n in (count + 1, count - 1) if isinstance(count, int) else ():
        try:
            longer = case.make(seeds=case.seeds[:1], n_tasks=n)
        except ValueError:  # too many tasks for its classes, or too few for its slots
            continue
        if longer.hash == base.hash:
            raise Broken(f"its digest is the same with n_tasks={n}; add every setting to `hash`, as in digest(n_tasks)")


def _told(a: Stream, b: Stream, what: str) -> None:
    differ = not same(rows(a, 0), rows(b, 0))
    if differ and a.hash == b.hash:
        raise Broken(
            f"rows {what} have the same digest; add what they depend on to `hash`, as in digest(dataset.digest)"
        )
    if not differ and a.hash != b.hash:
        raise Broken(
            f"rows {what} are the same, but have another digest; leave what they do not depend on out of `hash`"
        )


def trains(case: Case) -> None:
    """Two of its tasks train: losses, parameters and scores are finite."""
    stream = replace(case.stream, tasks=case.stream.tasks[:2])
    result = run(
        stream,
        [],
        model=MLP(stream.shape, stream.outputs, widths=(4,)),
        optimizer=SGD(lr=0.01),
        budget=Budget(steps=3, batch_size=4),
        evaluation=Evaluation(),
        gap=False,
    )
    scores = result.accuracy[:, 1:].diagonal(dim1=1, dim2=2)  # on each task after it
    loss = torch.tensor(result.tables["curves"]["loss"])
    if not (len(loss) and scores.isfinite().all() and loss.isfinite().all()):
        raise Broken("a loss or a score is not finite after three steps; normalise its inputs")


CHECKS: dict[str, Callable[[Case], None]] = {
    "rows, targets and masks fit": fits,
    "draws come from its seeds alone": draws,
    "made again, it is the same": repeats,
    "row s of three seeds equals seed s alone": alone,
    "test rows are not trained on": apart,
    "no sample is lost": complete,
    "a class has one target in a task": targets,
    "training targets are those of the test": labelled,
    "pin and fixed give all seeds the same rows": pins,
    "its digest says what its rows are": says,
    "two tasks train": trains,
}
