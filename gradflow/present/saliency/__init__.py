"""Saliency: which pixels speak for a class, and whether the map means anything."""

from gradflow.present.saliency.attribution import Attribution, attribute, attribute_all
from gradflow.present.saliency.methods import METHODS, gradcam_layer
from gradflow.present.saliency.trust import check_method

__all__ = [
    "METHODS",
    "Attribution",
    "attribute",
    "attribute_all",
    "check_method",
    "gradcam_layer",
]
