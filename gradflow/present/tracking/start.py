"""Which trackers a training writes to."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, Any

from gradflow.present.tracking.network_log import NetworkLog
from gradflow.present.tracking.rows import Budget
from gradflow.present.tracking.sink import Sink
from gradflow.training.config import TrainConfig
from gradflow.training.rundir import NetworkDir, RunDir

if TYPE_CHECKING:
    from gradflow.present.tracking.wandb_sink import WandbSink


def check_trackers(config: TrainConfig) -> None:
    """Raises ValueError where a tracker that is asked for is not installed, and RuntimeError where
    one is not logged in."""
    if config.tensorboard:
        check_installed("tensorboard", "tensorboard>=2.21", "--tensorboard")
    if config.wandb == "online":
        from gradflow.present.tracking.wandb_sink import check_login

        check_login()


def check_installed(module: str, requirement: str, needed_for: str) -> None:
    """Raises ValueError where an optional `module` is missing."""
    if importlib.util.find_spec(module) is None:
        name = requirement.split(">")[0]
        raise ValueError(
            f"Expected {name} for {needed_for}, but it is not installed. Install it with "
            f"`pip install '{requirement}'`."
        )


def network_log(
    run: RunDir, network: NetworkDir, config: TrainConfig, budget: Budget, *, is_main: bool
) -> NetworkLog:
    """The log of one network; only the main process has trackers. Raises RuntimeError."""
    sinks: list[Sink] = []
    if is_main:
        history = network.history()
        sinks += _tensorboard(run, network.name, config, history[-1]["step"] if history else 0)
        sinks += wandb_sinks(run, network, config)
    return NetworkLog(network.name, sinks, budget, records=network.trace_from)


def wandb_sinks(run: RunDir, network: NetworkDir, config: TrainConfig) -> "list[WandbSink]":
    """The W&B run of a network, gone on with where it has one. Raises RuntimeError."""
    facts = {"out": str(config.out), "arch": network.arch, "seed": network.seed}
    facts = dataclasses.asdict(config) | facts
    sinks = _wandb(run, network.name, config, network.arch, facts, network.wandb_id())
    for sink in sinks:
        network.save_wandb_id(sink.id)
    return sinks


def verdict_sinks(run: RunDir, config: TrainConfig) -> list[Sink]:
    """Where the verdict over a whole run goes. Raises RuntimeError."""
    from gradflow.present.tracking.verdict_log import NAME

    facts = {"run": run.path.name, "data": config.data, "seeds": config.seeds}
    return [*_tensorboard(run, NAME, config), *_wandb(run, NAME, config, NAME, facts)]


def _tensorboard(run: RunDir, name: str, config: TrainConfig, first_step: int = 0) -> list[Sink]:
    if not config.tensorboard:
        return []
    from gradflow.present.tracking.tensorboard_sink import TensorBoardSink

    return [TensorBoardSink(run.tensorboard / name, first_step=first_step)]


def _wandb(
    run: RunDir,
    name: str,
    config: TrainConfig,
    job_type: str,
    facts: dict[str, Any],
    resume_id: str | None = None,
) -> "list[WandbSink]":
    if config.wandb == "off":
        return []
    from gradflow.present.tracking.wandb_sink import WandbSink

    about = {"project": config.project, "group": run.path.name, "name": name}
    return [
        WandbSink(
            run.path, mode=config.wandb, **about, job_type=job_type, config=facts,
            resume_id=resume_id,
        )
    ]  # fmt: skip
