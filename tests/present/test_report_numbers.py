"""The report's numbers are the verdict's and the evaluation's, in words, JSON and figures."""

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradflow.present import plots
from gradflow.present.markdown import markdown, plain
from gradflow.present.report import interactive, words
from gradflow.present.report.charts_of_training import _differences, confusion_title
from gradflow.present.report.content import Report, Trained
from gradflow.present.report.numbers import class_rows, to_json
from gradflow.present.report.story import charts, story
from gradflow.record.trace import Trace
from gradflow.training.rundir import RunDir


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


def test_json_is_json_where_a_loss_is_not_finite(report: Report) -> None:
    one = report.trained[0]
    test = one.evaluation["last"]["test"] | {"loss": float("nan")}
    broken = replace(one, evaluation={"last": one.evaluation["last"] | {"test": test}})
    content = to_json(replace(report, trained=(broken, *report.trained[1:])))
    content = json.loads(json.dumps(content, allow_nan=False))
    losses = {(row["network"], row["seed"]): row["test_loss"] for row in content["accuracy"]}
    assert losses[one.arch, one.seed] is None


def test_a_loss_that_is_nowhere_finite_leaves_a_gap_and_shifts_no_epoch() -> None:
    loss = np.array([[3.0, np.nan, 1.0], [1.0, np.inf, 2.0]])
    figure = interactive.curves({"net": (loss, loss)}, [0.1, 0.1, 0.1], "loss")
    line = next(one for one in figure.data if one.name == "net, validation")
    np.testing.assert_array_equal(line.y, [2.0, np.nan, 1.5])
    top, _ = plots.curves_plot({"net": (loss, loss)}, [0.1, 0.1, 0.1], "loss", "")
    drawn = next(one for one in top.lines if one.get_label() == "net, validation")
    np.testing.assert_array_equal(drawn.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(drawn.get_ydata(), [2.0, np.nan, 1.5])


def test_of_many_classes_those_that_differ_most_are_drawn(report: Report) -> None:
    names = tuple(f"class {i:02}" for i in range(60))
    labels = np.repeat(np.arange(60), 20).tolist()
    recalls = np.zeros((5, 2, 60))
    rng, trained = np.random.default_rng(0), []
    for seed, i in np.ndindex(5, 2):
        is_right = rng.random((60, 20)) < (0.2, 1.0)[i] * rng.random((60, 1))
        recalls[seed, i] = is_right.mean(axis=1)
        rows = {name: {"recall": one} for name, one in zip(names, recalls[seed, i], strict=True)}
        part = {"report": rows, "is_right": is_right.flatten().tolist(), "labels": labels}
        trained.append(Trained(report.names[i], seed, [], {"last": {"test": part}}))
    many = replace(report, trained=tuple(trained), class_names=names)
    (chart,) = _differences(many)
    assert "Of 60 classes the 40 that differ most are drawn." in chart.caption
    (ax,) = chart.draw().axes
    shown = [label.get_text() for label in ax.get_yticklabels()]
    sizes = np.abs((recalls[:, 0] - recalls[:, 1]).mean(axis=0))
    found = [sizes[names.index(name)] for name in shown]
    assert found == pytest.approx(sorted(sizes, reverse=True)[:40])


@pytest.mark.parametrize("what", ["labels", "images", "no labels", "seed"])
def test_recall_is_not_compared_where_the_seeds_do_not_pair(report: Report, what: str) -> None:
    *others, last = report.trained
    test = dict(last.evaluation["last"]["test"])
    if what == "labels":  # of as many images
        test["labels"] = [1 - label for label in test["labels"]]
    elif what == "no labels":
        del test["labels"]
    changed = replace(last, evaluation={"last": last.evaluation["last"] | {"test": test}})
    if what == "images":
        changed = replace(changed, test_images=tuple(reversed(last.test_images)))
    elif what == "seed":
        changed = replace(changed, seed=7)
    assert to_json(report)["recall_differences"]
    assert to_json(replace(report, trained=(*others, changed)))["recall_differences"] == []


def test_a_trained_network_knows_its_test_images(run: Path, report: Report) -> None:
    expected = tuple(RunDir.open(run).data()["split"]["indices"]["test"])
    assert {one.test_images for one in report.trained} == {expected}


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


def test_a_confusion_is_titled_by_the_largest_share_of_a_class() -> None:
    matrix = np.array([[90, 10, 0], [3, 3, 0], [0, 0, 0]])  # 3 of 6 weigh more than 10 of 100
    title = confusion_title("net", matrix, ["a", "b", "c"])
    assert title == "net most often takes b for a: 3 of 6 times"
    assert confusion_title("net", np.eye(2, dtype=int), ["a", "b"]) == "net makes no mistake"


def test_a_report_says_where_every_seed_has_a_split_of_its_own(report: Report) -> None:
    first, *others = report.trained
    apart = replace(report, trained=(first, *(replace(one, test_images=()) for one in others)))
    said = f"Every seed has a split of its own; the counts are those of seed {first.seed}."
    for one, is_said in ((report, False), (apart, True)):
        texts = [words.setting(one), words.data_lines(one)[1]]
        assert [said in text for text in texts] == [is_said, is_said]
        missing = " ".join(words.missing_lines(one))
        assert ("no differences in recall" in missing) == is_said


def test_the_images_of_a_class_are_the_mean_over_seeds(report: Report) -> None:
    first, *others = report.trained
    name, (row, *_) = first.arch, class_rows(report)[first.arch]
    test = first.evaluation["last"]["test"]
    larger = test["report"][row["label"]] | {"support": row["support"] + 4}  # in one of two seeds
    test = test | {"report": test["report"] | {row["label"]: larger}}
    changed = replace(first, evaluation={"last": first.evaluation["last"] | {"test": test}})
    found = class_rows(replace(report, trained=(changed, *others)))[name][0]
    assert found["support"] == row["support"] + 2
