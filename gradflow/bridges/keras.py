"""Record while Keras 3 trains on its torch backend."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import keras
from torch import Tensor, nn

from gradflow.record import PARAMETER_MEASURES, Recorder

if keras.backend.backend() != "torch":
    raise ImportError(
        f"Expected Keras on torch, but got {keras.backend.backend()!r}. Set the environment "
        "variable KERAS_BACKEND to torch before Keras is imported."
    )


class RecorderCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Give a `Recorder` to Keras: `model.fit(..., callbacks=[RecorderCallback(every=16)])`.

    The options are those of `Recorder`; `measures` can only be measures of parameters. They are
    the trainable variables, under the names that Keras gives them, with the gradients that the
    optimizer uses: unscaled, accumulated, clipped. `recorder` exists from the start of training on
    and is closed when training ends; each `fit` makes a new one, which goes on counting where the
    optimizer does. Keras does not tell its callbacks of an exception: where one may come, train
    inside `with contextlib.closing(callback)`.
    """

    recorder: Recorder

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {"measures": PARAMETER_MEASURES} | options
        self._open = ExitStack()

    def on_train_begin(self, logs: Any = None) -> None:
        self.close()  # an exception may have ended the training before
        optimizer, variables = self.model.optimizer, self.model.trainable_variables
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        # Parameters in the memory of the variables, with gradients of their own.
        twins = {id(variable): nn.Parameter(variable.value.detach()) for variable in variables}
        module, n_done = _module(variables, twins), int(optimizer.iterations)
        recorder = Recorder(module, None, first_step=n_done, **self.options)
        self.recorder = self._open.enter_context(recorder)
        apply, clip = optimizer.apply, optimizer._clip_gradients
        update, updated = ExitStack(), list[nn.Parameter]()

        def recorded_apply(grads: Sequence[Tensor | None], trainable_variables: Any = None) -> None:
            pairs = zip(trainable_variables or variables, grads, strict=True)
            updated[:] = [twins[id(variable)] for variable, grad in pairs if grad is not None]
            with update:
                apply(grads, trainable_variables)

        def clip_and_begin(grads: Sequence[Tensor]) -> Sequence[Tensor]:
            # Keras clips once per update: after it has accumulated, before it changes a weight.
            module.zero_grad()
            clipped: Sequence[Tensor] = clip(grads)
            for twin, grad in zip(updated, clipped, strict=True):
                twin.grad = grad
            update.enter_context(recorder.around_step())
            return clipped

        optimizer.apply, optimizer._clip_gradients = recorded_apply, clip_and_begin
        for name in ("apply", "_clip_gradients"):
            self._open.callback(vars(optimizer).pop, name, None)

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def close(self) -> None:
        """Give the optimizer back as it was, and write what is left to write."""
        self._open.close()


def _module(variables: Iterable[Any], twins: dict[int, nn.Parameter]) -> nn.Module:
    """The twins under the paths of the variables: `sequential.dense.kernel`."""
    root = nn.Module()
    for variable in variables:
        *layers, name = variable.path.split("/")
        module = root
        for layer in layers:
            module.add_module(layer, module._modules.get(layer) or nn.Module())
            module = module.get_submodule(layer)
        if name in module._parameters:
            raise ValueError(
                f"Expected a path of its own for each variable, but got {variable.path!r} twice. "
                "Give the layers different names."
            )
        module.register_parameter(name, twins[id(variable)])
    return root
