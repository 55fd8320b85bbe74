"""What notebooks show: parsed as HTML, compared with the object, and safe with odd ones."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gradflow.analysis.notebook import depth_svg
from gradflow.analysis.verdict import judge_case
from gradflow.record import Trace
from gradflow.training.rundir import NetworkDir, RunDir
from tests.analysis.traces import make_case, make_trace

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tags and the text; every tag must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_a_trace_shows_its_numbers_and_a_dot_for_every_layer() -> None:
    trace = make_trace({"grad_norm": [1, 1, 1, 1, 1, 1, 1, 1, 100.0, 7]}, n_steps=20)
    page = Page(trace._repr_html_())
    assert "20, from 0 to 19" in page.cells
    assert str(len(trace.sites)) in page.cells
    assert "0.01×" in page.cells
    assert {"100", "1", "1 conv1", "layer2.1.conv2 9", "layer2.1.conv2: 100"} <= set(page.cells)
    assert page.tags.count("circle") == 9


@pytest.mark.parametrize("tables", [{}, {"grad_norm": np.nan}, {"grad_norm": 0.0}])
@pytest.mark.parametrize("n_steps", [0, 1, 3])
def test_odd_traces_are_shown_without_a_picture(tables: dict[str, float], n_steps: int) -> None:
    page = Page(make_trace(tables, n_steps=n_steps)._repr_html_())
    assert "svg" not in page.tags
    assert "svg" not in Page(Trace.concat([])._repr_html_()).tags


def test_a_gap_in_a_profile_breaks_its_line() -> None:
    html = depth_svg({"a": np.array([0.0, 1.0, np.nan, 1.0])}, "t", {"a": tuple("wxyz")})
    line = [value for name, value in Page(html).attributes if name == "d"][1]
    assert line is not None
    assert line.count("M") == 2
    assert "nan" not in html


def test_a_verdict_shows_outcome_links_and_escapes_the_names_of_networks() -> None:
    verdict = judge_case(make_case({"name": EVIL, "delta": -3.0}, {"delta": 0.0}, n_seeds=3))
    page = Page(verdict._repr_html_())
    assert "script" not in page.tags
    assert any(EVIL in cell for cell in page.cells)
    for line in str(verdict).splitlines():
        assert line[9:] in page.cells
    for link in verdict.links:
        assert page.cells[page.cells.index(f"{link.key}, {link.title}") + 1] == link.status
    assert page.tags.count("svg") == 2
    assert not any(name in ("src", "href") for name, _ in page.attributes)


def test_a_run_is_shown_whether_unfinished_damaged_or_with_an_evil_name(tmp_path: Path) -> None:
    assert "config.yaml cannot be read" in Page(RunDir(tmp_path)._repr_html_()).cells
    network = NetworkDir(tmp_path / "x-s0", EVIL, 0)
    page = Page(network._repr_html_())
    assert "script" not in page.tags
    assert "not finished, 0 epochs" in page.cells
    network.path.mkdir()
    (network.path / "evaluation.json").write_text("{", encoding="utf-8")
    (network.path / "history.json").write_text("{", encoding="utf-8")
    assert "finished, 0 epochs" in Page(network._repr_html_()).cells


def test_a_finished_network_shows_its_accuracies_and_its_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = NetworkDir(tmp_path, "plain", 0)
    shares = {"best": 0.875, "last": 0.5}
    evaluation = {which: {"test": {"accuracy": share}} for which, share in shares.items()}
    monkeypatch.setattr(NetworkDir, "evaluation", lambda self: evaluation)
    monkeypatch.setattr(NetworkDir, "history", lambda self: [{}, {}])
    monkeypatch.setattr(NetworkDir, "is_finished", True)
    trace = make_trace({"grad_norm": [1, 1, 1, 1, 1, 1, 1, 1, 100.0, 7]}, n_steps=2)
    trace.save_part(tmp_path / "records")
    page = Page(network._repr_html_())
    assert {"87.5%", "50.0%", "0.01×", "finished, 2 epochs"} <= set(page.cells)
    assert page.tags.count("circle") == 9
