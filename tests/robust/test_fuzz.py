"""Random damage: every command ends with a documented code, and no traceback. And long runs."""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from gradflow.cli import main
from gradflow.record import Recorder, Trace
from gradflow.training.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # hundreds of examples

DOCUMENTED = {0, 1, 2, 3, 130}
LONG = settings(max_examples=int(os.environ.get("FUZZ", "500")), deadline=None, database=None,
                suppress_health_check=list(HealthCheck))  # fmt: skip
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=4),
    max_leaves=8,
)  # fmt: skip
COMMANDS = ("diagnose", "compare", "report", "saliency", "train")


@st.composite
def damages(draw: st.DrawFn) -> Callable[[Path], None]:
    """What happens to one file: cut, bytes changed, other bytes, gone, or a value replaced."""
    kind = draw(st.sampled_from(["cut", "flip", "bytes", "gone", "value", "value", "value"]))
    share, content = draw(st.floats(0, 1)), draw(st.binary(max_size=64))
    picks, value = draw(st.lists(st.integers(0, 10**6), min_size=8, max_size=8)), draw(JSON)

    def damage(path: Path) -> None:
        before = path.read_bytes()
        at = int(share * len(before))
        if kind == "gone":
            path.unlink()
        elif kind == "cut":
            path.write_bytes(before[:at])
        elif kind == "flip":
            path.write_bytes(before[:at] + content + before[at + len(content) :])
        elif kind == "bytes":
            path.write_bytes(content)
        elif path.suffix == ".json":
            path.write_text(json.dumps(replaced(json.loads(before), picks, value)), "utf-8")
        elif path.suffix == ".yaml":
            path.write_text(json.dumps(replaced(yaml.safe_load(before), picks, value)), "utf-8")

    return damage


def replaced(content: Any, picks: list[int], value: Any) -> Any:
    """`content` with one value in it, which the picks lead to, replaced or left out."""
    if not picks or not content or not isinstance(content, dict | list):
        return value
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[picks[0] % len(keys)]
    if picks[0] % 7 == 0:
        del content[key]
    else:
        content[key] = replaced(content[key], picks[1:], value)
    return content


@LONG
@given(number=st.integers(0, 10**6), damage=damages(), command=st.sampled_from(COMMANDS))
def test_any_damage_to_any_file_ends_with_a_documented_code(
    trained: Path, number: int, damage: Callable[[Path], None], command: str
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        if number % 10:  # to draw takes three quarters of the time
            patch.setattr("gradflow.present.report.story.charts", lambda report: [])
            patch.setattr(Figure, "savefig", lambda figure, file, **how: None)
        run = Path(shutil.copytree(trained, Path(home) / "run"))
        files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".png")
        damage(files[number % len(files)])
        picture = Path(home) / "x.png"
        Image.new("RGB", (8, 8), "red").save(picture)
        arguments = {
            "report": [run, "--static"],
            "saliency": [picture, "--run", run, "--trust", "0", "-o", Path(home) / "y.png"],
            "train": ["--resume", run, "--json"],
        }.get(command, [run])
        assert main([command, *map(str, arguments)]) in DOCUMENTED


FIELDS = st.sampled_from(list(TrainConfig.__dataclass_fields__)) | st.text(max_size=10)


@LONG
@given(fields=st.dictionaries(FIELDS, JSON, max_size=6) | JSON, raw=st.none() | st.binary())
def test_any_configuration_ends_with_a_documented_code(fields: Any, raw: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "mine.yaml"
        text = yaml.safe_dump(fields, allow_unicode=True).encode("utf-8", "surrogatepass")
        file.write_bytes(text if raw is None else raw)
        assert main(["train", "--config", str(file), "--data", f"{home}/none"]) == 2


def memory() -> int:
    """The most that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_ten_thousand_recorded_steps_take_no_more_memory_than_two_thousand(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = torch.randn(4, 8)
    with Recorder(model, optimizer, folder=tmp_path) as recorder:
        for step in range(10_000):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            if step == 2000:
                before = memory()
        assert memory() - before < 8 * 2**20
        recorder.flush()
    assert len(Trace.load(tmp_path)) == 10_000


def test_a_hundred_thousand_steps_are_written_and_read(tmp_path: Path) -> None:
    sites = tuple(f"layer{i}" for i in range(5))
    random = np.random.default_rng(0)
    for start in range(0, 100_000, 64):
        steps = np.arange(start, min(start + 64, 100_000))
        values = {"output_rms": random.random((len(steps), 5)).astype(np.float32).astype(float)}
        part = Trace(steps, sites, ("conv",) * 5, np.ones(5, np.int64), values)
        part.save_part(tmp_path / "records")
    found = Trace.load(tmp_path)
    assert found.steps.tolist() == list(range(100_000))
    np.testing.assert_array_equal(found.values["output_rms"][-len(steps) :], values["output_rms"])
