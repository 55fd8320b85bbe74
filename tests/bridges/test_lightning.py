"""The Lightning callback, against a real Trainer and a loop written out by hand."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradflow import Recorder, Trace

pl = pytest.importorskip("lightning.pytorch")

from gradflow.bridges.lightning import RecorderCallback  # noqa: E402

pytestmark = [
    # Lightning 2.6 walks through nested data with a class that torch 2.15 is about to drop.
    pytest.mark.filterwarnings(
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"
    ),
]


class Regression(pl.LightningModule):  # type: ignore[misc]
    """Calls its network, not itself, as Lightning recommends."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.3)


class Validated(Regression):
    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        self.net(batch[0])


class Adversaries(Regression):
    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]


class Fails(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if index == 3:
            raise ZeroDivisionError
        return super().training_step(batch, index)


def trainer(folder: Path, *callbacks: Any, library: Any = pl, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 1, "accelerator": "cpu", "enable_checkpointing": False}
    return library.Trainer(
        callbacks=list(callbacks), default_root_dir=folder, **quiet, **settings | options
    )


def loader(batches: list[Any]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def test_records_what_a_bare_loop_would(
    loop: Any, tmp_path: Path, net: nn.Module, batches: list[Any], n_hooks: Callable[..., int]
) -> None:
    twin = Regression(copy.deepcopy(net))
    expected = loop.train(twin.net, twin.configure_optimizers(), batches)
    model, callback = Validated(net), RecorderCallback()
    lightning = trainer(
        tmp_path, callback, val_check_interval=1, accumulate_grad_batches=loop.accumulate,
        gradient_clip_val=loop.clip,
    )  # fmt: skip
    lightning.fit(model, loader(batches), loader(batches))
    trace = callback.recorder.trace
    assert trace.steps.tolist() == list(range(lightning.global_step))
    expected.assert_recorded_in(trace, "net.{}".format)
    assert trace.sites == (
        *("net.0", "net.0.weight", "net.0.bias"),
        "net.1",
        *("net.2", "net.2.weight", "net.2.bias"),
    )
    # Were a validation pass recorded, it would count here.
    assert trace.sizes[0] == loop.accumulate * 4 * 6
    assert n_hooks(model, callback.recorder.optimizers[0]) == 0


def test_a_failed_training_leaves_no_hook_and_keeps_its_records(
    tmp_path: Path, net: nn.Module, batches: list[Any], n_hooks: Callable[..., int]
) -> None:
    model, callback = Fails(net), RecorderCallback(folder=tmp_path / "records")
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callback).fit(model, loader(batches))
    assert n_hooks(model, callback.recorder.optimizers[0]) == 0
    assert Trace.load(tmp_path / "records").steps.tolist() == [0, 1, 2]


def test_a_resumed_training_goes_on_counting(
    tmp_path: Path, net: nn.Module, batches: list[Any]
) -> None:
    records = tmp_path / "records"
    first = trainer(tmp_path, RecorderCallback(folder=records))
    first.fit(Regression(copy.deepcopy(net)), loader(batches))
    first.save_checkpoint(tmp_path / "model.ckpt")
    second = trainer(tmp_path, RecorderCallback(folder=records), max_epochs=2)
    second.fit(Regression(net), loader(batches), ckpt_path=tmp_path / "model.ckpt")
    assert Trace.load(records).steps.tolist() == list(range(12))


def test_several_optimizers_are_refused_with_a_way_out(
    tmp_path: Path, net: nn.Module, batches: list[Any]
) -> None:
    model = Adversaries(net)
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="one optimizer, but got 2. Make one `gradflow.Recorder`"):
        trainer(tmp_path, RecorderCallback()).fit(model, loader(batches))


def mixed_precision(scale: float) -> Any:
    """What `precision="16-mixed"` makes on a GPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_scaled_gradients_have_true_size_and_skipped_steps_are_told(
    accumulate: int, tmp_path: Path, net: nn.Module, batches: list[Any]
) -> None:
    inputs, targets = batches[0]
    output = net(inputs)
    loss = nn.functional.mse_loss(output, targets)
    weight_grad, output_grad = torch.autograd.grad(loss, [net[2].weight, output])
    callback = RecorderCallback()
    lightning = trainer(
        tmp_path,
        callback,
        plugins=[mixed_precision(2.0**18)],  # float16 overflows until the scale has halved
        accumulate_grad_batches=accumulate,
    )
    lightning.fit(Regression(net), loader([batches[0]] * 10))
    trace = callback.recorder.trace
    skipped = callback.recorder.skipped_steps
    assert skipped
    assert len(trace) + len(skipped) == 10 // accumulate
    assert trace.select("grad_norm").values[0, -2] == pytest.approx(
        weight_grad.norm().item(), rel=5e-3
    )
    of_last_output = trace.values["output_grad_norm"][0, trace.sites.index("net.2")]
    assert of_last_output == pytest.approx(output_grad.norm().item() / accumulate**0.5, rel=5e-3)
    assert trace.sizes[0] == accumulate * 4 * 6


def test_data_parallel_model_is_recorded_under_the_names_of_its_layers(
    tmp_path: Path, net: nn.Module, batches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "gradflow.bridges.lightning.Recorder",
        lambda model, *args, **options: seen.append(model) or Recorder(model, *args, **options),
    )
    callback = RecorderCallback()
    trainer(tmp_path, callback, strategy="ddp", devices=1).fit(Regression(net), loader(batches))
    assert isinstance(seen[0], nn.parallel.DistributedDataParallel)
    assert callback.recorder.trace.sites[0] == "net.0"


def test_the_library_under_its_other_name_takes_the_callback_too(
    tmp_path: Path, net: nn.Module, batches: list[Any]
) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Model(other.LightningModule):  # type: ignore[misc]
        training_step = Regression.training_step
        configure_optimizers = Regression.configure_optimizers

    model, callback = Model(), RecorderCallback()
    model.net = net
    trainer(tmp_path, callback, library=other).fit(model, loader(batches))
    assert len(callback.recorder.trace) == len(batches)
