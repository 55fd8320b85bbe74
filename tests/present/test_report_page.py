"""The report's page: what it says, in which order; it loads nothing, and no name can do harm."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest

from gradflow.analysis.compare import Comparison
from gradflow.analysis.statistics import Interval
from gradflow.present.markdown import markdown
from gradflow.present.report import interactive, page, words
from gradflow.present.report.charts_of_training import class_charts
from gradflow.present.report.content import Report
from gradflow.present.report.story import answer, charts, story
from gradflow.present.section import Box
from gradflow.record.trace import Table
from gradflow.training import original
from gradflow.training.evaluate import Predictions, evaluate


def test_the_first_screen_holds_question_answer_and_how_sure(report: Report, text: str) -> None:
    top = text[text.index("<header>") : text.index("</header>")]
    assert "Do the gradients of plain_18 vanish towards the input" in top
    for sentence in report.verdict.sentences:
        assert sentence.split("'")[0] in top
    assert "2 trainings of each network" in top
    assert "networks differ most at" in top


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


def test_a_class_called_a_script_cannot_run(text: str) -> None:
    assert "<script>alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_an_option_cannot_break_out_of_its_element() -> None:
    names = ('"><script>', "</select><b>")
    table = Table(np.arange(1), ("a",), np.ones((1, 1)))
    figure = interactive.heat_map({(name, "output_gradient"): table for name in names})
    written = interactive.to_html("key", figure).split("<div>")[0]
    assert "&lt;/select&gt;&lt;b&gt;</option>" in written
    assert not [name for name in names if name in written]


def test_the_page_loads_nothing(report: Report, text: str) -> None:
    found = charts(report)
    static = page.html(story(report, found), static=True)
    assert "default-src 'none'" in text
    for one in (text.split("<body>")[1], static):
        assert not re.search(r"(src|srcset|href)=\"(?!data:|#)", one)
    assert "Plotly.newPlot" in text
    assert "Plotly" not in static
    assert static.count("data:image/svg+xml") == 2 * len(found), "light and dark"
    assert len(static) < 3_000_000


def compared(report: Report) -> Comparison:
    """The layers of δ at equal step, in which the largest difference is looked for."""
    (found,) = (
        c for c in report.comparisons if (c.size, c.at) == ("output_gradient", "equal step")
    )
    return found


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


def test_an_interval_over_images_is_not_said_to_be_over_seeds(report: Report) -> None:
    (box,) = (part for part in answer(report).parts if isinstance(part, Box))
    assert "Intervals are 95 %, over seeds where nothing else is said" in " ".join(box.lines)
    found = charts(report)
    written = markdown(story(report, found), "figures")
    assert "seed by seed (95 % interval over the test images)" in written
    (caption,) = (one.caption for one in found if one.key == "class-differences")
    assert "paired interval over 6 images and a bootstrap over 2 seeds" in caption


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
