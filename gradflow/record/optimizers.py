"""The steps of an optimizer, as its user calls them: when one begins, has gradients, and ends."""

import sys
from collections.abc import Callable, Sequence
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow.record.readable import NotTaken


class StepHooks:
    """Tells when a step of `optimizer` begins (and whether it has a closure), when the gradients
    are there, and when it has ended. With a closure they are those of its first call.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        begin: Callable[[bool], None],
        gradients: Callable[[], None],
        end: Callable[[], None],
        listen: Callable[[bool], None],
        not_taken: NotTaken,
    ) -> None:
        self._begin, self._gradients, self._end, self._listen = begin, gradients, end, listen
        self._not_taken = not_taken
        self._frame: FrameType | None = None  # of the step that runs, or has raised
        self._thread = 0  # in which it does
        self._has_gradients = False
        self._handles = [optimizer.register_step_pre_hook(self._before)]
        try:
            self._handles.append(optimizer.register_step_post_hook(self._after))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def is_running(self) -> bool:
        """Whether a step is under way: after one that raised, no hook tells of its end."""
        if self._frame is None:
            return False
        is_here = self._thread == get_ident()
        frame = sys._getframe() if is_here else sys._current_frames().get(self._thread)
        while frame is not None:
            if frame is self._frame:
                return True
            frame = frame.f_back
        self._frame = None
        return False

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.is_running():  # the step of a class that calls that of its parent, or else:
            if self._thread != get_ident():
                why = "another is under way in another thread, and both are of the same gradients"
                self._not_taken.say(f"a step of {type(optimizer).__name__}", why)
            return None
        self._frame, self._thread = sys._getframe(1), get_ident()
        in_args = len(args) > 1 and callable(args[1])
        closure = args[1] if in_args else kwargs.get("closure")
        self._has_gradients = closure is None
        self._begin(closure is not None)
        if closure is None:
            hooks = optimizer._optimizer_step_pre_hooks
            _after_others(hooks, self._handles[0].id, self._gradients)
            return None
        if in_args:
            return (args[0], self._recorded(closure), *args[2:]), kwargs
        return args, {**kwargs, "closure": self._recorded(closure)}

    def _recorded(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def recorded() -> Any:
            if self._has_gradients:  # LBFGS calls it several times
                return closure()
            self._listen(True)
            try:
                loss = closure()
            finally:
                self._listen(False)
            self._has_gradients = True
            self._gradients()
            return loss

        return recorded

    def _after(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if sys._getframe(1) is not self._frame:
            return
        hooks = optimizer._optimizer_step_post_hooks
        _after_others(hooks, self._handles[1].id, self._finish)

    def _finish(self) -> None:
        try:
            if not self._has_gradients:  # the optimizer did not call its closure
                self._gradients()
            self._end()
        finally:
            self._frame = None


def _after_others(hooks: dict[int, Any], mine: int, then: Callable[[], None]) -> None:
    """Call `then` when those hooks of a step have run that came after ours: they may clip.

    The hooks are being called one by one, so that none can be added, but the last can be another.
    """
    if next(reversed(hooks)) == mine:
        then()
        return
    others = [
        key for key, hook in hooks.items()
        if key > mine and not isinstance(getattr(hook, "__self__", None), StepHooks)
    ]  # fmt: skip
    if not others:
        then()
        return
    last = hooks[others[-1]]

    def last_and_then(*args: Any) -> Any:
        hooks[others[-1]] = last
        result = last(*args)
        then()
        return result

    hooks[others[-1]] = last_and_then


def unwrapped(optimizer: Optimizer | None) -> Optimizer | None:
    """The optimizer whose `step` runs: that inside of accelerate's wrapper, else as it is."""
    is_accelerates = any(kind.__name__ == "AcceleratedOptimizer" for kind in type(optimizer).mro())
    return optimizer.optimizer if is_accelerates else optimizer  # type: ignore[union-attr]


def check_optimizers_fit(optimizers: Sequence[Optimizer | None], model: nn.Module) -> None:
    """Raises TypeError or ValueError, with what to pass instead."""
    ours = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        if optimizer is None:
            if len(optimizers) > 1:
                raise ValueError("Expected optimizers, but got None among them. Leave it out.")
            return
        _check_has_hooks(optimizer)
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not ours & theirs:
            raise ValueError(
                "Expected `optimizer` to hold parameters of `model`, but it holds none of them. "
                "Make it with `model.parameters()` of the same model."
            )
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers) or not optimizers:
        raise ValueError("Expected at least one optimizer, and each once.")


def _check_has_hooks(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    if not hasattr(optimizer, "register_step_pre_hook"):
        raise TypeError(
            f"Expected a torch.optim.Optimizer, but got {name}. Pass the torch optimizer inside "
            "it, or None, and put its update into `with recorder.around_step():`."
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"Expected an optimizer that tells of its steps, but {name} does not call "
            "`super().__init__()`, which makes that possible. Pass the optimizer inside it, whose "
            "`step` it calls; or None, and put the update into `with recorder.around_step():`."
        )


def fused_scale(optimizer: Optimizer | None) -> Tensor | None:
    """The loss scale that a fused optimizer will divide its gradients by, inside its step."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, torch.Tensor) else None
