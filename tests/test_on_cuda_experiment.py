"""experiments/on_cuda.py: a part that fails or hangs is told, and the next one runs."""

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
