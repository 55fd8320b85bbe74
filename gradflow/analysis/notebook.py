"""What a notebook shows of a verdict, and of a trace."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gradflow.analysis.brief import lines
from gradflow.analysis.profile import GRADIENT_SIZES, DepthProfile, depth_profile
from gradflow.analysis.vanishing import JUDGED_SIZES
from gradflow.record.notebook import card, depth_svg, power
from gradflow.record.trace import Trace

if TYPE_CHECKING:
    from gradflow.analysis.verdict import Verdict


def verdict_html(verdict: "Verdict") -> str:
    """The ten lines, the state of each link and rival, and the profiles of δ and ŝ."""
    findings = (
        (f"{one.key}, {one.title}", one.status) for one in (*verdict.links, *verdict.rivals)
    )
    pictures = (_profile(verdict, size) for size in JUDGED_SIZES)
    return card("Verdict", [*lines(verdict), *findings], *pictures)


def _profile(verdict: "Verdict", size: str) -> str:
    meaning = GRADIENT_SIZES[size]
    bands = [band for band in verdict.bands if band.size == size]
    return depth_svg(
        {band.network: band.mean for band in bands},
        f"{meaning.symbol}, {meaning.unit}, early in training (log scale)",
        {band.network: band.layers for band in bands},
    )


def trace_html(trace: Trace) -> str:
    """Steps, sites, measures, NaN and inf, and the depth profile of the gradients."""
    steps = f"{len(trace)}"
    if len(trace):
        steps += f", from {trace.steps[0]} to {trace.steps[-1]}"
    rows: list[tuple[str, object]] = [
        ("recorded steps", steps),
        ("sites", len(trace.sites)),
        ("measures", ", ".join(trace.measures) or "none"),
    ]
    if trace.skipped_steps:
        rows.append(("skipped steps", len(trace.skipped_steps)))
    if bad := trace.nonfinite():
        rows.append(("first NaN or inf", f"step {bad[0].first_step}, {bad[0].site}"))
    profile = gradient_profile(trace)
    rows += profile_rows(profile)
    return card(
        "Trace",
        rows,
        profiles_svg({profile.measure: profile}, "By depth, mean over steps (log scale)"),
    )


def gradient_profile(trace: Trace) -> DepthProfile:
    """log10 of ‖∂L/∂w‖₂ by layer, the mean over steps where it is above zero; empty without one."""
    if "grad_norm" not in trace.values:
        return DepthProfile("grad_norm", (), np.empty(0))
    found = depth_profile(trace)
    with np.errstate(divide="ignore"):
        return DepthProfile(found.measure, found.sites, np.log10(found.values))


def profiles_svg(profiles: Mapping[str, DepthProfile], title: str) -> str:
    return depth_svg(
        {name: one.values for name, one in profiles.items()},
        title,
        {
            name: [site.removesuffix(".weight") for site in one.sites]
            for name, one in profiles.items()
        },
    )


def profile_rows(profile: DepthProfile) -> list[tuple[str, object]]:
    """How many times larger the first layer is than the last; nothing where that is unknown."""
    known = profile.values[np.isfinite(profile.values)]
    return [("first / last layer", f"{power(known[0] - known[-1])}×")] if len(known) > 1 else []
