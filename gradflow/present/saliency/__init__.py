"""Saliency: which pixels speak for a class, and whether the map means anything."""

from gradflow.present.saliency.attribution import (
    Attribution,
    attribute,
    attribute_all,
    inspecting,
)
from gradflow.present.saliency.methods import METHODS, gradcam_layer
from gradflow.present.saliency.pictures import saliency_figure
from gradflow.present.saliency.trust import Trust, check_method

__all__ = [
    "METHODS",
    "Attribution",
    "Trust",
    "attribute",
    "attribute_all",
    "check_method",
    "gradcam_layer",
    "inspecting",
    "saliency_figure",
]
