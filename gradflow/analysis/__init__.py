"""Analysis: what a trace says. NumPy on arrays, no torch."""

from gradflow.analysis.profile import (
    DepthProfile,
    depth_profile,
    first_to_last,
    geometric_mean,
    weight_table,
)

__all__ = ["DepthProfile", "depth_profile", "first_to_last", "geometric_mean", "weight_table"]
