"""Where a recorder's rows and nets go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness import tree
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


class StoredNets:
    """The nets of earlier boundaries, read from a sink."""

    def __init__(self, learner: Learner, sink: Sink) -> None:
        self.learner, self.sink = learner, sink

    def __contains__(self, task: int) -> bool:
        return self.sink.has_net(task)

    def __getitem__(self, task: int) -> Net:
        kept = self.sink.net(task)
        params, buffers = ({k: v.to(self.learner.device) for k, v in kept[p].items()} for p in ("params", "buffers"))
        return Net(params, buffers, self.learner.apply)

    @property
    def initial(self) -> Net:
        return self[-1]
