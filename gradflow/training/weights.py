"""Networks and their weights: a network as a config describes it, and tensors on disk.

Weights may come from somebody else: they are read as numbers, never as code.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradflow.files import DamagedFile, refuse_no_file, whole
from gradflow.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

DO_NOT_TRUST = (
    "Do not trust the file: put a copy of your own back, or train the network anew in another run."
)
ANEW = "Restore a copy of it, leave the network out, or train it again."


def build_network(arch: str, n_classes: int, config: TrainConfig, *, seed: int) -> "nn.Module":
    """The network that a resolved config describes, freshly initialised.

    Without what an intervention makes of the first batch of images.
    """
    from gradflow.nets import NETWORKS

    model = NETWORKS[arch](
        n_classes,
        shortcut=config.shortcut,
        stem=config.stem,
        width=config.width,
        init=config.init,
        seed=seed,
    )
    for intervention in config.interventions:
        intervention.change_network(model)
    return model


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Save tensors and plain numbers, all or nothing: a killed process leaves the old file."""
    import torch

    with whole(path) as unfinished:
        try:
            torch.save(dict(content), unfinished)
        except RuntimeError as error:  # PyTorch's own for a disk that is full
            raise OSError(f"Expected to write {path}, but got: {error}") from None


def load_tensors(path: Path) -> dict[str, Any]:
    """Load on the CPU what `save_tensors` saved; never runs code from the file."""
    import torch

    expected = "weights, and nothing but numbers,"
    refuse_no_file(path, expected, DO_NOT_TRUST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it gives advice of the same kind
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever PyTorch, zipfile and pickle make of foreign bytes
        # What PyTorch says of a pickle that runs code is how to run it: not repeated here.
        why = "it holds more than numbers" if "weights_only" in str(error) else str(error)
        raise DamagedFile(path, expected, why, DO_NOT_TRUST) from None


def load_network(path: Path, arch: str, n_classes: int, config: TrainConfig) -> "nn.Module":
    """The network whose weights `path` holds: its memory is that of the file.

    It is built without memory first, since a config of somebody else can name a width of gigabytes.
    """
    import torch

    with torch.device("meta"):
        model = build_network(arch, n_classes, config, seed=0)
    load_weights(model, path, assign=True)
    return model


def load_weights(model: "nn.Module", path: Path, *, assign: bool = False) -> None:
    """Load into `model` what `save_tensors` saved of one like it; `assign` takes its tensors."""
    content = load_tensors(path)
    try:
        for name, tensor in model.state_dict().items():
            if name in content:
                content[name] = _fitting(name, content[name], tensor)
        model.load_state_dict(content, assign=assign)
    except (RuntimeError, TypeError, AttributeError) as error:
        expected = f"the weights of a {type(model).__name__} of this run"
        raise DamagedFile(path, expected, error, ANEW) from None


def _fitting(name: str, found: "Tensor", wanted: "Tensor") -> "Tensor":
    """`found` in the usual layout, since convolutions of few channels crash in channels_last.

    Raises TypeError or RuntimeError for another type, and for fewer numbers than the shape says. Of
    another shape it stays as it is: PyTorch says so of all of them together.
    """
    if found.dtype != wanted.dtype:
        raise TypeError(f"{name} is of {found.dtype}, not {wanted.dtype}")
    if found.shape != wanted.shape:
        return found
    if found.untyped_storage().nbytes() < wanted.nbytes:
        raise TypeError(f"{name} holds fewer numbers than its shape has")
    return found.contiguous()
