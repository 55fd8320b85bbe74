"""`gradflow check`: a network before training, and gradflow itself on known truths."""

import sys
from pathlib import Path
from typing import Literal

from gradflow.cli.console import progress, show, show_json, stderr
from gradflow.cli.options import FAILED, JUDGED, OK, Flag


def check(
    model: str | None = None,
    *,
    input: list[str] | None = None,
    draws: int = 5,
    batch_size: int = 8,
    seed: int = 0,
    fail_on: Literal["vanishing", "exploding"] | None = None,
    controls: Flag = False,
    json: Flag = False,
) -> int:
    """Predict, without training, whether a network is likely to train from its initialisation.

    With --controls: measure networks whose gradient flow is known, to check gradflow itself.

    Parameters
    ----------
    model
        MODULE:FACTORY, a function or class that makes the network without arguments (or returns the
        network and its inputs); or a network of torchvision (resnet50) or gradflow (plain_34).
    input
        Shape of one input: 3,224,224 for images, 128 for vectors. Once for each of several.
    draws
        Fresh initialisations.
    batch_size
        Inputs per draw.
    seed
        Of weights, inputs and labels.
    fail_on
        Exit with 3 if this speaks against training, or if anything is NaN or inf.
    controls
        Check gradflow itself, without a model; exit with 1 if it fails.
    json
        Print the result as one JSON object on stdout.
    """
    if controls:
        if model is not None or input is not None:
            raise ValueError("Expected no model with --controls, which checks gradflow itself.")
        return _check_controls(as_json=json)
    if model is None:
        raise ValueError(
            "Expected a model, or --controls, but got neither. Try: "
            "gradflow check resnet50 --input 3,224,224"
        )
    from gradflow.examine.factories import load_factory
    from gradflow.examine.initial import check as check_initial
    from gradflow.present import terminal

    shapes = [_shape(text) for text in input] if input else None
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    factory = load_factory(model)
    with progress(stderr(), "draws", total=draws) as (bar, task):
        found = check_initial(
            factory,
            shapes,
            draws=draws,
            batch_size=batch_size,
            seed=seed,
            progress=lambda n_done: bar.update(task, completed=n_done),
        )
    if json:
        show_json({"model": model, **found.to_json()})
    else:
        show(terminal.check_view(found, model))
    is_judged = fail_on is not None and (found.cause == fail_on or bool(found.nonfinite))
    return JUDGED if is_judged else OK


def _shape(text: str) -> tuple[int, ...]:
    """3,224,224 or 3x224x224."""
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"Expected --input to be the shape of one input, such as 3,224,224 (C,H,W), but got "
            f"{text!r}. For a model that reads token ids, give a function that returns `model, "
            "ids`, or call gradflow.check(model, ids) in Python."
        )
    return tuple(int(part) for part in parts)


def _check_controls(*, as_json: bool) -> int:
    """Measure networks of known truth; 1 if one is not found, so that no verdict can be trusted."""
    from gradflow.controls import run_all
    from gradflow.present import terminal

    with progress(stderr(), "controls") as (bar, task):
        results, gate = run_all(
            lambda n_done, n: bar.update(task, completed=n_done, total=n),
        )
    if as_json:
        content = {"controls": [one.to_json() for one in results], "gate": gate.to_json()}
        show_json(content)
    else:
        show(terminal.controls_view(results, gate))
    return OK if gate.passed and all(one.passed for one in results) else FAILED
