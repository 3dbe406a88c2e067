"""What the streams share: scenarios, output masks, permutations of pixels, digests."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

SCENARIOS = ("task", "domain", "class")


def check(name: str, n_tasks: int, scenario: str, classes: str) -> None:
    """Refuse what no stream can do; ValueError names key, value and remedy."""
    if n_tasks < 1:
        raise ValueError(f"tasks.n_tasks={n_tasks}: {name} needs at least 1 task")
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario={scenario}: {name} knows {', '.join(SCENARIOS)}")
    if classes not in ("seen", "all"):
        raise ValueError(f"classes={classes}: must be seen or all")


class Permute:
    """Reorders the inputs of each row by its task's permutation: x'[i] = x[permutation[i]]."""

    def __init__(self, permutation: Tensor) -> None:
        self.permutation = permutation  # [S, T, D]

    def __call__(self, x: Tensor, task: Tensor) -> Tensor:
        """x [S, B, *shape], task [S, B or 1] -> [S, B, *shape]."""
        seed = torch.arange(len(task), device=task.device)[:, None]
        flat = x.flatten(2)
        return flat.gather(2, self.permutation[seed, task].expand_as(flat)).view_as(x)


def block_masks(n_tasks: int, width: int, device: torch.device) -> Tensor:
    """[1, T, T * width]: task t uses the outputs t * width ... (t + 1) * width - 1."""
    return torch.eye(n_tasks, dtype=torch.bool, device=device).repeat_interleave(width, 1)[None]


def digest(*parts: str | int | Tensor) -> str:
    """Sixteen hex digits over names, numbers and integer tensors."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            h.update(part.cpu().contiguous().numpy().tobytes())
        else:
            h.update(repr(part).encode())
    return h.hexdigest()[:16]
