"""Plots: arrays in, Axes out. They draw and never compute."""

from gradflow.present.plots.classes import (
    confusion_plot,
    interval_plot,
    mistakes_grid,
    reliability_plot,
)
from gradflow.present.plots.curves import curves_plot, history_plot, rate_ticks
from gradflow.present.plots.gallery import ByClass, gallery_grid, mean_maps_grid
from gradflow.present.plots.profiles import (
    COLORMAP,
    MAX_COLUMNS,
    NO_VALUE,
    depth_profile_plot,
    layer_step_heatmap,
    profile_bands_plot,
)
from gradflow.present.plots.saliency import MAP_COLORS, MAP_PERCENTILE, ClassMaps, saliency_grid
from gradflow.present.plots.style import (
    DPI,
    GRAD_NORM,
    STYLES,
    Figure,
    figure_of,
    new_figure,
    save,
    to_pixels,
    to_svg,
)

__all__ = [
    "COLORMAP",
    "DPI",
    "GRAD_NORM",
    "MAP_COLORS",
    "MAP_PERCENTILE",
    "MAX_COLUMNS",
    "NO_VALUE",
    "STYLES",
    "ByClass",
    "ClassMaps",
    "Figure",
    "confusion_plot",
    "curves_plot",
    "depth_profile_plot",
    "figure_of",
    "gallery_grid",
    "history_plot",
    "interval_plot",
    "layer_step_heatmap",
    "mean_maps_grid",
    "mistakes_grid",
    "new_figure",
    "profile_bands_plot",
    "rate_ticks",
    "reliability_plot",
    "saliency_grid",
    "save",
    "to_pixels",
    "to_svg",
]
