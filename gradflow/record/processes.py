"""Data-parallel training: what the processes of one training tell each other."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradflow.record.steps import RecordedStep

# How long a process waits for the Recorders of the others before it says that there is none.
PATIENCE = timedelta(seconds=60)


class Processes:
    """The processes that train one DistributedDataParallel model, or this one alone."""

    def __init__(self, model: nn.Module) -> None:
        self._group: Any = None
        self.count, self.is_first = 1, True
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self._group = model.process_group
            self.count = dist.get_world_size(self._group)
            self.is_first = dist.get_rank(self._group) == 0
        self._n_met = 0

    def meet(self) -> None:
        """Wait until every process has come here. Raises RuntimeError if one does not."""
        if self.count == 1:
            return
        global _n_recorders
        _n_recorders += 1
        store = dist.distributed_c10d._get_default_store()
        keys = [f"gradflow/{_n_recorders}/{rank}" for rank in range(self.count)]
        store.set(keys[dist.get_rank(self._group)], "here")
        try:
            store.wait(keys, PATIENCE)
        except RuntimeError as error:  # DistStoreError, or a file's store that says less
            raise RuntimeError(
                f"Expected a Recorder on each of the {self.count} processes of this training, but "
                f"after {PATIENCE.seconds} s some have none. Make it on every process, not on rank "
                "0 alone: the processes tell it what their shares of the batch did."
            ) from error

    def first_says(self, answer: bool) -> bool:
        """The answer of the first process."""
        if self.count == 1:
            return answer
        told = [answer]
        first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        dist.broadcast_object_list(told, src=first, group=self._group)
        return told[0]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.count == 1:
            return x
        x = x.clone()
        dist.all_reduce(x, group=self._group)
        return x / self.count

    def gather(self, step: RecordedStep) -> RecordedStep:
        """The step with the outputs of all processes, whose models are alike."""
        if self.count == 1:
            return step
        return replace(
            step, of_passes=self._gather(step.of_passes), channels=self._gather(step.channels)
        )

    def _gather(self, x: Tensor) -> Tensor:
        """(1, n) of each process to (processes, n)."""
        parts = [torch.empty_like(x) for _ in range(self.count)]
        dist.all_gather(parts, x, group=self._group)
        return torch.cat(parts)


_n_recorders = 0  # alike on all processes, since they make their Recorders in the same order
