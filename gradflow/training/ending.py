"""What is measured of a network when its training has ended: the evaluation, with the test set."""

import math
from typing import Any

import torch
from torch import nn

from gradflow.examine.batchnorm import recalibrated
from gradflow.record import MaxOverhead, Recorder
from gradflow.training.evaluate import evaluate, predict
from gradflow.training.fit import TrainingState
from gradflow.training.images import Data
from gradflow.training.intervening import Intervening
from gradflow.training.original import published
from gradflow.training.rundir import NetworkDir, Weights
from gradflow.training.weights import load_weights


def evaluate_network(
    network: NetworkDir,
    state: TrainingState,
    data: Data,
    recorder: Recorder | None,
    intervening: Intervening,
) -> None:
    """Look at the test set, once: with the weights of the last and of the best epoch."""
    evaluation: dict[str, Any] = {}
    epochs: dict[Weights, int] = {"last": state.epoch - 1, "best": state.best_epoch}
    for which, epoch in epochs.items():
        load_weights(state.model, network.weights(which))
        evaluation[which] = {
            "epoch": epoch,
            "angle_from_start": _angles(intervening.initial, state.model),
        }
        model = intervening.evaluated_in(state)
        for part in ("train", "validation", "test"):
            predictions = predict(model, data.in_order(part), state.accelerator)
            evaluation[which][part] = evaluate(
                predictions,
                data.class_names,
                state.config.label_smoothing,
                keep_probabilities=part != "train",
            )
            if (which, part) == ("last", "train"):
                evaluation[which][part]["recalibrated"] = _recalibrated(model, data, state, network)
    evaluation["optimizer"] = state.optimizer_facts
    evaluation["recording"] = _recording(recorder)
    evaluation["published"] = published(network.arch, data.class_names)
    network.save_evaluation(evaluation)


@torch.no_grad()
def _angles(initial: nn.Module, model: nn.Module) -> dict[str, float]:
    """Between each weight of a convolution or a linear layer and what it was first, in rad, as the
    measure `angle_from_start`."""
    angles = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            both = (weight, initial.get_parameter(name))
            now, before = (one.cpu().double().flatten() for one in both)
            chord = torch.linalg.vector_norm(now / now.norm() - before / before.norm())
            angles[name] = float(2 * torch.asin((chord / 2).clamp(max=1)))
    return angles


def _recalibrated(
    model: nn.Module, data: Data, state: TrainingState, network: NetworkDir
) -> dict[str, float]:
    """The training loss with the statistics of all training images in every BatchNorm.

    Running statistics lag behind the weights, and a loss that measures how well a network fits
    must not measure how far they lag.
    """
    batches = data.first_epoch(state.config, network.seed, state.accelerator.device)
    steady = recalibrated(model, (batch.images for batch in batches))
    predictions = predict(steady, data.in_order("train"), state.accelerator)
    return {
        "loss": predictions.loss(state.config.label_smoothing),
        "cross_entropy": predictions.loss(0.0),
        "accuracy": predictions.accuracy,
    }


def _recording(recorder: Recorder | None) -> dict[str, Any] | None:
    """What recording cost, where `max_overhead` had it measured; since the last resume."""
    schedule = recorder.schedule if recorder is not None else None
    if not isinstance(schedule, MaxOverhead) or math.isnan(schedule.overhead):
        return None
    return {
        "share_allowed": schedule.share,
        "share_of_time": schedule.overhead,
        "price_of_a_recorded_step": schedule.price,
        "interval": schedule.interval,
    }
