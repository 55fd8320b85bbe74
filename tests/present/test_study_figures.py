"""The figures of a study: what they say, and that they say it once."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gradflow.present import plots
from gradflow.present.study_figures import finding, save_study_figures, study_charts
from gradflow.studies import Results, Study
from gradflow.studies.judging import results
from gradflow.studies.outcomes import Outcome

SKIP = "strength of the skip connections"
WOBBLE = (0.01, -0.006, -0.004)  # of the losses over seeds: together 0
LOSSES = {  # of the accused and of the reference network, None where the arm does not treat it
    "baseline": (1.4, 0.76),
    "half": (None, 0.9),
    "quarter": (None, 1.21),
    "low": (1.5, 0.8),
    "high": (1.3, 0.7),
}


def doses(**changes: float) -> Results:
    arms: dict[str, Any] = {
        name: {
            "tests": "skip", "networks": "reference", "intervene": f"skip(alpha={dose})",
            "series": SKIP, "dose": dose, "dose_without": 1.0,
        }
        for name, dose in (("half", 0.5), ("quarter", 0.25))
    }  # fmt: skip
    arms |= {
        name: {"tests": "rate", "set": {"lr": lr}, "series": "learning rate", "dose": lr}
        for name, lr in (("low", 0.0001), ("high", 0.01))
    }
    content = {
        "base": {"data": "digits", "epochs": 2}, "accused": "plain_18", "reference": "resnet_18",
        "seeds": 3, "restores": "half", "arms": arms,
    }  # fmt: skip
    return results(
        Study.read(content, name="study", changes={}),
        {
            (arm, place, seed): Outcome(changes.get(arm, loss) + wobble, 0.5)
            for arm, levels in LOSSES.items()
            for place, loss in zip(("accused", "reference"), levels, strict=True)
            if loss is not None
            for seed, wobble in enumerate(WOBBLE)
        },
    )


def titles_of(found: Results) -> dict[str, str]:
    return {one.key: one.title for one in study_charts(found)}


def test_the_title_of_a_dose_says_how_the_loss_answers() -> None:
    titles = titles_of(doses())
    assert titles["dose-strength-of-the-skip-connections"] == (
        f"Training loss of resnet_18 goes from 0.76 at 1 to 1.21 at 0.25 ({SKIP})"
    )
    assert titles["dose-learning-rate"] == (
        "Training loss of plain_18 goes from 1.50 at 0.0001 to 1.30 at 0.01, that of resnet_18 "
        "goes from 0.80 at 0.0001 to 0.70 at 0.01 (learning rate)"
    )


def test_a_title_goes_over_the_untouched_network_where_it_lies_between_the_doses() -> None:
    found = doses()
    arms = tuple(
        dataclasses.replace(one, arm=dataclasses.replace(one.arm, dose_without=0.001))
        if one.arm.series == "learning rate" else one
        for one in found.arms
    )  # fmt: skip
    title = titles_of(dataclasses.replace(found, arms=arms))["dose-learning-rate"]
    assert "plain_18 goes from 1.50 at 0.0001 over 1.40 at 0.001 to 1.30 at 0.01," in title


def test_a_dose_that_diverged_is_no_end_of_the_answer() -> None:
    titles = titles_of(doses(quarter=float("nan")))
    assert "from 0.76 at 1 to 0.90 at 0.5 " in titles["dose-strength-of-the-skip-connections"]


def test_a_figure_of_a_study_has_its_title_in_its_file_and_not_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doses()
    saved = {}
    save = plots.save
    monkeypatch.setattr(
        plots, "save", lambda figure, path: saved.setdefault(save(figure, path).name, figure)
    )
    save_study_figures(found, tmp_path)
    for chart in study_charts(found):
        assert not said_in(chart.draw())
        (title,) = said_in(saved[f"{chart.key}.png"])
        assert " ".join(title.split()) == chart.title
    (title,) = said_in(saved["forest.png"])
    assert " ".join(title.split()) == finding(found)


def said_in(figure: plots.Figure) -> list[str]:
    titles = (figure.get_suptitle(), *(ax.get_title() for ax in figure.axes))
    return [title for title in titles if title]
