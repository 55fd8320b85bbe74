"""What the engine of a study costs: two workers against one, and what is around a training.

Claims, on 2 cores: what is around the trainings takes under 2 % of the time of the cells, and two
workers finish a study at least 1.8 times as fast as one, with the same results byte for byte. The
start of a worker takes some seconds, which weighs in short trainings: those here take about 30.

    python experiments/study_cost.py                # 5 to 15 minutes

Whole commands in pairs, one worker and then two, each in a new folder, A B A B: a machine whose
speed drifts does not decide. Nothing else may run meanwhile. The numbers go to --output.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from overhead import environment
from trained import gradflow

from gradflow.files import write_json
from gradflow.studies import StudyDir
from gradflow.studies.folder import CellDir

RESULTS = Path(__file__).parent / "results" / "studies"
MOST_AROUND, LEAST_FASTER = 0.02, 1.8  # the claims


@dataclass(frozen=True)
class Finished:
    """A study from the command to its end; `states` are those of its cells."""

    workers: int
    seconds: float
    states: Sequence[Mapping[str, Any]]
    results: str

    @property
    def in_cells(self) -> float:
        """Seconds of all cells, with what is around their trainings."""
        return sum(one["seconds"] + one["seconds_around"] for one in self.states)


def study_file(epochs: int) -> dict[str, Any]:
    """Four trainings of the same length."""
    return {
        "base": {
            "data": "digits", "width": 0.25, "epochs": epochs, "patience": 0, "device": "cpu",
            "log_grads": True, "rivals": False, "checkpoint_budget": 0,
        },
        "accused": "plain_34",
        "reference": "resnet_34",
        "seeds": 1,
        "arms": {"constant-lr": {"set": {"schedule": "constant"}}},
    }  # fmt: skip


def finished(file: Path, out: Path, workers: int) -> Finished:
    start = time.perf_counter()
    results = gradflow("study", file, "--out", out, "--workers", str(workers), "--json")
    seconds = time.perf_counter() - start
    folder = StudyDir.open(out)
    states = [CellDir(cell.folder).state() for cell in folder.study().cells(folder.cells)]
    return Finished(workers, seconds, states, results)


def facts(pairs: Sequence[tuple[Finished, Finished]]) -> dict[str, Any]:
    """What the pairs of one and of two workers say."""
    studies = [study for pair in pairs for study in pair]
    states = [state for study in studies for state in study.states]
    around = sum(state["seconds_around"] for state in states)
    two = [pair[1] for pair in pairs]
    return {
        "trainings": len(studies[0].states),
        "seconds_of_a_training": sum(state["seconds"] for state in states) / len(states),
        "seconds_of_one_worker": [one.seconds for one, _ in pairs],
        "seconds_of_two_workers": [one.seconds for one in two],
        "times_as_fast": [one.seconds / other.seconds for one, other in pairs],
        "share_around_trainings": around / sum(study.in_cells for study in studies),
        "share_two_workers_are_busy": sum(one.in_cells for one in two)
        / sum(one.workers * one.seconds for one in two),
        "same_results": len({study.results for study in studies}) == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="of a training; 20 take about 30 s")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "study-cost.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "study.yaml")
        file.write_text(yaml.safe_dump(study_file(options.epochs)), encoding="utf-8")
        found = facts(
            [
                (finished(file, Path(folder, f"{i}-one"), 1),
                 finished(file, Path(folder, f"{i}-two"), 2))
                for i in range(options.pairs)
            ]
        )  # fmt: skip
    faster = ", ".join(f"{one:.2f}" for one in found["times_as_fast"])
    print(f"{found['trainings']} trainings of {found['seconds_of_a_training']:.1f} s")
    print(f"two workers: {faster} times as fast as one (aim: {LEAST_FASTER})")
    print(f"around the trainings: {found['share_around_trainings']:.2%} (aim: {MOST_AROUND:.0%})")
    print(f"two workers are busy for {found['share_two_workers_are_busy']:.0%} of the time")
    print(f"same results: {found['same_results']}")
    write_json(options.output, {**found, "environment": environment()})


if __name__ == "__main__":
    main()
