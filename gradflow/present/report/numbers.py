"""The numbers of a report as plain types; and what is pooled over seeds."""

from dataclasses import asdict
from typing import Any

import numpy as np

from gradflow.analysis.overview import Band, Profile
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.present.report import words
from gradflow.present.report.content import Report
from gradflow.present.report.depth import ACTIVATIONS, UPDATES, Measure
from gradflow.present.report.rows import (
    accuracy_rows,
    class_rows,
    evaluated,
    mistakes,
    seed_rows,
)
from gradflow.present.report.saliency import maps_of
from gradflow.present.verdict_story import how_sure
from gradflow.training.evaluate import (
    RecallDifference,
    Reliability,
    part_reliability,
    recall_differences,
    reliability,
)
from gradflow.typed import to_json as as_json


def to_json(report: Report) -> dict[str, Any]:
    """All that the page says and draws, as plain JSON types."""
    word, meaning = words.outcome(report)
    content: dict[str, Any] = as_json(
        {
            "question": words.question(report),
            "setting": words.setting(report),
            "changed": report.changed,
            "outcome": word,
            "meaning": meaning,
            "sentences": list(words.sentences(report)),
            "how_sure": how_sure(report.names, report.seeds, report.verdict),
            "differs": words.differs(report),
            "accuracy": accuracy_rows(report),
            "over_seeds": seed_rows(report),
            "mcnemar_lines": words.mcnemar_lines(report),
            "published": words.published_lines(report),
            "classes": class_rows(report),
            "data": words.data_lines(report),
            "commands": words.commands(report),
            **numbers(report),
            "mcnemar": report.mcnemar(),
            "mistakes": mistakes(report),
            "verdict": None if report.verdict is None else report.verdict.to_json(),
            "study": None if report.study is None else report.study.to_json(),
            "comparisons": [one.to_json() for one in report.comparisons],
            "config": report.config,
            "environments": list(report.environments),
            "missing": list(report.missing),
        }
    )
    return content


def numbers(report: Report) -> dict[str, Any]:
    """What the figures of the page draw, by kind; the heat map draws the records themselves."""
    return {
        "profiles": {
            window: [_band(one) for one in found] for window, found in report.bands.items()
        },
        "activations": _by_depth(report.activations, ACTIVATIONS),
        "updates": _by_depth(report.updates, UPDATES),
        "histograms": [
            asdict(one) | {"exponents": one.exponents.tolist(), "shares": one.shares.tolist()}
            for one in report.distributions
        ],
        "curves": _curves(report),
        "confusion": {
            name: {"classes": list(report.class_names), "counts": matrix.tolist()}
            for name, matrix in confusions(report).items()
        },
        "recall_differences": [asdict(one) for one in differences_in_recall(report)],
        "calibration": {
            name: {
                "confidence": one.confidence.tolist(),
                "accuracy": one.accuracy.tolist(),
                "n": one.n.tolist(),
                "expected_error": one.calibration_error,
                "expected_error_if_perfect": one.error_if_perfect,
            }
            for name, one in reliabilities(report).items()
        },
        "saliency": [one.to_json() for one in maps_of(report.saliency)],
    }


def confusions(report: Report) -> dict[str, np.ndarray]:
    """Network -> counts (true class, answer) of all seeds on the test images."""
    return {
        name: np.sum([part["confusion_matrix"] for part in evaluated(report, name)], axis=0)
        for name in report.trained_names
    }


def differences_in_recall(report: Report) -> list[RecallDifference]:
    """The first network less the second, per class; empty for one network or without labels."""
    if len(report.trained_names) < 2:
        return []
    first, second = (evaluated(report, name) for name in report.trained_names)
    try:
        return recall_differences(first, second, report.class_names)
    except ValueError:  # one seed of an older run, which did not keep the labels
        return []


def reliabilities(report: Report) -> dict[str, Reliability]:
    """Network -> how sure and how right, all seeds together; without those that kept neither."""
    pooled = {}
    for name in report.trained_names:
        parts = evaluated(report, name)
        if all(part_reliability(part) is not None for part in parts):
            sure = np.concatenate([np.max(part["probabilities"], axis=1) for part in parts])
            right = np.concatenate([np.asarray(part["is_right"], bool) for part in parts])
            pooled[name] = reliability(sure, right)
    return pooled


def _band(band: Band) -> dict[str, Any]:
    """The values themselves: a Band holds their log10."""
    return {
        "network": band.network,
        "size": band.size,
        "unit": GRADIENT_SIZES[band.size].unit,
        **band.values().to_json(),
    }


def _by_depth(
    found: dict[str, dict[str, Profile]], measures: dict[str, Measure]
) -> dict[str, dict[str, Any]]:
    return {
        measure: {
            name: {"unit": measures[measure].axis, **one.to_json()}
            for name, one in profiles.items()
        }
        for measure, profiles in found.items()
    }


def _curves(report: Report) -> list[dict[str, Any]]:
    """By epoch, as they are drawn; the losses of single steps stay in the run."""
    return [
        {
            "network": name,
            "seed": one.seed,
            "history": [
                {key: value for key, value in epoch.items() if key != "step_losses"}
                for epoch in one.history
            ],
        }
        for name in report.trained_names
        for one in report.of(name)
    ]
