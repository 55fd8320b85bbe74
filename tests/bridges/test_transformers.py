"""The Hugging Face callback, against a real Trainer and a loop written out by hand."""

import copy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradflow import Trace

transformers = pytest.importorskip("transformers")

from gradflow.bridges.transformers import RecorderCallback  # noqa: E402


class Regression(nn.Module):
    """Takes the arguments and gives the dict that the Trainer expects."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(inputs), labels)}


class Fails(Regression):
    n_left = 3

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.n_left == 0:
            raise ZeroDivisionError
        self.n_left -= 1
        return super().forward(inputs, labels)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)


def trainer(folder: Path, model: nn.Module, batches: list[Any], **options: Any) -> Any:
    rows = [
        {"inputs": row, "labels": label}
        for inputs, labels in batches
        for row, label in zip(inputs, labels, strict=True)
    ]
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
    }
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **quiet, **settings | options),
        train_dataset=rows,
        eval_dataset=rows,
        optimizers=(adamw(model), None),
    )


def recorded(hugging_face: Any, **options: Any) -> RecorderCallback:
    callback = RecorderCallback(hugging_face, **options)
    hugging_face.add_callback(callback)
    return callback


def test_records_what_a_bare_loop_would(
    loop: Any, tmp_path: Path, net: nn.Module, batches: list[Any], n_hooks: Callable[..., int]
) -> None:
    twin, model = copy.deepcopy(net), Regression(net)
    expected = loop.train(twin, adamw(twin), batches)
    hugging_face = trainer(
        tmp_path, model, batches, eval_strategy="steps", eval_steps=1,
        gradient_accumulation_steps=loop.accumulate, max_grad_norm=loop.clip or 0.0,
    )  # fmt: skip
    callback = recorded(hugging_face)
    hugging_face.train()
    trace = callback.recorder.trace
    assert trace.steps.tolist() == list(range(hugging_face.state.global_step))
    expected.assert_recorded_in(trace, "net.{}".format)
    # Were an evaluation recorded, it would count here.
    assert trace.sizes[0] == loop.accumulate * 4 * 6
    assert n_hooks(model, callback.recorder.optimizers[0]) == 0


def test_a_failed_training_leaves_no_hook_and_keeps_its_records(
    tmp_path: Path, net: nn.Module, batches: list[Any], n_hooks: Callable[..., int]
) -> None:
    model = Fails(net)
    hugging_face = trainer(tmp_path, model, batches)
    callback = recorded(hugging_face, folder=tmp_path / "records")
    with pytest.raises(ZeroDivisionError), closing(callback):
        hugging_face.train()
    assert n_hooks(model, callback.recorder.optimizers[0]) == 0
    assert Trace.load(tmp_path / "records").steps.tolist() == [0, 1, 2]


def test_a_resumed_training_goes_on_counting(
    tmp_path: Path, net: nn.Module, batches: list[Any]
) -> None:
    saved = {"save_strategy": "steps", "save_steps": 4}
    first = trainer(tmp_path, Regression(copy.deepcopy(net)), batches, max_steps=4, **saved)
    recorded(first, folder=tmp_path / "records")
    first.train()
    second = trainer(tmp_path, Regression(net), batches)
    recorded(second, folder=tmp_path / "records")
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert Trace.load(tmp_path / "records").steps.tolist() == [0, 1, 2, 3, 4, 5]


def test_scaled_gradients_have_true_size_and_skipped_steps_are_told(
    tmp_path: Path, net: nn.Module, batches: list[Any]
) -> None:
    inputs, labels = batches[0]
    output = net(inputs)
    (output_grad,) = torch.autograd.grad(nn.functional.mse_loss(output, labels), output)
    overflows = (inputs, labels + 1e30)
    hugging_face = trainer(tmp_path, Regression(net), [overflows, batches[0], batches[1]])
    # What `fp16=True` makes on a GPU.
    hugging_face.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    callback = recorded(hugging_face)
    hugging_face.train()
    trace = callback.recorder.trace
    assert callback.recorder.skipped_steps == [0]
    assert len(trace) == 2
    of_last_output = trace.values["output_grad_norm"][0, trace.sites.index("net.2")]
    assert of_last_output == pytest.approx(output_grad.norm().item(), rel=1e-5)
