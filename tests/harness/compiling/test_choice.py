"""Whether compiling pays: measured once for a machine, kept, and decided by the planned steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.compiling import choice
from harness.compiling.choice import FEW, Costs, known, measured, pays
from harness.compiling.step import CompiledStep
from harness.models.mlp import MLP

CPU = torch.device("cpu")
CHEAP = Costs(eager=5e-4, compiled=1e-4, compiling=10.0)
NET = MLP((4,), 2, (3, 3))


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    asked: list[torch.device] = []

    def fake(device: torch.device) -> Costs:
        asked.append(device)
        return CHEAP

    monkeypatch.setattr(choice, "measured", fake)
    return asked


def test_few_steps_are_not_even_measured(measures: list[torch.device], tmp_path: Path) -> None:
    assert pays(FEW - 1, NET, CPU, tmp_path / "c.json") == (False, "")
    assert not measures and not list(tmp_path.iterdir())


def test_costs_are_measured_once(
    measures: list[torch.device], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "below" / "c.json"
    assert pays(49_999, NET, CPU, file) == (False, "")
    assert pays(50_001, NET, CPU, file) == (True, "")
    assert pays(50_001, MLP((4,), 2, (3, 3, 3)), CPU, file) == (False, "")  # eight tensors take longer to compile
    assert len(measures) == 1 and capsys.readouterr().out.count("\n") == 1
    assert [p.name for p in file.parent.iterdir()] == ["c.json"]


def test_other_threads_are_measured_beside_it(measures: list[torch.device], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            known(CPU, tmp_path / "c.json")
    finally:
        torch.set_num_threads(before)
    assert len(measures) == 2 and len(json.loads((tmp_path / "c.json").read_text())) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}'])
def test_a_file_that_cannot_be_used_is_replaced(text: str, measures: list[torch.device], tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    assert known(CPU, file) == known(CPU, file) == CHEAP
    assert len(measures) == 1


def test_without_a_compiler_nothing_pays_and_the_reason_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choice, "measured", lambda device: Costs(1e-3, 1e-3, 0.0, "no compiler"))
    assert pays(10**9, NET, CPU, tmp_path / "c.json") == (False, "no compiler")


def test_the_measurement_compiles_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[CompiledStep] = []

    def traced(learner: Any, warn: Any) -> CompiledStep:
        made.append(CompiledStep(learner, warn, lambda graph, inputs: graph))
        return made[-1]

    monkeypatch.setattr(choice, "CompiledStep", traced)
    monkeypatch.setattr(choice, "STEPS", 20)
    costs = measured(CPU)
    assert made[0].graphs == 1 and not costs.failed
    assert 0 < costs.eager < 0.1 and 0 < costs.compiled < 0.1 and costs.compiling == made[0].seconds > 0
