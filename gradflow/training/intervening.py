"""The interventions of one network, where training lets them in."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradflow.data import Batch
from gradflow.interventions import Applied, Evidence
from gradflow.training.config import TrainConfig
from gradflow.training.fit import TrainingState
from gradflow.training.rundir import NetworkDir, build_network

if TYPE_CHECKING:
    from gradflow.training.train import Data


def check_interventions(config: TrainConfig, n_classes: int) -> None:
    """Refuse, before a run begins, what does not fit one of its networks. `config` is resolved.

    Raises ValueError for layers that a network lacks, FileNotFoundError for a missing profile.
    """
    for arch in config.networks if config.interventions else ():
        for seed in config.seed_list:
            model = build_network(arch, n_classes, config, seed=seed)
            for intervention in config.interventions:
                intervention.gradient_change(model, arch, seed)


@dataclass
class Intervening:
    """Lets the config's interventions act on one network; without any, it does nothing.

    What depends on the start is computed anew when a run is resumed: it is a function of the config
    and the data. What was seen of the gradients stands in the checkpoint.
    """

    network: NetworkDir
    config: TrainConfig
    data: "Data"

    def __post_init__(self) -> None:
        self._applied = Applied(self.config.interventions, self.network.arch, self.network.seed)
        self._initial: nn.Module | None = None

    def start(self, model: nn.Module) -> None:
        """Finish the first weights of a network that was just built."""
        if not self._applied.interventions:
            return
        images = self._first_batch().images
        for intervention in self._applied.interventions:
            intervention.change_start(model, images)
        self._initial = copy.deepcopy(model)

    def attach(self, state: TrainingState, seen: Sequence[Mapping[str, Tensor]] | None) -> None:
        """Change gradients from now on. A Recorder made after it sees them changed.

        `seen` is what `state_dict` gave at the checkpoint, if the training goes on from one.
        """
        self._applied.attach(state.model, state.optimizer, lambda: state.step)
        if seen is not None:
            self._applied.load_state_dict(seen)

    def state_dict(self) -> list[dict[str, Tensor]]:
        """What was seen of the gradients, for a checkpoint."""
        return self._applied.state_dict()

    def detach(self) -> None:
        """Leave the gradients alone; more calls do nothing."""
        self._applied.detach()

    def evaluated(self, state: TrainingState) -> nn.Module:
        """What is to be evaluated in place of the network in `state`, with its weights."""
        if self._initial is None:
            return state.model

        def images() -> Iterator[Tensor]:
            batches = self.data.training(self.config, self.network.seed).epoch(
                0, device=state.accelerator.device, channels_last=self.config.channels_last
            )
            return (batch.images for batch in batches)

        return self._applied.evaluated(state.model, self._initial.state_dict(), images)

    def save_checks(self, state: TrainingState) -> None:
        """Measure what was changed, with `state` as training ended, and keep it in the run."""
        if self._initial is None:
            return
        first, train = self._first_batch(), torch.from_numpy(self.data.split.train)
        batches = self.data.training(self.config, self.network.seed)
        evidence = Evidence(
            initial=self._initial,
            trained=copy.deepcopy(state.model).cpu(),
            evaluated=copy.deepcopy(self.evaluated(state)).cpu(),
            images=first.images,
            labels=first.labels,
            true_labels=self.data.true_labels[train],
            given_labels=self.data.store.labels[train],
            batches_per_epoch=batches.n_batches(state.accelerator.num_processes),
            steps_per_epoch=state.step / max(state.epoch, 1),
        )
        self.network.save_interventions(self._applied.report(evidence))

    def _first_batch(self) -> Batch:
        """The first training batch of all processes together, on the CPU."""
        batches = self.data.training(self.config, self.network.seed)
        return next(batches.epoch(0, channels_last=self.config.channels_last))
