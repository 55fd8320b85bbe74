"""Which trackers a training writes to."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING

from gradflow.present.tracking.budget import Budget
from gradflow.present.tracking.network_log import NetworkLog
from gradflow.present.tracking.sink import Sink
from gradflow.training.config import TrainConfig
from gradflow.training.rundir import NetworkDir, RunDir

if TYPE_CHECKING:
    from gradflow.present.tracking.wandb_sink import Mode


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
    if config.tensorboard and is_main:
        from gradflow.present.tracking.tensorboard_sink import TensorBoardSink

        history = network.history()
        first_step = history[-1]["step"] if history else 0
        sinks.append(TensorBoardSink(run.tensorboard / network.name, first_step=first_step))
    if config.wandb != "off" and is_main:
        sinks.append(wandb_sink(run, network, config, config.wandb))
    return NetworkLog(
        network.name,
        sinks,
        budget,
        earlier=lambda: network.trace() if network.has_trace() else None,
    )


def wandb_sink(run: RunDir, network: NetworkDir, config: TrainConfig, mode: "Mode") -> Sink:
    """The W&B run of a network, gone on with where it has one. Raises RuntimeError."""
    from gradflow.present.tracking.wandb_sink import WandbSink

    facts = {"out": str(config.out), "arch": network.arch, "seed": network.seed}
    sink = WandbSink(
        run.path,
        mode=mode,
        project=config.project,
        group=run.path.name,
        name=network.name,
        job_type=network.arch,
        config=dataclasses.asdict(config) | facts,
        resume_id=network.wandb_id(),
    )
    network.save_wandb_id(sink.id)
    return sink


def verdict_sinks(run: RunDir, config: TrainConfig) -> list[Sink]:
    """Where the verdict over a whole run goes. Raises RuntimeError."""
    from gradflow.present.tracking.verdict_log import NAME

    sinks: list[Sink] = []
    if config.tensorboard:
        from gradflow.present.tracking.tensorboard_sink import TensorBoardSink

        sinks.append(TensorBoardSink(run.tensorboard / NAME))
    if config.wandb != "off":
        from gradflow.present.tracking.wandb_sink import WandbSink

        sinks.append(
            WandbSink(
                run.path,
                mode=config.wandb,
                project=config.project,
                group=run.path.name,
                name=NAME,
                job_type=NAME,
                config={"run": run.path.name, "data": config.data, "seeds": config.seeds},
            )
        )
    return sinks
