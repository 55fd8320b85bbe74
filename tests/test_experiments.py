"""The experiments that time gradflow, and that try it on a GPU, do what they say."""

import sys
from pathlib import Path

import on_cuda
import overhead
import pytest
import torch
from torch import nn

from gradflow.record import Recorder, sums


@pytest.mark.parametrize(
    ("program", "limit", "state", "facts"),
    [
        ("print('{\"norm\": 1}')", 20, "done", {"norm": 1}),
        ("raise SystemExit('no GPU')", 20, "failed with 1: no GPU", None),
        ("print('[')", 20, "done", None),
        ("import time; print('{\"norm\": 2}', flush=True); time.sleep(60)", 0.4,
         "stopped after 0 s", {"norm": 2}),
        ("import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)", 0.4,
         "stopped after 0 s", None),
        ("print('{}')", 0, "no time left", {}),
    ],
    ids=["done", "fails", "prints nonsense", "is late", "does not listen", "has no time"],
)  # fmt: skip
def test_a_part_on_the_gpu_ends_by_itself_or_is_ended_and_the_next_one_runs(
    program: str,
    limit: float,
    state: str,
    facts: dict[str, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_cuda, "GRACE", 0.3)
    part = on_cuda.Part("a part", [sys.executable, "-c", program], limit, on_cuda.last_json)
    outcome = on_cuda.run(part, limit, tmp_path)
    assert (outcome.name, outcome.state) == ("a part", state)
    assert outcome.seconds < 20
    assert outcome.facts == facts if facts is not None else "error" in outcome.facts


def test_a_wrong_sum_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By both ways the sums are right to six digits, and a fault of a thousandth is seen."""

    def errors() -> dict[str, float]:
        found: dict[str, float] = on_cuda.compare(torch.device("cpu"), quick=True)
        return found

    assert max(errors().values()) < 1e-6
    right = sums.gradient_sums
    monkeypatch.setattr(sums, "gradient_sums", lambda grad: right(grad) * 1.001)
    assert {name: error for name, error in errors().items() if error > 1e-6} == {
        "gradient square": pytest.approx(1e-3, rel=1e-3)
    }


def network() -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 6 * 6, 10))


def test_the_tutorial_code_measures_what_gradflow_does() -> None:
    log: list[dict[str, float]] = []
    training = overhead.Setup("small", network, image_size=8, batch_size=5).training()
    with (
        Recorder(training.model, training.optimizer) as recorder,
        overhead.with_tutorial_code(training, log) as loop,
    ):
        for _ in range(2):
            loop.step()
    assert len(log) == 2
    for measure, key in {
        "grad_norm": "grad_norm",
        "output_grad_norm": "grad_norm",
        "output_mean": "mean",
        "output_rms": "rms",
        "output_zero_fraction": "zero_share",
    }.items():
        table = recorder.trace.select(measure)
        assert len(table.sites) >= 4, measure
        for row, values in zip(log, table.values, strict=True):
            expected = [row[f"{site}.{key}"] for site in table.sites]
            assert values == pytest.approx(expected, rel=1e-4, abs=1e-7), measure
