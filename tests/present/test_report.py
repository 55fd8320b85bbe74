"""The report: its numbers are the verdict's and the evaluation's, and no name in it can do harm."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow.analysis.profile import weight_table
from gradflow.cli import main
from gradflow.present.report import interactive, page, words
from gradflow.present.report.charts import charts
from gradflow.present.report.content import Report, collect
from gradflow.present.report.depth import angles
from gradflow.present.report.markdown import markdown, plain
from gradflow.record.trace import Table, Trace
from gradflow.training.rundir import RunDir

HARM = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of two seeds on two classes of the digits, one of them called a script."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = tmp_path_factory.mktemp("report") / "data"
    digits = load_digits()
    names = {0: "zero", 1: "one"}
    rows = ["filename,label"]
    data.mkdir()
    chosen = [i for i in range(400) if digits.target[i] in names][:60]
    for i in chosen:
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(data / f"{i}.png")
        rows.append(f"{i}.png,{HARM if digits.target[i] else 'zero'}")
    (data / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    out = data.parent / "runs"
    options = ["--data", str(data / "labels.csv"), "--arch", "plain_18,resnet_18", "--seeds", "2"]
    options += ["--epochs", "2", "--image-size", "8", "--batch-size", "20", "--log-grads"]
    options += ["--no-rivals", "--wandb", "off", "--out", str(out), "--twins", "exact"]
    assert main(["train", *options, "--json"]) == 0
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return collect([run])


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return page.html(report, charts(report))


def test_the_numbers_are_those_of_the_evaluation(run: Path, report: Report, text: str) -> None:
    for network in RunDir.open(run).networks():
        test = network.evaluation()["last"]["test"]
        low, high = test["accuracy_interval"]
        cells = f"{test['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        assert cells in text
        assert cells in markdown(report, charts(report), "figures")


def test_the_first_screen_holds_question_answer_and_how_sure(report: Report, text: str) -> None:
    top = text[text.index("<header>") : text.index("</header>")]
    assert "Do the gradients of plain_18 vanish towards the input" in top
    for sentence in report.verdict.sentences:
        assert sentence.split("'")[0] in top
    assert "2 trainings of each network" in top
    assert "networks differ most at" in top


def test_the_layer_that_differs_most_is_the_largest_ratio_of_the_comparison(report: Report) -> None:
    (rows,) = (
        one.layers
        for one in report.comparisons
        if (one.size, one.at) == ("output_gradient", "equal step")
    )
    largest = max(rows, key=lambda row: abs(np.log10(row.factor)))
    found = report.largest_difference
    assert found is not None
    assert found[1].layer == largest.layer
    assert f"at {largest.layer}:" in words.differs(report)


def test_a_class_called_a_script_cannot_run(text: str) -> None:
    assert HARM not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_page_loads_nothing(report: Report, text: str) -> None:
    static = page.html(report, charts(report), static=True)
    assert "default-src 'none'" in text
    for one in (text.split("<body>")[1], static):
        assert not re.search(r"(src|href)=\"(?!data:|#)", one)
    assert "Plotly.newPlot" in text
    assert "Plotly" not in static
    assert static.count("data:image/svg+xml") == len(charts(report))
    assert len(static) < 3_000_000


def test_a_heat_map_is_thinned_for_drawing_and_the_numbers_are_not() -> None:
    table = Table(np.arange(1000), ("a", "b"), np.ones((1000, 2)))
    thin = interactive.thinned(table)
    assert len(thin.steps) == len(thin.values) <= interactive.MAX_STEPS
    assert len(interactive.thinned(Table(np.arange(3), ("a",), np.ones((3, 1)))).steps) == 3


def test_the_command_writes_page_markdown_json_and_every_figure(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "r.html"
    assert main(["report", str(run), "-o", str(path), "--static"]) == 0
    printed = capsys.readouterr().out
    assert "Verdict" in printed
    assert "r.html" in printed
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["verdict"]["outcome"] == "undetermined"
    pictures = {file.name for file in (path.parent / "r-figures").iterdir()}
    linked = re.findall(r"\(r-figures/(.+?)\)", path.with_suffix(".md").read_text("utf-8"))
    assert {*linked} <= pictures
    assert {file.rsplit(".", 1)[1] for file in pictures} == {"svg", "png"}
    assert all(f"{name[:-4]}.svg" in pictures for name in linked)


def test_records_of_ones_own_loop_make_a_report(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "mine-s0"
    shutil.copytree(run / "plain_18-s0" / "records", alone / "records")
    report = collect([alone])
    text = page.html(report, charts(report), static=True)
    assert "records of a loop of your own" in text
    assert "There is one network" in text
    assert "Worst mistakes" not in text


def test_records_of_ones_own_loop_show_activations_and_updates(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "mine-s0"
    shutil.copytree(run / "plain_18-s0" / "records", alone / "records")
    report = collect([alone])
    trace = Trace.load(alone)
    zeros = trace.select("output_zero_fraction", ("activation",))
    np.testing.assert_allclose(
        report.activations["output_zero_fraction"]["mine"].mean, zeros.values.mean(axis=0)
    )
    moved = weight_table(trace, "relative_update")
    profile = report.updates["relative_update"]["mine"]
    np.testing.assert_allclose(
        profile.mean, np.exp(np.log(moved.values[:, : len(profile.layers)]).mean(axis=0))
    )


def test_channels_off_in_a_step_stand_in_until_a_window_is_full(report: Report) -> None:
    assert "output_dead_window" not in report.activations, "6 steps fill no window of 16"
    assert set(report.activations["output_dead_fraction"]) == set(report.names)


def test_the_angle_travelled_is_that_of_the_last_step() -> None:
    angle = np.array([[0.1, 0.2], [0.3, 0.4]])
    sites = ("conv1.weight", "fc.weight")
    trace = Trace(
        np.arange(2), sites, ("conv.weight", "linear.weight"), np.ones(2, np.int64),
        {"angle_from_start": angle},
    )  # fmt: skip
    profile = angles({"net": [trace, trace]})["angle_from_start"]["net"]
    np.testing.assert_array_equal(profile.mean, angle[-1])
    assert angles({"net": [replace(trace, values={})]}) == {}


@pytest.fixture
def without_records(run: Path, tmp_path: Path) -> Path:
    """The same run as if nothing had been recorded."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("records", "*.pt"))
    return copy


def test_a_run_without_records_is_a_report_without_a_verdict(
    without_records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(without_records), "--static"]) == 0
    assert "How well did plain_18 and resnet_18 learn? (2 seeds)" in capsys.readouterr().out
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


def test_an_unfinished_run_says_how_to_go_on(
    without_records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in without_records.glob("*/evaluation.json"):
        path.unlink()
    assert main(["report", str(without_records)]) == 2
    assert f"gradflow train --resume {without_records}" in capsys.readouterr().err


def test_markdown_holds_no_tag_of_a_class_and_no_link_of_it(report: Report) -> None:
    named = [replace(charts(report)[0], title=f"{HARM} differs")]
    text = markdown(report, named, "figures")
    assert HARM not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; differs" in text
    assert plain("[a](b) <i>") == r"\[a\](b) &lt;i&gt;"


def test_titles_say_what_was_found(run: Path, report: Report) -> None:
    titles = {chart.key: chart.title for chart in charts(report)}
    first, last = report.verdict.bands[0].mean[[0, -1]] if report.verdict else (0, 0)
    assert ("larger in plain_18" in titles["gradient-profiles"]) == (first > last)
    ends = [one.history()[-1]["val_loss"] for one in RunDir.open(run).networks()
            if one.arch == "plain_18"]  # fmt: skip
    assert f"plain_18 {np.mean(ends):.3g}" in titles["loss-by-epoch"]
    assert "√(Σz² / n)" in titles["output-rms"]


def test_thinning_is_told_where_it_happens_and_only_there(report: Report) -> None:
    captions = {chart.key: chart.caption for chart in charts(report)}
    assert "are drawn" not in captions["gradient-heat-map"]
    layers = next(iter(report.tables.values())).sites
    long = Table(np.arange(1000), layers, np.ones((1000, len(layers))))
    longer = replace(report, tables={("plain_18", "output_gradient"): long})
    captions = {chart.key: chart.caption for chart in charts(longer)}
    assert "Of 1000 recorded steps 334 are drawn" in captions["gradient-heat-map"]


def test_the_page_tells_how_to_train_the_same_again(report: Report, text: str) -> None:
    (command,) = words.commands(report)
    assert command.startswith("gradflow ")
    assert str(html.escape(command)).replace("&#x27;", "&#39;") in text


def test_a_run_that_is_not_there_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


# -- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium`")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        instance = driver.chromium.launch(executable_path=found, args=options, timeout=120_000)
        yield instance
        instance.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_it_asks_nothing_of_the_network_and_fits(
    browser: Any, text: str, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    tab = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("#gradient-profiles .main-svg")
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:
        figure = tab.locator("#gradient-profiles .nsewdrag").first.bounding_box()
        assert figure["y"] + 100 < 900, "the profiles begin on the first screen"
    _menu_is_clear(tab)
    _switch_and_see(tab)
    context.close()


def _menu_is_clear(tab: Any) -> None:
    """The menu stands above the legend, and its text differs from its ground in both schemes."""
    menu = tab.locator("#gradient-profiles .updatemenu-header").bounding_box()
    legend = tab.locator("#gradient-profiles .legend").bounding_box()
    assert menu["y"] + menu["height"] <= legend["y"] + 2  # a border of 1 px each
    colours = [
        tab.eval_on_selector(f"#gradient-profiles {one}", "one => getComputedStyle(one).fill")
        for one in (".updatemenu-item-text", ".updatemenu-item-rect")
    ]
    text, ground = (np.array(re.findall(r"\d+", colour)[:3], int) for colour in colours)
    assert abs(text - ground).min() > 120


def _switch_and_see(tab: Any) -> None:
    """Choosing another size draws other data, and choosing another network another heat map."""
    for key in ("gradient-profiles", "gradient-heat-map"):
        shown = f"document.getElementById('{key}').data.map(one => one.visible !== false)"
        before = tab.evaluate(shown)
        tab.evaluate(f"document.getElementById('{key}').scrollIntoView()")
        tab.click(f"#{key} .updatemenu-header")
        tab.click(f"#{key} .updatemenu-dropdown-button >> nth=1")
        after = tab.evaluate(shown)
        assert before != after
        assert sum(before) == sum(after)
