"""The Keras callback, against a real `fit` and a loop written out by hand."""

import importlib
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradflow import Trace

keras = pytest.importorskip("keras")

from gradflow.bridges.keras import RecorderCallback  # noqa: E402

TINY = 1e-30  # Keras adds its epsilon at another place than torch

NAMES = {
    "0.weight": "first.kernel",
    "0.bias": "first.bias",
    "2.weight": "last.kernel",
    "2.bias": "last.bias",
}


def same_in_keras(net: nn.Sequential) -> Any:
    """The network as a Keras model: its kernels are the transposed weights.

    In float64, since the Adam of Keras and that of torch round differently.
    """
    first, last = net[0], net[2]
    layers = [
        keras.layers.Dense(first.out_features, activation="tanh", name="first", dtype="float64"),
        keras.layers.Dense(last.out_features, name="last", dtype="float64"),
    ]
    model = keras.Sequential([keras.Input((first.in_features,)), *layers], name="net")
    for layer, linear in zip(layers, (first, last), strict=True):
        layer.set_weights(
            [linear.weight.detach().double().numpy().T, linear.bias.detach().double().numpy()]
        )
    return model


def fit(model: Any, batches: list[Any], *callbacks: Any, **options: Any) -> None:
    inputs, targets = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0, "callbacks": list(callbacks)}
    model.fit(inputs, targets, **settings | options)


def is_as_keras_made_it(optimizer: Any) -> bool:
    return not {"apply", "_clip_gradients"} & set(vars(optimizer))


class FailsAfter(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, n_batches: int) -> None:
        super().__init__()
        self.n_batches = n_batches

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == self.n_batches:
            raise ZeroDivisionError


def test_records_what_a_bare_loop_would(loop: Any, net: nn.Sequential, batches: list[Any]) -> None:
    model, callback = same_in_keras(net), RecorderCallback()
    accumulated = loop.accumulate if loop.accumulate > 1 else None  # in Keras's words
    optimizer = keras.optimizers.AdamW(
        0.01, weight_decay=0.3, epsilon=TINY, gradient_accumulation_steps=accumulated,
        global_clipnorm=loop.clip,
    )  # fmt: skip
    model.compile(optimizer, loss="mse")
    fit(model, batches, callback, validation_data=tuple(map(np.asarray, batches[0])))
    net = net.double()
    batches = [(inputs.double(), targets.double()) for inputs, targets in batches]
    like_keras = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.3, eps=TINY)
    expected = loop.train(net, like_keras, batches)
    trace = callback.recorder.trace
    assert trace.steps.tolist() == list(range(len(batches) // loop.accumulate))
    expected.assert_recorded_in(trace, lambda name: f"net.{NAMES[name]}")
    assert is_as_keras_made_it(optimizer)


def test_a_failed_training_gives_the_optimizer_back_and_keeps_its_records(
    tmp_path: Path, net: nn.Sequential, batches: list[Any]
) -> None:
    model, callback = same_in_keras(net), RecorderCallback(folder=tmp_path)
    model.compile("sgd", loss="mse")
    with pytest.raises(ZeroDivisionError), closing(callback):
        fit(model, batches, callback, FailsAfter(3))
    assert is_as_keras_made_it(model.optimizer)
    assert Trace.load(tmp_path).steps.tolist() == [0, 1, 2]


def test_scaled_gradients_have_true_size_and_skipped_updates_do_not_count(
    net: nn.Sequential, batches: list[Any]
) -> None:
    inputs, targets = batches[0]
    loss = nn.functional.mse_loss(net(inputs), targets)
    (grad,) = torch.autograd.grad(loss, [net[2].weight])
    model, callback = same_in_keras(net), RecorderCallback()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**40)
    model.compile(optimizer, loss="mse")
    overflows = (inputs, targets + np.inf)
    fit(model, [overflows, batches[0], batches[1]], callback)
    trace = callback.recorder.trace
    assert trace.steps.tolist() == [0, 1]
    got = trace.values["grad_norm"][0, trace.sites.index("net.last.kernel")]
    assert got == pytest.approx(grad.norm().item(), rel=1e-5)


def test_frozen_layers_are_left_out_and_the_schedule_is_kept(
    net: nn.Sequential, batches: list[Any]
) -> None:
    model, callback = same_in_keras(net), RecorderCallback(every=4, measures=["grad_norm"])
    model.get_layer("first").trainable = False
    model.compile("sgd", loss="mse")
    fit(model, batches, callbacks=callback, epochs=2)  # without a list, Keras may use threads
    trace = callback.recorder.trace
    assert trace.sites == ("net.last.kernel", "net.last.bias")
    assert trace.steps.tolist() == [0, 4, 8]
    assert trace.measures == ("grad_norm",)


def test_a_constraint_is_part_of_the_update(net: nn.Sequential, batches: list[Any]) -> None:
    model, callback = same_in_keras(net), RecorderCallback()
    kernel = model.get_layer("last").kernel
    kernel.constraint = keras.constraints.MaxNorm(0.1)
    model.compile("sgd", loss="mse")
    before = kernel.value.detach().clone()
    fit(model, batches[:1], callback)
    trace = callback.recorder.trace
    got = trace.values["update_norm"][0, trace.sites.index("net.last.kernel")]
    assert got == pytest.approx((kernel.value.detach() - before).norm().item(), rel=1e-5)
    assert kernel.value.detach().norm(dim=0).max() < 0.1001


# Keras 3.15 has not followed NumPy 2 where it reads variables to save them.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_a_model_can_be_saved_while_it_is_recorded(
    tmp_path: Path, net: nn.Sequential, batches: list[Any]
) -> None:
    model = same_in_keras(net)
    model.compile("adam", loss="mse")
    path = tmp_path / "model.keras"
    fit(model, batches, RecorderCallback(), keras.callbacks.ModelCheckpoint(path))
    loaded = keras.models.load_model(path)
    assert is_as_keras_made_it(loaded.optimizer)
    assert int(loaded.optimizer.iterations) == len(batches)


class Namesakes(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.one = keras.layers.Dense(5, name="dense")
        self.other = keras.layers.Dense(2, name="dense")

    def call(self, x: Any) -> Any:
        return self.other(self.one(x))


def test_variables_of_one_path_are_refused(batches: list[Any]) -> None:
    model = Namesakes()
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"each variable, but got '.*dense/kernel' twice. Give"):
        fit(model, batches, RecorderCallback())
    assert is_as_keras_made_it(model.optimizer)


def test_measures_of_outputs_are_not_taken_and_it_is_said(
    net: nn.Sequential, batches: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = same_in_keras(net)
    model.compile("sgd", loss="mse")
    fit(model, batches, RecorderCallback(measures=["output_rms"]))
    said = [one.getMessage() for one in caplog.records if one.name == "gradflow"]
    assert any("leave the outputs out with `measures=PARAMETER_MEASURES`" in one for one in said)


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.delitem(sys.modules, "gradflow.bridges.keras")
    with pytest.raises(ImportError, match="Keras on torch, but got 'jax'. Set .* KERAS_BACKEND"):
        importlib.import_module("gradflow.bridges.keras")
