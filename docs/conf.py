"""Sphinx: `sphinx-build -W -n -b html docs docs/_build/html`. Needs no network."""

import gradflow

project = "gradflow"
author = "The gradflow developers"
copyright = f"2026, {author}"
version = release = gradflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gradflow {version}"

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

nitpick_ignore_regex = [
    # Types of other projects: to link them, their inventories would have to be downloaded.
    ("py:class", r"(PIL|collections|numpy|os|pandas|pathlib|torch)\..*"),
    # Named for the type checker only, so that start-up is fast.
    ("py:class", r"Tensor|Progress|nn\.Module|Optimizer"),
    ("py:class", r"(gradflow\.present\.saliency\.attribution\.)?Attribution"),
    ("py:class", r"gradflow\.analysis\.case\.Number"),  # a type variable
]
