"""Claim: what the saved results say under today's rules, as far as the numbers kept per seed allow.

The trainings of the saved verdicts and studies are gone; their numbers per seed are in the JSON.
From them the links, rivals and arms are decided again. What is not kept per seed stays as it was
measured: link 1 rests on the slope with an intercept for each stage, and not on the first layer
over the last, of which only the mean over seeds can be given; H5 and H8 ask for other numbers now.

    python experiments/judge_again.py

Results: experiments/results/judged-again.json
"""

import json
from pathlib import Path
from typing import Any

from gradflow.analysis import thresholds as at
from gradflow.analysis.findings import (
    Evidence,
    Finding,
    all_of,
    any_of,
    decide,
    outcome_of,
)
from gradflow.analysis.shares import gap_status
from gradflow.analysis.statistics import holm, p_beyond, p_equivalent

RESULTS = Path(__file__).parent / "results"
STUDIES = RESULTS / "studies"
KEPT_RIVALS = ("H4", "H6", "H7", "H9")

VERDICTS = {
    "photographs, 64 px": RESULTS / "vanishing-verdict-64px-20-epochs.json",
    "digits-8-epochs": STUDIES / "digits-8-epochs-verdict.json",
}
# Arms that multiply gradients by a constant under AdamW, where √v̂/(√v̂+ε) was 1.000.
ALGEBRA = ("early-up", "early-down")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content.get("verdict", content)


def evidence(one: dict[str, Any]) -> Evidence:
    values = tuple(float("nan") if value is None else value for value in one["values"])
    found = at.THRESHOLDS[one["threshold"]["name"]]
    limit = one["threshold"]["limit"]
    return Evidence(one["name"], one["name"], one["unit"], values, found, limit,
                    one["threshold"]["side"])  # fmt: skip


def links(verdict: dict[str, Any]) -> list[Finding]:
    """No arm of these studies restored the gradients: link 4 is open."""
    named = {one["name"]: evidence(one) for link in verdict["links"][:3]
             for one in link["evidence"]}  # fmt: skip
    sizes = ("output_gradient", "scale_invariant")
    first = any_of([all_of([named[f"{size}_decades"]]) for size in sizes])
    own = all_of([named["adam_attenuation"]])
    less = any_of([all_of([named[f"{size}_to_reference"]]) for size in sizes])
    second = max(own[0], less[0]), min(1.0, 2 * min(own[1], less[1]))
    reset = named.get("reset_cost")
    parts = (
        ("link 1", tuple(named[f"{size}_decades"] for size in sizes), first),
        ("link 2", (named["adam_attenuation"],), second),
        ("link 3", (reset,) if reset else (), all_of([reset]) if reset else (1.0, 1.0)),
        ("link 4", (), (1.0, 1.0)),
    )
    return [Finding(key, key, key, found, *p) for key, found, p in parts]


def judged(path: Path) -> dict[str, Any]:
    verdict = read(path)
    gap = [evidence(one) for one in verdict["gap"]["evidence"]]
    gaps = {gap_status(one.values, one.threshold.value) for one in gap}
    status = gaps.pop() if len(gaps) == 1 else "undetermined"
    rivals = [
        Finding(one["key"], "", "", parts, *all_of(parts))
        for one in verdict["rivals"]
        if one["key"] in KEPT_RIVALS
        for parts in [tuple(map(evidence, one["evidence"]))]
    ]
    decided = decide([*links(verdict), *rivals])
    one, two, _, four = (link.status for link in decided[:4])
    mean = {
        band["network"] + ", " + band["size"]: 10 ** (band["mean"][0] - band["mean"][-1])
        for band in verdict["profiles"]
        if band["size"] != "gradient_rms"
    }
    return {
        "outcome_then": verdict["outcome"],
        "outcome": outcome_of(status, one, two, four),
        "gap": status,
        "findings": {one.key: one.status for one in decided},
        "first over last layer, early, mean over seeds": mean,
    }


def arms(path: Path) -> dict[str, Any]:
    """Every candidate by the shares per seed; what was left open for a reason stays open."""
    study = json.loads(path.read_text(encoding="utf-8"))
    shares = {one["name"]: one["shares"]["train_loss"] for one in study["arms"]
              if one["role"] == "cause" and one["name"] not in ALGEBRA}  # fmt: skip
    values = [one["per_seed"] for one in shares.values()]
    main = holm([p_beyond(one, at.SHARE_MAIN.value, "above") for one in values])
    some = holm([p_beyond(one, at.SHARE_CONTRIBUTOR.value, "above") for one in values])
    none = holm([p_equivalent(one, at.SHARE_NONE.value) for one in values])

    def status(why: str, *p: float) -> str:
        names = ("main cause", "contributor", "not a cause")
        found = [name for name, one in zip(names, p, strict=True) if one <= at.ALPHA.value]
        return found[0] if found and not why else "undetermined"

    rows = zip(shares.items(), main, some, none, strict=True)
    found: dict[str, Any] = {
        name: {"status_then": one["status"], "status": status(one["why"], *p)}
        for (name, one), *p in rows
    }
    algebra = {"status": "control: nothing by algebra"}
    return found | {one["name"]: algebra for one in study["arms"] if one["name"] in ALGEBRA}


def main() -> None:
    content = {
        "verdicts": {name: judged(path) for name, path in VERDICTS.items()},
        "studies": {name: arms(STUDIES / f"{name}.json")
                    for name in ("digits-8-epochs", "photographs-64px-8-epochs")},
    }  # fmt: skip
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (RESULTS / "judged-again.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
