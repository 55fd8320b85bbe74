"""The tables of a report, and its worst mistakes: rows of plain types."""

import base64
import io
from typing import Any

from PIL import Image

from gradflow.present.report.content import Report
from gradflow.present.study_view import arm_row
from gradflow.training.classes import Part, worst_mistakes
from gradflow.training.original import published

N_MISTAKES = 6  # per network
THUMBNAIL = 128  # pixels


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
                    "support": int(rows[0]["support"]),
                    "published": theirs["report"][label] if theirs else None,
                }
            )
    return found


def arm_rows(report: Report) -> list[dict[str, Any]]:
    """One row per arm that may be a cause, the strongest first; numbers as text."""
    found = report.study
    return [] if found is None else [arm_row(one) for one in found.strongest]


def mistakes(report: Report, *, pictures: bool = False) -> list[dict[str, Any]]:
    """The surest wrong answers of each network's first seed, with small pictures where they are."""
    found = []
    read = _reader(report) if pictures else lambda position: None
    for name in report.names:
        parts = evaluated(report, name)
        for one in (worst_mistakes(parts[0], N_MISTAKES) if parts else None) or ():
            photo = read(one.position)
            found.append(
                {
                    "network": name,
                    "label": report.class_names[one.label],
                    "predicted": report.class_names[one.predicted],
                    "probability": one.probability,
                }
                | ({"picture": photo} if pictures else {})
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


def _reader(report: Report) -> Any:
    """Position in the test set -> a small JPEG as a data URI; None where the images are gone."""
    from gradflow.data import open_source

    try:
        source = open_source(report.config["data"])
        positions = report.data["split"]["indices"]["test"]
    except (KeyError, OSError, ValueError, RuntimeError):
        return lambda position: None

    def read(position: int) -> str | None:
        try:
            photo = source.read(positions[position])
        except (OSError, ValueError):
            return None
        photo = _thumbnail(photo)
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=80)
        return data_uri(file.getvalue(), "jpeg")

    return read
