"""The report: its numbers are the verdict's and the evaluation's, and no name in it can do harm."""

import base64
import html
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from gradflow.analysis.case import Case
from gradflow.analysis.compare import Comparison
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.overview import Band, Profile, bands
from gradflow.analysis.statistics import Interval
from gradflow.cli import main
from gradflow.present import plots
from gradflow.present.markdown import markdown, plain
from gradflow.present.report import interactive, page, words
from gradflow.present.report.charts_by_depth import depth_title
from gradflow.present.report.charts_of_training import (
    _differences,
    class_charts,
    confusion_title,
)
from gradflow.present.report.content import Report, Trained, collect
from gradflow.present.report.depth import angles, drawn_seeds, tables
from gradflow.present.report.numbers import mistakes, photos_of_test_set, to_json
from gradflow.present.report.saliency import Maps, saliency_pictures
from gradflow.present.report.story import answer, charts, story
from gradflow.present.section import Box, Chart
from gradflow.record.trace import Table, Trace
from gradflow.training import original
from gradflow.training.evaluate import Predictions, evaluate
from gradflow.training.rundir import RunDir
from gradflow.training.weights import build_network
from tests.conftest import Command

HARM = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of two seeds on two classes of the digits, one of them called a script."""
    from sklearn.datasets import load_digits

    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    digits, rows = load_digits(), ["filename,label"]
    for i in [i for i in range(400) if digits.target[i] < 2][:60]:
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(data / f"{i}.png")
        rows.append(f"{i}.png,{HARM if digits.target[i] else 'zero'}")
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


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return collect([run])


def chart_of(report: Report, key: str) -> Chart:
    (chart,) = (one for one in charts(report) if one.key == key)
    return chart


def compared(report: Report) -> Comparison:
    """The layers of δ at equal step, in which the largest difference is looked for."""
    (found,) = (
        c for c in report.comparisons if (c.size, c.at) == ("output_gradient", "equal step")
    )
    return found


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return page.html(story(report, charts(report)))


def test_the_first_screen_holds_question_answer_and_how_sure(report: Report, text: str) -> None:
    top = text[text.index("<header>") : text.index("</header>")]
    assert "Do the gradients of plain_18 vanish towards the input" in top
    for sentence in report.verdict.sentences:
        assert sentence.split("'")[0] in top
    assert "2 trainings of each network" in top
    assert "networks differ most at" in top


def test_the_layer_that_differs_most_is_the_largest_of_those_that_surely_do(report: Report) -> None:
    one = compared(report)
    small = one.layers[0]
    chance = replace(small, layer="chance", ratio=replace(small.ratio, mean=9.0), differs=False)
    sure = replace(small, layer="sure", ratio=replace(small.ratio, mean=1.0), differs=True)
    found = replace(report, comparisons=(replace(one, layers=(chance, sure)),)).largest_difference
    assert found is not None
    assert found[1].layer == "sure"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (1.0, "10 times as large in plain_18 as in resnet_18 (95 % 3.2 to 100)"),
        (-1.0, "10 times as large in resnet_18 as in plain_18 (95 % 1 to 32)"),
    ],
)
def test_the_factor_between_the_networks_is_said_above_one(
    report: Report, log: float, said: str
) -> None:
    comparison = compared(report)
    layer = replace(comparison.layers[0], ratio=Interval(log, log - 0.5, log + 1.0, 0.1, 5))
    one = replace(comparison, layers=(layer,))
    assert said in words.differs(replace(report, comparisons=(one,)))


def test_a_class_called_a_script_cannot_run(text: str) -> None:
    assert HARM not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_page_loads_nothing(report: Report, text: str) -> None:
    static = page.html(story(report, charts(report)), static=True)
    assert "default-src 'none'" in text
    for one in (text.split("<body>")[1], static):
        assert not re.search(r"(src|srcset|href)=\"(?!data:|#)", one)
    assert "Plotly.newPlot" in text
    assert "Plotly" not in static
    assert static.count("data:image/svg+xml") == 2 * len(charts(report)), "light and dark"
    assert len(static) < 3_000_000


def test_a_heat_map_is_thinned_for_drawing_which_it_says_and_the_numbers_are_not(
    report: Report,
) -> None:
    """Of 1000 steps every third is drawn; b is larger than a, but at the others alone."""
    values = np.ones((1000, 2))
    values[1::3, 1] = 100.0
    table = Table(np.arange(1000), ("a", "b"), values)
    chart = chart_of(
        replace(report, tables={("net", "output_gradient"): table}), "gradient-heat-map"
    )
    assert chart.title.endswith("of net is largest at b and smallest at a")
    assert "334 of 1000 recorded steps are drawn" in chart.caption
    drawn = chart.draw().axes[0].images[0].get_array()
    np.testing.assert_array_equal(drawn, np.ones((2, 334)), "the file shows what the caption says")
    (of_page,) = interactive.heat_map({("net", "output_gradient"): table}).data
    assert len(of_page.x) == 334
    assert "are drawn" not in chart_of(report, "gradient-heat-map").caption
    group = network(0, list(range(1000)), 1.0)
    group.trace.values["output_grad_norm"][1::3, 0] = 100.0
    (band,) = (one for one in bands(Case.of([group]), "whole") if one.size == "output_gradient")
    assert band.mean[0] == pytest.approx(2 * 333 / 1000), "the mean of the logarithms"


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


@pytest.fixture
def explained(run: Path, tmp_path: Path) -> RunDir:
    """The same run as after `gradflow saliency --split test`, with a picture wider than a page."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("records", "*.pt"))
    made = RunDir.open(copy)
    made.figures.mkdir()
    for shows, width in (("mean", 2000), ("plain_18-s0", 300)):
        for ending, color in (("", "#fff"), ("-dark", "#15181b")):
            path = made.figures / f"saliency-gradcam-{shows}{ending}.png"
            picture = Image.new("RGB", (width, width // 2), color)
            picture.save(path)
            path.with_suffix(".svg").write_text("<svg/>")
    picture.save(made.figures / "saliency-integrated-gradients-plain_18-s0.png")  # an older one
    content = {
        "networks": dict.fromkeys(("plain_18-s0", "resnet_18-s0"), {"layer": "layer4.1"}),
        "trust": {
            "plain_18-s0": trust(randomisation=False, insertion_minus_deletion=False),
            "resnet_18-s0": trust(),
        },
    }
    made.save_saliency("gradcam", content, {})
    return made


def trust(**passed: bool | None) -> dict[str, Any]:
    names = ("randomisation", "infidelity", "sensitivity", "insertion_minus_deletion")
    of = dict.fromkeys(names, True) | passed
    return {"checks": {name: {"value": 0.1, "passed": one} for name, one in of.items()}}


def test_maps_stand_in_the_page_with_how_to_read_them_and_whether_to_believe_them(
    explained: RunDir,
) -> None:
    report = collect([explained.path])
    path = explained.path / "my page.html"
    page.write(report, [], path, static=True)
    text = path.read_text("utf-8")
    section = text[text.index('<section id="saliency">') : text.index('<section id="data">')]
    fails = "gradcam at layer4.1 on plain_18-s0 fails: randomisation, insertion minus deletion."
    passes = "gradcam at layer4.1 on resnet_18-s0 passes its checks."
    assert re.findall("<h3>(.+?)</h3>", section) == [
        "Grad-CAM: the mean map of each class of plain_18-s0 and resnet_18-s0",
        "Grad-CAM: what plain_18-s0 looks at",
        "Integrated gradients: what plain_18-s0 looks at",
    ]
    captions = re.findall("<figcaption>(.+?)</figcaption>", section)
    assert (fails in captions[0], passes in captions[0]) == (True, True)
    assert (fails in captions[1], passes in captions[1]) == (True, False)
    assert captions[2].endswith("No check of integrated-gradients on plain_18-s0 is known.")
    found = [embedded(one) for one in re.findall('"(data:image/webp[^"]+)"', section)]
    assert [(one.format, one.size) for one in found] == [
        ("WEBP", size) for size in ((1600, 800), (1600, 800), (300, 150), (300, 150), (300, 150))
    ]
    dark, light = (one.convert("L").getpixel((9, 9)) for one in found[:2])
    assert (dark < 50, light > 200) == (True, True)
    assert section.count('media="(prefers-color-scheme: dark)"') == 2, "where there is a dark one"
    written = path.with_suffix(".md").read_text("utf-8")
    below = written[written.index("## Saliency") :]
    folder = explained.path / "my page-figures"
    links = [unquote(one) for one in re.findall(r"!\[.*?\]\((\S+)\)", below)]
    assert [(folder.parent / link).exists() for link in links] == [True] * 3
    assert {file.name for file in folder.glob("saliency-*")} == {
        file.name for file in explained.figures.glob("saliency-*")
    }
    assert fails in below
    rows = json.loads(path.with_suffix(".json").read_text("utf-8"))["saliency"]
    assert [(one["method"], one["network"], one["layer"], one["answer"]) for one in rows] == [
        ("gradcam", "plain_18-s0", "layer4.1", fails),
        ("gradcam", "resnet_18-s0", "layer4.1", passes),
        ("integrated-gradients", "plain_18-s0", None,
         "No check of integrated-gradients on plain_18-s0 is known."),
    ]  # fmt: skip
    assert rows[0]["trust"]["checks"]["randomisation"]["passed"] is False


def test_what_could_not_be_measured_is_not_said_to_pass() -> None:
    names = ("randomisation", "infidelity", "sensitivity", "insertion_minus_deletion")
    nothing = Maps("occlusion", "net-s0", None, trust(**dict.fromkeys(names)))
    assert nothing.answer == "occlusion on net-s0 could not be checked."
    part = Maps("occlusion", "net-s0", None, trust(infidelity=None))
    assert part.answer == (
        "occlusion on net-s0 passes its checks. Could not be measured: infidelity."
    )


def test_pictures_of_two_runs_do_not_overwrite_each_other(
    explained: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(explained.path, tmp_path / "other")
    found = saliency_pictures([explained, RunDir.open(tmp_path / "other")])
    assert len({one.key for one in found}) == len(found) == 6


def test_a_worst_mistake_is_shown_by_the_picture_that_was_taken_for_another_class(
    report: Report, text: str
) -> None:
    photos, where = photos_of_test_set(report)
    shown = mistakes(report, photos)
    assert shown
    assert where.startswith("The pictures are those at ")
    test = report.of("plain_18")[0].evaluation["last"]["test"]
    sure = np.max(test["probabilities"], axis=1) * ~np.array(test["is_right"])
    position = report.data["split"]["indices"]["test"][int(sure.argmax())]
    table = Path(report.config["data"])
    name, label = table.read_text("utf-8").splitlines()[1 + position].split(",")
    worst = shown[0]
    assert (worst["network"], worst["label"]) == ("plain_18", label)
    assert worst["picture"] in text
    tile = embedded(worst["picture"])
    assert (tile.format, tile.size) == ("JPEG", (128, 128)), "8 pixels, 16 times"
    with Image.open(table.parent / name) as photo:
        expected = np.asarray(photo.convert("L"), float)
    found = np.asarray(tile.convert("L"), float).reshape(8, 16, 8, 16).mean(axis=(1, 3))
    assert np.abs(found - expected).max() < 10


@pytest.mark.parametrize("keeps_names", [True, False], ids=["names kept", "older run"])
@pytest.mark.parametrize("change", ["removed", "added", "gone"])
def test_no_other_picture_is_shown_for_a_mistake_where_the_images_have_changed(
    report: Report, tmp_path: Path, change: str, keeps_names: bool
) -> None:
    """A split counts the images: with one more or less, every number means another picture."""
    data = tmp_path / "data"
    shutil.copytree(Path(report.config["data"]).parent, data)
    table = data / "labels.csv"
    lines = table.read_text("utf-8").splitlines()
    if change == "removed":
        table.write_text("\n".join([lines[0], *lines[2:]]), "utf-8")
    elif change == "added":
        first = lines[1].split(",")
        shutil.copy(data / first[0], data / "new.png")
        table.write_text("\n".join([lines[0], f"new.png,{first[1]}", *lines[1:]]), "utf-8")
    else:
        shutil.rmtree(data)
    facts = {key: one for key, one in report.data.items() if keeps_names or key != "keys_sha256"}
    elsewhere = replace(report, images=str(table), data=facts)
    written = html.unescape(page.html(story(elsewhere, []), static=True))
    assert "taken for" in written
    assert "image/jpeg" not in written
    expected = "are no longer at" if change == "gone" else "are not those of the training"
    assert expected in written


def embedded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


# What a reader asks, in this order; in the page the profiles stand above the first heading.
ORDER = [
    "gradient-heat-map", "Activations by depth", "output-zero-fraction", "Updates by depth",
    "relative-update", "Loss and accuracy", "accuracy-by-epoch", "Accuracy after the last epoch",
    "Classes", "plain_18, class by class", "resnet_18, class by class", "confusion-plain_18",
    "confusion-resnet_18", "class-differences", "exact McNemar test", "Calibration", "calibration",
    "Worst mistakes", "Saliency", "Why, and the rivals", "Data", "Do it again",
]  # fmt: skip


def test_page_and_markdown_answer_in_the_order_in_which_a_reader_asks(
    report: Report, text: str
) -> None:
    """Headings, figures and a paragraph, as they follow each other in both forms."""
    written = markdown(story(report, charts(report)), "figures")
    body = text[text.index("</nav>") :]
    for pattern, said in (
        (r'<h[23]>(.+?)</h|id="figure-(.+?)"|(exact McNemar test)', body),
        (r"\n###? (.+)|\(figures/(.+?)\.png\)|(exact McNemar test)", written),
    ):
        found = map("".join, re.findall(pattern, said))
        known = (name for one in found for name in ORDER if one.startswith(name))
        assert list(dict.fromkeys(known)) == ORDER
    assert text.index('id="figure-gradient-profiles"') < text.index("</nav>")
    assert written.index("figures/gradient-profiles.png") < written.index("gradient-heat-map")
    assert re.findall("<h2>(.+?)</h2>", body) == re.findall("\n## (.+)", written)


def test_channels_off_in_a_step_stand_in_until_a_window_is_full(report: Report) -> None:
    assert "output_dead_window" not in report.activations, "6 steps fill no window of 16"
    assert set(report.activations["output_dead_fraction"]) == set(report.names)


@pytest.mark.parametrize("arch", ["plain_18", "resnet_18"])
def test_the_angle_of_a_training_is_that_of_its_weights(
    run: Path, report: Report, arch: str
) -> None:
    """By hand, from the weights on disk and the ones that the seed draws."""
    config, by_seed = RunDir.open(run).config(), []
    for seed in (0, 1):
        trained = RunDir.open(run).network(arch, seed).load_model(config, 2, "last")
        first, last = (
            model.conv1.weight.detach().double().flatten()
            for model in (build_network(arch, 2, config, seed=seed), trained)
        )
        by_seed.append(float(torch.acos(first @ last / first.norm() / last.norm())))
    profile = report.updates["angle_from_start"][arch]
    assert profile.layers[0] == "conv1"
    assert not [layer for layer in profile.layers if "downsample" in layer]
    of_conv1 = (profile.mean[0], profile.low[0], profile.high[0])
    assert of_conv1 == pytest.approx((np.mean(by_seed), min(by_seed), max(by_seed)), rel=1e-5)


def trace_of_angles(angle: list[float]) -> Trace:
    sites = ("conv1.weight", "fc.weight")
    kinds = ("conv.weight", "linear.weight")
    values = {"angle_from_start": np.array([[0.1, 0.2], angle])}
    return Trace(np.arange(2), sites, kinds, np.ones(2, np.int64), values)


def test_a_seed_whose_weights_are_not_finite_at_the_end_takes_no_angle_of_the_others() -> None:
    broken, whole = trace_of_angles([np.nan, np.nan]), trace_of_angles([0.3, 0.4])
    assert angles({"net": [broken]}, {}) == {}
    found = angles({"bad": [broken], "net": [broken, whole]}, {})["angle_from_start"]
    assert set(found) == {"net"}
    np.testing.assert_array_equal([found["net"].mean, found["net"].high], [[0.3, 0.4]] * 2)


def test_an_angle_is_that_of_the_last_step_at_which_it_was_due() -> None:
    """One recorded step in 8, so that the last rows need not have it; broken weights never have."""
    trace = trace_of_angles([0.3, 0.4])
    trace.values["angle_from_start"] = angle = np.full((23, 2), np.nan)
    trace = replace(trace, steps=np.arange(23))
    angle[[0, 8, 16]] = [[0.1, 0.2], [0.2, 0.3], [0.5, 0.6]]
    np.testing.assert_array_equal(
        angles({"net": [trace]}, {})["angle_from_start"]["net"].mean, [0.5, 0.6]
    )
    angle[16] = np.nan  # due, and not finite
    assert angles({"net": [trace]}, {}) == {}


def test_a_layer_that_is_not_finite_is_left_out_of_titles_and_axes(report: Report) -> None:
    values = np.array([np.nan, 0.3, np.inf])
    one = Profile(("conv1", "conv2", "fc"), values, values, values)
    found = {"angle_from_start": {"plain_18": one}}
    chart = chart_of(replace(report, updates=found), "angle-from-start")
    assert chart.title.endswith("most in plain_18 at conv2 (0.3)")
    assert chart.interact is not None
    figure = chart.interact()
    assert "angle-from-start" in interactive.to_html("angle-from-start", figure)
    assert figure.layout.yaxis.range == pytest.approx((0, 0.315))
    plots.to_svg(chart.draw())
    nothing = replace(one, mean=np.full(3, np.nan))
    assert depth_title({"net": nothing}, "angle") == "Angle: none in any layer"


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


@pytest.fixture
def without_records(run: Path, tmp_path: Path) -> Path:
    """The same run as if nothing had been recorded."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("records", "*.pt"))
    return copy


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


def test_of_many_classes_those_that_differ_most_are_drawn(report: Report) -> None:
    names = tuple(f"class {i:02}" for i in range(60))
    rng = np.random.default_rng(0)

    labels = np.repeat(np.arange(60), 20)

    def of_seed(seed: int, arch: str, low: float) -> Trained:
        is_right = rng.random(1200) < low * np.repeat(rng.random(60), 20)
        rows = {name: {"recall": float(is_right[labels == i].mean())}
                for i, name in enumerate(names)}  # fmt: skip
        part = {"report": rows, "is_right": is_right.tolist(), "labels": labels.tolist()}
        return Trained(arch, seed, [], {"last": {"test": part}})

    trained = [of_seed(seed, arch, low) for seed in range(5)
               for arch, low in (("plain_18", 0.2), ("resnet_18", 1.0))]  # fmt: skip
    many = replace(report, trained=tuple(trained), class_names=names)
    (chart,) = _differences(many)
    assert "Of 60 classes the 40 that differ most are drawn." in chart.caption
    (ax,) = chart.draw().axes
    shown = [label.get_text() for label in ax.get_yticklabels()]
    means = {name: np.mean([one.evaluation["last"]["test"]["report"][name]["recall"]
                            * (1 if one.arch == "plain_18" else -1) * 2 for one in trained])
             for name in names}  # fmt: skip
    sizes = sorted((abs(one) for one in means.values()), reverse=True)
    assert [abs(means[name]) for name in shown] == pytest.approx(sizes[:40])


def test_a_confusion_is_titled_by_the_largest_share_of_a_class() -> None:
    matrix = np.array([[90, 10, 0], [3, 3, 0], [0, 0, 0]])  # 3 of 6 weigh more than 10 of 100
    title = confusion_title("net", matrix, ["a", "b", "c"])
    assert title == "net most often takes b for a: 3 of 6 times"
    assert confusion_title("net", np.eye(2, dtype=int), ["a", "b"]) == "net makes no mistake"


def test_every_choice_shows_one_line_per_network_or_one_heat_map(report: Report) -> None:
    profiles = interactive.gradient_profiles(report.bands, report.names)
    offered = interactive.choices(profiles)
    assert list(offered) == ["size", "window"]
    for size, window in itertools.product(*offered.values()):
        wanted = {"size": size, "window": window}.items()
        names = [one.name for one in profiles.data if wanted <= one.meta.items()]
        assert list(filter(None, names)) == list(report.names)
    first = {key: values[0] for key, values in offered.items()}
    assert all(first.items() <= one.meta.items() for one in profiles.data if one.visible)
    heat = interactive.heat_map(report.tables)
    networks, sizes = interactive.choices(heat).values()
    found = {(one.meta["network"], one.meta["size"]) for one in heat.data}
    assert len(found) == len(heat.data) == len(networks) * len(sizes)
    for size in sizes:
        scales = {(one.zmin, one.zmax) for one in heat.data if one.meta["size"] == size}
        assert len(scales) == 1, "one scale for both networks"


def test_the_layer_that_differs_most_is_marked_in_the_profile_of_its_own_measure(
    report: Report,
) -> None:
    assert report.largest_difference is not None
    layer = report.largest_difference[1].layer
    figure = interactive.gradient_profiles(report.bands, report.names, ("output_gradient", layer))
    (mark,) = (one for one in figure.data if one.name == f"differ most: {layer}")
    assert set(mark.x) == {layer}
    assert (mark.meta["size"], mark.meta["window"]) == ("output_gradient", "early")
    delta, rest = chart_of(report, "gradient-profiles").draw().axes
    named = [text.get_text() for text in delta.get_legend().get_texts()]
    assert f"differ most:\n{layer}" in named
    assert len(rest.get_legend().get_texts()) == len(report.names)


SHALLOW = ("conv1", "layer1.0.conv1", "layer2.0.conv1")
DEEP = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.1.conv1")


def test_layers_of_networks_of_other_depth_stand_by_their_number_from_the_input() -> None:
    """By name, plotly would put layer1.1.conv1 behind layer2.0.conv1, and the line would turn."""
    found = [
        Band(layers, *np.zeros((3, len(layers))), name, "output_gradient")
        for name, layers in (("flat", SHALLOW), ("deep", DEEP))
    ]
    mark = ("output_gradient", "layer2.0.conv1")
    figure = interactive.gradient_profiles({"early": found}, ["flat", "deep"], mark)
    lines = {one.name: one for one in figure.data if one.name}
    assert list(lines["deep"].x) == [1, 2, 3, 4, 5]
    assert list(lines["deep"].text) == list(DEEP)
    assert "%{text}" in lines["deep"].hovertemplate
    assert figure.layout.xaxis.title.text == "layer, counted from the input"
    assert list(lines["differ most: layer2.0.conv1 of flat"].x) == [3, 3]
    assert list(lines["differ most: layer2.0.conv1 of deep"].x) == [4, 4]
    by_name = {one.network: (one.layers, *3 * [10**one.mean]) for one in found}
    ax = plots.profile_bands_plot(by_name, "δ", "", mark=("layer2.0.conv1", "differ most"))
    at = {line.get_label(): line.get_xdata()[0] for line in ax.lines}
    assert (at["differ most of flat"], at["differ most of deep"]) == (2, 3)
    assert ax.xaxis.get_major_formatter()(at["differ most of deep"], 0) == "4", "counted from 1"


def test_a_profile_shows_true_values_between_its_seeds() -> None:
    logs = np.array([[0.0, -1.0], [-0.5, -2.0], [0.5, 0.0]])  # mean, low, high
    band = Band(SHALLOW[:2], *logs, "net", "output_gradient")
    figure = interactive.gradient_profiles({"early": [band]}, ["net"])
    low, high, mean = (np.asarray(one.y, float) for one in figure.data)
    np.testing.assert_allclose(mean, [1.0, 0.1])
    np.testing.assert_allclose(low, [10**-0.5, 0.01])
    np.testing.assert_allclose(high, [10**0.5, 1.0])
    assert figure.data[1].fill == "tonexty", "the band lies between the two lines before"
    np.testing.assert_allclose(figure.data[2].customdata, np.stack([low, high], axis=-1))
    assert figure.layout.yaxis.type == "log"


def test_an_option_cannot_break_out_of_its_element() -> None:
    names = ('"><script>', "</select><b>")
    table = Table(np.arange(1), ("a",), np.ones((1, 1)))
    figure = interactive.heat_map({(name, "output_gradient"): table for name in names})
    written = interactive.to_html("key", figure).split("<div>")[0]
    assert "&lt;/select&gt;&lt;b&gt;</option>" in written
    assert not [name for name in names if name in written]


def test_the_heat_map_is_the_median_of_what_is_finite_at_the_steps_that_all_recorded() -> None:
    of_seeds = [network(seed, [0, 1, 2], 10.0**seed) for seed in (0, 1)]
    ended_early = network(2, [0, 1], 100.0)
    lacking = [network(seed, [0, 1], value) for seed, value in enumerate((1.0, 3.0, np.nan))]
    for group, median in (([*of_seeds, ended_early], 10.0), (lacking, 2.0), (lacking[2:], np.nan)):
        found = tables({"net": group})["net", "output_gradient"]
        np.testing.assert_array_equal(found.steps, [0, 1])
        np.testing.assert_allclose(found.values, np.full((2, 2), median))


def test_seeds_that_were_recorded_at_other_steps_leave_the_first_one(report: Report) -> None:
    group = [network(0, [0, 2, 4, 6], 1.0), network(1, [0, 3, 5, 7], 9.0)]
    found = tables({"net": group})["net", "output_gradient"]
    np.testing.assert_array_equal(found.steps, [0, 2, 4, 6])
    np.testing.assert_allclose(found.values, 1.0)
    assert [one.seed for one in drawn_seeds(group)[0]] == [0]
    both = chart_of(report, "gradient-heat-map")
    assert both.caption.startswith("The median over 2 seeds.")
    alone = replace(report, tables_of={"plain_18": (0,), "resnet_18": (0, 1)})
    chart = chart_of(alone, "gradient-heat-map")
    assert chart.caption.startswith("Only seed 0 of plain_18 is drawn:")


def network(seed: int, steps: list[int], delta: float) -> TrainedNetwork:
    """Of three layers whose ‖∂L/∂z‖ is `delta` at every step."""
    layers = ("conv1", "conv2", "fc")
    sites = (*layers, *(f"{one}.weight" for one in layers))
    kinds = ("conv", "conv", "linear", "conv.weight", "conv.weight", "linear.weight")
    values = np.full((len(steps), len(sites)), np.nan)
    values[:, :3] = delta
    trace = Trace(np.array(steps), sites, kinds, np.ones(len(sites), np.int64),
                  {"output_grad_norm": values})  # fmt: skip
    return TrainedNetwork("net", seed, trace)


def test_a_layer_that_is_dead_in_one_seed_keeps_the_profile_of_the_others() -> None:
    dead, alive = network(0, [0, 1], 0.0), network(1, [0, 1], 0.1)
    (band,) = bands(Case((dead, alive)), "whole")
    np.testing.assert_allclose([band.mean, band.low, band.high], -1.0)


def test_a_loss_that_is_nowhere_finite_leaves_a_gap_and_shifts_no_epoch() -> None:
    loss = np.array([[3.0, np.nan, 1.0], [1.0, np.inf, 2.0]])
    figure = interactive.curves({"net": (loss, loss)}, [0.1, 0.1, 0.1], "loss")
    line = next(one for one in figure.data if one.name == "net, validation")
    np.testing.assert_array_equal(line.y, [2.0, np.nan, 1.5])
    top, _ = plots.curves_plot({"net": (loss, loss)}, [0.1, 0.1, 0.1], "loss", "")
    drawn = next(one for one in top.lines if one.get_label() == "net, validation")
    np.testing.assert_array_equal(drawn.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(drawn.get_ydata(), [2.0, np.nan, 1.5])


def test_json_is_json_where_a_loss_is_not_finite(report: Report) -> None:
    one = report.trained[0]
    test = one.evaluation["last"]["test"] | {"loss": float("nan")}
    broken = replace(one, evaluation={"last": one.evaluation["last"] | {"test": test}})
    content = to_json(replace(report, trained=(broken, *report.trained[1:])))
    content = json.loads(json.dumps(content, allow_nan=False))
    losses = {(row["network"], row["seed"]): row["test_loss"] for row in content["accuracy"]}
    assert losses[one.arch, one.seed] is None


def test_markdown_and_json_hold_what_the_page_holds(run: Path, report: Report, text: str) -> None:
    written = markdown(story(report, charts(report)), "figures")
    content = to_json(report)
    (mcnemar, *_) = content["mcnemar_lines"]
    audit = RunDir.open(run).data()["audit"]
    for said in (mcnemar, *content["data"]):
        assert said in html.unescape(text)
        assert said in html.unescape(written)
    assert f"{audit['n_images']} images, of which {audit['n_distinct']} are distinct" in written
    for name in report.names:
        tests = [one.evaluation["last"]["test"]["report"]["zero"] for one in report.of(name)]
        recall = {row["label"]: row["numbers"][1] for row in content["classes"][name]}["zero"]
        assert recall == pytest.approx(np.mean([one["recall"] for one in tests]))
        assert f"### {name}, class by class" in written
    for one in (*report.verdict.links, *report.verdict.rivals):
        said = [*(p.sentence for p in one.evidence if p.is_measured), *one.details,
                *(f"Not measured: needs {what}" for what in one.missing)]  # fmt: skip
        for line in said:
            assert f"  - {plain(line)}" in written
            assert line in html.unescape(text)
    assert "epochs: 2" in written
    assert f"gradflow {report.environments[0]['gradflow']}" in written


def test_the_json_holds_the_numbers_of_every_figure(run: Path, report: Report) -> None:
    content = json.loads(json.dumps(to_json(report), allow_nan=False))
    for window, found in report.bands.items():
        for band, told in zip(found, content["profiles"][window], strict=True):
            assert (told["network"], told["size"]) == (band.network, band.size)
            np.testing.assert_allclose(np.log10(told["mean"]), band.mean)
            np.testing.assert_allclose(np.log10(told["high"]), band.high)
            assert len(told["layers"]) == len(told["low"])
    trace = Trace.load(run / "plain_18-s0"), Trace.load(run / "plain_18-s1")
    zeros = [one.select("output_zero_fraction", ("activation",)).values.mean(0) for one in trace]
    told = content["activations"]["output_zero_fraction"]["plain_18"]
    np.testing.assert_allclose(told["mean"], np.mean(zeros, axis=0))
    told = content["updates"]["distance"]["resnet_18"]
    np.testing.assert_allclose(told["low"], report.updates["distance"]["resnet_18"].low)
    assert [(one["network"], one["seed"]) for one in content["curves"]] == [
        ("plain_18", 0), ("plain_18", 1), ("resnet_18", 0), ("resnet_18", 1),
    ]  # fmt: skip
    losses = [epoch["val_loss"] for epoch in report.of("resnet_18")[1].history]
    assert [epoch["val_loss"] for epoch in content["curves"][3]["history"]] == losses
    tests = [one.evaluation["last"]["test"] for one in report.of("plain_18")]
    labels = np.concatenate([one["labels"] for one in tests])
    answers = np.concatenate([one["predicted"] for one in tests])
    counts = content["confusion"]["plain_18"]["counts"]
    for true, said in np.ndindex(2, 2):
        assert counts[true][said] == ((labels == true) & (answers == said)).sum()
    theirs = [one.evaluation["last"]["test"] for one in report.of("resnet_18")]
    (zero,) = (one for one in content["recall_differences"] if one["name"] == "zero")
    mine, other = (part[0]["report"]["zero"]["recall"] for part in (tests, theirs))
    assert zero["mean"] == pytest.approx(mine - other)
    assert zero["low"] <= zero["mean"] <= zero["high"]
    told = content["calibration"]["plain_18"]
    sure = np.concatenate([np.max(one["probabilities"], axis=1) for one in tests])
    right = labels == answers
    bins = np.ceil(sure * 15) - 1  # closed on the right
    error = sum(abs(right[bins == i].mean() - sure[bins == i].mean()) * (bins == i).sum()
                for i in set(bins)) / len(sure)  # fmt: skip
    assert told["expected_error"] == pytest.approx(error)
    assert sum(told["n"]) == len(sure)
    assert None in told["confidence"], "an empty bin has none"


def test_published_numbers_stand_beside_those_of_the_same_classes(report: Report) -> None:
    assert words.published_lines(report) == []
    of_the_original = as_of_the_original(report)
    (line,) = words.published_lines(of_the_original)
    theirs = original.PUBLISHED["plain_34"]
    assert f"{theirs['test_accuracy']:.3f} on {theirs['n_test']} test images" in line
    # Each class once: recall 1 of the first, 0 of the others; precision 1/5 of the first.
    written = markdown(story(of_the_original, []), "figures")
    assert "| nasi_goreng | 0.20 (0.78) | 1.00 (0.48) | 0.33 (0.59) | 1 |" in written
    assert "| soto_ayam | 0.00 (0.22) | 0.00 (0.84) | 0.00 (0.35) | 1 |" in written
    text = page.html(story(of_the_original, list(class_charts(of_the_original))), static=True)
    row = "<td>0.20 (0.78)</td><td>1.00 (0.48)</td><td>0.33 (0.59)</td><td>1</td>"
    assert f'<td class="words">nasi_goreng</td>{row}' in text
    assert "(0.78)" not in markdown(story(report, []), "figures")


def as_of_the_original(report: Report) -> Report:
    """The report of a network of the original's that answers nasi_goreng to one dish of each."""
    logits = np.zeros((5, 5))
    logits[:, 0] = 5.0
    test = evaluate(Predictions(logits, np.arange(5)), original.CLASSES, 0.1,
                    keep_probabilities=True)  # fmt: skip
    last = report.trained[0].evaluation["last"] | {"test": test}
    one = replace(report.trained[0], arch="plain_34", evaluation={"last": last})
    return replace(report, names=("plain_34",), class_names=original.CLASSES, trained=(one,))


@pytest.mark.parametrize(
    ("near_bits", "copy", "twins"),
    [
        (None, "an exact copy", "groups of exact twins. Near twins were not looked for."),
        (4, "a copy, or a near one,", "groups of exact twins and 0 of near ones. 1 groups of"),
    ],
)
def test_copies_are_named_and_near_ones_only_where_they_were_looked_for(
    report: Report, near_bits: int | None, copy: str, twins: str
) -> None:
    assert report.data["audit"]["near_bits"] is None, "the run of these tests has --twins exact"
    pair = {"a.png": "zero", "b.png": "one"}  # exact twins are among the near ones
    found = {"near_bits": near_bits, "conflicts": [pair], "near_conflicts": [pair]}
    split = report.data["split"]
    for n, said in (
        (0, f"No test image has {copy} in the training set."),
        (3, f"3 of {split['counts']['test']} test images have {copy} in the training set"),
    ):
        counts = split["counts"] | {"near_contaminated": n}
        data = {"audit": report.data["audit"] | found, "split": split | {"counts": counts}}
        first, second = words.data_lines(replace(report, data=data))
        assert twins in first
        assert said in second
        assert ("near one" in second) == (near_bits is not None)


def test_an_interval_over_images_is_not_said_to_be_over_seeds(report: Report) -> None:
    (box,) = (part for part in answer(report).parts if isinstance(part, Box))
    assert "Intervals are 95 %, over seeds where nothing else is said" in " ".join(box.lines)
    written = markdown(story(report, charts(report)), "figures")
    assert "seed by seed (95 % interval over the test images)" in written
    caption = chart_of(report, "class-differences").caption
    assert "paired interval over 6 images and a bootstrap over 2 seeds" in caption


def test_a_class_without_test_images_is_not_the_one_that_differs_most(report: Report) -> None:
    empty = ("none", *report.class_names)

    def shifted(one: Trained, n: int) -> Trained:
        """The same answers with a first class of which there is no image."""
        test = dict(one.evaluation["last"]["test"])
        test["labels"] = [label + n for label in test["labels"]]
        return replace(one, evaluation={"last": {"test": test}})

    for n, expected in ((1, report.class_names), (5, ())):
        few = replace(report, trained=tuple(shifted(one, n) for one in report.trained),
                      class_names=empty)  # fmt: skip
        titles = [one.title for one in _differences(few)]
        assert len(titles) == bool(expected)
        for title in titles:
            assert "nan" not in title
            assert any(f"The recall of {name} differs most" in title for name in expected)


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Path:
    """The same run as if its gradients had been scaled, and one check had failed."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.pt"))
    config = copy / "config.yaml"
    text = config.read_text("utf-8")
    assert "intervene: ''" in text
    scaled = "gradient_scale(layers=1-3, factor=0.5)"
    config.write_text(text.replace("intervene: ''", f"intervene: {scaled}"), "utf-8")
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


def test_the_page_tells_how_to_train_the_same_again(report: Report, text: str) -> None:
    (command,) = words.commands(report)
    assert command.startswith("gradflow train --data ")
    assert str(html.escape(command)).replace("&#x27;", "&#39;") in text


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["/usr/bin/gradflow", "train", "--out", "my runs"], "gradflow train --out 'my runs'"),
        (["/lib/gradflow/__main__.py", "train"], "gradflow train"),
        (["mine.py", "--lr", "1"], "python mine.py --lr 1"),
    ],
)
def test_a_loop_of_ones_own_is_started_by_its_own_program(
    report: Report, arguments: list[str], typed: str
) -> None:
    own = [dict(one, command=arguments) for one in report.environments]
    assert words.commands(replace(report, environments=tuple(own))) == [typed]


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
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("#gradient-profiles .main-svg")
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    _pictures_have_the_paper_of_the_page(tab, scheme)
    _nothing_lies_over_another(tab, width)
    if width == 1280:
        figure = tab.locator("#gradient-profiles .nsewdrag").first.bounding_box()
        assert figure["y"] + 100 < 900, "the profiles begin on the first screen"
        _hover_and_see(tab)
        _switch_and_see(tab)
        _zoom_and_see(tab)
    _choices_can_be_read(tab)
    assert said == []
    context.close()


# Of every figure: where the legend, the data and the buttons stand, and which words are cut off.
BOXES = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
  const box = one => { const r = one.getBoundingClientRect();
                       return [r.left, r.top, r.right, r.bottom].map(Math.round); };
  const paper = box(plot.querySelector('.main-svg')), tools = plot.querySelector('.modebar');
  const group = getComputedStyle(tools.querySelector('.modebar-group') || tools);
  const shows = getComputedStyle(tools).display !== 'none' && group.opacity > 0;
  const is_out = b => b[0] < paper[0] - 1 || b[2] > paper[2] + 1 || b[3] > paper[3] + 1;
  const words = [...plot.querySelectorAll('text')].filter(one => one.getBoundingClientRect().width);
  return {id: plot.id, legend: plot.querySelector('.legend') && box(plot.querySelector('.legend')),
          data: box(plot.querySelector('.nsewdrag')), paper: paper, shows: shows, tools: box(tools),
          cut: words.filter(one => is_out(box(one))).map(one => one.textContent)};
})"""


def _nothing_lies_over_another(tab: Any, width: int) -> None:
    found = tab.evaluate(BOXES)
    assert {"gradient-profiles", "histograms"} <= {one["id"] for one in found}
    for one in found:
        assert 0 <= one["paper"][0] < one["paper"][2] <= width, one
        assert one["cut"] == [], one
        assert not one["shows"], "the buttons wait for the mouse"
        if one["legend"]:
            assert one["legend"][3] <= one["data"][1], "the legend stands above the data"
            assert width > 640 or one["tools"][2] == 0, "a phone has no buttons at all"
    for left, right in tab.eval_on_selector_all(
        "figure img", "all => all.map(one => [one.getBoundingClientRect().left, "
        "one.getBoundingClientRect().right])"
    ):  # fmt: skip
        assert 0 <= left < right <= width
    ticks = "all => all.map(one => one.textContent)"
    epochs = tab.eval_on_selector_all("#loss-by-epoch .xtick text", ticks)
    assert epochs == list(dict.fromkeys(epochs)), "each epoch once"
    assert all(re.fullmatch(r"\d+", one) for one in epochs)


def _choices_can_be_read(tab: Any) -> None:
    """What can be chosen stands out from what it stands on, by the browser's own colours."""
    colours = [
        tab.eval_on_selector("select", f"one => getComputedStyle(one).{one}")
        for one in ("color", "backgroundColor")
    ]
    text, ground = (np.array(re.findall(r"\d+", colour)[:3], int) for colour in colours)
    assert abs(text - ground).min() > 120


def _pictures_have_the_paper_of_the_page(tab: Any, scheme: str) -> None:
    shown = tab.eval_on_selector_all(
        "picture img", "all => all.map(one => [one.currentSrc, one.naturalWidth])"
    )
    assert shown
    for source, width in shown:
        drawing = base64.b64decode(source.split(",")[1]).decode()
        assert (plots.GROUND["dark"][0] in drawing) == (scheme == "dark")
        assert width > 100, "it could be drawn"


def _switch_and_see(tab: Any) -> None:
    """Choosing a size or a window draws other data, and choosing a network another heat map.

    A click on the name of a network hides it with its band, and the next one shows it again.
    """
    for figure, key, value in (
        ("gradient-profiles", "size", "scale_invariant"),
        ("gradient-profiles", "window", "whole"),
        ("gradient-heat-map", "network", "resnet_18"),
        ("gradient-heat-map", "size", "gradient_rms"),
    ):
        plot = f"document.getElementById('{figure}')"
        shown = f"{plot}.data.filter(one => one.visible !== false).map(one => one.meta)"
        before = tab.evaluate(shown)
        tab.select_option(f"select[data-figure='{figure}'][data-key='{key}']", value)
        after = tab.evaluate(shown)
        assert value not in {one[key] for one in before}
        assert {one[key] for one in after} == {value}
    plot = "document.getElementById('gradient-profiles')"
    drawn = f"{plot}.data.filter(one => one.visible === true && one.legendgroup === 'plain_18')"
    assert tab.evaluate(f"{drawn}.length") == 3, "a line and the edges of its band"
    buttons = tab.locator("#gradient-profiles .modebar-btn").all()
    titles = [one.get_attribute("data-title") for one in buttons]
    wanted = {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}
    assert set(titles) == wanted, "and none that sends"
    for left in (0, 3):
        tab.locator("#gradient-profiles .legendtoggle").first.click()
        for _ in range(50):  # plotly waits whether a second click comes
            if tab.evaluate(f"{drawn}.length") == left:
                break
            tab.wait_for_timeout(100)
        assert tab.evaluate(f"{drawn}.length") == left
    label = "document.getElementById('gradient-profiles').layout.yaxis.title.text"
    assert tab.evaluate(label) == "ŝ (loss)"


def _zoom_and_see(tab: Any) -> None:
    """The strip below the heat map chooses the steps: its ends are handles that can be drawn."""
    plot = "document.getElementById('gradient-heat-map')"
    tab.evaluate(f"{plot}.scrollIntoView()")
    before = tab.evaluate(f"{plot}.layout.xaxis.range")
    handle = tab.locator("#gradient-heat-map .rangeslider-grabarea-min").bounding_box()
    width = tab.locator("#gradient-heat-map .rangeslider-bg").bounding_box()["width"]
    tab.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(handle["x"] + width / 2, handle["y"] + handle["height"] / 2, steps=5)
    tab.mouse.up()
    after = tab.evaluate(f"{plot}.layout.xaxis.range")
    assert after[0] > before[0] + 0.2 * (before[1] - before[0])
    assert after[1] == pytest.approx(before[1])


def _hover_and_see(tab: Any) -> None:
    """Pointing at the heat map says which step and layer it is, and the value."""
    tab.evaluate("document.getElementById('gradient-heat-map').scrollIntoView()")
    area = tab.locator("#gradient-heat-map .nsewdrag").first.bounding_box()
    tab.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    tab.mouse.move(area["x"] + area["width"] / 2 + 2, area["y"] + area["height"] / 2)
    said = tab.wait_for_selector("#gradient-heat-map .hoverlayer .hovertext").text_content()
    assert re.search(r"step \d+.*(conv|layer).*10\^-?\d", said)
