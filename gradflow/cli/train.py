"""`gradflow train`: networks side by side, recorded, evaluated, tracked."""

import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from gradflow.cli.announced import Told, announced
from gradflow.cli.console import show, show_json, stderr
from gradflow.cli.data import load_shown
from gradflow.cli.options import INTERRUPTED, OK, Config, ConfigFile, Flag
from gradflow.files import held
from gradflow.training.config import TrainConfig
from gradflow.training.recipes import recipe_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gradflow.present.live import Shown
    from gradflow.present.tracking.network_log import NetworkLog
    from gradflow.present.tracking.rows import Budget
    from gradflow.training.images import Data
    from gradflow.training.rundir import NetworkDir, RunDir


def train(
    config: Config = TrainConfig(),  # noqa: B008 frozen
    *,
    config_file: ConfigFile = None,
    resume: Path | None = None,
    json: Flag = False,
) -> int:
    """Train plain and residual networks side by side, and record their gradients.

    Parameters
    ----------
    config_file
        YAML file with options of train; the command line overrides it.
    resume
        Continue this run, with its own config, to the same result as without the interruption.
    json
        Print one JSON object on stdout instead of the summary.
    """
    from gradflow.present.tracking.start import check_trackers
    from gradflow.training.fit import make_accelerator
    from gradflow.training.rundir import RunDir

    if resume is not None:
        if config != TrainConfig() or config_file is not None:
            raise ValueError(
                "Expected no other options with --resume, since a run continues with its own "
                "config. Leave them out, or start a new run."
            )
        config = RunDir.open(resume).config()
    check_trackers(config)
    accelerator = make_accelerator(config)
    log = stderr(quiet=not accelerator.is_main_process)
    logs: list[NetworkLog] = []  # of the networks that are trained, open until the verdict
    with ExitStack() as stack:
        stack.callback(_end_all, logs)
        if resume is not None:
            _hold(stack, resume, accelerator, log)
        run, config, data = _open_run(config, resume, accelerator, log)
        if resume is None:
            _hold(stack, run.path, accelerator, log)
        training = _Training(run, config, data, accelerator, log, logs)
        try:
            _train_all(training)
        except (KeyboardInterrupt, OSError) as error:
            log.print(f"Stopped. Continue with: gradflow train --resume {run.path}", soft_wrap=True)
            if isinstance(error, OSError):
                raise
            return INTERRUPTED
        if accelerator.is_main_process:
            _track_verdict(training)
            _print_summary(run, as_json=json)
    accelerator.end_training()
    return OK


@dataclasses.dataclass(frozen=True)
class _Training:
    """The training of one run, in one of its processes."""

    run: "RunDir"
    config: TrainConfig
    data: "Data"
    accelerator: "Accelerator"
    log: Console
    logs: "list[NetworkLog]"


def _hold(stack: ExitStack, run: Path, accelerator: "Accelerator", log: Console) -> None:
    """One run, one writer: until `stack` ends."""
    if accelerator.is_main_process and (note := stack.enter_context(held(run))):
        log.print(f"Taken over: {note}", soft_wrap=True)


def _open_run(
    config: TrainConfig, resume: Path | None, accelerator: "Accelerator", log: Console
) -> tuple["RunDir", TrainConfig, "Data"]:
    """Load the data and make the run's folder, or check that they still fit each other."""
    from gradflow.present import terminal
    from gradflow.training.images import check_same_data
    from gradflow.training.rundir import RunDir
    from gradflow.training.train import begin_run

    config, data = load_shown(config, log)
    facts = data.to_json()
    log.print(terminal.audit_view(facts["audit"]), terminal.split_view(facts["split"]))
    if resume is not None:
        run = RunDir.open(resume)
        check_same_data(run, facts)
        return run, config, data
    run = begin_run(config, data, accelerator)
    own = recipe_text(dataclasses.asdict(config))
    if own:
        log.print(f"recipe         {own}", highlight=False, soft_wrap=True)
    log.print(f"run            {run.path}", soft_wrap=True)
    return run, config, data


def _train_all(training: _Training) -> None:
    """Every network of every seed that is not finished yet; their trackers go to `logs`."""
    from gradflow.cli.announced import work_of_one
    from gradflow.present.live import Shown
    from gradflow.present.terminal_plot import can_show_braille
    from gradflow.present.tracking.rows import Budget
    from gradflow.training.examination import finish_network

    config, data, accelerator = training.config, training.data, training.accelerator
    budget, log, run = Budget(), training.log, training.run
    networks = [run.network(arch, seed) for seed in config.seed_list for arch in config.networks]
    unfinished = [network for network in networks if not network.is_finished]
    work, at_most = work_of_one(config, data, accelerator.num_processes), config.patience > 0
    with (
        _stopping_between_steps(log) as stop,
        announced(log, work, len(unfinished), at_most=at_most, stop_if_asked=stop) as told,
    ):
        shown = Shown(
            told.below if log.is_terminal and not log.quiet else None,
            lambda said: log.print(said, highlight=False, soft_wrap=True),
            width=log.width,
            braille=can_show_braille(log.encoding),
            alarms=config.alarms,
        )
        for network in networks:
            if network in unfinished:
                training.logs.append(_train_one(training, network, budget, told, shown))
            elif accelerator.is_main_process:  # killed before it came to it
                finish_network(network, config, data, accelerator, told.measured)
            accelerator.wait_for_everyone()


def _train_one(
    training: _Training, network: "NetworkDir", budget: "Budget", told: Told, shown: "Shown"
) -> "NetworkLog":
    """Train one network; print each epoch and tell it the trackers, which stay open."""
    from gradflow.present import terminal
    from gradflow.present.tracking.start import network_log
    from gradflow.training.train import train_network

    config, history = training.config, network.history()
    told.begin(network.name, len(history))
    epochs = train_network(
        network,
        config,
        training.data,
        training.accelerator,
        on_step=told.step,
        on_measured=told.measured,
        on_recorder=lambda recorder: shown.follow(
            network.name, recorder, [epoch["train_loss"] for epoch in history]
        ),
    )
    is_main = training.accelerator.is_main_process
    with network_log(training.run, network, config, budget, is_main=is_main) as trackers:
        for epoch in epochs:
            line = terminal.epoch_line(network.name, epoch, config.epochs)
            training.log.print(line, highlight=False, soft_wrap=True)
            shown.epoch(network.name, epoch.train_loss)
            trackers.log_epoch(epoch)
            told.epoch()
        if is_main:
            trackers.close(_accuracies(network), keep_open=True)
    told.end()
    return trackers


@contextmanager
def _stopping_between_steps(log: Console) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C take effect where the function handed out is called; twice, at once.

    Anywhere else it could meet a file half written or an error of PyTorch's own making.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        log.print("Stopping after this step. Ctrl-C again stops at once.")

    def stop_if_asked() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop_if_asked
    finally:
        signal.signal(signal.SIGINT, before)


def _accuracies(network: "NetworkDir") -> dict[str, float]:
    """For the summary in the trackers."""
    evaluation = network.evaluation()
    return {
        f"{which}/{part}_accuracy": evaluation[which][part]["accuracy"]
        for which in ("best", "last")
        for part in ("train", "validation", "test")
    }


def _end_all(logs: "Sequence[NetworkLog]") -> None:
    for one in logs:
        one.end()


def _track_verdict(training: _Training) -> None:
    """Tell the trackers the verdict over a recorded run, once, when all networks are trained.

    In a run of its own, and in short in that of each network.
    """
    run, config, logs = training.run, training.config, training.logs
    is_tracked = config.wandb != "off" or config.tensorboard
    if not config.log_grads or run.is_finished or not is_tracked:
        return
    from gradflow.present.tracking.start import verdict_sinks, wandb_sinks
    from gradflow.present.tracking.verdict_log import log_verdict, summary_of_network
    from gradflow.training.diagnosis import diagnose as run_diagnosis

    try:
        verdict = run_diagnosis([run.path])
        for sink in verdict_sinks(run, config):
            log_verdict(verdict, sink)
        told = summary_of_network(verdict)
        for trackers in logs:
            trackers.end(told)
        for network in run.networks():  # trained before this process, whose runs had ended
            if network.name not in {one.name for one in logs}:
                for again in wandb_sinks(run, network, config):
                    again.finish({**_accuracies(network), **told})
    except (ValueError, RuntimeError) as error:
        # Three networks, nothing to judge by, no network: the training is complete all the same.
        said = f"No verdict for the trackers: {error}"
        training.log.print(said, markup=False, soft_wrap=True)


def _print_summary(run: "RunDir", *, as_json: bool) -> None:
    """The end of a run: summary.json, figures, index.md, and what a person reads."""
    from gradflow.present import terminal
    from gradflow.present.figures import save_figures
    from gradflow.training.index import write_index
    from gradflow.training.summary import summarise

    summary = summarise(run)
    profiles = save_figures(run)
    write_index(run.path)
    if as_json:
        show_json(summary)
    else:
        show(terminal.summary_view(summary, profiles))
