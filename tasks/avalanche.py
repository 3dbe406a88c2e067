"""A classification benchmark of Avalanche (Carta et al. 2023, JMLR) as a stream."""

from __future__ import annotations

import hashlib
import inspect
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import rng
from harness.config.catalogue import nearest
from harness.rows import Rows, stratified
from harness.store.known import home
from harness.toolbox.avalanche_bridge import apart
from harness.types import Stream, Task
from harness.wording import first_line
from tasks.datasets import DataError, Dataset
from tasks.datasets.cache import Arrays, cached
from tasks.datasets.named import idx_files
from tasks.datasets.table import SPECS
from tasks.stream import check, digest, drawn

VERSION = 2  # 1: epochs were counted by a mean over tasks
# Benchmarks on data that we can find ourselves (also in Debian's package): Avalanche gets a folder with it.
FILES = {"SplitMNIST": "mnist", "PermutedMNIST": "mnist", "RotatedMNIST": "mnist", "SplitFMNIST": "fashion_mnist"}

OWN = {  # arguments of a benchmark that are our own settings
    "seed": "seeds", "n_experiences": "tasks.n_tasks", "dataset_root": "tasks.root", "return_task_id": "scenario",
}  # fmt: skip


def avalanche(
    *,
    dataset: Dataset | None = None,
    seeds: Sequence[int],
    scenario: str = "class",
    classes: str = "seen",
    benchmark: str,
    n_tasks: int | None,
    fixed: bool,
    options: dict[str, Any] | None = None,
    val: float = 0.1,
    root: str | Path | None = None,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """A benchmark of avalanche.benchmarks.classic, by name: its experiences are the tasks, with its own test sets.

    Rows are its samples under its evaluation transforms (training transforms may be random), computed once and kept in
    the user's cache. Equal samples are stored once for all tasks and seeds. Each seed has its own benchmark; with
    `fixed`, or if the benchmark takes no seed, all share one. A stratified fraction `val` of each task's training rows
    is held out.

    If tasks have no common classes, as in Split...: class has one output per class; task has the same outputs, and
    those of the task compete; domain has as many outputs as a task has classes, shared. If all tasks have the same
    classes, as in Permuted...: domain shares the outputs, task and class give each task its own. If classes overlap in
    part, only class is defined.

    Differs: from Avalanche (Carta et al. 2023): validation rows are held out, and there is no augmentation.
    Needs: the benchmark's own data; `dataset` is not used.

    Raises ValueError for an unknown benchmark or option, DataError for missing data.
    """
    check("avalanche", 1 if n_tasks is None else n_tasks, scenario, classes)
    if not 0 <= val < 1:
        raise ValueError(f"tasks.val={val}: must be at least 0 and below 1")
    make = _maker(benchmark, n_tasks, options or {})
    alike = fixed or pin is not None or "seed" not in _arguments(make)  # all seeds see one benchmark
    numbers = drawn(seeds, alike, pin)
    name = f"avalanche_{benchmark}"
    made = {n: _materialised(make, benchmark, n_tasks, options or {}, n, root) for n in sorted(set(numbers))}
    data, parts = _shared(made)
    first = parts[numbers[0]]
    count = 1 + max(t for _, t in first)
    groups = {n: [np.unique(parts[n]["train", t][1]).tolist() for t in range(count)] for n in parts}
    kind = {_kind(g) for g in groups.values()}.pop()
    outputs, label, masks = _outputs(kind, groups, numbers, scenario, benchmark)
    x = torch.from_numpy(data).to(device)

    def rows(name: str, t: int, picked: list[Tensor]) -> Rows:
        size = torch.tensor([len(p) for p in picked], device=x.device)
        padded = torch.nn.utils.rnn.pad_sequence(picked, batch_first=True).to(x.device)  # [S, n]
        index, y = (
            torch.stack([torch.from_numpy(parts[n][name, t][k])[p] for n, p in zip(numbers, padded.cpu())])
            for k in (0, 1)
        )
        y = torch.stack([label(n, t, row) for n, row in zip(numbers, y)])
        one = torch.full((len(seeds), 1), t if scenario == "task" else 0, dtype=torch.int64, device=x.device)
        return Rows(x, index.to(x.device), y.to(x.device), one, size)

    tasks = []
    for t in range(count):
        held, kept = [], []
        for n in numbers:
            y = torch.from_numpy(parts[n]["train", t][1])
            out = stratified(y, round(val * len(y)), rng.keys([t], f"{name}/val"))[0]
            held.append(out)
            kept.append(torch.ones(len(y), dtype=torch.bool).index_fill(0, out, False).nonzero()[:, 0])
        whole = [torch.arange(len(parts[n]["test", t][1])) for n in numbers]
        tasks.append(Task(t, rows("train", t, kept), rows("train", t, held), rows("test", t, whole)))
    content = [torch.from_numpy(v) for n in numbers for key in sorted(parts[n]) for v in parts[n][key]]
    return Stream(
        name=name,
        version=VERSION,
        scenario=scenario,
        tasks=tuple(tasks),
        shape=tuple(x.shape[1:]),
        outputs=outputs,
        seeds=tuple(seeds),
        hash=digest("avalanche", VERSION, scenario, hashlib.sha256(data.tobytes()).hexdigest(), *content),
        masks=None if masks is None else masks.to(x.device),
        sizes=torch.stack([task.train.size for task in tasks], 1),
        classes=classes,
        info={"avalanche": version("avalanche-lib")},
    )


def _maker(benchmark: str, n_tasks: int | None, options: dict[str, Any]) -> Callable[..., Any]:
    with apart(0):
        from avalanche.benchmarks import classic
    known = [n for n in dir(classic) if n[0].isupper() and "dataset_root" in _arguments(getattr(classic, n))]
    if benchmark not in known:
        close = nearest(benchmark, known)
        hint = f"did you mean {close}?" if close else f"use one of {', '.join(known)}"
        raise ValueError(f"tasks.benchmark={benchmark}: unknown classification benchmark of Avalanche; {hint}")
    make: Callable[..., Any] = getattr(classic, benchmark)
    for key in options:
        if key not in _arguments(make) or key in OWN:
            free = [k for k in _arguments(make) if k not in OWN]
            hint = f"use {OWN[key]}" if key in OWN else f"its options are {', '.join(free)}"
            raise ValueError(f"tasks.options.{key}: not an option of {benchmark}; {hint}")
    if n_tasks is None and _arguments(make).get("n_experiences", 0) is inspect.Parameter.empty:
        raise ValueError(f"tasks.n_tasks=null: {benchmark} needs a number of tasks")
    if n_tasks is not None and "n_experiences" not in _arguments(make):
        raise ValueError(f"tasks.n_tasks={n_tasks}: {benchmark} has a fixed number of tasks; use null")
    return make


def _arguments(make: Callable[..., Any]) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(make).parameters.items()}


def _materialised(
    make: Callable[..., Any], benchmark: str, n_tasks: int | None, options: dict[str, Any], seed: int, root: Any
) -> Arrays:
    """Samples of one benchmark, each once, with their indices and labels in every experience of both streams."""
    base = home() / "data" if root is None else Path(root).expanduser()
    spec = SPECS.get(FILES.get(benchmark, ""))
    sources = idx_files(FILES[benchmark], base) if spec else [p for p in [base] if p.is_dir()]

    def build() -> Arrays:
        given: dict[str, Any] = dict(options)
        known = _arguments(make)
        given |= {"n_experiences": n_tasks} if "n_experiences" in known else {}
        given |= {"seed": seed} if "seed" in known else {}
        with ExitStack() as stack:
            folder = base
            if spec:
                folder = Path(stack.enter_context(TemporaryDirectory()))
                _laid_out(folder / spec.cls / "raw", sources, spec.idx)
            before = socket.getdefaulttimeout()
            stack.callback(socket.setdefaulttimeout, before)
            socket.setdefaulttimeout(10.0)
            stack.enter_context(apart(seed))
            try:
                return _collected(make(dataset_root=folder, **given))
            except (OSError, RuntimeError, ValueError, TypeError, AssertionError, ImportError) as error:
                raise DataError(
                    f"tasks.benchmark={benchmark}: Avalanche failed for tasks.n_tasks={n_tasks} and the data in {base} "
                    f"({first_line(error)}); put missing data there"
                ) from error

    said = sorted((k, repr(v)) for k, v in options.items())
    settings = [VERSION, benchmark, n_tasks, said, seed, version("avalanche-lib")]
    return cached(f"avalanche-{benchmark}", sources, settings, build)


def _laid_out(folder: Path, sources: Sequence[Path], names: Sequence[str]) -> None:
    """Unpack the files into the folder, as torchvision reads them."""
    import gzip

    folder.mkdir(parents=True)
    for file, name in zip(sources, names):
        content = file.read_bytes()
        (folder / name).write_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


def _collected(made: Any) -> Arrays:
    from torch.utils.data import DataLoader

    place: dict[bytes, int] = {}
    unique: list[NDArray[Any]] = []
    found: Arrays = {}
    for part in ("train", "test"):
        for t, experience in enumerate(getattr(made, f"{part}_stream")):
            dataset = experience.dataset.with_transforms("eval")
            index, labels = [], []
            for batch in DataLoader(dataset, batch_size=1024, collate_fn=dataset.collate_fn):
                for x, y in zip(np.ascontiguousarray(batch[0].float().numpy()), batch[1].tolist()):
                    key = hashlib.blake2b(x.data, digest_size=16).digest()
                    if key not in place:
                        place[key] = len(unique)
                        unique.append(x.copy())
                    index.append(place[key])
                    labels.append(y)
            found[f"{part}/{t}/index"], found[f"{part}/{t}/y"] = np.array(index, np.int64), np.array(labels, np.int64)
    return {"x": np.stack(unique), **found}


def _shared(
    made: dict[int, Arrays],
) -> tuple[NDArray[Any], dict[int, dict[tuple[str, int], tuple[NDArray[np.int64], NDArray[np.int64]]]]]:
    """Samples of all seeds' benchmarks, each once, with their indices and labels by (part, task)."""
    place: dict[bytes, int] = {}
    blocks: list[NDArray[Any]] = []
    parts: dict[int, dict[tuple[str, int], tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}
    for n, arrays in made.items():
        x = arrays["x"]
        keys = [hashlib.blake2b(row.data, digest_size=16).digest() for row in x] if len(made) > 1 else [b""] * len(x)
        new = [i for i, k in enumerate(keys) if len(made) == 1 or k not in place]
        start = sum(map(len, blocks))
        place.update({keys[i]: start + j for j, i in enumerate(new)})
        blocks.append(x[new] if len(new) < len(x) else x)
        moved = np.array([place[k] for k in keys], np.int64) if len(made) > 1 else np.arange(len(x))
        tasks = 1 + max(int(k.split("/")[1]) for k in arrays if k != "x")
        parts[n] = {
            (part, t): (moved[arrays[f"{part}/{t}/index"]], arrays[f"{part}/{t}/y"])
            for part in ("train", "test")
            for t in range(tasks)
            if f"{part}/{t}/y" in arrays
        }
        if any((part, t) not in parts[n] for part in ("train", "test") for t in range(tasks)):
            raise ValueError("tasks.benchmark: its training and test streams differ in length; use another")
    return np.concatenate(blocks), parts


def _kind(groups: Sequence[Sequence[int]]) -> str:
    if all(list(g) == list(groups[0]) for g in groups):
        return "same"
    return "disjoint" if sum(map(len, groups)) == len(set().union(*groups)) else "overlapping"


def _outputs(
    kind: str, groups: dict[int, list[list[int]]], numbers: Sequence[int], scenario: str, benchmark: str
) -> tuple[int, Callable[[int, int, Tensor], Tensor], Tensor | None]:
    """Number of outputs, the function (benchmark's number, task, labels) -> targets, and the masks [S, T, C]."""
    if kind == "overlapping" and scenario != "class":
        raise ValueError(f"scenario={scenario}: tasks of {benchmark} share some of their classes; use scenario=class")
    most = 1 + max(max(g) for task in groups.values() for g in task)
    if kind == "same":
        if scenario == "domain":
            return most, lambda n, t, y: y, None
        tasks = len(groups[numbers[0]])
        masks = torch.eye(tasks, dtype=torch.bool).repeat_interleave(most, 1)[None]
        return most * tasks, lambda n, t, y: y + t * most, masks
    if scenario == "domain":
        table = {n: {t: {c: i for i, c in enumerate(g)} for t, g in enumerate(tasks)} for n, tasks in groups.items()}
        width = max(len(g) for tasks in groups.values() for g in tasks)
        return width, lambda n, t, y: torch.tensor([table[n][t][c] for c in y.tolist()]), None
    masks = torch.zeros(len(numbers), len(groups[numbers[0]]), most, dtype=torch.bool)
    for s, n in enumerate(numbers):
        for t, g in enumerate(groups[n]):
            masks[s, t, g] = True
    return most, lambda n, t, y: y, masks
