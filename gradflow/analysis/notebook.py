"""What a notebook shows of a verdict."""

from typing import TYPE_CHECKING

from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.vanishing import JUDGED_SIZES
from gradflow.record.notebook import card, depth_svg

if TYPE_CHECKING:
    from gradflow.analysis.verdict import Verdict


def verdict_html(verdict: "Verdict", meaning: str) -> str:
    """The outcome, its sentences, links and rivals, and the profiles of δ and ŝ."""
    case = verdict.case
    rows: list[tuple[str, object]] = [
        ("outcome", f"{verdict.outcome}: {meaning}"),
        ("accused", case.name),
        ("reference", case.reference_name or "none"),
        ("seeds", len(case.seeds)),
        *(("", sentence) for sentence in verdict.sentences),
        *((f"{one.key}, {one.title}", one.status) for one in verdict.links),
        *((f"rival {one.key}, {one.title}", one.status) for one in verdict.rivals),
    ]
    return card("Verdict", rows, *(_profile(verdict, size) for size in JUDGED_SIZES))


def _profile(verdict: "Verdict", size: str) -> str:
    meaning = GRADIENT_SIZES[size]
    bands = {band.network: band.mean for band in verdict.bands if band.size == size}
    return depth_svg(bands, f"{meaning.symbol}, {meaning.unit}, early in training (log scale)")
