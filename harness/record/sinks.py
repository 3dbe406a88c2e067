"""Where a recorder's rows and nets go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from harness import tree
from harness.groups import joined, taken
from harness.learner import Learner
from harness.types import Net

Columns = dict[str, list[Any]]  # column name -> values


class Sink(Protocol):
    """Takes rows, and at the end of a boundary its checkpoint and net: a run folder, or memory."""

    def write(self, table: str, columns: Columns) -> None: ...
    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None: ...
    def net(self, task: int) -> dict[str, Any]: ...
    def has_net(self, task: int) -> bool: ...


@dataclass
class InMemory:
    """Keeps rows and nets in memory, for a notebook and for tests."""

    tables: dict[str, Columns] = field(default_factory=dict)
    nets: dict[int, dict[str, Any]] = field(default_factory=dict)

    def write(self, table: str, columns: Columns) -> None:
        whole = self.tables.setdefault(table, {k: [] for k in columns})
        for k, v in columns.items():
            whole[k].extend(v)

    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
        self.nets[boundary] = {"params": tree.copy(net.params), "buffers": tree.copy(net.buffers)}

    def net(self, task: int) -> dict[str, Any]:
        return self.nets[task]

    def has_net(self, task: int) -> bool:
        return task in self.nets


class Lane:
    """A group of seeds' part of a sink: rows go straight through, and a boundary waits for the other groups."""

    def __init__(self, sink: Sink, places: Sequence[int], waiting: dict[int, list[Any]], number: int, of: int) -> None:
        self.sink, self.places, self.waiting, self.number, self.of = sink, list(places), waiting, number, of

    def write(self, table: str, columns: Columns) -> None:
        self.sink.write(table, columns)

    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
        if self.of == 1:
            return self.sink.commit(boundary, checkpoint, net)
        there = self.waiting.setdefault(boundary, [])
        there.append((self.places, checkpoint, net))
        if len(there) == self.of:
            params, buffers = (joined((p, getattr(n, kind)) for p, _, n in there) for kind in ("params", "buffers"))
            states = [state for _, state, _ in self.waiting.pop(boundary)]
            net = replace(net, params=params, buffers=buffers)
            self.sink.commit(boundary, lambda: {"groups": [state() for state in states]}, net)

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The group's state in a checkpoint."""
        state: dict[str, Any] = dict(checkpoint) if self.of == 1 else checkpoint["groups"][self.number]
        return state

    def net(self, task: int) -> dict[str, Any]:
        kept = self.sink.net(task)
        return kept if self.of == 1 else {kind: taken(values, self.places) for kind, values in kept.items()}

    def has_net(self, task: int) -> bool:
        return self.sink.has_net(task)


def shared(sink: Sink, groups: Sequence[Sequence[int]]) -> list[Lane]:
    """A lane of the sink for each group of places of seeds."""
    waiting: dict[int, list[Any]] = {}
    return [Lane(sink, places, waiting, number, len(groups)) for number, places in enumerate(groups)]


class StoredNets:
    """The nets of earlier boundaries, read from a sink; the latest few are kept, as several metrics read the same."""

    KEPT = 6  # the initial net, and as many as metrics measure tasks by default

    def __init__(self, learner: Learner, sink: Sink) -> None:
        self.learner, self.sink = learner, sink
        self.read: dict[int, Net] = {}

    def __contains__(self, task: int) -> bool:
        return self.sink.has_net(task)

    def __getitem__(self, task: int) -> Net:
        net = self.read.get(task)
        if net is None:
            kept, device = self.sink.net(task), self.learner.device
            params, buffers = ({k: v.to(device) for k, v in kept[p].items()} for p in ("params", "buffers"))
            net = Net(params, buffers, self.learner.apply)
            self.read = {**self.read, task: net} if len(self.read) < self.KEPT else {task: net}
        return net

    @property
    def initial(self) -> Net:
        return self[-1]
