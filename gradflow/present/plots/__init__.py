"""Plots: arrays in, Axes out. They draw and never compute."""

from matplotlib.axes import Axes as Axes

from gradflow.present.plots.gallery import gallery_grid as gallery_grid
from gradflow.present.plots.gallery import mean_maps_grid as mean_maps_grid
from gradflow.present.plots.profiles import COLORMAP as COLORMAP
from gradflow.present.plots.profiles import MAX_COLUMNS as MAX_COLUMNS
from gradflow.present.plots.profiles import NO_VALUE as NO_VALUE
from gradflow.present.plots.profiles import histogram_map as histogram_map
from gradflow.present.plots.profiles import kinds_of_layers as kinds_of_layers
from gradflow.present.plots.profiles import layer_step_heatmap as layer_step_heatmap
from gradflow.present.plots.profiles import profile_bands_plot as profile_bands_plot
from gradflow.present.plots.results import confusion_plot as confusion_plot
from gradflow.present.plots.results import curves_plot as curves_plot
from gradflow.present.plots.results import dose_response_plot as dose_response_plot
from gradflow.present.plots.results import forest_plot as forest_plot
from gradflow.present.plots.results import rate_ticks as rate_ticks
from gradflow.present.plots.results import reliability_plot as reliability_plot
from gradflow.present.plots.saliency import saliency_grid as saliency_grid
from gradflow.present.plots.style import FORMATS as FORMATS
from gradflow.present.plots.style import GRAD_NORM as GRAD_NORM
from gradflow.present.plots.style import GROUND as GROUND
from gradflow.present.plots.style import GUIDE as GUIDE
from gradflow.present.plots.style import STYLES as STYLES
from gradflow.present.plots.style import Figure as Figure
from gradflow.present.plots.style import Theme as Theme
from gradflow.present.plots.style import add_title as add_title
from gradflow.present.plots.style import figure_of as figure_of
from gradflow.present.plots.style import in_both_themes as in_both_themes
from gradflow.present.plots.style import new_figure as new_figure
from gradflow.present.plots.style import picture_path as picture_path
from gradflow.present.plots.style import refuse_to_replace as refuse_to_replace
from gradflow.present.plots.style import save as save
from gradflow.present.plots.style import style_numbers as style_numbers
from gradflow.present.plots.style import theme as theme
from gradflow.present.plots.style import to_pixels as to_pixels
from gradflow.present.plots.style import to_svg as to_svg
