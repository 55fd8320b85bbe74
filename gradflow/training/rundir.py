"""The run on disk: the only module that knows file names inside a run.

runs/20261123-210000-digits/
    config.yaml  environment.json  data.json  summary.json  index.md
    report.html  report.md  report.json  figures/  saliency/
    wandb/  tensorboard/
    plain_34-s0/
        history.json  evaluation.json  examination.json  interventions.json
        records/part-*.parquet
        best.pt  last.pt  step-000010.pt …  checkpoint.pt (while unfinished)
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from gradflow.files import (
    DamagedFile,
    read_json,
    read_text,
    refuse_links,
    whole,
    write_json,
    write_text,
)
from gradflow.record.part_files import FOLDER as RECORDS
from gradflow.record.part_files import PARTS, drop_from
from gradflow.record.trace import Trace, load_histograms, load_parts
from gradflow.training import contents, origin
from gradflow.training.config import TrainConfig
from gradflow.training.notebook import network_html, run_html
from gradflow.training.weights import ANEW, load_network

if TYPE_CHECKING:
    from torch import nn

Weights = Literal["best", "last"]


@dataclass(frozen=True)
class NetworkDir:
    """One trained network of a run: one architecture and one seed."""

    path: Path
    arch: str
    seed: int

    def _repr_html_(self) -> str:
        return network_html(self)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def weights(self, which: Weights | int) -> Path:
        """The weights of the best or last epoch, or after so many optimizer steps."""
        return self.path / (f"step-{which:06d}.pt" if isinstance(which, int) else f"{which}.pt")

    def weight_steps(self) -> list[int]:
        """After which optimizer steps the weights were kept."""
        names = (re.fullmatch(r"step-(\d+)\.pt", path.name) for path in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name is not None)

    def history(self) -> list[dict[str, Any]]:
        """One entry per finished epoch; none before the first."""
        path = self.path / "history.json"
        found = _read(path, list[contents.EpochEntry]) if path.exists() else []
        _checked(path, contents.check_history, found, self.is_finished)
        return found

    def training_seconds(self) -> float:
        """Of all epochs, without validation and evaluation."""
        return float(sum(epoch["seconds"] for epoch in self.history()))

    def save_history(self, epochs: list[dict[str, Any]]) -> None:
        write_json(self.path / "history.json", epochs)

    def evaluation(self) -> dict[str, Any]:
        """The evaluation of a finished network."""
        path = self.path / "evaluation.json"
        found = dict(_read(path, contents.Evaluation))
        run = RunDir(self.path.parent)
        is_whole_run = (run.path / "data.json").exists()  # else a network trained from Python
        _checked(
            path, contents.check_evaluation, found, run.data()["classes"] if is_whole_run else None
        )
        return found

    def save_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        write_json(self.path / "evaluation.json", evaluation)

    def examination(self) -> dict[str, Any] | None:
        """What was measured from the kept weights; None where it never was."""
        path = self.path / "examination.json"
        return _read(path, contents.Examination) if path.exists() else None

    def lacks_measurements(self) -> bool:
        """Whether the kept weights were never examined, or something was left for later."""
        found = self.examination()
        return found is None or bool(found.get("left"))

    def save_examination(self, examination: Mapping[str, Any]) -> None:
        write_json(self.path / "examination.json", examination)

    def interventions(self) -> list[dict[str, Any]]:
        """What was changed on purpose, with its checks; none before the end of the training."""
        path = self.path / "interventions.json"
        return _read(path, list[contents.InterventionEntry]) if path.exists() else []

    def save_interventions(self, report: list[dict[str, Any]]) -> None:
        write_json(self.path / "interventions.json", report)

    @property
    def is_finished(self) -> bool:
        return (self.path / "evaluation.json").exists()

    def has_trace(self) -> bool:
        return any((self.path / RECORDS).glob(PARTS))

    def trace(self) -> Trace:
        """What was recorded; FileNotFoundError if nothing was."""
        return Trace.load(self.path)

    def trace_from(self, step: int, measures: Sequence[str] | None = None) -> Trace | None:
        """What was recorded in the files that begin at `step` or later, None if there are none.

        With `measures`, only these. Of the histograms, the last.
        """
        trace = load_parts(self.path, from_step=step, measures=measures)
        histograms = load_histograms(self.path, from_step=step, at_most=1)
        return replace(trace, histograms=histograms) if len(trace) else None

    def drop_records_from(self, step: int) -> None:
        drop_from(self.path, step)

    def wandb_id(self) -> str | None:
        """The W&B run of this network, None before it has one."""
        path = self.path / "wandb-id.txt"
        return read_text(path, "the name of a W&B run", "Delete it.") if path.exists() else None

    def save_wandb_id(self, run_id: str) -> None:
        write_text(self.path / "wandb-id.txt", run_id)

    def load_model(
        self, config: TrainConfig, n_classes: int, which: Weights | int = "best"
    ) -> "nn.Module":
        """The trained network on the CPU, in eval mode."""
        path = self.weights(which)
        if not path.exists():
            raise FileNotFoundError(
                f"No weights {path}. The network was not trained to the end of an epoch: "
                f"continue with `gradflow train --resume {self.path.parent}`."
            )
        return load_network(path, self.arch, n_classes, config).eval()


@dataclass(frozen=True)
class RunDir:
    """One `gradflow train`: its config, its data and its networks."""

    path: Path

    def _repr_html_(self) -> str:
        return run_html(self)

    @classmethod
    def create(cls, config: TrainConfig) -> Self:
        """A new folder in `config.out`, named after the time and the data."""
        label = re.sub(r"[^\w-]+", "-", Path(config.data).name).strip("-")[:100] or "data"
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        out = Path(os.path.expanduser(config.out))  # noqa: PTH111 a user whom nobody knows is a name
        for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
            path = out / f"{stamp}-{label}{suffix}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(path)
        raise FileExistsError(f"Expected a free name for a run in {out}.")

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run; FileNotFoundError says what is missing."""
        if not (path / "config.yaml").exists():
            raise FileNotFoundError(
                f"Expected a run in {path}, but it has no config.yaml. "
                "Give the folder that `gradflow train` printed."
            )
        refuse_links(path)
        return cls(path)

    @classmethod
    def newest(cls, folder: Path) -> Self:
        """The newest run in `folder` that holds a trained network."""
        runs = sorted(folder.glob("*/config.yaml"), key=lambda path: path.parent.name)
        for config in reversed(runs):
            run = cls(config.parent)
            if any(network.weights("best").exists() for network in run.networks()):
                return run
        raise FileNotFoundError(
            f"No trained network in {folder.resolve()}. Run `gradflow train` first, or give a run "
            "with --run."
        )

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def is_trained_here(self) -> bool:
        """Whether this user trained it on this machine, with the data that its config names."""
        if not (self.path / "environment.json").exists():
            return False
        mark = self.environment().get("mark")
        return bool(mark) and mark == origin.mark(self.path, self.config().data)

    @property
    def tensorboard(self) -> Path:
        """What `tensorboard --logdir` takes: one folder for each network, and the verdict's."""
        return self.path / "tensorboard"

    @property
    def is_finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def saliency_figure(self, method: str, shows: str) -> Path:
        """`shows` is "mean", the mean maps of all networks, or a network's name: its gallery."""
        return self.figures / f"saliency-{method}-{shows}.png"

    def saliency_figures(self) -> list[Path]:
        """The PNGs of `gradflow saliency --split test` on white paper, the default method first."""
        pictures = self.figures.glob("saliency-*.png")
        found = sorted(
            path for path in pictures if not path.stem.endswith("-dark") and not path.is_symlink()
        )
        return sorted(found, key=lambda path: not path.name.startswith("saliency-gradcam-"))

    def saliency(self, method: str) -> dict[str, Any] | None:
        """What `gradflow saliency --split test` found, None where it was not run."""
        path = self.path / "saliency" / f"{method}.json"
        return _read(path, contents.SaliencyEntry) if path.exists() else None

    def save_saliency(
        self, method: str, content: Mapping[str, Any], mean_maps: Mapping[str, np.ndarray]
    ) -> None:
        """The scores, and by network the mean maps (classes, S, S) as float32."""
        folder = self.path / "saliency"
        folder.mkdir(exist_ok=True)
        for network, maps in mean_maps.items():
            with whole(folder / f"{method}-mean-{network}.npy") as unfinished:
                np.save(unfinished, maps.astype(np.float32))
        write_json(folder / f"{method}.json", content)

    def config(self) -> TrainConfig:
        return TrainConfig.load(self.path / "config.yaml")

    def save_config(self, config: TrainConfig) -> None:
        write_text(self.path / "config.yaml", config.to_yaml())

    def network(self, arch: str, seed: int) -> NetworkDir:
        """The folder of one network, made if need be."""
        path = self.path / f"{arch}-s{seed}"
        path.mkdir(exist_ok=True)
        return NetworkDir(path, arch, seed)

    def networks(self) -> list[NetworkDir]:
        """The networks that exist so far, in the order of the config."""
        config = self.config()
        paths = [
            NetworkDir(self.path / f"{arch}-s{seed}", arch, seed)
            for seed in config.seed_list
            for arch in config.networks
        ]
        return [network for network in paths if network.path.exists()]

    def save_environment(self, facts: Mapping[str, Any], data: str) -> None:
        facts = {**facts, "mark": origin.mark(self.path, data)}
        write_json(self.path / "environment.json", facts)

    def environment(self) -> dict[str, Any]:
        """Versions, device and commit of the training."""
        return dict(_read(self.path / "environment.json", contents.Environment))

    def data(self) -> dict[str, Any]:
        """Classes, audit and split."""
        return dict(_read(self.path / "data.json", contents.DataEntry))

    def save_data(self, data: Mapping[str, Any]) -> None:
        write_json(self.path / "data.json", data)

    def summary(self) -> dict[str, Any]:
        return dict(_read(self.path / "summary.json", dict[str, Any]))

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)


def _checked(path: Path, check: Callable[..., None], *content: Any) -> None:
    try:
        check(*content)
    except ValueError as error:
        raise DamagedFile(path, f"the {path.stem} of a run", error, ANEW) from None


def _read(path: Path, hint: Any) -> Any:
    try:
        return read_json(path, hint, f"the {path.stem} of a run", ANEW)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No {path.name} in {path.parent}. The run is not finished: continue it with "
            f"`gradflow train --resume`."
        ) from None
