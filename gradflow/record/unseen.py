"""Training whose steps the Recorder does not see: told at the end, for no hook tells of it."""

import warnings
from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

# After the last step a loop may bring back the best weights, or swap in averages and swap them out:
# each changes a weight once, as the step of SGD does.
MANY_STEPS = 4


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
