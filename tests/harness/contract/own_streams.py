"""A user's own streams and data sets: some right, each of the others with one fault."""

from dataclasses import replace

import numpy as np
import torch

from harness import rng
from harness.rows import Rows
from harness.types import Stream, Tasks
from tasks.datasets import Dataset, arrays
from tasks.stream import block_masks, digest, drawn, grouped, whole
from tasks.transforms import Permute

# --- streams ------------------------------------------------------------------------------------------


def _whole(dataset, seeds, scenario, classes, n_tasks, *settings, **fields):
    name = f"own_{dataset.name}"
    made = {"hash": digest("own", scenario, n_tasks, dataset.digest, *settings), **fields}
    return whole(dataset, seeds, n_tasks, scenario, classes, name=name, version=1, **made)


def _order(dataset, seeds, fixed, pin):
    """The training samples in a random order for each seed: [S, n]."""
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream"), "own")
    return dataset.train[rng.permutation(key, len(dataset.train))]


def leaks(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    def parts(part, t):
        return dataset.train, dataset.y[dataset.train]

    return _whole(dataset, seeds, scenario, classes, n_tasks, parts=parts)


def global_draw(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    mixed = dataset.train[torch.randperm(len(dataset.train))]

    def parts(part, t):
        index = mixed if part == "train" else getattr(dataset, part)
        return index, dataset.y[index]

    return _whole(dataset, seeds, scenario, classes, n_tasks, parts=parts)


def mixes_seeds(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    mixed = _order(dataset, [sum(seeds)] * len(seeds), False, pin)

    def parts(part, t):
        index = mixed if part == "train" else getattr(dataset, part)
        return index, dataset.y[index]

    return _whole(dataset, seeds, scenario, classes, n_tasks, mixed, parts=parts)


def loses(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    each = len(dataset.train) // n_tasks

    def parts(part, t):
        index = dataset.train[t * each : (t + 1) * each - 1] if part == "train" else getattr(dataset, part)
        return index, dataset.y[index]

    return _whole(dataset, seeds, scenario, classes, n_tasks, parts=parts)


def stale_digest(*, dataset, seeds, scenario, classes, n_tasks, fixed, pin, device):
    mixed = _order(dataset, seeds, fixed, pin)

    def parts(part, t):
        index = mixed if part == "train" else getattr(dataset, part)
        return index, dataset.y[index]

    return _whole(dataset, seeds, scenario, classes, n_tasks, parts=parts)


def other_targets(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    def parts(part, t):
        index = getattr(dataset, part)
        return index, (dataset.y[index] + (part == "train")) % dataset.classes

    return _whole(dataset, seeds, scenario, classes, n_tasks, parts=parts)


def other_validation(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    def parts(part, t):
        index = getattr(dataset, part)
        return index, (dataset.y[index] + (part == "val")) % dataset.classes

    return _whole(dataset, seeds, scenario, classes, n_tasks, parts=parts)


def ignores_pin(*, dataset, seeds, scenario, classes, n_tasks, fixed, pin, device):
    return right_permuted(
        dataset=dataset, seeds=seeds, scenario=scenario, classes=classes, n_tasks=n_tasks, fixed=fixed, pin=None,
        device=device,
    )  # fmt: skip


def masked_out(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    if scenario != "class":
        raise ValueError(f"scenario={scenario}: not supported; use class")
    made = right_split(dataset=dataset, seeds=seeds, scenario=scenario, classes=classes, n_tasks=n_tasks, fixed=False,
                       pin=pin, device=device)  # fmt: skip
    return replace(made, masks=made.masks.roll(1, 2))


def right_same(*, dataset, seeds, scenario, classes, n_tasks, pin, device):
    """The same problem in every task."""
    return _whole(dataset, seeds, scenario, classes, n_tasks)


def right_permuted(*, dataset, seeds, scenario, classes, n_tasks, fixed, pin, device):
    """Pixels permuted anew in each task."""
    data, inputs = dataset.to(device), dataset.x[0].numel()
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "own")
    order = torch.stack([rng.permutation(rng.fold(key, t), inputs) for t in range(n_tasks)], 1)
    return _whole(data, seeds, scenario, classes, n_tasks, order, transform=Permute(order.int()))


def right_split(*, dataset, seeds, scenario, classes, n_tasks, fixed, pin, device):
    """Two classes in each task."""
    if scenario != "class":
        raise ValueError(f"scenario={scenario}: not supported; use class")
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "own")
    order = rng.permutation(key, dataset.classes)[:, : 2 * n_tasks]
    block = torch.arange(2 * n_tasks, device=order.device)[None].split(2, 1)
    return grouped(
        dataset.to(device), seeds, scenario, order.split(2, 1), lambda t: block[t], 2 * n_tasks, name="own", version=1,
        hash=digest(order, dataset.digest), masks=block_masks([2] * n_tasks, order.device), classes=classes,
    )  # fmt: skip


def right_halves(*, dataset, seeds, scenario, classes, fixed, pin, device):
    """Half of the training samples, drawn for each seed, then the other half."""
    order = _order(dataset, seeds, fixed, pin)
    half = order.shape[1] // 2

    def parts(part, t):
        index = (order[:, half:] if t else order[:, :half]) if part == "train" else getattr(dataset, part)
        return index, dataset.y[index]

    return _whole(dataset, seeds, scenario, classes, 2, order, parts=parts)


def right_made(*, dataset, seeds, scenario, classes, n_tasks, fixed, pin, device):
    """Gaussian inputs and linear targets, made rather than taken from the data set."""
    if scenario != "domain":
        raise ValueError(f"scenario={scenario}: not supported; use domain")
    s, n = len(seeds), 20
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "own")
    x, weight = rng.normal(rng.fold(key, "x"), n_tasks, n, 4), rng.normal(rng.fold(key, "w"), 4, 1)
    y, data, zero = x @ weight[:, None], x.flatten(0, 2), torch.zeros(s, 1, dtype=torch.int64)

    def source(t, low, high):
        row = torch.arange(low, high).expand(s, -1)
        index = row + t * n + torch.arange(s)[:, None] * n_tasks * n
        return Rows(data, index, y[:, t, low:high], zero, torch.full((s,), high - low))

    like = _whole(dataset, seeds, scenario, classes, n_tasks)

    def task(t):
        return replace(like.tasks[t], train=source(t, 0, 12), val=source(t, 12, 16), test=source(t, 16, 20))

    return Stream(
        name="own", version=1, scenario=scenario, tasks=Tasks(task, n_tasks), shape=(4,), outputs=1, seeds=tuple(seeds),
        hash=digest(x, weight), classes=classes, loss="mse",
    )  # fmt: skip


def made_leak(**how):
    """Tests on what it trains on."""
    made = right_made(**how)
    return replace(made, tasks=[replace(task, test=task.train) for task in made.tasks])


# --- data sets ----------------------------------------------------------------------------------------


def _numbers(n=120, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return draw.normal(size=(n, 6)) + y[:, None], y


def _made(x, y, train, val, test, digest="d"):
    parts = (torch.as_tensor(part) for part in (train, val, test))
    return Dataset("own", torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y), *parts, int(y.max()) + 1, digest)


def _normal(x):
    return (x - x.mean(0)) / x.std(0)


def overlapping():
    x, y = _numbers()
    return _made(_normal(x), y, np.arange(100), np.arange(0), np.arange(90, 120))


def unseeded():
    x, y = _numbers()
    order = np.random.default_rng().permutation(len(y))
    return {"x_train": x[order[:90]], "y_train": y[order[:90]], "x_test": x[order[90:]], "y_test": y[order[90:]]}


def global_split():
    x, y = _numbers()
    order = np.random.permutation(len(y))
    return x[order], y[order]


def oversampled():
    x, y = _numbers(40)
    return np.repeat(x, 3, 0), np.repeat(y, 3)


def unscaled():
    x, y = _numbers()
    return _made(100 + 30 * x, y, np.arange(90), np.arange(90, 100), np.arange(100, 120))


def untrained_class():
    x, y = _numbers()
    y[:100] = np.arange(100) % 2
    y[100:] = 2
    return _made(_normal(x), y, np.arange(90), np.arange(90, 100), np.arange(100, 120))


def infinite():
    x, y = _numbers()
    x = _normal(x)
    x[7, 2] = np.nan
    return _made(x, y, np.arange(90), np.arange(90, 100), np.arange(100, 120))


def stale_data(val):
    x, y = _numbers()
    n = round(100 * (1 - val))
    return _made(_normal(x), y, np.arange(n), np.arange(n, 100), np.arange(100, 120))


def right_pair():
    return _numbers()


def right_parts():
    (x, y), (u, v) = _numbers(90), _numbers(30, seed=1)
    return x, y, u, v


def right_validated():
    (x, y), (u, v), (w, z) = _numbers(60), _numbers(30, seed=1), _numbers(30, seed=2)
    return {"x_train": x, "y_train": y, "x_val": u, "y_val": v, "x_test": w, "y_test": z}


def right_images():
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (60, 5, 5)).astype(np.uint8), np.arange(60) % 3


def right_object():
    x, y = _numbers()
    return arrays({"x": x, "y": [f"class {label}" for label in y]}, "own")
