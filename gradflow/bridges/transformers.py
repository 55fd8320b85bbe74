"""Record while the Trainer of Hugging Face Transformers trains."""

from contextlib import ExitStack
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradflow.record import Recorder


class RecorderCallback(TrainerCallback):  # type: ignore[misc]
    """Give a `Recorder` to a Hugging Face Trainer.

    `trainer.add_callback(RecorderCallback(trainer, every=16))`, with the options of `Recorder`.
    `recorder` exists from the start of training on and is closed when training ends; each `train`
    makes a new one, which counts steps as `trainer.state.global_step` does. The Trainer does not
    tell its callbacks of an exception: where one may come, train inside
    `with contextlib.closing(callback)`.
    """

    recorder: Recorder

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        # Callbacks are given the bare model, but the Recorder must see DistributedDataParallel.
        self.trainer = trainer
        self.options = options
        self._open = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.close()  # an exception may have ended the training before
        self.recorder = self._open.enter_context(
            Recorder(
                self.trainer.model_wrapped,
                self.trainer.optimizer,
                scaler=self.trainer.accelerator.scaler,
                first_step=state.global_step,
                **self.options,
            )
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take every hook off the model and the optimizer, and write what is left to write."""
        self._open.close()
