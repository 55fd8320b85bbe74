"""A finished run, its report and the page, which each process makes once for its tests."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradflow.cli import main
from gradflow.present.report import page
from gradflow.present.report.content import Report, collect
from gradflow.present.report.story import charts, story


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of two seeds on two classes of the digits, one of them called a script.

    Never changed: see `without_records`.
    """
    from sklearn.datasets import load_digits

    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    digits, names = load_digits(), ("zero", "<script>alert(1)</script>")
    rows = ["filename,label"]
    for i in [i for i in range(400) if digits.target[i] < 2][:60]:
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(data / f"{i}.png")
        rows.append(f"{i}.png,{names[digits.target[i]]}")
    (data / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    options = f"--data {data}/labels.csv --out {out} --arch plain_18,resnet_18 --seeds 2 --epochs 2"
    options += " --image-size 8 --width 0.125 --batch-size 20 --wandb off --no-rivals --twins exact"
    command = ["train", *options.split(), "--log-grads", "--histograms", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradflow.present.figures.save_figures", lambda run: {})
        patch.setattr("sys.argv", ["/somewhere/bin/gradflow", *command])
        assert main(command) == 0
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="session")
def report(run: Path) -> Report:
    return collect([run])


@pytest.fixture(scope="session")
def text(report: Report) -> str:
    """The page, with figures to hover over."""
    return page.html(story(report, charts(report)))


@pytest.fixture
def without_records(run: Path, tmp_path: Path) -> Path:
    """The same run as if nothing had been recorded."""
    without = shutil.ignore_patterns("records", "*.pt")
    return Path(shutil.copytree(run, tmp_path / "run", ignore=without))
