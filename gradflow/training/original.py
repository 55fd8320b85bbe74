"""The original study's published results, to be shown beside a reproduction.

Where its table and the screenshot of the same run disagree, the screenshot is given: the supports
of the table do not add up to the size of the test set.
"""

from collections.abc import Sequence
from typing import Any

CLASSES = ("nasi_goreng", "rendang", "soto_ayam", "bakso", "gado_gado")

PUBLISHED: dict[str, dict[str, Any]] = {
    "plain_34": {
        "train_accuracy": 0.7020,
        "test_accuracy": 0.4279,
        "n_test": 222,
        "train_loss": 1.1464,
        "val_loss": 1.4366,
        # class: precision, recall, F1
        "report": {
            "nasi_goreng": (0.78, 0.48, 0.59),
            "rendang": (0.64, 0.89, 0.75),
            "soto_ayam": (0.22, 0.84, 0.35),
            "bakso": (0.0, 0.0, 0.0),
            "gado_gado": (0.0, 0.0, 0.0),
        },
    },
    "resnet_34": {
        "train_accuracy": 0.8695,
        "test_accuracy": 0.6712,
        "n_test": 222,
        "train_loss": 0.9135,
        "val_loss": 1.1830,
        "report": {
            "nasi_goreng": (0.82, 0.82, 0.82),
            "rendang": (0.85, 0.83, 0.84),
            "soto_ayam": (0.41, 0.78, 0.54),
            "bakso": (0.84, 0.49, 0.62),
            "gado_gado": (0.53, 0.45, 0.49),
        },
    },
}


def published(arch: str, class_names: Sequence[str]) -> dict[str, Any] | None:
    """The published results of `arch` if the classes are the original's, in any order."""
    if sorted(class_names) != sorted(CLASSES):
        return None
    return PUBLISHED.get(arch)
