"""The numbers of a report as plain types; and what is pooled over seeds."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gradflow.analysis.overview import Band, Profile
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.statistics import t_interval
from gradflow.data import Source, keys_sha256, open_source
from gradflow.present.report import words
from gradflow.present.report.content import Report
from gradflow.present.report.depth import ACTIVATIONS, UPDATES, Measure
from gradflow.present.report.saliency import maps_of
from gradflow.present.verdict_story import how_sure
from gradflow.training.evaluate import (
    Part,
    RecallDifference,
    Reliability,
    part_reliability,
    recall_differences,
    reliability,
    worst_mistakes,
)
from gradflow.training.original import published
from gradflow.typed import to_json as as_json

N_MISTAKES = 6  # per network
THUMBNAIL = 128  # pixels

Photos = Callable[[int], str | None]  # position in the test set -> data URI of a small picture


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
            "sentences": words.sentences(report),
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
            "environments": report.environments,
            "missing": words.missing_lines(report),
        }
    )
    return content


def numbers(report: Report) -> dict[str, Any]:
    """What the figures of the page draw, by kind, before it is made JSON; the heat map draws the
    records themselves."""
    return {
        "profiles": {
            window: [_band(one) for one in found] for window, found in report.bands.items()
        },
        "activations": _by_depth(report.activations, ACTIVATIONS),
        "updates": _by_depth(report.updates, UPDATES),
        "histograms": report.distributions,
        "curves": _curves(report),
        "confusion": {
            name: {"classes": report.class_names, "counts": matrix}
            for name, matrix in confusions(report).items()
        },
        "recall_differences": differences_in_recall(report),
        "calibration": {
            name: {
                "confidence": one.confidence,
                "accuracy": one.accuracy,
                "n": one.n,
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
    """The first network less the second, per class; empty for one network, or where they do not
    pair: without labels, or where the seeds have test images of their own."""
    if len(report.trained_names) < 2:
        return []
    first, second = (evaluated(report, name) for name in report.trained_names)
    # The intervals draw the same images for all seeds, so that all must have been asked the same.
    asked = {tuple(part.get("labels", ())) for part in (*first, *second)}
    seeds = {tuple(one.seed for one in report.of(name)) for name in report.trained_names}
    if not (report.has_one_split and len(seeds) == len(asked) == 1 and all(asked)):
        return []
    return recall_differences(first, second, report.class_names)


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
        **vars(band.values()),
    }


def _by_depth(
    found: dict[str, dict[str, Profile]], measures: dict[str, Measure]
) -> dict[str, dict[str, Any]]:
    return {
        measure: {
            name: {"unit": measures[measure].axis, **vars(one)} for name, one in profiles.items()
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


# -- the tables, and the worst mistakes ------------------------------------------------------------


def evaluated(report: Report, name: str) -> list[Part]:
    """The evaluation on the test images after the last epoch, per seed."""
    return [one.evaluation["last"]["test"] for one in report.of(name)]


def data_uri(content: bytes, kind: str) -> str:
    """A picture that stands in the page itself; `kind` as in image/png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def accuracy_rows(report: Report) -> list[dict[str, Any]]:
    """One row per network and seed, after the last epoch."""
    return [
        {
            "network": one.arch,
            "seed": one.seed,
            "epochs": len(one.history),
            "train": one.evaluation["last"]["train"]["accuracy"],
            "test": one.evaluation["last"]["test"]["accuracy"],
            "interval": one.evaluation["last"]["test"]["accuracy_interval"],
            "balanced": one.evaluation["last"]["test"]["balanced_accuracy"],
            "n_test": one.evaluation["last"]["test"]["n"],
            "test_loss": one.evaluation["last"]["test"]["loss"],
        }
        for name in report.names
        for one in report.of(name)
    ]


def seed_rows(report: Report) -> list[dict[str, str]]:
    """One row per network of several seeds: mean and 95 % interval over them, as text."""
    found, of_all = [], accuracy_rows(report)
    for name in report.names:
        rows = [row for row in of_all if row["network"] == name]
        if len(rows) < 2:
            continue
        balanced = [row["balanced"] for row in rows if row["balanced"] is not None]
        found.append(
            {
                "network": name,
                "seeds": str(len(rows)),
                "train": _over_seeds([row["train"] for row in rows], 1.0),
                "test": _over_seeds([row["test"] for row in rows], 1.0),
                "balanced": _over_seeds(balanced, 1.0),
                "test_loss": _over_seeds([row["test_loss"] for row in rows], math.inf),
            }
        )
    return found


def _over_seeds(values: Sequence[float], highest: float) -> str:
    found = t_interval(values, bounds=(0.0, highest))
    if not math.isfinite(found.mean):
        return ""
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def class_rows(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Network -> one row per class: the mean over seeds, beside the published numbers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in report.names:
        parts = evaluated(report, name)
        theirs = published(name, report.class_names)
        for label in report.class_names if parts else ():
            rows = [part["report"][label] for part in parts]
            found.setdefault(name, []).append(
                {
                    "label": label,
                    "numbers": [
                        sum(row[key] for row in rows) / len(rows)
                        for key in ("precision", "recall", "f1-score")
                    ],
                    "support": round(sum(row["support"] for row in rows) / len(rows)),
                    "published": theirs["report"][label] if theirs else None,
                }
            )
    return found


def mistakes(report: Report, photos: Photos | None = None) -> list[dict[str, Any]]:
    """The surest wrong answers of each network's first seed, with small pictures from `photos`."""
    found = []
    for name in report.names:
        parts = evaluated(report, name)
        for one in (worst_mistakes(parts[0], N_MISTAKES) if parts else None) or ():
            found.append(
                {
                    "network": name,
                    "label": report.class_names[one.label],
                    "predicted": report.class_names[one.predicted],
                    "probability": one.probability,
                }
                | ({} if photos is None else {"picture": photos(one.position)})
            )
    return found


def _thumbnail(photo: Image.Image) -> Image.Image:
    """At most 128 pixels a side; a smaller picture in whole multiples, so that it can be seen."""
    times = THUMBNAIL // max(photo.size)
    if times > 1:
        size = (photo.width * times, photo.height * times)
        return photo.resize(size, Image.Resampling.NEAREST)
    photo.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return photo


def photos_of_test_set(report: Report) -> tuple[Photos, str]:
    """Position in the test set -> a small JPEG as a data URI; and where they are, or why not.

    The images are found again where the training found them, and counted as it counted them. Of a
    run that did not keep their names, number and labels have to do. A run of somebody else may name
    any folder of the reader's: then nothing is read.
    """
    if not report.images:
        return _no_photo, (
            "Give `--images FOLDER` to see their pictures: this run was not trained by you on "
            "this machine."
        )
    try:
        source = open_source(report.images)
    except (OSError, ValueError, RuntimeError):
        return _no_photo, f"The images are no longer at {report.images}, seen from here."
    positions = report.data["split"]["indices"]["test"]
    if not _are_the_same(report, source, positions):
        return _no_photo, f"The images at {report.images} are not those of the training."

    def read(position: int) -> str | None:
        try:
            photo = source.read(positions[position])
        except (OSError, ValueError):
            return None
        file = io.BytesIO()
        _thumbnail(photo).save(file, "JPEG", quality=80)
        return data_uri(file.getvalue(), "jpeg")

    return read, f"The pictures are those at {report.images}."


def _no_photo(position: int) -> None:
    return None


def _are_the_same(report: Report, source: Source, positions: Sequence[int]) -> bool:
    if "keys_sha256" in report.data:
        return bool(report.data["keys_sha256"] == keys_sha256(source.keys))
    labels = next(
        (part.get("labels") for name in report.names for part in evaluated(report, name)), None
    )
    return (
        len(source.keys) == report.data["audit"]["n_images"]
        and source.class_names == report.class_names
        and (labels is None or source.labels[list(positions)].tolist() == list(labels))
    )
