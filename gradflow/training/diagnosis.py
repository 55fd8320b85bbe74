"""From runs on disk, or traces in memory, to the case that a verdict is about."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from gradflow.analysis.case import Case
from gradflow.analysis.findings import Changes
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.verdict import Restored, Verdict, judge_case
from gradflow.controls.gate import load_gate
from gradflow.files import refuse_links
from gradflow.record import Trace
from gradflow.record.trace import NONFINITE
from gradflow.training.rundir import NetworkDir, RunDir

# What a verdict reads of a trace; a long one is read faster without the rest.
NEEDED = (
    *NONFINITE,
    "output_grad_norm",
    "weight_norm",
    "grad_norm",
    "update_norm",
    "adam_attenuation",
)


def judge(
    traces: Trace | Sequence[Trace] | Mapping[str, Trace | Sequence[Trace]],
    *,
    losses: Mapping[str, Sequence[float]] | None = None,
    accuracies: Mapping[str, Sequence[float]] | None = None,
    gap_shares: Sequence[float] = (),
    restored: Changes | None = None,
) -> Verdict:
    """Do the gradients vanish towards the input, and would it explain the gap?

    One trace, or one per seed; or by name, the accused network first and then the one to compare
    with, their traces in the order of the seeds::

        gradflow.judge({"plain": [Trace.load(run) for run in plain_runs],
                        "residual": [Trace.load(run) for run in residual_runs]},
                       losses={"plain": [1.2, …], "residual": [0.4, …]})

    `losses` and `accuracies` are how the networks ended, one number per seed: the training loss in
    nats, NaN or inf of a training that failed, and the accuracy on test images. Without them
    nothing is said of a gap. `gap_shares` is what an intervention found, one per seed: the share of
    the gap that went away; `restored` says what it changed, "gradients" alone or "signal and
    gradients", such as other first weights. The first call on a machine checks the instrument on
    networks whose truth is known, which takes some seconds. Raises ValueError.
    """
    given = traces if isinstance(traces, Mapping) else {"the network": traces}
    by_name = {name: [one] if isinstance(one, Trace) else list(one) for name, one in given.items()}
    if not 1 <= len(by_name) <= 2:
        raise ValueError(
            f"Expected one or two networks, but got {len(by_name)}: {', '.join(by_name)}. "
            "Judge them in pairs."
        )
    if empty := [name for name, group in by_name.items() if not group]:
        raise ValueError(f"Expected at least one trace of each network, but {empty[0]} has none.")
    if (restored is None) == (len(gap_shares) > 0) or restored not in (None, *get_args(Changes)):
        raise ValueError(
            "Expected `gap_shares` together with `restored`, which says what the intervention "
            f"changed, but got {len(gap_shares)} shares and {restored!r}. It is one of "
            f"{get_args(Changes)}."
        )
    if any(map(math.isinf, gap_shares)):
        raise ValueError(
            f"Expected shares of a gap in `gap_shares`, NaN where none is known, but got "
            f"{list(gap_shares)}."
        )
    groups = [
        [
            TrainedNetwork(
                name, seed, trace,
                train_loss=_outcome("losses", losses, name, seed, len(group)),
                test_accuracy=_outcome("accuracies", accuracies, name, seed, len(group)),
            )
            for seed, trace in enumerate(group)
        ]
        for name, group in by_name.items()
    ]  # fmt: skip
    found = Restored(tuple(gap_shares), restored) if restored is not None else None
    return judge_case(Case.of(*groups), load_gate(), found)


def _outcome(
    what: str, given: Mapping[str, Sequence[float]] | None, name: str, seed: int, n: int
) -> float | None:
    """How one seed of a network ended; None where it was not given. Raises ValueError."""
    if given is None:
        return None
    try:
        numbers = [float(one) for one in given.get(name, ())]
    except TypeError:
        numbers = []
    if len(numbers) != n:
        raise ValueError(
            f"Expected `{what}` to have one number for each of {n} traces of {name}, but got "
            f"{dict(given)}. Give them by network, in the order of the traces."
        )
    return numbers[seed]


def open_case(
    runs: Sequence[Path], *, accused: str | None = None, reference: str | None = None
) -> Case:
    """The case that these runs make: the accused network first, the one to compare with second.

    A run is the folder of a `gradflow train`, or one that a Recorder wrote, whose name may end in
    the seed (`plain-s3`). By default the first network is the accused, and the second, if there is
    one, the reference. Raises FileNotFoundError, ValueError.
    """
    networks, notes = load_networks(runs)
    folders = [one for run in runs for one in network_dirs(run_folder(run))]
    changed = changed_on_purpose(folders)
    names = list(networks)
    if not names:
        raise ValueError(
            "Expected a network that is trained to the end with records, but found none: "
            f"{' '.join(notes) or 'the runs are empty.'}"
        )
    first, second = choose(names, accused, reference)
    case = Case.of(networks[first], networks[second] if second else ())
    return dataclasses.replace(
        case,
        notes=(*case.notes, *notes),
        changed=changed,
        lost=(_n_lost(folders, first, second), _n_lost(folders, second, first)),
        source="training" if folders else "records",
    )


def _n_lost(folders: Sequence[NetworkDir], name: str | None, other: str | None) -> int:
    """The seeds that `name` did not train to the end, and the other network did."""

    def seeds(arch: str | None, *, finished: bool) -> set[int]:
        return {one.seed for one in folders if (one.arch, one.is_finished) == (arch, finished)}

    mine, theirs = seeds(name, finished=True), seeds(other, finished=True)
    return len((seeds(name, finished=False) - mine) & theirs)


def choose(
    names: Sequence[str], accused: str | None, reference: str | None
) -> tuple[str, str | None]:
    """The accused of these networks and the one to compare with, if any. Raises ValueError."""
    for name in (accused, reference):
        if name is not None and name not in names:
            raise ValueError(f"Expected a network of {', '.join(names)}, but got {name!r}.")
    if accused is not None and accused == reference:
        raise ValueError(f"Expected two different networks, but got {accused} twice.")
    if len(names) > 2 and (accused is None or reference is None):
        raise ValueError(
            f"Expected one or two networks, but the runs hold {', '.join(names)}. Name the two: "
            "`accused` and `reference`."
        )
    first = accused or next(name for name in names if name != reference)
    others = [name for name in names if name != first]
    return first, reference or (others[0] if others else None)


def load_networks(runs: Sequence[Path]) -> tuple[dict[str, list[TrainedNetwork]], list[str]]:
    """The finished networks of these runs by name, and a note for each that was left out.

    Raises FileNotFoundError, and ValueError where runs of different data or recipes would mix.
    """
    trained, recorded, notes = [], [], []
    for path in runs:
        folder = run_folder(path)
        networks = network_dirs(folder)
        for network in networks:
            if not network.is_finished or not network.has_trace():
                why = "has no records" if network.is_finished else "is not trained to the end"
                notes.append(
                    f"{network.name} in {network.path.parent.name} {why} and was left out"
                    f"{'' if network.is_finished else '; it counts against its network'}."
                )
                continue
            try:
                trained.append((network, from_training(network)))
            except ValueError as error:  # a damaged file, or records without depth
                notes.append(f"{network.name} in {network.path.parent.name} was left out: {error}")
        if not networks:
            recorded.append(from_records(folder))
    check_alike([network for network, _ in trained])
    parts = [network.evaluation()["last"]["train"] for network, _ in trained]
    found = [one for _, one in trained]
    if None in map(_recalibrated_loss, parts, [one.examined for one in found]):
        found = [
            dataclasses.replace(one, train_loss=part["loss"])
            for one, part in zip(found, parts, strict=True)
        ]
        notes.append(
            "The training losses are those of BatchNorm's running statistics: not every network "
            "was examined (`gradflow diagnose RUN --measure`)."
        )
    by_name: dict[str, list[TrainedNetwork]] = {}
    for one in (*found, *recorded):
        by_name.setdefault(one.name, []).append(one)
    return by_name, notes


def run_folder(path: Path) -> Path:
    """The absolute path of a folder that is there; else FileNotFoundError."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected the folder of a run, but there is no folder {path}. Give the one that "
            "`gradflow train` printed."
        )
    refuse_links(path)
    return path.resolve()


def network_dirs(path: Path) -> list[NetworkDir]:
    """The networks of a run, or the one whose own folder this is; none for other folders."""
    if (path / "config.yaml").exists():
        return RunDir.open(path).networks()
    if (path.parent / "config.yaml").exists():
        return [one for one in RunDir.open(path.parent).networks() if one.path == path]
    return []


# What may differ between runs that are judged together: which networks, and how they were run.
FREE = (
    "arch", "seeds", "out", "wandb", "project", "tensorboard", "device", "checkpoint_budget",
    "rivals", "rivals_budget",
)  # fmt: skip


def check_alike(networks: Sequence[NetworkDir]) -> None:
    """Pairs share their data and recipe, else a difference could come from these: ValueError."""
    paths = list(dict.fromkeys(network.path.parent for network in networks))
    facts = []
    for path in paths:
        run = RunDir.open(path)
        config = {k: v for k, v in dataclasses.asdict(run.config()).items() if k not in FREE}
        data = run.data()
        # The same pictures may lie elsewhere: what counts are the pixels and their split.
        config["data"] = (data["pixels_sha256"], json.dumps(data["split"], sort_keys=True))
        facts.append(config)
    for path, other in zip(paths[1:], facts[1:], strict=True):
        different = [name for name, value in facts[0].items() if other[name] != value]
        if different:
            raise ValueError(
                f"Expected runs of the same data and recipe, but {paths[0].name} and {path.name} "
                f"differ in {', '.join(different)}. Judge them one by one."
            )


def changed_on_purpose(networks: Sequence[NetworkDir]) -> str:
    """Which interventions these trainings ran with, and which checks failed; empty without any."""
    runs = dict.fromkeys(one.path.parent for one in networks)
    named = [RunDir.open(path).config().intervene.strip() for path in runs]
    what = "; ".join(dict.fromkeys(filter(None, named)))
    if not what:
        return ""
    failed = [
        f"{done['name']} in {one.name}"
        for one in networks
        for done in one.interventions()
        if not done["passed"]
    ]
    said = f"These trainings were changed on purpose: {what}."
    return f"{said} The check FAILED of {', '.join(failed)}." if failed else said


def from_training(network: NetworkDir) -> TrainedNetwork:
    """What `gradflow train` left of one network; its training loss is the recalibrated one, if that
    is known. Raises DamagedFile."""
    history, examined = network.history(), network.examination() or {}
    last = network.evaluation()["last"]
    loss = _recalibrated_loss(last["train"], examined)
    balanced = last["test"]["balanced_accuracy"]
    return TrainedNetwork(
        network.arch,
        network.seed,
        Trace.load(network.path, measures=NEEDED),
        losses=np.concatenate([[], *(epoch["step_losses"] for epoch in history)]),
        learning_rates=np.concatenate(
            [[], *(np.full(len(epoch["step_losses"]), epoch["lr"]) for epoch in history)]
        ),
        train_loss=last["train"]["loss"] if loss is None else loss,
        test_accuracy=last["test"]["accuracy"] if balanced is None else balanced,
        examined=examined,
        folder=network.path,
    )


def from_records(folder: Path) -> TrainedNetwork:
    """What a Recorder wrote in a loop of the user's own; `plain-s3` is seed 3 of plain, any other
    name is of seed 0."""
    named = re.fullmatch(r"(.+?)-s(\d+)", folder.name)
    name, seed = (named[1], int(named[2])) if named else (folder.name, 0)
    return TrainedNetwork(name, seed, Trace.load(folder, measures=NEEDED), folder=folder)


def _recalibrated_loss(part: Mapping[str, Any], examined: Mapping[str, Any]) -> float | None:
    """The training loss with BatchNorm's statistics of all training images, if it is known."""
    if (evaluated := part.get("recalibrated")) is not None:
        return float(evaluated["loss"])
    try:
        return float(examined["batchnorm"]["end"]["train"]["plain"]["recalibrated"]["loss"])
    except (KeyError, TypeError):
        return None


def diagnose(
    runs: Sequence[Path], *, accused: str | None = None, reference: str | None = None
) -> Verdict:
    """The verdict over these runs; see `open_case` and `judge_case`."""
    return judge_case(open_case(runs, accused=accused, reference=reference), load_gate())
