"""Avalanche's benchmarks as streams, and our streams as its benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config import catalogue
from harness.jobs.setting import build
from harness.toolbox.avalanche_bridge import apart, benchmark, rows
from harness.types import Stream
from tasks import avalanche as module
from tasks.avalanche import avalanche
from tasks.datasets import DataError, load, named
from tests.tasks.test_datasets import arrays, write


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny MNIST and Fashion-MNIST, as old files; no network, a cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "_DEBIAN", tmp_path / "debian")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("MNIST", "FashionMNIST"):
        write(tmp_path / "data" / name / "raw", arrays(120, 40), packed=name == "MNIST")
    for file in (tmp_path / "data").rglob("*ubyte*"):
        os.utime(file, (1_600_000_000, 1_600_000_000))
    return tmp_path / "data"


def made(root: Path, name: str = "SplitFMNIST", **how: Any) -> Stream:
    settings: dict[str, Any] = {"seeds": [0, 3], "n_tasks": 5, "fixed": False, "val": 0.25} | how
    return avalanche(benchmark=name, root=root, **settings)


def theirs(root: Path, seed: int, name: str = "SplitFMNIST", n: int = 5) -> Any:
    from avalanche.benchmarks import classic

    with apart(seed):
        if name == "PermutedMNIST":
            for file in (root / "MNIST" / "raw").glob("*.gz"):
                import gzip

                file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        return getattr(classic, name)(n, seed=seed, dataset_root=root)


def pairs(experience: Any) -> list[tuple[bytes, int]]:
    data = experience.dataset.with_transforms("eval")
    return sorted((np.asarray(data[i][0]).tobytes(), int(data[i][1])) for i in range(len(data)))


def ours(source: Any, s: int) -> list[tuple[bytes, int]]:
    x, y = rows(source, s)
    return sorted((v.numpy().tobytes(), int(c)) for v, c in zip(x, y))


@pytest.mark.parametrize("name", ["SplitFMNIST", "PermutedMNIST"])
def test_every_task_holds_the_samples_of_its_experience_and_loses_none(root: Path, name: str) -> None:
    how = {"n_tasks": 2, "scenario": "domain"} if name == "PermutedMNIST" else {}
    stream = made(root, name, **how)
    for s, seed in enumerate(stream.seeds):
        there = theirs(root, seed, name, len(stream.tasks))
        for task, train, test in zip(stream.tasks, there.train_stream, there.test_stream, strict=True):
            assert sorted(ours(task.train, s) + ours(task.val, s)) == pairs(train)
            assert ours(task.test, s) == pairs(test)
            assert not {x for x, _ in ours(task.train, s)} & {x for x, _ in ours(task.val, s)}
            counts = torch.bincount(rows(task.val, s)[1])
            assert set(counts[counts > 0].tolist()) == {3}, "a quarter of 12 of each class"


def test_scenarios_give_the_outputs_that_they_mean(root: Path) -> None:
    by_class, by_task, domain = (made(root, scenario=x) for x in ("class", "task", "domain"))
    assert (by_class.outputs, by_task.outputs, domain.outputs) == (10, 10, 2)
    assert by_class.masks is not None and domain.masks is None
    for s in range(2):
        assert by_class.masks[s].sum(0).tolist() == [1] * 10 and by_class.masks[s].sum(1).tolist() == [2] * 5
        for t in range(5):
            labels = rows(by_class.tasks[t].train, s)[1].unique()
            assert by_class.masks[s, t].nonzero()[:, 0].tolist() == labels.tolist()
            assert rows(domain.tasks[t].test, s)[1].unique().tolist() == [0, 1]
            assert set(by_task.tasks[t].train.take(torch.zeros(2, 1, dtype=torch.int64))[2].flatten().tolist()) == {t}
    permuted = {x: made(root, "PermutedMNIST", n_tasks=2, scenario=x) for x in ("class", "task", "domain")}
    assert [p.outputs for p in permuted.values()] == [20, 20, 10]
    assert rows(permuted["class"].tasks[1].train, 0)[1].unique().tolist() == list(range(10, 20))


def test_a_seed_sees_the_same_alone_and_all_the_same_under_fixed(root: Path) -> None:
    both, alone, fixed = made(root), made(root, seeds=[3]), made(root, fixed=True)
    for task, one, same in zip(both.tasks, alone.tasks, fixed.tasks):
        assert int(task.train.size[1]) == one.rows
        for part in ("train", "val", "test"):
            x, y = rows(getattr(task, part), 1), rows(getattr(one, part), 0)
            assert torch.equal(x[0], y[0]) and torch.equal(x[1], y[1])
            u, v = (rows(getattr(same, part), s) for s in range(2))
            assert torch.equal(u[0], v[0]) and torch.equal(u[1], v[1])
    assert len({both.hash, alone.hash, fixed.hash}) == 3 and both.hash == made(root).hash
    assert both.tasks[0].train.data.shape[0] == 160  # type: ignore[attr-defined]


def test_the_second_time_it_comes_from_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(root)

    def refuse(_: Any) -> None:
        raise KeyError("made anew")

    monkeypatch.setattr(module, "_collected", refuse)
    assert made(root).hash == first.hash
    with pytest.raises(KeyError, match="made anew"):
        made(root, options={"shuffle": False})


def test_its_own_arguments_are_handed_over(root: Path) -> None:
    stream = made(root, options={"fixed_class_order": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]})
    assert rows(stream.tasks[0].train, 0)[1].unique().tolist() == [8, 9]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            {"name": "SplitFMINST"},
            r"tasks\.benchmark=SplitFMINST: unknown classification .*; did you mean SplitFMNIST\?",
        ),
        (
            {"options": {"sed": 1}},
            r"tasks\.options\.sed: not an option of SplitFMNIST; its options are first",
        ),
        ({"options": {"seed": 1}}, r"tasks\.options\.seed: .*; use seeds"),
        ({"n_tasks": None}, r"tasks\.n_tasks=null: SplitFMNIST needs a number"),
        ({"name": "CORe50"}, r"tasks\.n_tasks=5: CORe50 has a fixed number of tasks; use null"),
        ({"val": 1.0}, r"tasks\.val=1\.0: "),
        ({"n_tasks": 3}, r"tasks\.benchmark=SplitFMNIST: Avalanche failed for tasks\.n_tasks=3"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line(root: Path, how: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        made(root, **how)
    assert "\n" not in str(caught.value)


def test_without_network_a_benchmark_whose_data_are_missing_says_so(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset=fashion_mnist: .* not in .*apt-get install"):
        made(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"=SplitCIFAR10: Avalanche failed for .*put missing data there") as caught:
        made(root, "SplitCIFAR10")
    assert "\n" not in str(caught.value)


def test_classes_that_return_in_part_have_a_meaning_by_class_alone() -> None:
    groups = {0: [[0, 1], [1, 2]]}
    assert module._kind(groups[0]) == "overlapping"
    assert module._outputs("overlapping", groups, [0], "class", "x")[0] == 3
    with pytest.raises(ValueError, match=r"scenario=task: tasks of x share some of their classes; use scenario=class"):
        module._outputs("overlapping", groups, [0], "task", "x")


def streams() -> list[str]:
    return [name for name in catalogue.options("tasks") if name != "avalanche"]


@pytest.mark.parametrize("name", streams())
def test_every_stream_of_classes_becomes_a_benchmark_and_the_others_are_refused(name: str) -> None:
    """Each task an experience with the rows of one seed; regression has no classes."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base="1.3", config_dir=str(catalogue.CONF)):
        cfg: Any = OmegaConf.to_container(compose("config", [f"tasks={name}"]), resolve=True)["tasks"]  # type: ignore[index, call-overload]
    if isinstance(cfg.get("n_tasks"), int):
        cfg["n_tasks"] = min(cfg["n_tasks"], 10)
    if "rows" in cfg:
        cfg["rows"] = 50
    if "then" in cfg:
        cfg["then"] = ["digits"]  # the default needs a download
    given: dict[str, Any] = {"seeds": [0, 1], "classes": "seen", "pin": None, "device": "cpu"}
    try:
        stream = build(cfg, dataset=load("digits"), scenario="domain", **given)
    except ValueError:  # some have a meaning by class alone
        stream = build(cfg, dataset=load("digits"), scenario="class", **given)
    if stream.loss == "mse":
        with pytest.raises(ValueError, match="support classification only"):
            benchmark(stream, 1)
        return
    with apart(0):
        there = benchmark(stream, 1)
    for task, experience in zip(stream.tasks, there.train_stream, strict=True):
        assert len(experience.dataset) == int(task.train.size[1])
        x, y = rows(task.train, 1)
        assert torch.equal(experience.dataset[7][0], x[7]) and int(experience.dataset[7][1]) == int(y[7])
