"""Seeds whose tasks differ in size are trained apart: an epoch is a pass, and seeds trained together step together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness.rows import Rows
from harness.types import Params, Source, Stream, Task, Tasks


def groups(stream: Stream) -> list[list[int]]:
    """Places of the seeds that can be trained together, in the order of their first: all of them, if sizes are equal.

    >>> stream = Stream("x", 1, "class", (), (2,), 2, (7, 8, 9), "", sizes=torch.tensor([[5, 3], [4, 4], [5, 3]]))
    >>> groups(stream)
    [[0, 2], [1]]
    """
    if stream.sizes is None:
        return [list(range(len(stream.seeds)))]
    found: dict[tuple[int, ...], list[int]] = {}
    for place, sizes in enumerate(stream.sizes.tolist()):
        found.setdefault(tuple(sizes), []).append(place)
    return list(found.values())


def stream_of(stream: Stream, places: Sequence[int]) -> Stream:
    """The stream of the seeds at `places` alone.

    Raises ValueError if their rows are not plain `Rows` without a transform, whose tables may belong to seeds.
    """
    if list(places) == list(range(len(stream.seeds))):
        return stream

    def task(i: int) -> Task:
        whole = stream.tasks[i]
        return replace(whole, train=cut(whole.train), val=cut(whole.val), test=cut(whole.test))

    def cut(source: Source) -> Source:
        if not isinstance(source, Rows) or source.transform_id is not None:
            raise ValueError(
                f"{stream.name}: seeds have different numbers of training rows, and its rows are generated or"
                " transformed, so they cannot be trained apart; call run once for each seed"
            )
        size = source.size[list(places)]
        width = max(1, int(size.max()))  # without the padding of the other seeds
        kept = {name: getattr(source, name)[list(places), :width] for name in ("index", "y", "t")}
        return replace(source, **kept, size=size)

    masks = stream.masks
    return replace(
        stream,
        tasks=Tasks(task, len(stream.tasks)),
        seeds=tuple(stream.seeds[place] for place in places),
        masks=masks[list(places)] if masks is not None and len(masks) > 1 else masks,
        sizes=None,
    )


def joined(parts: Iterable[tuple[Sequence[int], Params]]) -> Params:
    """Stacked tensors of all seeds from those of groups, each with the places of its seeds.

    >>> joined([([0, 2], {"w": torch.tensor([1, 3])}), ([1], {"w": torch.tensor([2])})])
    {'w': tensor([1, 2, 3])}
    """
    places, values = zip(*parts)
    order = torch.tensor([place for group in places for place in group]).argsort()
    return {name: torch.cat([value[name] for value in values])[order.to(values[0][name].device)] for name in values[0]}


def taken(params: Params, places: Sequence[int]) -> dict[str, Tensor]:
    """The rows of stacked tensors that belong to the seeds at `places`."""
    return {name: value[list(places)] for name, value in params.items()}
