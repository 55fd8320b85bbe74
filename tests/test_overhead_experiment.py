"""experiments/overhead.py: its tables, and that its tutorial code measures what gradflow does."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from gradflow import Recorder

SCRIPT = Path(__file__).parents[1] / "experiments" / "overhead.py"


@pytest.fixture(scope="module")
def overhead() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("overhead", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["overhead"] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["overhead"]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 10),
    )


def setup_of(overhead: ModuleType) -> Any:
    return overhead.Setup("small", network, image_size=8, batch_size=5)


@contextmanager
def with_a_broken_tool(training: Any) -> Iterator[Any]:
    raise OSError("no room | left\nfor the second line")
    yield


def test_every_way_has_a_row_also_one_that_raises_and_one_that_is_not_installed(
    overhead: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = overhead.Way
    monkeypatch.setitem(overhead.WAYS, "broken", way("broken", "", with_a_broken_tool))
    monkeypatch.setitem(overhead.WAYS, "absent", way("absent", "", overhead.bare, "no-such-tool"))
    names = ["bare", "gradflow", "gradflow-every-16", "tutorial", "broken", "absent"]
    document = overhead.Document.open(tmp_path)
    overhead.run_ways(document, names, setup_of(overhead), 2, 1)

    part = json.loads((tmp_path / "overhead.json").read_text(encoding="utf-8"))["ways"]
    assert set(part["environment"]) >= {"date", "processor", "cores", "threads", "torch"}
    rows = part["rows"]
    assert list(rows) == names
    for name in names[:4]:
        for key in ("bare_seconds", "median_step", "all_steps"):
            assert len(rows[name][key]) == 2, "one per round"
            assert min(rows[name][key]) > 0
        assert "error" not in rows[name]
    assert rows["gradflow-every-16"]["steps"] == 16, "or it might record none of its steps"
    assert rows["broken"]["error"] == "OSError: no room | left"
    assert rows["absent"]["error"] == "not installed"

    (view,) = document.views("ways")
    assert view.terminal().row_count == len(names)
    table = (tmp_path / "overhead.md").read_text(encoding="utf-8").split("\n\n")[1].splitlines()
    assert len(table) == 2 + len(names)
    assert {line.replace("\\|", "").count("|") for line in table} == {len(view.columns) + 1}


def test_a_later_run_keeps_the_rows_that_were_made_in_the_same_way(
    overhead: ModuleType, tmp_path: Path
) -> None:
    setup = setup_of(overhead)

    def rows_after(names: list[str], n_rounds: int) -> list[str]:
        document = overhead.Document.open(tmp_path)
        overhead.run_ways(document, names, setup, n_rounds, 1)
        return list(overhead.Document.open(tmp_path).parts["ways"]["rows"])

    assert rows_after(["tutorial"], 1) == ["tutorial"]
    assert rows_after(["bare"], 1) == ["bare", "tutorial"]
    assert rows_after(["bare"], 2) == ["bare"]


def test_the_tutorial_code_measures_what_gradflow_does(overhead: ModuleType) -> None:
    log: list[dict[str, float]] = []
    training = setup_of(overhead).training()
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


def test_a_chain_has_as_many_sites_as_its_layers_give(overhead: ModuleType) -> None:
    row = overhead.time_chain(3, n_rounds=1, n_steps=1)
    n_outputs, n_parameters = 1 + 2 * 3 + 1, 2 + 2 * 3 + 2  # convolution, two units, linear
    assert row["n_sites"] == n_outputs + n_parameters
    assert len(row["extra_of_all_steps"]) == 1
