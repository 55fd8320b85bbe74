"""What a notebook shows of a run and of a network in it, finished or not."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gradflow.analysis.notebook import card, gradient_profile, profile_rows, profiles_svg
from gradflow.analysis.profile import DepthProfile
from gradflow.record.trace import load_parts

if TYPE_CHECKING:
    from gradflow.training.rundir import NetworkDir, RunDir

T = TypeVar("T")

TITLE = "‖∂L/∂w‖₂ by depth, mean over steps (log scale)"


def network_html(network: "NetworkDir") -> str:
    """State, accuracies and the depth profile of the gradients."""
    profile = _profile(network)
    rows: list[tuple[str, object]] = [
        ("architecture", network.arch),
        ("seed", network.seed),
        ("state", _state(network)),
        *_accuracies(network),
        *profile_rows(profile),
    ]
    return card(f"Network {network.name}", rows, profiles_svg({network.name: profile}, TITLE))


def run_html(run: "RunDir") -> str:
    """Data, one row for each network, and the depth profiles of the first seed."""
    config = _attempt(run.config, None)
    networks: list[NetworkDir] = _attempt(run.networks, [])
    rows: list[tuple[str, object]] = [
        ("folder", run.path),
        ("data", "config.yaml cannot be read" if config is None else config.data),
        ("state", "finished" if run.is_finished else "not finished"),
        *((one.name, _in_short(one)) for one in networks),
    ]
    first = [one for one in networks if one.seed == networks[0].seed]
    profiles = {one.name: _profile(one) for one in first}
    return card(f"Run {run.path.name}", rows, profiles_svg(profiles, TITLE))


def _in_short(network: "NetworkDir") -> str:
    return ", ".join([_state(network), *(f"{name} {x}" for name, x in _accuracies(network))])


def _state(network: "NetworkDir") -> str:
    n = _attempt(lambda: len(network.history()), 0)
    return f"{'finished' if network.is_finished else 'not finished'}, {n} epochs"


def _accuracies(network: "NetworkDir") -> list[tuple[str, str]]:
    """Test accuracy of the best and the last epoch, where the network was evaluated."""

    def read() -> list[tuple[str, str]]:
        parts = {which: network.evaluation()[which]["test"] for which in ("best", "last")}
        return [
            (f"test accuracy, {which} epoch", f"{part['accuracy']:.1%}")
            for which, part in parts.items()
        ]

    return _attempt(read, [])


def _profile(network: "NetworkDir") -> DepthProfile:
    """log10 by layer; empty where nothing was recorded."""
    return _attempt(
        lambda: gradient_profile(load_parts(network.path, measures=["grad_norm"])),
        DepthProfile("grad_norm", (), np.empty(0)),
    )


def _attempt(read: Callable[[], T], otherwise: T) -> T:
    """What `read` gives. A damaged or unfinished file must not put a traceback in the cell."""
    try:
        return read()
    except Exception:
        return otherwise
