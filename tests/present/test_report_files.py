"""What `gradflow report` writes, under which names, and what it makes of runs that lack a part."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from gradflow.present import plots
from gradflow.present.markdown import markdown
from gradflow.present.report import page, words
from gradflow.present.report.content import Report, collect
from gradflow.present.report.numbers import to_json
from gradflow.present.report.story import charts, story
from gradflow.training.rundir import RunDir
from tests.conftest import Command


@pytest.fixture
def few_charts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command draws two figures, each in four files, instead of all; returns their keys."""
    keys = ["gradient-profiles", "loss-by-epoch"]
    monkeypatch.setattr(
        "gradflow.present.report.story.charts",
        lambda report: [one for one in charts(report) if one.key in keys],
    )
    return keys


def test_the_command_writes_page_markdown_json_and_every_figure(
    run: Path, tmp_path: Path, few_charts: list[str], command: Command
) -> None:
    path = tmp_path / "deep" / "r.html"
    printed = command("report", run, "-o", path, "--static").out
    assert "Undetermined: 2 seeds of plain_18 can be described" in printed
    assert "r.html" in printed
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["verdict"]["outcome"] == "undetermined"
    pictures = {file.name for file in (path.parent / "r-figures").iterdir()}
    linked = re.findall(r"\(r-figures/(.+?)\)", path.with_suffix(".md").read_text("utf-8"))
    assert {*linked} <= pictures
    keys = {name.removesuffix(".png") for name in linked}
    assert keys == set(few_charts)
    assert pictures == {
        f"{key}{ground}{kind}"
        for key in keys
        for ground in ("", "-dark")
        for kind in (".svg", ".png")
    }
    dark = (path.parent / "r-figures" / "loss-by-epoch-dark.svg").read_text("utf-8")
    light = (path.parent / "r-figures" / "loss-by-epoch.svg").read_text("utf-8")
    paper = plots.GROUND["dark"][0]
    assert (paper in dark, paper in light) == (True, False)
    page_text = path.read_text("utf-8")
    assert page_text.count('(prefers-color-scheme: dark)"><img') == len(keys)


@pytest.mark.parametrize("name", ["r.json", "r.md", "r.v2"])
def test_a_page_that_is_not_called_one_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, command: Command
) -> None:
    said = command("report", tmp_path / "no run", "-o", tmp_path / name)
    assert said.code == 2
    assert f"the name of a page, which ends in .html, but got {name}." in " ".join(said.err.split())
    assert not list(tmp_path.iterdir())


def test_a_page_without_a_suffix_gets_one() -> None:
    assert page.page_path([], Path("a/page")) == Path("a/page.html")
    assert page.page_path([], Path("page.HTM")) == Path("page.HTM")


def test_a_space_in_the_name_of_a_page_breaks_no_link(report: Report) -> None:
    (first, *_) = charts(report)
    written = markdown(story(report, [first]), "my (first) page-figures")
    (link,) = re.findall(r"!\[.*\]\((\S+)\)", written)
    assert unquote(link) == f"my (first) page-figures/{first.key}.png"
    assert not set(" ()") & set(link)


def test_a_saved_figure_says_its_finding_within_its_width_and_the_page_says_it_once(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, plots.Figure] = {}
    monkeypatch.setattr(plots.style, "save", lambda figure, path: drawn.update({path.name: figure}))
    found = charts(report)
    long = replace(found[0], title=f"$x_1$ {'takes bakso for rendang ' * 8}")
    for chart in (long, *found[1:]):
        plots.save_in_both_themes(chart.draw_with_title, tmp_path, chart.key)
        assert not chart.draw().get_suptitle()
        figure = drawn[f"{chart.key}.png"]
        assert " ".join(figure.get_suptitle().split()) == chart.title.strip()
        figure.draw_without_rendering()
        (title,) = (one for one in figure.texts if one.get_text() == figure.get_suptitle())
        box = title.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert title.get_fontsize() == 10
        assert all(box.y0 > ax.get_window_extent().y1 for ax in figure.axes)


@pytest.mark.parametrize("own_first", [False, True])
def test_a_trained_network_beside_records_of_ones_own_loop_is_drawn_alone(
    run: Path, tmp_path: Path, own_first: bool
) -> None:
    alone = tmp_path / "mine-s0"
    shutil.copytree(run / "plain_18-s0" / "records", alone / "records")
    names = ("mine", "plain_18") if own_first else ("plain_18", "mine")
    mixed = collect([run, alone], accused=names[0], reference=names[1])
    found = charts(mixed)
    keys = {one.key for one in found}
    assert {"loss-by-epoch", "confusion-plain_18", "calibration", "relative-update"} <= keys
    assert not {"class-differences", "confusion-mine"} & keys
    assert all(isinstance(one.draw(), plots.Figure) for one in found if one.is_drawn)
    text = page.html(story(mixed, []), static=True)
    assert "The records of mine come from a loop of your own" in text
    assert words.setting(mixed).startswith("plain_18, trained for 2 epochs")
    assert {row["network"] for row in to_json(mixed)["accuracy"]} == {"plain_18"}


@pytest.mark.usefixtures("few_charts")
def test_a_run_without_records_is_a_report_without_a_verdict(
    without_records: Path, command: Command
) -> None:
    said = command("report", without_records, "--static").out
    assert "How well did plain_18 and resnet_18 learn? (2 seeds)" in said
    text = (without_records / "report.html").read_text(encoding="utf-8")
    content = json.loads((without_records / "report.json").read_text(encoding="utf-8"))
    assert content["verdict"] is None
    for network in RunDir.open(without_records).networks():
        assert f"{network.evaluation()['last']['test']['accuracy']:.3f} (" in text
    assert "Train again with --log-grads" in text
    assert 'id="loss-by-epoch"' in text.replace("figure-", "")
    assert "Why, and the rivals" not in text


def test_networks_without_a_seed_in_common_are_not_compared(without_records: Path) -> None:
    shutil.rmtree(without_records / "plain_18-s0")
    shutil.rmtree(without_records / "resnet_18-s1")
    with pytest.raises(ValueError, match="with a seed in common"):
        collect([without_records])


def test_an_unfinished_run_says_how_to_go_on(without_records: Path, command: Command) -> None:
    for path in without_records.glob("*/evaluation.json"):
        path.unlink()
    said = command("report", without_records)
    assert (said.code, f"gradflow train --resume {without_records}" in said.err) == (2, True)


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Path:
    """The same run as if its gradients had been scaled, and one check had failed."""
    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt")))
    config = copy / "config.yaml"
    before, after = "intervene: ''", "intervene: gradient_scale(layers=1-3, factor=0.5)"
    text = config.read_text("utf-8")
    assert before in text
    config.write_text(text.replace(before, after), "utf-8")
    for network in RunDir.open(copy).networks():
        passed = network.name != "plain_18-s1"
        network.save_interventions([{"name": "gradient_scale", "passed": passed, "checks": []}])
    return copy


@pytest.mark.usefixtures("few_charts")
def test_a_run_that_was_changed_on_purpose_says_so_in_letter_and_report(
    changed: Path, command: Command
) -> None:
    said = (
        "These trainings were changed on purpose: gradient_scale(layers=1-3, factor=0.5). The "
        "check FAILED of gradient_scale in plain_18-s1."
    )
    for asked in (["diagnose"], ["report", "--static"]):
        assert said in " ".join(command(*asked, changed).out.split())
    for file in ("report.html", "report.md"):
        assert said in (changed / file).read_text("utf-8")
    content = json.loads((changed / "report.json").read_text("utf-8"))
    assert content["changed"] == content["verdict"]["changed"] == said
