"""Claim under test: gradflow records more of a training step than its peers, for less time.

Times the same training step (ResNet-34, AdamW, one batch of random images) bare and with each tool
in it, in one process: a block of bare steps, a block of the tool's, and so on, A B A B. Each block
is compared with the bare one next to it, so that a machine whose speed drifts does not decide. Of
each block two figures are kept: the median step, and all steps together with what the tool had put
off (gradflow writes its records in batches). Three steps of each warm up first and do not count.
Setting a tool up and taking it down is not timed.

Every tool is used as its own documentation says, at its every-step setting, and writes where it
writes by itself: to files in a temporary folder, never to the network. A tool that fails is shown
with its error. The tools do not record the same: the table says what each records.

    pip install -e ".[peers]"
    python experiments/overhead.py                      # all ways; about an hour on two cores
    python experiments/overhead.py --only gradflow wandb-all
    python experiments/overhead.py --scaling            # cost per site, up to 1,000 layers
    python experiments/overhead.py --memory             # 10,000 recorded steps; peak of one step

The tables go to overhead.json and overhead.md in --out. What an earlier run left there stays, if it
was made with the same settings on the same machine.
"""

import gc
import importlib.util
import itertools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from types import ModuleType
from typing import Annotated, Any, Literal

import cyclopts
import numpy as np
import torch
import torch.nn.functional as F
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchvision.models import resnet34

from gradflow.files import write_json
from gradflow.record import DEFAULT_MEASURES, MEASURES, PARAMETER_MEASURES, Recorder
from gradflow.record.schedule import N_FULL_AT_FIRST

RESULTS = Path(__file__).parent / "results" / "overhead"
SETTLED = {"first_step": N_FULL_AT_FIRST}  # behind the first steps, in which all is measured
N_CLASSES = 10
N_WARM_UP = 3  # steps before the first round
SLOW = 10  # times the bare step: where one step per round tells enough
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
DEPTHS = (34, 152, 1000)  # layers of the chains
RECORDED_STEPS = (100, 1_000, 10_000)  # after which resident memory is read


# -- what is trained ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A network, its optimizer, and the batch that every step trains on."""

    model: nn.Module
    optimizer: Optimizer
    images: Tensor
    labels: Tensor

    def backward(self) -> Tensor:
        """The step up to its gradients; returns the loss."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.images), self.labels)
        torch.autograd.backward(loss)
        return loss

    def step(self) -> Tensor:
        """One bare training step; returns the loss."""
        loss = self.backward()
        self.optimizer.step()
        return loss


@dataclass(frozen=True)
class Setup:
    """Which network trains on what; every training made from it begins at the same weights."""

    name: str
    network: Callable[[], nn.Module]
    image_size: int
    batch_size: int

    def training(self) -> Training:
        torch.manual_seed(0)
        model = self.network().to(memory_format=torch.channels_last).train()
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        images = torch.randn(shape).to(memory_format=torch.channels_last)
        labels = torch.randint(N_CLASSES, (self.batch_size,))
        return Training(model, AdamW(model.parameters(), fused=True), images, labels)

    def to_json(self) -> dict[str, Any]:
        return {
            "network": self.name,
            "image_size": self.image_size,
            "batch_size": self.batch_size,
        }


def resnet(image_size: int, batch_size: int) -> Setup:
    return Setup("ResNet-34", partial(resnet34, num_classes=N_CLASSES), image_size, batch_size)


# -- ways to train -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """The body of a training loop with a tool in it. `settle` does what the tool has put off."""

    step: Callable[[], object]
    settle: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Way:
    """One way to train, and what it records. `package` is the tool's name on the registry."""

    label: str
    records: str
    attach: Callable[[Training], AbstractContextManager[Loop]]
    package: str | None = None
    period: int = 1  # a block of steps is a multiple of it, so that it holds a fair share

    def version(self) -> str:
        """Of the package; empty for a way that needs none."""
        return "" if self.package is None else version(self.package)


@contextmanager
def bare(training: Training) -> Iterator[Loop]:
    yield Loop(training.step)


@contextmanager
def with_gradflow(training: Training, **options: Any) -> Iterator[Loop]:
    # With a folder, as every peer that writes files. Each block ends with a flush, and so with a
    # file, where a user's training writes one in 64 recorded steps: this rather overstates it.
    with (
        TemporaryDirectory() as folder,
        Recorder(training.model, training.optimizer, folder=folder, **options) as recorder,
    ):
        yield Loop(training.step, recorder.flush)


@contextmanager
def with_tutorial_code(
    training: Training, log: list[dict[str, float]] | None = None
) -> Iterator[Loop]:
    """What tutorials write: a hook on every leaf module, and `.item()` for every number."""
    log = [] if log is None else log
    row: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            z = output.detach()
            row[f"{name}.mean"] = z.mean().item()
            row[f"{name}.rms"] = z.square().mean().sqrt().item()
            row[f"{name}.zero_share"] = (z == 0).float().mean().item()
            # Most tutorials take a full backward hook of the module, which raises in a ResNet.
            output.register_hook(partial(keep_gradient, name))  # type: ignore[no-untyped-call]

        return hook

    def keep_gradient(name: str, gradient: Tensor) -> None:
        row[f"{name}.grad_norm"] = gradient.norm().item()

    def step() -> None:
        row.clear()
        training.backward()
        for name, parameter in training.model.named_parameters():
            if parameter.grad is not None:
                row[f"{name}.grad_norm"] = parameter.grad.norm().item()
        training.optimizer.step()
        log.append(dict(row))

    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves(training.model)]
    try:
        yield Loop(step)
    finally:
        for handle in hooks:
            handle.remove()


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules without children, by qualified name."""
    return [(name, module) for name, module in model.named_modules() if not [*module.children()]]


@contextmanager
def with_wandb(training: Training, log: str) -> Iterator[Loop]:
    """https://docs.wandb.ai/ref/python/watch, with one `run.log` per step."""
    with offline_run() as run:
        run.watch(training.model, log=log, log_freq=1)
        yield Loop(lambda: run.log({"loss": training.step().item()}))


@contextmanager
def offline_run() -> Iterator[Any]:
    """A W&B run that needs no account and leaves nothing behind.

    It does not watch the machine nor look for git and code: those are not what is compared.
    """
    with TemporaryDirectory() as folder:
        os.environ |= {
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": folder,
            "WANDB_CACHE_DIR": folder,
        }
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        with wandb.init(mode="offline", dir=folder, project="overhead", settings=settings) as run:
            yield run


@contextmanager
def with_lightning(training: Training) -> Iterator[Loop]:
    """The example of `LightningModule.on_before_optimizer_step`, without a Trainer around it."""
    from lightning.pytorch.utilities import grad_norm

    log: list[dict[str, float]] = []

    def step() -> None:
        training.backward()
        norms = grad_norm(training.model, norm_type=2)
        # Its `log_dict` hands plain numbers to the logger, at every step if so configured.
        log.append({name: float(norm) for name, norm in norms.items()})
        training.optimizer.step()

    yield Loop(step)


@contextmanager
def with_torchmortem(training: Training) -> Iterator[Loop]:
    """The quick start of its README. Its default samples at every step, but ranks at one in 50."""
    from torchmortem import Autopsy

    with Autopsy(training.model, optimizer=training.optimizer) as autopsy:
        yield Loop(lambda: autopsy.step(loss=training.step().item()))


@contextmanager
def with_torchinstruments(training: Training) -> Iterator[Loop]:
    """Its README's call, with its sampler for every step where the default is one per minute."""
    from torchinstruments import AlwaysSampler, inject_observer, remove_observer

    with TemporaryDirectory() as folder:
        inject_observer(
            training.model,
            sampler=AlwaysSampler(),
            output_dir=Path(folder) / "stats",
            error_policy="raise",  # the default warns and goes on: a failure would look fast
        )
        try:
            yield Loop(training.step)
        finally:
            remove_observer(training.model)


@contextmanager
def with_cockpit(training: Training) -> Iterator[Loop]:
    """The loop of its basic example, with the two quantities that a ResNet allows."""
    with stand_in_for_pkg_resources():
        from cockpit import Cockpit, quantities
        from cockpit.utils.schedules import linear

    every_step = linear(interval=1)
    tracked = [quantities.GradNorm(every_step), quantities.UpdateSize(every_step)]
    cockpit = Cockpit(training.model.parameters(), quantities=tracked)
    steps = itertools.count()

    def step() -> None:
        training.optimizer.zero_grad()
        outputs, number = training.model(training.images), next(steps)
        loss = F.cross_entropy(outputs, training.labels)
        losses = F.cross_entropy(outputs.detach(), training.labels, reduction="none")
        info = {
            "batch_size": len(training.labels),
            "individual_losses": losses,
            "loss": loss,
            "optimizer": training.optimizer,
        }
        with cockpit(number, info=info):
            loss.backward(create_graph=cockpit.create_graph(number))
        training.optimizer.step()

    yield Loop(step)


@contextmanager
def stand_in_for_pkg_resources() -> Iterator[None]:
    """What setuptools 82 removed. Cockpit asks it for its own version, and does not import else."""
    if importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    stand_in = ModuleType("pkg_resources")
    vars(stand_in).update(DistributionNotFound=PackageNotFoundError, get_distribution=distribution)
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


@contextmanager
def with_torchlens(training: Training) -> Iterator[Loop]:
    """`torchlens.trackers.watch`, its monitor for training, with its sink that needs no service."""
    from torchlens.trackers import JSONLSink, watch

    steps = itertools.count()
    with (
        TemporaryDirectory() as folder,
        watch(
            training.model,
            to=JSONLSink(Path(folder) / "watch.jsonl"),
            signals=("gradients",),
            optimizer=training.optimizer,
            every=1,
        ) as session,
    ):

        def step() -> None:
            with session.step(next(steps)):
                training.step()

        yield Loop(step)


GRADFLOW = "gradflow-diagnostics"

WAYS: dict[str, Way] = {
    "bare": Way("bare step, once more", "nothing: the noise of this table", bare),
    "gradflow": Way(
        "gradflow", "gradients of outputs and weights; at one step in 8 outputs, weights, updates",
        partial(with_gradflow, **SETTLED), GRADFLOW, period=8),
    "gradflow-all": Way(
        "gradflow, cadence=1", "outputs, weights, their gradients, true updates at every step",
        partial(with_gradflow, cadence=1), GRADFLOW),
    "gradflow-every-16": Way(
        "gradflow, every=16", "all of it, at one step in 16",
        partial(with_gradflow, every=16), GRADFLOW, period=16),
    "gradflow-parameters": Way(
        "gradflow, PARAMETER_MEASURES", "gradients; at one step in 8 weights and true updates",
        partial(with_gradflow, measures=PARAMETER_MEASURES, **SETTLED), GRADFLOW, period=8),
    "tutorial": Way(
        "tutorial code", "outputs (3 numbers), norms of their and of the weights' gradients",
        with_tutorial_code),
    "wandb-gradients": Way(
        'wandb.watch(log="gradients")', "histograms of the weights' gradients",
        partial(with_wandb, log="gradients"), "wandb"),
    "wandb-all": Way(
        'wandb.watch(log="all")', "histograms of the weights and of their gradients",
        partial(with_wandb, log="all"), "wandb"),
    "lightning": Way(
        "Lightning grad_norm", "norms of the weights' gradients",
        with_lightning, "lightning"),
    "torchmortem": Way(
        "torchmortem", "outputs, their gradients; weights, their updates",
        with_torchmortem, "torchmortem"),
    "torchinstruments": Way(
        "TorchInstruments, AlwaysSampler",
        "statistics and histograms of outputs and of their gradients",
        with_torchinstruments, "torchinstruments"),
    "cockpit-norms": Way(
        "Cockpit, GradNorm and UpdateSize", "norms of the weights' gradients and true updates",
        with_cockpit, "cockpit-for-pytorch"),
    "torchlens-gradients": Way(
        "TorchLens watch, gradients", "the weights' gradients",
        with_torchlens, "torchlens"),
}  # fmt: skip


# -- timing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds per step, round by round, of the bare loop and of the way beside it."""

    n_steps: int  # of a block
    bare: np.ndarray  # (rounds, 2): the median step, and the mean with what was put off
    way: np.ndarray  # the same

    @property
    def ratios(self) -> np.ndarray:
        """(rounds, 2)."""
        ratios: np.ndarray = self.way / self.bare
        return ratios


def time_pairs(
    attach: Callable[[Training], AbstractContextManager[Loop]],
    setup: Setup,
    n_rounds: int,
    n_steps: int,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Blocks of bare steps and of the way's, in turn, each with a network of its own."""
    reference = Loop(setup.training().step)
    with attach(setup.training()) as loop:
        bare_step, step = (time_block(each, N_WARM_UP, clock)[0] for each in (reference, loop))
        if step > SLOW * bare_step:
            n_steps = 1
        seconds = [
            [time_block(each, n_steps, clock) for each in (reference, loop)]
            for _ in range(n_rounds)
        ]
    counted = np.array(seconds)
    return Timing(n_steps, counted[:, 0], counted[:, 1])


def time_block(loop: Loop, n_steps: int, clock: Clock = time.perf_counter) -> tuple[float, float]:
    """Seconds of the median step, and per step of all together with what was put off."""
    times = [clock()]
    for _ in range(n_steps):
        loop.step()
        times.append(clock())
    loop.settle()
    return float(np.median(np.diff(times))), (clock() - times[0]) / n_steps


def time_way(
    way: Way, setup: Setup, n_rounds: int, n_steps: int, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """A row of the table, as plain JSON types: ratios by round, or why there are none."""
    row: dict[str, Any] = {"label": way.label, "records": way.records, "version": ""}
    try:
        row["version"] = way.version()
    except PackageNotFoundError:
        return row | {"error": "not installed"}
    try:
        n_steps_of_way = -(-n_steps // way.period) * way.period
        timing = time_pairs(way.attach, setup, n_rounds, n_steps_of_way, clock)
    except Exception as error:  # a tool may raise what it likes: the table goes on without it
        return row | {"error": describe(error)}
    finally:
        gc.collect()  # the networks, before the next ones are made
    return row | {
        "steps": timing.n_steps,
        "bare_seconds": timing.bare[:, 0].tolist(),
        "median_step": timing.ratios[:, 0].tolist(),
        "all_steps": timing.ratios[:, 1].tolist(),
    }


def describe(error: Exception) -> str:
    """Type and first line, the latter not at any length."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return shorten(f"{type(error).__name__}: {first_line}", 160, placeholder=" …")


# -- cost per site -----------------------------------------------------------------------------


class Unit(nn.Module):
    """Convolution, BatchNorm, ReLU, and a shortcut past them.

    Without the shortcut the gradient explodes on its way back, as it does under BatchNorm: 1,000
    layers overflow float32, and the timing would be one of inf and NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.norm(self.conv(x)))
        return x + y


def chain(n_layers: int) -> nn.Module:
    """A chain of `n_layers` small convolutions, the first one included."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        *(Unit() for _ in range(n_layers - 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, N_CLASSES),
    )


def time_chain(n_layers: int, n_rounds: int, n_steps: int) -> dict[str, Any]:
    """What gradflow adds to a step, in total and for each output and parameter it records."""
    setup = Setup("chain", partial(chain, n_layers), image_size=16, batch_size=8)
    timing = time_pairs(partial(with_gradflow, cadence=1), setup, n_rounds, n_steps)
    extra = timing.way - timing.bare
    return {
        "n_layers": n_layers,
        "n_sites": count_sites(setup),
        "bare_seconds": timing.bare[:, 0].tolist(),
        "extra_of_median_step": extra[:, 0].tolist(),
        "extra_of_all_steps": extra[:, 1].tolist(),
    }


def count_sites(setup: Setup) -> int:
    training = setup.training()
    with Recorder(training.model, training.optimizer) as recorder:
        training.step()
    return len(recorder.trace.sites)


# -- memory ------------------------------------------------------------------------------------


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, N_CLASSES),
    )


def resident_while_recording(steps: Sequence[int]) -> list[int]:
    """Bytes of resident memory after so many recorded steps of a small network."""
    import psutil  # accelerate brings it

    setup = Setup("small", small_network, image_size=8, batch_size=4)
    training = setup.training()
    sizes = []
    with (
        TemporaryDirectory() as folder,
        Recorder(training.model, training.optimizer, folder=folder),
    ):
        for step in range(1, max(steps) + 1):
            training.step()
            if step in steps:
                sizes.append(psutil.Process().memory_info().rss)
    return sizes


# By kind of training, the measures that are recorded. "update" measures need a copy of the weights.
RECORDED: dict[str, Sequence[str] | None] = {
    "not recorded": None,
    "recorded, without true updates": [
        name for name in DEFAULT_MEASURES if MEASURES[name].read != "update"
    ],
    "recorded": DEFAULT_MEASURES,
}


def peaks(setup: Setup, n_rounds: int) -> dict[str, list[int]]:
    """Bytes at the peak of each kind of training, each time in a process of its own."""
    fresh = get_context("spawn")
    found: dict[str, list[int]] = {kind: [] for kind in RECORDED}
    for _, kind in itertools.product(range(n_rounds), RECORDED):
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            found[kind].append(process.submit(peak_of_training, kind, setup).result())
    return found


def peak_of_training(kind: str, setup: Setup) -> int:
    """Bytes of memory at the peak of three training steps, of which the first makes Adam's state.

    For a fresh process, since the peak is that of the process so far.
    """
    training = setup.training()
    measures = RECORDED[kind]
    with (
        nullcontext()
        if measures is None
        else Recorder(training.model, training.optimizer, measures=measures)
    ):
        for _ in range(3):
            training.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes


# -- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A table for people: on the terminal and in Markdown. The first columns are text."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    n_text_columns: int = 1

    def terminal(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < self.n_text_columns else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        rule = ["---" if i < self.n_text_columns else "---:" for i in range(len(self.columns))]
        # A bare `|` would end a cell.
        rows = [[cell.replace("|", "\\|") for cell in row] for row in self.rows]
        lines = [self.columns, rule, *rows]
        return "\n".join([f"{self.title}\n", *("| " + " | ".join(x) + " |" for x in lines)])


def ways_view(part: Mapping[str, Any]) -> View:
    rows = [_way_cells(row) for row in part["rows"].values()]
    bare = [s for row in part["rows"].values() for s in row.get("bare_seconds", [])]
    pace = f"; a bare step takes {np.median(bare) * 1e3:.0f} ms" if bare else ""
    settings = part["settings"]
    kind = "CPU time" if settings.get("clock") == "cpu" else "Time"
    title = (
        f"{kind} of a training step, as a ratio to the bare step: {settings['network']}, "
        f"{settings['image_size']} px, batch {settings['batch_size']}, "
        f"{settings['rounds']} rounds of {settings['steps']} steps{pace} "
        f"({_machine(part)})"
    )
    columns = ("way", "version", "records", "median step (quartiles)", "all steps (quartiles)")
    return View(title, columns, rows, n_text_columns=3)


def _way_cells(row: Mapping[str, Any]) -> list[str]:
    text = [row["label"], row["version"], row["records"]]
    if "error" in row:
        return [*text, row["error"], ""]
    return [*text, _median(row["median_step"], "{:.2f}"), _median(row["all_steps"], "{:.2f}")]


def scaling_view(part: Mapping[str, Any]) -> View:
    rows = []
    for row in part["rows"].values():
        median_step, all_steps = (
            np.array(row[f"extra_of_{which}"]) for which in ("median_step", "all_steps")
        )
        rows.append(
            [
                f"{row['n_layers']:,}",
                f"{row['n_sites']:,}",
                f"{np.median(row['bare_seconds']) * 1e3:.1f}",
                _median(median_step * 1e3, "{:.1f}"),
                _median(all_steps * 1e3, "{:.1f}"),
                _median(all_steps / row["n_sites"] * 1e6, "{:.1f}"),
            ]
        )
    columns = (
        "layers",
        "sites",
        "bare step, ms",
        "recording adds, ms",
        "and with writing, ms",
        "per site, µs",
    )
    title = (
        "What recording every step adds in a chain of small convolutions (quartiles), "
        f"{part['settings']['rounds']} rounds of {part['settings']['steps']} steps "
        f"({_machine(part)})"
    )
    return View(title, columns, rows, n_text_columns=0)


def flat_view(part: Mapping[str, Any]) -> View:
    rows = [
        [f"{int(step):,}", f"{size / 2**20:.1f}"] for step, size in part["rows"]["resident"].items()
    ]
    title = f"Resident memory while a small network records every step ({_machine(part)})"
    return View(title, ("recorded steps", "MiB"), rows, n_text_columns=0)


def peak_view(part: Mapping[str, Any]) -> View:
    peak = {kind: np.array(sizes) for kind, sizes in part["rows"]["peak"].items()}
    unrecorded = peak["not recorded"]
    rows = [
        [
            kind,
            f"{np.median(sizes) / 2**20:.0f}",
            f"{np.median(sizes - unrecorded) / 2**20:+.0f}",
            f"{np.median(sizes / unrecorded):.3f}",
        ]
        for kind, sizes in peak.items()
    ]
    settings = part["settings"]
    title = (
        f"Peak memory of a process that trains {settings['network']}, "
        f"{settings['image_size']} px, batch {settings['batch_size']}, "
        f"median of {settings['rounds']} ({_machine(part)})"
    )
    return View(title, ("training", "MiB", "more than unrecorded, MiB", "ratio"), rows)


VIEWS: dict[str, tuple[Callable[[Mapping[str, Any]], View], ...]] = {
    "ways": (ways_view,),
    "scaling": (scaling_view,),
    "memory": (flat_view, peak_view),
}


def _median(values: Sequence[float] | np.ndarray, form: str) -> str:
    """The median with the quartiles."""
    low, middle, high = (form.format(v) for v in np.quantile(values, [0.25, 0.5, 0.75]))
    return f"{middle} ({low} to {high})"


def _machine(part: Mapping[str, Any]) -> str:
    made_on = part["environment"]
    return f"{made_on['processor']}, {made_on['threads']} threads, torch {made_on['torch']}"


# -- the results on disk -----------------------------------------------------------------------


@dataclass
class Document:
    """overhead.json and overhead.md in one folder, written again with every row."""

    folder: Path
    parts: dict[str, Any]

    @staticmethod
    def open(folder: Path) -> "Document":
        path = folder / "overhead.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return Document(folder, known)

    def begin(self, name: str, settings: dict[str, Any]) -> None:
        """Make room for a part. Its rows stay if they were made in the same way."""
        begun = {"settings": settings, "environment": environment(), "rows": {}}
        before = self.parts.get(name)
        if before is not None and _comparable(before) == _comparable(begun):
            begun["rows"] = before["rows"]
        self.parts[name] = begun

    def add(self, name: str, rows: Mapping[str, Any], order: Sequence[str] = ()) -> None:
        """Put rows into a part, in their places in `order`, and save."""
        known = self.parts[name]["rows"] | rows
        self.parts[name]["rows"] = {key: known[key] for key in order if key in known} or known
        self.save()

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "overhead.json", self.parts)
        tables = [view.markdown() for name in VIEWS for view in self.views(name)]
        (self.folder / "overhead.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")

    def views(self, name: str) -> list[View]:
        return [make(self.parts[name]) for make in VIEWS[name] if name in self.parts]


def _comparable(part: Mapping[str, Any]) -> dict[str, Any]:
    made_on = {key: value for key, value in part["environment"].items() if key != "date"}
    return {"settings": part["settings"], "environment": made_on}


def environment() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy")},
    }


def processor() -> str:
    """Its name as the maker gives it, where Linux says so."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# -- the command -------------------------------------------------------------------------------


def run_ways(
    document: Document, names: Sequence[str], setup: Setup, n_rounds: int, n_steps: int,
    clock: Literal["wall", "cpu"] = "wall",
) -> None:  # fmt: skip
    """Time the ways `names` of WAYS."""
    settings = {"rounds": n_rounds, "steps": n_steps, "clock": clock}
    document.begin("ways", setup.to_json() | settings)
    for name in names:
        row = time_way(WAYS[name], setup, n_rounds, n_steps, CLOCKS[clock])
        document.add("ways", {name: row}, order=list(WAYS))
        outcome = row.get("error") or _median(row["all_steps"], "{:.2f}")
        _say(f"{row['label']}: {outcome}")


def run_scaling(document: Document, depths: Sequence[int], n_rounds: int, n_steps: int) -> None:
    """Time chains of each depth."""
    document.begin("scaling", {"rounds": n_rounds, "steps": n_steps})
    for n_layers in depths:
        row = time_chain(n_layers, n_rounds, n_steps)
        document.add("scaling", {str(n_layers): row}, order=list(map(str, DEPTHS)))
        _say(f"{n_layers} layers: {np.median(row['extra_of_all_steps']) * 1e3:.1f} ms")


def run_memory(document: Document, steps: Sequence[int], setup: Setup, n_rounds: int) -> None:
    """Measure both: flat over many steps, and the peak of one."""
    document.begin("memory", setup.to_json() | {"rounds": n_rounds})
    # The processes for the peaks come first: Linux hands them the peak of this one as theirs.
    peak = peaks(setup, n_rounds)
    resident = dict(zip(map(str, steps), resident_while_recording(steps), strict=True))
    document.add("memory", {"peak": peak, "resident": resident})


def main(
    *,
    image_size: int = 64,
    batch_size: int = 50,
    rounds: int = 7,
    steps: int = 8,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    clock: Literal["wall", "cpu"] = "wall",
    scaling: Annotated[bool, Parameter(negative=())] = False,
    memory: Annotated[bool, Parameter(negative=())] = False,
    out: Path = RESULTS,
) -> None:
    """Measure what recording costs with gradflow and with its peers.

    Parameters
    ----------
    image_size
        Side in pixels.
    batch_size
        Images per step.
    rounds
        How often each way is timed, beside the bare step.
    steps
        Training steps per timing; one of a way that takes ten times the bare step.
    only
        Names of the ways to time: bare, gradflow, wandb-all, … (a wrong one lists them all).
    clock
        Seconds that pass, or those that the process computes: for a machine that others use.
    scaling
        Time chains of 34, 152 and 1,000 layers instead.
    memory
        Measure memory instead.
    out
        Folder of overhead.json and overhead.md.
    """
    unknown = set(only) - set(WAYS)
    if unknown:
        raise SystemExit(f"Expected names of {', '.join(WAYS)}, but got {', '.join(unknown)}.")
    document = Document.open(out)
    setup = resnet(image_size, batch_size)
    parts: dict[str, Callable[[], None]] = {
        "memory": lambda: run_memory(document, RECORDED_STEPS, setup, rounds),
        "scaling": lambda: run_scaling(document, DEPTHS, rounds, steps),
        "ways": lambda: run_ways(document, only or tuple(WAYS), setup, rounds, steps, clock),
    }
    asked = [name for name, is_asked in (("memory", memory), ("scaling", scaling)) if is_asked]
    for name in asked or ["ways"]:
        parts[name]()
    console = Console(width=None if sys.stdout.isatty() else 200)
    for name in asked or ["ways"]:
        for view in document.views(name):
            console.print(view.terminal(), highlight=False)


def _say(line: str) -> None:
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    cyclopts.run(main)
