"""Claim: the verdict, end to end, is wrong in at most 5 of 100 studies, near and far from limits.

Studies of five paired seeds are simulated around planted truths (gradflow/controls/verdicts.py) and
judged. What stays open is counted by itself: it is no error, and says how much five seeds can do.

    python experiments/verdict_controls.py

Results: experiments/results/verdict-controls.json; the table stands in docs/controls.md.
"""

import json
from pathlib import Path

from gradflow.controls.verdicts import N_SEEDS, SPREAD, simulate_all

RESULTS = Path(__file__).parent / "results" / "verdict-controls.json"
N_STUDIES = 500


def main() -> None:
    tallies = simulate_all(N_STUDIES)
    content = {"n_seeds": N_SEEDS, "spread": SPREAD, "studies": [one.to_json() for one in tallies]}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("| planted | truth | right, % | open, % | wrong, % |\n|---|---|---|---|---|")
    for one in tallies:
        counts = (one.n_right, one.n_open, one.n_wrong)
        shares = " | ".join(f"{100 * count / one.n:.1f}" for count in counts)
        print(f"| {one.planted.name} | {one.planted.truth} | {shares} |")


if __name__ == "__main__":
    main()
