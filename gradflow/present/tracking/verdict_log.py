"""A verdict in a tracker: a run of its own, since it is about several networks."""

import math
from collections.abc import Mapping

from gradflow.analysis.findings import OUTCOMES, Finding
from gradflow.analysis.verdict import Verdict
from gradflow.present import plots
from gradflow.present.figures import verdict_figure
from gradflow.present.tracking.sink import Cell, Sink
from gradflow.present.verdict_story import question, reason

NAME = "verdict"  # of the run
ANSWER, FINDINGS, PROFILES = "verdict/answer", "verdict/findings", "verdict/profiles"
COLUMNS = ("key", "question", "status", "p for", "p against", "evidence")


def log_verdict(verdict: Verdict, sink: Sink) -> None:
    """Two tables, a picture and the summary; ends the run."""
    answer = [("question", question(verdict)), ("verdict", verdict.outcome)]
    answer += [("meaning", OUTCOMES[verdict.outcome])]
    answer += [("why", sentence) for sentence in verdict.sentences]
    answer += [("next", step) for step in verdict.next_steps]
    answer += [("note", note) for note in verdict.notes]
    sink.table(ANSWER, ("", "text"), answer)
    sink.table(FINDINGS, COLUMNS, [_row(one) for one in (*verdict.links, *verdict.rivals)])
    sink.picture(PROFILES, plots.to_pixels(verdict_figure(verdict)), 0)
    sink.finish(summary(verdict))


def summary_of_network(verdict: Verdict) -> Mapping[str, Cell]:
    """Of the verdict, what stands in the run of each of its networks, beside their accuracies."""
    return {
        "verdict/outcome": verdict.outcome,
        "verdict/sentences": " ".join(verdict.sentences),
    }


def summary(verdict: Verdict) -> Mapping[str, Cell]:
    """The outcome in words, and the change over depth early in training in decades."""
    decades = {
        f"verdict/{rate.network}/{rate.size}_decades": rate.decades.mean
        for rate in verdict.rates
        if rate.window == "early" and math.isfinite(rate.decades.mean)
    }
    return {
        **summary_of_network(verdict),
        "verdict/gap": verdict.gap_status,
        "verdict/n_seeds": len(verdict.case.seeds),
        **decades,
    }


def _row(finding: Finding) -> tuple[Cell, ...]:
    p = (finding.p_for, finding.p_against) if finding.is_measured else (math.nan, math.nan)
    said = " ".join(reason(finding).lines)
    return (finding.key, finding.question, finding.status, *p, said)
