"""The tables of a report, and its worst mistakes: rows of plain types."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from gradflow.analysis.statistics import t_interval
from gradflow.data import Source, keys_sha256, open_source
from gradflow.present.report.content import Report
from gradflow.training.evaluate import Part, worst_mistakes
from gradflow.training.original import published

N_MISTAKES = 6  # per network
THUMBNAIL = 128  # pixels

Photos = Callable[[int], str | None]  # position in the test set -> data URI of a small picture


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
                    "support": int(rows[0]["support"]),
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
