"""What was trained and no hook saw: steps, told at the end, and outputs, told at the next step."""

import warnings
from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradflow.record.outputs import OutputHooks
from gradflow.record.readable import NotTaken

# After the last step a loop may bring back the best weights, or swap in averages and swap them out:
# each changes a weight once, as the step of SGD does.
MANY_STEPS = 4
# They are used by their parameters alone, in every loop.
_NEVER_RUN = (nn.ParameterList, nn.ParameterDict)
MOST_NAMES = 3


class UnseenSteps:
    """Counts changes of the weights, of which autograd keeps a version each.

    If after the last step that was seen there are more than those of `MANY_STEPS` steps, another
    optimizer has made them, or one of several did not step any more.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer | None]) -> None:
        self._model = model
        self._optimizers = optimizers
        self._begun: set[int] = set()  # optimizers that were ever seen to step
        self._last_step: int | None = None
        self._changes = self._n_changes()
        self._per_step = [0] * len(optimizers)  # the most that came with one step
        self._versions = self._weight_versions()

    def begun(self, optimizer: int) -> None:
        self._begun.add(optimizer)

    def ended(self, step: int) -> None:
        """All optimizers have stepped."""
        now = self._n_changes()
        added = [n - n_before for n, n_before in zip(now, self._changes, strict=True)]
        self._per_step = list(map(max, self._per_step, added))
        self._changes, self._last_step = now, step

    def tell(self, has_backward: bool | None, stacklevel: int) -> None:
        """Warn of it; `has_backward` says whether backward passes came, None that it is unknown."""
        names = " and ".join(type(optimizer).__name__ for optimizer in self._optimizers)
        if len(self._begun) < len(self._optimizers):
            if has_backward or (has_backward is None and self._was_trained()):
                warnings.warn(
                    f"gradflow recorded nothing: the model was trained, but no step was seen (of "
                    f"{names}). Give the Recorder the optimizer whose `step` is called, such as "
                    "the one inside a wrapper, and of several all that step; or None, and put the "
                    "update into `with recorder.around_step():`.",
                    stacklevel=stacklevel + 1,
                )
        elif self._went_on():
            warnings.warn(
                f"gradflow recorded nothing after step {self._last_step}: the weights were changed "
                f"many times since, but no step was seen (of {names}). If another optimizer took "
                "over, make a Recorder for it. Of several, each step lasts until all have stepped: "
                "give only those that go on.",
                stacklevel=stacklevel + 1,
            )

    def _n_changes(self) -> list[int]:
        """By optimizer, of all its weights."""
        groups = [[] if one is None else one.param_groups for one in self._optimizers]
        return [sum(p._version for group in some for p in group["params"]) for some in groups]

    def _went_on(self) -> bool:
        return any(
            now - before > MANY_STEPS * per_step > 0
            for now, before, per_step in zip(
                self._n_changes(), self._changes, self._per_step, strict=True
            )
        )

    def _was_trained(self) -> bool:
        """Whether the parameters have gradients, or moved."""
        has_gradients = any(parameter.grad is not None for parameter in self._model.parameters())
        return has_gradients or self._versions != self._weight_versions()

    def _weight_versions(self) -> list[int]:
        known = (p for p in self._model.parameters() if not (is_lazy(p) or p.is_inference()))
        return [parameter._version for parameter in known]


class MissedOutputs:
    """Says which outputs no hook saw although they were trained, and why that may be."""

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
