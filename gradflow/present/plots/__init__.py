"""Plots: arrays in, Axes out. They draw and never compute."""

from matplotlib.axes import Axes

from gradflow.present.plots.classes import (
    confusion_plot,
    interval_plot,
    reliability_plot,
)
from gradflow.present.plots.curves import curves_plot, rate_ticks
from gradflow.present.plots.gallery import gallery_grid, mean_maps_grid
from gradflow.present.plots.profiles import (
    COLORMAP,
    MAX_COLUMNS,
    NO_VALUE,
    depth_profile_plot,
    kinds_of_layers,
    layer_step_heatmap,
    profile_bands_plot,
)
from gradflow.present.plots.saliency import MAP_COLORS, MAP_PERCENTILE, saliency_grid
from gradflow.present.plots.study import dose_response_plot, forest_plot
from gradflow.present.plots.style import (
    DPI,
    FORMATS,
    GRAD_NORM,
    GROUND,
    GUIDE,
    STYLES,
    Figure,
    Theme,
    add_title,
    figure_of,
    in_both_themes,
    new_figure,
    picture_path,
    refuse_to_replace,
    save,
    style_numbers,
    theme,
    to_pixels,
    to_svg,
)

__all__ = [
    "COLORMAP",
    "DPI",
    "FORMATS",
    "GRAD_NORM",
    "GROUND",
    "GUIDE",
    "MAP_COLORS",
    "MAP_PERCENTILE",
    "MAX_COLUMNS",
    "NO_VALUE",
    "STYLES",
    "Axes",
    "Figure",
    "Theme",
    "add_title",
    "confusion_plot",
    "curves_plot",
    "depth_profile_plot",
    "dose_response_plot",
    "figure_of",
    "forest_plot",
    "gallery_grid",
    "in_both_themes",
    "interval_plot",
    "kinds_of_layers",
    "layer_step_heatmap",
    "mean_maps_grid",
    "new_figure",
    "profile_bands_plot",
    "rate_ticks",
    "reliability_plot",
    "saliency_grid",
    "picture_path",
    "refuse_to_replace",
    "save",
    "style_numbers",
    "theme",
    "to_pixels",
    "to_svg",
]
