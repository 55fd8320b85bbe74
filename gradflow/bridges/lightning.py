"""Record while a Lightning Trainer trains."""

from contextlib import ExitStack
from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:  # the same library under its other name
    from pytorch_lightning import Callback, LightningModule, Trainer

from gradflow.record import Recorder


class RecorderCallback(Callback):  # type: ignore[misc]
    """Give a `Recorder` to a Lightning Trainer: `Trainer(callbacks=[RecorderCallback(every=16)])`.

    The options are those of `Recorder`. `recorder` exists from the start of training on, and is
    closed when training ends or fails; each `fit` makes a new one, which counts steps as
    `trainer.global_step` does.
    """

    recorder: Recorder

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._open = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"Expected one optimizer, but got {len(trainer.optimizers)}. Make one "
                "`gradflow.Recorder` for each in the LightningModule's `on_train_start`, with the "
                "part of the model that it trains, and close them in `on_train_end`."
            )
        self.recorder = self._open.enter_context(
            Recorder(
                trainer.strategy.model,  # as it is wrapped for several processes
                trainer.optimizers[0],
                # Under "16-mixed" the gradients of the outputs are scaled.
                scaler=getattr(trainer.precision_plugin, "scaler", None),
                first_step=trainer.global_step,
                **self.options,
            )
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._open.close()
