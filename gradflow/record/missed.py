"""Outputs that no hook saw although they were trained: which, and why that may be."""

from torch import nn

from gradflow.record.outputs import OutputHooks
from gradflow.record.readable import NotTaken

# They are used by their parameters alone, in every loop.
_NEVER_RUN = (nn.ParameterList, nn.ParameterDict)
MOST_NAMES = 3


class MissedOutputs:
    """Says it, at the steps that are recorded."""

    def __init__(self, model: nn.Module, outputs: OutputHooks, not_taken: NotTaken) -> None:
        self._model = model
        self._outputs = outputs
        self._not_taken = not_taken
        self._has_looked = False  # for layers that were left out of a step

    def look(self, *, has_passes: bool) -> None:
        """After a step that had forward passes or not."""
        if not has_passes:
            why = self._why_none()
            if why is not None:
                self._not_taken.say("outputs in a step", why)
        elif not self._has_looked:
            self._has_looked = True
            self._say_who_did_not_run()

    def _why_none(self) -> str | None:
        """None where that was said before."""
        if self._outputs.has_hooked:
            return "no backward pass had brought the parameters a gradient that was still there"
        has_gradients = any(parameter.grad is not None for parameter in self._model.parameters())
        if self._outputs.saw_output or not has_gradients:
            return None
        return (
            "no layer ran through its hooks although the parameters have gradients. These may come "
            "from elsewhere; or the model, or one like it, was compiled before the Recorder was "
            "made, is in eval mode, or was called as `model.forward(x)`. Make the Recorder before "
            "the first compiled call, call `model.train()` and `model(x)`, or leave the outputs "
            "out with `measures=PARAMETER_MEASURES`"
        )

    def _say_who_did_not_run(self) -> None:
        owners = dict(self._model.named_modules())
        missed = [
            repr(name) for name, module in self._outputs.not_run().items()
            if not isinstance(module, _NEVER_RUN)
            and not isinstance(owners[name.rpartition(".")[0]], nn.MultiheadAttention)
            and any(parameter.grad is not None for parameter in module.parameters(False))
        ]  # fmt: skip
        if missed:
            rest = f" and {len(missed) - MOST_NAMES} more" if len(missed) > MOST_NAMES else ""
            self._not_taken.say(
                f"the output of {', '.join(missed[:MOST_NAMES])}{rest}",
                "parameters there have gradients, but no hook ran. Either the weights are used "
                "without a call of their layer, or it was called as `layer.forward(x)`, or it, or "
                "one like it, was compiled before the Recorder was made",
            )
