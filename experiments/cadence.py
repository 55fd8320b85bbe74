"""Claim under test: what is taken at one step in 8 only loses a verdict nothing of its precision.

Five seeds of both networks on the digits, recorded whole at every step (`--cadence 1`). The same
records without what the default cadence leaves out are what it would have recorded, for recording
changes no bit of a training. Both are judged.

    python experiments/cadence.py --out runs/cadence    # ten trainings, some six minutes

The table in docs/measures.md is experiments/results/cadence.json.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from trained import begun_in, finished

from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork, distance_travelled, mean_of_layers
from gradflow.analysis.statistics import Interval, t_interval
from gradflow.analysis.verdict import judge_case
from gradflow.files import write_json
from gradflow.record import MEASURES, Trace
from gradflow.record.measures import CHEAP_READS, Measure
from gradflow.record.schedule import DEFAULT_CADENCE, Cadence
from gradflow.training.diagnosis import open_case

RESULT = Path(__file__).parent / "results" / "cadence.json"
OPTIONS = ("--arch", "both", "--seeds", "5", "--log-grads", "--cadence", "1", "--no-rivals")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cadence"))
    out = parser.parse_args().out
    run = finished(begun_in(out), *OPTIONS, "--out", out)
    whole = open_case([run.path])
    thinned = replace(whole, accused=thin(whole.accused), reference=thin(whole.reference))
    trace = whole.accused[0].trace
    found = {
        "steps": len(trace),
        "full steps": int(full_steps(trace).sum()),
        "rows": {"1": rows(whole), str(DEFAULT_CADENCE): rows(thinned)},
    }
    write_json(RESULT, found)


def thin(networks: tuple[TrainedNetwork, ...]) -> tuple[TrainedNetwork, ...]:
    """As the default cadence would have recorded them."""
    return tuple(replace(one, trace=thin_trace(one.trace)) for one in networks)


def thin_trace(trace: Trace) -> Trace:
    is_full = full_steps(trace)[:, np.newaxis]
    values = {
        name: table if is_cheap(MEASURES[name]) else np.where(is_full, table, np.nan)
        for name, table in trace.values.items()
    }
    return replace(trace, values=values)


def full_steps(trace: Trace) -> np.ndarray:
    cadence = Cadence(DEFAULT_CADENCE)
    return np.array([cadence.is_full(index) for index in range(len(trace))])


def is_cheap(measure: Measure) -> bool:
    """Whether it is taken at every recorded step."""
    return measure.of == "output gradient" or measure.read in CHEAP_READS


def rows(case: Case) -> dict[str, list[float]]:
    """Mean and 95 % interval over seeds: what links 1 and 2 ask, and means of the accused."""
    links = judge_case(case).links[:2]
    found = {one.name: one.interval for link in links for one in link.evidence}
    return {name: plain(one) for name, one in (found | means_of(case.accused)).items()}


def means_of(networks: tuple[TrainedNetwork, ...]) -> Mapping[str, Interval]:
    """What rests on the full steps."""
    found = {
        measure: t_interval(
            [
                mean_of_layers(one, measure, one.layers, np.ones(len(one.trace), dtype=bool))
                for one in networks
            ]
        )
        for measure in ("relative_update", "adam_attenuation")
    }
    travelled = [float(np.nanmean(distance_travelled(one))) for one in networks]
    return found | {"distance travelled": t_interval(travelled)}


def plain(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


if __name__ == "__main__":
    main()
