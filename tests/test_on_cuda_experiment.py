"""experiments/on_cuda.py: a part that fails or hangs is told, and the next one runs."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    import on_cuda

    return on_cuda


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
def test_a_part_ends_by_itself_or_is_ended(
    program: str,
    limit: float,
    state: str,
    facts: dict[str, int] | None,
    on_cuda: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_cuda, "GRACE", 0.3)
    part = on_cuda.Part("a part", [sys.executable, "-c", program], limit, on_cuda.last_json)
    outcome = on_cuda.run(part, limit, tmp_path)
    assert (outcome.name, outcome.state) == ("a part", state)
    assert outcome.seconds < 20
    assert outcome.facts == facts if facts is not None else "error" in outcome.facts


def test_a_wrong_sum_shows(on_cuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both ways the sums are right to six digits, and a fault of a thousandth is seen."""
    from gradflow.record import sums

    def errors() -> dict[str, float]:
        found: dict[str, float] = on_cuda.compare(torch.device("cpu"), quick=True)
        return found

    assert max(errors().values()) < 1e-6
    right = sums.gradient_sums
    monkeypatch.setattr(sums, "gradient_sums", lambda grad: right(grad) * 1.001)
    assert {name: error for name, error in errors().items() if error > 1e-6} == {
        "gradient square": pytest.approx(1e-3, rel=1e-3)
    }


def test_it_fits_into_eight_minutes(on_cuda: ModuleType, tmp_path: Path) -> None:
    options = argparse.Namespace(quick=False, photographs=tmp_path, out=tmp_path)
    parts = list(on_cuda.all_parts(options))
    benches = [part for part in parts if part.name.startswith("bench")]
    others = [part for part in parts if part not in benches]
    before = sum(part.limit for part in others if not part.counts_when_stopped)
    assert before < on_cuda.BENCHES_END
    trainings = sum(part.limit + on_cuda.GRACE for part in others if part.counts_when_stopped)
    assert on_cuda.BENCHES_END + on_cuda.GRACE + trainings <= 8 * 60
    assert all(part.end == on_cuda.BENCHES_END for part in benches)


@pytest.mark.slow
def test_it_runs_from_end_to_end_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, EXPERIMENTS / "on_cuda.py", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "on-cuda.json").read_text())
    states = {part["name"]: part["state"] for part in found["parts"]}
    assert set(states.values()) == {"done"}, done.stdout
    assert len(states) == 7
    trained = {part["name"]: part["facts"] for part in found["parts"] if "train" in part["name"]}
    assert all(facts["epochs"] == 1 for facts in trained.values())
    assert all(facts["recorded_steps"] > 0 for facts in trained.values())
    for name in ("sums by PyTorch", "bench 8 px, 4, fp32", "train plain_34"):
        assert name in done.stdout
