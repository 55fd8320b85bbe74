"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

import dataclasses
import io
import json as json_
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gradflow import __version__
from gradflow.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from gradflow.present.saliency.asked import Networks
    from gradflow.present.saliency.trust import Trust
    from gradflow.present.tracking.budget import Budget
    from gradflow.studies import Cell, StudyDir
    from gradflow.training.rundir import NetworkDir, RunDir
    from gradflow.training.train import Data

POLL_SECONDS = 2.0  # between two looks at the trainings of a study

OK, FAILED, USAGE, JUDGED, INTERRUPTED = 0, 1, 2, 3, 130

app = App(
    name="gradflow",
    version=__version__,
    help="Measure, layer by layer, whether the gradients of a network vanish while it trains.",
)

Json = Annotated[bool, Parameter(negative=())]


def _read_config_file(_app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Let the file that `--config` names set what the command line does not."""
    for argument in arguments:
        if argument.name == "--config" and argument.tokens:
            path = argument.tokens[0].value
            if not Path(path).is_file():
                raise ValueError(f"Expected a config file, but there is no file {path}.")
            file = cyclopts.config.Yaml(path, must_exist=True, use_commands_as_keys=False)
            file(_app, commands, arguments)


app.config = (_read_config_file,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 1 (it failed), 2 (usage), 3 (judged so) or 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    errors = Console(stderr=True)
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, error_console=errors)
    except cyclopts.CycloptsError:
        return USAGE  # cyclopts has said why
    except (ValueError, OSError) as error:  # a number out of its range, no such config file
        return _say(errors, error, USAGE)
    try:
        return int(command(*bound.args, **bound.kwargs) or OK)
    except KeyboardInterrupt:
        return _say(errors, "Stopped.", INTERRUPTED)
    except OSError as error:
        return _say(errors, error, USAGE if isinstance(error, FileNotFoundError) else FAILED)
    except (ValueError, RuntimeError) as error:
        if not _is_ours(error):
            raise  # a defect, or a device out of memory: the traceback is what helps
        return _say(errors, error, _exit_code(error))


def _is_ours(error: Exception) -> bool:
    """Whether gradflow raised it, in words meant for the user."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return str(module).split(".")[0] == "gradflow"


def _exit_code(error: Exception) -> int:
    """A wrong argument is a matter of usage; what goes wrong later is a failed run."""
    from gradflow.training.train import BadFiles

    is_usage = isinstance(error, ValueError) and not isinstance(error, BadFiles)
    return USAGE if is_usage else FAILED


def _say(console: Console, message: object, code: int) -> int:
    console.print(f"gradflow: {message}", markup=False, highlight=False, soft_wrap=True)
    return code


# -- train -------------------------------------------------------------------------------------


@app.command
def train(
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 frozen
    *,
    config_file: Annotated[Path | None, Parameter(name="--config")] = None,
    resume: Path | None = None,
    json: Json = False,
) -> int:
    """Train plain and residual networks side by side, and record their gradients.

    Parameters
    ----------
    config_file
        YAML file of the fields of the run; the command line overrides it.
    resume
        Continue this run where it stands, with its own config, to the same result as without
        the interruption.
    json
        Print one JSON object on stdout instead of the summary.
    """
    from gradflow.present.tracking.start import check_trackers
    from gradflow.training.fit import make_accelerator
    from gradflow.training.rundir import RunDir

    if resume is not None:
        if config != TrainConfig():
            raise ValueError(
                "Expected no other options beside --resume, since a run continues with its own "
                "config. Leave them out, or start a new run."
            )
        config = RunDir.open(resume).config()
    check_trackers(config)
    accelerator = make_accelerator(config)
    log = _stderr(quiet=not accelerator.is_main_process)
    run, config, data = _open_run(config, resume, accelerator, log)
    try:
        _train_all(run, config, data, accelerator, log)
    except KeyboardInterrupt:
        log.print(f"Stopped. Continue with: gradflow train --resume {run.path}", soft_wrap=True)
        return INTERRUPTED
    if accelerator.is_main_process:
        _track_verdict(run, config, log)
        _print_summary(run, as_json=json)
    accelerator.end_training()
    return OK


def _open_run(
    config: TrainConfig, resume: Path | None, accelerator: "Accelerator", log: Console
) -> tuple["RunDir", TrainConfig, "Data"]:
    """Load the data and make the run's folder, or check that they still fit each other."""
    from accelerate.utils import broadcast_object_list

    from gradflow.present import terminal
    from gradflow.training.intervening import check_interventions
    from gradflow.training.rundir import RunDir
    from gradflow.training.summary import environment
    from gradflow.training.train import check_same_data, load_data

    with _progress(log, "images") as (bar, task):
        config, data = load_data(
            config, progress=lambda n_done, n: bar.update(task, completed=n_done, total=n)
        )
    facts = data.to_json()
    log.print(terminal.audit_view(facts["audit"]), terminal.split_view(facts["split"]))
    if resume is not None:
        run = RunDir.open(resume)
        check_same_data(run, facts)
        return run, config, data
    check_interventions(config, len(data.class_names))
    paths = [""]
    if accelerator.is_main_process:
        run = RunDir.create(config)
        run.save_config(config)
        run.save_data(facts)
        run.save_environment(environment(accelerator))
        paths = [str(run.path)]
    run = RunDir(Path(broadcast_object_list(paths)[0]))
    log.print(f"run            {run.path}", soft_wrap=True)
    return run, config, data


def _train_all(
    run: "RunDir", config: TrainConfig, data: "Data", accelerator: "Accelerator", log: Console
) -> None:
    """Every network of every seed that is not finished yet."""
    from gradflow.present.tracking.budget import Budget
    from gradflow.training.train import measure_rivals

    budget = Budget()
    cells = [(arch, seed) for seed in config.seed_list for arch in config.networks]
    n_batches = data.training(config, 0).n_batches(accelerator.num_processes)
    n_steps = -(-n_batches // (config.batches_per_step or n_batches)) * config.epochs
    with (
        _progress(log, "training", total=n_steps * len(cells)) as (bar, task),
        _stopping_between_steps(log) as stop_if_asked,
    ):

        def on_step() -> None:
            bar.advance(task)
            stop_if_asked()

        for number, (arch, seed) in enumerate(cells, start=1):
            network = run.network(arch, seed)
            if not network.is_finished:
                _train_one(run, network, config, data, accelerator, log, budget, on_step)
            elif accelerator.is_main_process:
                measure_rivals(network, config, data, accelerator)  # killed before it came to it
            bar.update(task, completed=number * n_steps)
            accelerator.wait_for_everyone()


def _train_one(
    run: "RunDir",
    network: "NetworkDir",
    config: TrainConfig,
    data: "Data",
    accelerator: "Accelerator",
    log: Console,
    budget: "Budget",
    on_step: Callable[[], None],
) -> None:
    """Train one network; print each epoch and tell it the trackers."""
    from gradflow.present import terminal
    from gradflow.present.tracking.start import network_log
    from gradflow.training.train import train_network

    epochs = train_network(network, config, data, accelerator, on_step=on_step)
    is_main = accelerator.is_main_process
    with network_log(run, network, config, budget, is_main=is_main) as trackers:
        for epoch, chunk in epochs:
            log.print(
                terminal.epoch_line(network.name, epoch, config.epochs),
                highlight=False,
                soft_wrap=True,
            )
            trackers.log_epoch(epoch, chunk)
        if is_main:
            trackers.close(_accuracies(network))


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


def _track_verdict(run: "RunDir", config: TrainConfig, log: Console) -> None:
    """Tell the trackers the verdict over a recorded run, once, when all networks are trained."""
    if (
        not config.log_grads
        or run.is_finished
        or (config.wandb == "off" and not config.tensorboard)
    ):
        return
    from gradflow.present.tracking.start import verdict_sinks
    from gradflow.present.tracking.verdict_log import log_verdict
    from gradflow.training.diagnosis import diagnose as run_diagnosis

    try:
        verdict = run_diagnosis([run.path])
        for sink in verdict_sinks(run, config):
            log_verdict(verdict, sink)
    except (ValueError, RuntimeError) as error:
        # Three networks, nothing to judge by, no network: the training is complete all the same.
        log.print(f"No verdict for the trackers: {error}", markup=False, soft_wrap=True)


def _print_summary(run: "RunDir", *, as_json: bool) -> None:
    """The end of a run: summary.json, the figures, and what a person reads."""
    from gradflow.present import terminal
    from gradflow.present.figures import save_figures
    from gradflow.training.summary import summarise

    summary = summarise(run)
    profiles = save_figures(run)
    if as_json:
        print(json_.dumps(summary, ensure_ascii=False))
    else:
        _print(terminal.summary_view(summary, profiles))


# -- data --------------------------------------------------------------------------------------


@app.command
def data(
    path: str,
    *,
    download: Annotated[bool, Parameter(negative=())] = False,
    all: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Audit images before anyone trains: classes, bad files, twins, conflicting labels.

    Exits with 1 if a file cannot be read.

    Parameters
    ----------
    path
        As `--data` of train: digits, a folder, a CSV file, or a torchvision name.
    download
        Let torchvision download the data set.
    all
        List every file concerned, not the first ten of each kind.
    json
        Print the audit as one JSON object on stdout.
    """
    from gradflow.data import audit, open_source, split
    from gradflow.present import terminal

    source = open_source(path, download=download)
    with _progress(_stderr(), "images") as (bar, task):
        found = audit(
            source, progress=lambda n_done, n: bar.update(task, completed=n_done, total=n)
        )
    content = found.to_json()
    if json:
        print(json_.dumps(content, ensure_ascii=False))
    else:
        views: list[RenderableType] = [terminal.audit_view(content, sys.maxsize if all else 10)]
        for kind in ("grouped", "random"):
            try:
                views.append(terminal.split_view(split(found, source.labels, kind=kind).to_json()))
            except ValueError as error:
                views.append(f"split          {kind}: not possible. {error}")
        _print(*views)
    return FAILED if found.bad else OK


# -- saliency ----------------------------------------------------------------------------------


@app.command
def saliency(
    image: Path | None = None,
    *,
    split: Literal["test"] | None = None,
    run: Path | None = None,
    runs: Path = Path("runs"),
    seeds: str | None = None,
    weights: Literal["best", "last"] = "best",
    method: Literal[
        "gradcam",
        "gradient",
        "smoothgrad",
        "integrated-gradients",
        "occlusion",
        "guided-backprop",
    ] = "gradcam",
    classes: int | None = None,
    trust: int = 4,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    json: Json = False,
) -> int:
    """Show what each network of a run looks at: probabilities, and one map per class.

    Parameters
    ----------
    image
        A picture, or a folder of pictures: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, PGM.
    split
        Instead: the test set of the run, as a gallery and mean maps per class in its figures.
    run
        The run to take the networks from; by default the newest.
    runs
        The folder in which the newest run is looked for.
    seeds
        The seeds of the networks to ask, separated by commas, or `all`; by default the first.
    weights
        Those of the epoch with the lowest validation loss, or of the last.
    method
        Grad-CAM on the last block with a map of 7×7 or more, or a map of the pixels themselves.
    classes
        Show so many of the most probable classes; by default all, up to ten.
    trust
        On how many pictures the method itself is checked; 0 leaves it out.
    output
        The picture's file, or for a folder the folder to write; by default named after the image.
    json
        Print the scores as one JSON object on stdout.
    """
    from gradflow.present.saliency import METHODS
    from gradflow.present.saliency.asked import Networks
    from gradflow.training.rundir import RunDir

    if (image is None) == (split is None):
        raise ValueError(
            "Expected a picture or a folder, or --split test for the run's own test images, but "
            f"got {'neither' if image is None else 'both'}."
        )
    if trust < 0:
        raise ValueError(f"Expected `--trust` to be 0 or more pictures, but got {trust}.")
    if image is None and (output is not None or classes is not None):
        raise ValueError(
            "Expected neither --output nor --classes beside --split: the gallery shows each "
            "picture's own classes and goes to the run's figures. Leave them out."
        )
    if image is not None and not image.exists():
        raise FileNotFoundError(f"Expected a picture or a folder, but there is nothing at {image}.")
    chosen = RunDir.newest(runs) if run is None else RunDir.open(run)
    networks = Networks.load(chosen, weights, _seeds_of(seeds, chosen))
    if METHODS[method].warning is not None:
        _stderr().print(f"Warning: {METHODS[method].warning}.", highlight=False, soft_wrap=True)
    if image is None:
        return _saliency_of_test_set(chosen, networks, method, trust, json)
    asked = {"method": method, "classes": classes, "trust": trust, "output": output}
    return _saliency_of_files(chosen, networks, image, asked, json)


def _seeds_of(text: str | None, run: "RunDir") -> list[int] | None:
    if text is None:
        return None
    if text == "all":
        return list(run.config().seed_list)
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            f"Expected `--seeds` to be numbers separated by commas, or all, but got {text!r}."
        ) from None


def _saliency_of_files(
    run: "RunDir", networks: "Networks", image: Path, asked: dict[str, Any], as_json: bool
) -> int:
    """Explain a picture, or all of a folder, of which a bad one does not stop the others."""
    from gradflow.data import BadImage
    from gradflow.present import terminal
    from gradflow.present.saliency import views
    from gradflow.present.saliency.asked import explain_files, first_readable
    from gradflow.present.saliency.pictures import find_pictures
    from gradflow.training.rundir import write_json

    log = _stderr()
    is_folder, method = image.is_dir(), asked["method"]
    end = "-saliency" if is_folder else "-saliency.png"
    output = asked["output"] or Path(f"{image.resolve().name if is_folder else image.stem}{end}")
    paths = find_pictures(image)
    trust = _check_method(networks, first_readable(networks, paths, asked["trust"]), method, log)
    entries, left_out = [], []
    with _progress(log, "pictures", total=len(paths)) as (bar, task):
        for one in explain_files(
            networks, paths, image, output, method=method, n_classes=asked["classes"], trust=trust
        ):
            bar.advance(task)
            if not isinstance(one, BadImage):
                entries.append(one.to_json())
                last = one
            elif is_folder:
                log.print(f"Left out: {one}", markup=False, highlight=False, soft_wrap=True)
                left_out.append({"file": one.file, "reason": one.reason})
            else:
                raise one
    if not entries:
        raise ValueError(f"Expected a readable picture in {image}, but none can be read.")
    content = {
        "run": str(run.path),
        "method": method,
        "pictures": entries,
        "left_out": left_out,
        "trust": {name: one.to_json() for name, one in trust.items()},
    }
    scores = output / "saliency.json" if is_folder else output.with_suffix(".json")
    write_json(scores, content)
    if as_json:
        print(json_.dumps(content, ensure_ascii=False))
        return OK
    if is_folder:
        _print(views.predictions_view(entries))
    else:
        _print(
            terminal.probabilities_view(last.probabilities),
            views.maps_view(last.picture.photo, last.results),
        )
    _print(*([views.trust_view(trust)] if trust else []))
    _print(f"run      {run.path}", f"scores   {scores}", f"picture  {output}")
    return OK


def _check_method(
    networks: "Networks", images: "Tensor | None", method: str, log: Console
) -> dict[str, "Trust"]:
    """What speaks for the method on each network; nothing where there is no image to check on."""
    if images is None:
        return {}
    with _progress(log, "checks", total=len(networks.models)) as (bar, task):
        trust = {}
        for name, found in networks.check(images, method):
            trust[name] = found
            bar.advance(task)
    return trust


def _saliency_of_test_set(
    run: "RunDir", networks: "Networks", method: str, n_checked: int, as_json: bool
) -> int:
    """The gallery of each network and the mean maps, into the figures of the run."""
    from gradflow.data import normalise
    from gradflow.present.saliency import views
    from gradflow.present.saliency.asked import first_of_each_class, galleries, save_galleries
    from gradflow.training.train import check_same_data, load_data

    log = _stderr()
    with _progress(log, "images") as (bar, task):
        _, data = load_data(
            networks.config, progress=lambda n_done, n: bar.update(task, completed=n_done, total=n)
        )
    check_same_data(run, data.to_json())
    pixels, labels = data.store.pixels[data.split.test], data.store.labels[data.split.test]
    checked = first_of_each_class(labels, n_checked)
    images = normalise(pixels[checked]) if len(checked) else None
    trust = _check_method(networks, images, method, log)
    with _progress(log, "galleries", total=len(networks.models)) as (bar, task):
        found = {}
        for name, gallery in galleries(networks, pixels, labels, method, trust):
            found[name] = gallery
            bar.advance(task)
    content, figures = save_galleries(run, method, found, trust)
    if as_json:
        print(json_.dumps(content, ensure_ascii=False))
        return OK
    _print(views.gallery_view(found), *([views.trust_view(trust)] if trust else []))
    _print(f"run      {run.path}", *(f"picture  {path}" for path in figures))
    return OK


# -- check -------------------------------------------------------------------------------------


@app.command
def check(
    model: str | None = None,
    *,
    input: str | None = None,
    draws: int = 5,
    batch_size: int = 8,
    seed: int = 0,
    fail_on: Literal["vanishing", "exploding"] | None = None,
    controls: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """See without any training whether gradients vanish or explode at the initialisation.

    With --controls: measure networks whose truth is known, to see whether gradflow finds it.

    Parameters
    ----------
    model
        MODULE:FACTORY, a function or class that makes the network without arguments; or the name
        of a network of torchvision (resnet50) or of gradflow (plain_34).
    input
        Shape of one input: 3,224,224 for images, 128 for vectors.
    draws
        Fresh initialisations.
    batch_size
        Inputs per draw.
    seed
        Of weights, inputs and labels.
    fail_on
        Exit with 3 if the gradient does this, or where anything is NaN or inf.
    controls
        Check gradflow itself, without a model. Exits with 1 if it fails.
    json
        Print the result as one JSON object on stdout.
    """
    if controls:
        if model is not None or input is not None:
            raise ValueError("Expected no model beside --controls, which checks gradflow itself.")
        return _check_controls(as_json=json)
    if model is None:
        raise ValueError(
            "Expected a model, or --controls, but got neither. Try: "
            "gradflow check resnet50 --input 3,224,224"
        )
    from gradflow.examine.factories import load_factory
    from gradflow.examine.initial import check as check_initial
    from gradflow.present import terminal

    shape = _shape(input)
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    factory = load_factory(model)
    with _progress(_stderr(), "draws", total=draws) as (bar, task):
        found = check_initial(
            factory,
            shape,
            draws=draws,
            batch_size=batch_size,
            seed=seed,
            progress=lambda n_done: bar.update(task, completed=n_done),
        )
    if json:
        print(json_.dumps({"model": model, **found.to_json()}, ensure_ascii=False))
    else:
        _print(terminal.check_view(found, model))
    is_judged = fail_on is not None and (found.label == fail_on or bool(found.nonfinite))
    return JUDGED if is_judged else OK


def _shape(text: str | None) -> tuple[int, ...]:
    """3,224,224 or 3x224x224."""
    parts = (text or "").replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"Expected --input to be the shape of one input, such as 3,224,224 (C,H,W), but got "
            f"{'none' if text is None else repr(text)}. Models that read token ids are checked "
            "from Python: gradflow.check(model, ids), with a tensor of them."
        )
    return tuple(int(part) for part in parts)


def _check_controls(*, as_json: bool) -> int:
    """Measure networks of known truth; 1 if one is not found, so that no verdict can be trusted."""
    from gradflow.controls import run_all
    from gradflow.present import terminal

    with _progress(_stderr(), "controls") as (bar, task):
        results, gate = run_all(
            lambda n_done, n: bar.update(task, completed=n_done, total=n),
        )
    if as_json:
        content = {"controls": [one.to_json() for one in results], "gate": gate.to_json()}
        print(json_.dumps(content, ensure_ascii=False))
    else:
        _print(terminal.controls_view(results, gate))
    return OK if gate.passed and all(one.passed for one in results) else FAILED


# -- diagnose, compare ---------------------------------------------------------------------------


@app.command
def diagnose(
    *runs: Path,
    accused: str | None = None,
    reference: str | None = None,
    measure: Annotated[bool, Parameter(negative=())] = False,
    fail_on: Literal["vanishing", "exploding"] | None = None,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    json: Json = False,
) -> int:
    """Answer whether the gradients vanish, and whether it would explain the gap.

    Parameters
    ----------
    runs
        Folders of runs, or of what a Recorder wrote, whose names may end in the seed (plain-s3);
        or the folder of one study, whose interventions then answer for the cause. By default the
        newest run in runs/.
    accused
        The network that is said to suffer; by default the first.
    reference
        The network to compare it with; by default the other one.
    measure
        First measure the rival explanations where that was not done, from the kept weights.
    fail_on
        Exit with 3 if the gradients do that early in training.
    output
        Where to save the figure; by default in the first run's folder of figures.
    json
        Print the verdict as one JSON object on stdout.
    """
    from gradflow.training.diagnosis import diagnose as run_diagnosis

    runs = runs or (_newest_run(),)
    study = _study_among(runs)
    if study is not None:
        if measure or accused is not None or reference is not None:
            raise ValueError(
                "Expected neither --measure, --accused nor --reference beside a study, which says "
                "itself who is accused. Leave them out."
            )
        from gradflow.studies import analyse
        from gradflow.studies.diagnosis import judge_study

        found = analyse(study)
        verdict = judge_study(study, found)
    else:
        if measure:
            _measure_rivals(runs)
        verdict = run_diagnosis(runs, accused=accused, reference=reference)
    if json:
        print(json_.dumps(verdict.to_json(), ensure_ascii=False))
    else:
        from gradflow.present.figures import save_verdict_figure
        from gradflow.present.letter import verdict_view
        from gradflow.present.terminal_plot import can_show_braille

        picture = save_verdict_figure(verdict, output or runs[0] / "figures" / "verdict.png")
        braille = can_show_braille(sys.stdout.encoding)
        _print(verdict_view(verdict, braille=braille))
        if study is not None:
            from gradflow.present.study_view import results_view

            _print("\nStudy", results_view(found))
        _print(f"\npicture  {picture}")
    return JUDGED if fail_on is not None and verdict.has(fail_on) else OK


def _study_among(runs: Sequence[Path]) -> "StudyDir | None":
    """The study, where the one folder that is given is that of a study."""
    from gradflow.studies import StudyDir

    studies = [path for path in runs if StudyDir.holds(path)]
    if studies and len(runs) > 1:
        raise ValueError(
            f"Expected a study alone, but got {len(runs)} folders. A study holds all its runs."
        )
    return StudyDir.open(studies[0]) if studies else None


def _newest_run() -> Path:
    from gradflow.training.rundir import RunDir

    return RunDir.newest(Path("runs")).path


def _measure_rivals(runs: Sequence[Path]) -> None:
    """Examine the kept weights of every finished network that was not examined yet."""
    from gradflow.training.diagnosis import network_dirs
    from gradflow.training.examination import examine_network
    from gradflow.training.rundir import RunDir
    from gradflow.training.train import check_same_data, load_data

    for path in runs:
        networks = network_dirs(path.resolve())
        todo = [one for one in networks if one.is_finished and one.examination() is None]
        if not todo:
            continue
        run = RunDir.open(todo[0].path.parent)
        config, data = load_data(run.config())
        check_same_data(run, data.to_json())
        with _progress(_stderr(), "networks", total=len(todo)) as (bar, task):
            for network in todo:
                network.save_examination(examine_network(network, config, data))
                bar.advance(task)


@app.command
def compare(
    *runs: Path,
    first: str | None = None,
    second: str | None = None,
    size: Literal["output_gradient", "scale_invariant", "gradient_rms"] = "output_gradient",
    fail_on: Literal["difference"] | None = None,
    json: Json = False,
) -> int:
    """Compare two networks layer by layer: which receive a different gradient, by how much.

    Parameters
    ----------
    runs
        One run that holds both networks, or several; folders as for `diagnose`.
    first
        The network whose gradients stand above the line of the ratio; by default the first.
    second
        The network to divide by; by default the other one.
    size
        Which size of a gradient the table shows: ∂L/∂z (δ), scale-invariant (ŝ) or raw (g).
    fail_on
        Exit with 3 if some layer differs at equal step.
    json
        Print every size as one JSON array on stdout.
    """
    from gradflow.analysis.compare import compare as run_comparison
    from gradflow.present.letter import comparison_view
    from gradflow.training.diagnosis import open_case

    runs = runs or (_newest_run(),)
    comparisons = run_comparison(open_case(runs, accused=first, reference=second))
    chosen = [one for one in comparisons if one.size == size]
    if not chosen:
        raise ValueError(
            f"Expected {size} in the records of both networks, but it was not recorded. Choose "
            "another --size, or record with all measures."
        )
    if json:
        print(json_.dumps([one.to_json() for one in comparisons], ensure_ascii=False))
    else:
        _print(comparison_view(comparisons, size))
    differs = any(one.differs for one in chosen if one.at == "equal step")
    return JUDGED if fail_on is not None and differs else OK


# -- report --------------------------------------------------------------------------------------


@app.command
def report(
    *runs: Path,
    accused: str | None = None,
    reference: str | None = None,
    static: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    json: Json = False,
) -> int:
    """Write one page that shows what runs found: verdict, figures, accuracies, how to repeat it.

    The page needs no network and no other file. Beside it: the same as Markdown and JSON, and
    every figure as SVG and PNG, on white and on dark paper.

    Parameters
    ----------
    runs
        Folders as for `diagnose`, or that of one study; by default the newest run in runs/.
    accused
        The network that is said to suffer; by default the first.
    reference
        The network to compare it with; by default the other one.
    static
        Without plotly.js (5 MB): the figures are pictures, with nothing to hover over.
    output
        The page; by default report.html in the first run's folder.
    json
        Print the numbers as one JSON object on stdout.
    """
    from gradflow.present.letter import summary_view
    from gradflow.present.report import page
    from gradflow.present.report.charts import charts
    from gradflow.present.report.content import collect
    from gradflow.present.report.words import lines
    from gradflow.present.terminal_plot import can_show_braille

    runs = runs or (_newest_run(),)
    content = collect(runs, accused=accused, reference=reference)
    path = output or runs[0] / "report.html"
    written = page.write(content, charts(content), path, static=static)
    if json:
        print(json_.dumps(page.to_json(content), ensure_ascii=False))
    else:
        braille = can_show_braille(sys.stdout.encoding)
        if content.verdict is not None:
            _print(summary_view(content.verdict, braille=braille))
        _print("", *lines(content))
        _print(f"\nreport   {written[0]}", f"also     {', '.join(one.name for one in written[1:])}")
    return OK


# -- study -------------------------------------------------------------------------------------


@app.command
def study(
    file: Path,
    *,
    data: str | None = None,
    out: Path | None = None,
    plan: Annotated[bool, Parameter(negative=())] = False,
    engine: Literal["local", "dask", "ray", "slurm"] = "local",
    workers: int | None = None,
    address: str | None = None,
    slurm: Annotated[dict[str, str] | None, Parameter(name="--slurm")] = None,
    json: Json = False,
) -> int:
    """Test explanations: change one thing at a time, and see which share of the gap goes away.

    A study that was stopped or killed goes on where it stands when it is called again, to the same
    results. Exits with 1 if a training failed.

    Parameters
    ----------
    file
        The study file, or the folder of a study that was begun. docs/studies.md explains both.
    data
        The images, in place of those of the study file.
    out
        The folder of the study; by default studies/ and the name of the file.
    plan
        Only show the trainings, how long they take, and how many seeds the precision needs.
    engine
        Where to train: on this machine, on a Dask or Ray cluster, or as jobs of Slurm.
    workers
        How many trainings at a time; by default one per GPU, or as many as the cores carry.
    address
        The scheduler of a running Dask or Ray cluster; by default one is started here.
    slurm
        Parameters of the jobs, such as --slurm.slurm_partition gpu --slurm.timeout_min 60.
    json
        Print the results, or the plan, as one JSON object on stdout.
    """
    from gradflow.present import study_view
    from gradflow.present.study_figures import save_study_figures
    from gradflow.studies import Engine, Study, StudyDir, run_study
    from gradflow.studies.engine import default_workers
    from gradflow.studies.plan import plan_study

    if file.is_dir():
        folder, content = StudyDir.open(file), StudyDir.open(file).file
        if data is not None or out is not None:
            raise ValueError("Expected neither --data nor --out beside the folder of a study.")
    else:
        folder, content = StudyDir(out or Path("studies") / file.stem), file
    asked = Study.load(content, {} if data is None else {"data": data})
    where = Engine(name=engine, workers=workers, address=address, slurm=_numbers(slurm or {}))
    if plan:
        count = workers or default_workers(asked.cells(folder.cells))
        planned = plan_study(asked, folder, count)
        if json:
            print(json_.dumps(planned.to_json(), ensure_ascii=False))
        else:
            _print(study_view.plan_view(planned))
        return OK
    log = _stderr()
    log.print(f"study          {folder.path}", soft_wrap=True)
    with _watching(log) as watch:
        found = run_study(asked, folder, where, on_begin=watch)
    pictures = save_study_figures(found, folder.figures)
    if json:
        print(json_.dumps(found.to_json(), ensure_ascii=False))
    else:
        _print(study_view.results_view(found), f"\nstudy    {folder.path}")
        _print(*(f"picture  {path}" for path in pictures))
    return FAILED if any(" failed: " in note for note in found.notes) else OK


def _numbers(options: dict[str, str]) -> dict[str, Any]:
    """Whole numbers as numbers; submitit tells them from text."""
    return {name: int(value) if value.isdecimal() else value for name, value in options.items()}


@contextmanager
def _watching(log: Console) -> Iterator[Callable[[Sequence["Cell"]], None]]:
    """Show how far all trainings of a study are: a live table, or a line as each ends."""
    from rich.live import Live

    from gradflow.present.study_view import end_line, progress_view
    from gradflow.studies.folder import CellDir

    cells: list[Cell] = []
    said: set[str] = set()
    is_over, one_at_a_time = threading.Event(), threading.Lock()

    def say_ends() -> None:
        with one_at_a_time:
            for cell in cells:
                line = end_line(cell) if cell.name not in said else None
                if line is not None:
                    said.add(cell.name)
                    log.print(line, markup=False, highlight=False, soft_wrap=True)

    def keep_saying() -> None:
        while not is_over.wait(POLL_SECONDS):
            say_ends()

    def watch(found: Sequence["Cell"]) -> None:
        if not log.is_terminal:
            say_ends()  # of the cells before these
        cells[:] = found
        said.update(cell.name for cell in cells if CellDir(cell.folder).is_done)

    if log.is_terminal:
        with Live(get_renderable=lambda: progress_view(cells), console=log, refresh_per_second=1):
            yield watch
        return
    thread = threading.Thread(target=keep_saying, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()
        say_ends()


# -- wandb-panels --------------------------------------------------------------------------------


@app.command
def wandb_panels(
    *, entity: str, project: str = "gradflow", name: str = "gradflow", json: Json = False
) -> int:
    """Save a W&B workspace: verdict, gradient by depth, norms by stage, seeds as bands.

    Needs wandb-workspaces and a login; without a login --json shows it.

    Parameters
    ----------
    entity
        Who owns the project: a user or a team.
    project
        The project that the runs are in, as `--project` of train.
    name
        What the workspace is called there.
    json
        Print the workspace as one JSON object on stdout, and send nothing.
    """
    from gradflow.present.tracking.start import check_installed

    check_installed("wandb_workspaces", "wandb-workspaces>=0.4.8", "`gradflow wandb-panels`")
    from gradflow.present.tracking import wandb_workspace

    page = wandb_workspace.workspace(entity, project, name)
    if json:
        print(json_.dumps(wandb_workspace.to_json(page), ensure_ascii=False))
    else:
        _print(f"workspace  {wandb_workspace.save(page)}")
    return OK


# -- bench -------------------------------------------------------------------------------------


@app.command
def bench(
    *,
    arch: str = "resnet_34",
    image_size: int = 64,
    batch_size: int = 50,
    rounds: int = 7,
    steps: int = 16,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "tf32", "bf16"] = "fp32",
    json: Json = False,
) -> int:
    """Measure what training and recording cost here, against a bare PyTorch loop.

    Parameters
    ----------
    arch
        Network: plain_18, resnet_18, plain_34 or resnet_34.
    image_size
        Side in pixels.
    batch_size
        Images per step.
    rounds
        How often each way is timed; one more round warms up.
    steps
        Training steps per timing. Use a multiple of 16, since one way records every 16 steps.
    device
        Where to run.
    precision
        Arithmetic.
    json
        Print the timings as one JSON object on stdout.
    """
    from gradflow.present import terminal
    from gradflow.training.bench import bench as run_bench
    from gradflow.training.bench import recording_floor
    from gradflow.training.fit import make_accelerator

    config = TrainConfig(
        arch=arch,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        precision=precision,
    ).resolved(image_size=image_size, mirror=True)
    accelerator = make_accelerator(config)
    with _progress(_stderr(), "rounds", total=rounds + 1) as (bar, task):
        timings = run_bench(
            config,
            accelerator,
            n_rounds=rounds,
            n_steps=steps,
            on_round=lambda: bar.advance(task),
        )
    floor = recording_floor(config, accelerator)
    if json:
        timed = [timing.to_json() for timing in timings]
        print(json_.dumps({"timings": timed, "floor": dataclasses.asdict(floor)}))
    else:
        title = (
            f"{arch}, {image_size} px, batch {batch_size}, {precision}, {accelerator.device}, "
            f"{rounds} rounds of {steps} steps"
        )
        _print(terminal.bench_view(timings, title))
        _print(terminal.floor_line(floor, timings[0]))
    return OK


# -- printing ----------------------------------------------------------------------------------


WIDTH = 160  # where there is no terminal to fit: a file, a pipe


def _print(*views: RenderableType) -> None:
    """To stdout; a character that its encoding lacks becomes a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for view in views:
        console.print(view, highlight=False)


def _stderr(*, quiet: bool = False) -> Console:
    return Console(stderr=True, quiet=quiet, width=None if sys.stderr.isatty() else WIDTH)


@contextmanager
def _progress(
    console: Console, name: str, total: float | None = None
) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar with the time left, on a terminal only."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.quiet,
    )
    with bar:
        yield bar, bar.add_task(name, total=total)
