"""The interventions of one network, where training lets them in."""

import copy

import torch
from torch import nn

from gradflow.data import Batch
from gradflow.interventions import Applied, CheckInputs
from gradflow.training.config import TrainConfig
from gradflow.training.fit import TrainingState
from gradflow.training.images import Data
from gradflow.training.rundir import NetworkDir
from gradflow.training.weights import build_network


def check_interventions(config: TrainConfig, n_classes: int) -> None:
    """Refuse, before a run begins, what does not fit one of its networks. `config` is resolved.

    Raises ValueError for layers that a network lacks, FileNotFoundError for a missing profile.
    """
    for arch in config.networks if config.interventions else ():
        for seed in config.seed_list:
            model = build_network(arch, n_classes, config, seed=seed)
            for intervention in config.interventions:
                intervention.gradient_change(model, arch, seed)


class Intervening(Applied):
    """Lets the config's interventions act on one network; without any, it does nothing.

    What depends on the start is computed anew when a run is resumed: it is a function of the config
    and the data. What was seen of the gradients stands in the checkpoint.
    """

    def __init__(self, network: NetworkDir, config: TrainConfig, data: Data) -> None:
        super().__init__(config.interventions, network.arch, network.seed)
        self._network, self._config, self._data = network, config, data

    def start(self, model: nn.Module) -> None:
        """Finish the first weights of a network that was just built, and keep them: `initial`."""
        if self.interventions:
            images = self._first_batch().images
            for intervention in self.interventions:
                intervention.change_start(model, images)
        self.initial = copy.deepcopy(model)

    def evaluated_in(self, state: TrainingState) -> nn.Module:
        """What is to be evaluated in place of the network in `state`, with its weights."""
        model: nn.Module = state.model
        for intervention in self.interventions:
            epoch = self._data.first_epoch(self._config, self.seed, state.accelerator.device)
            images = (batch.images for batch in epoch)
            model = intervention.change_evaluated(model, self.initial.state_dict(), images)
        return model

    def save_checks(self, state: TrainingState) -> None:
        """Measure what was changed, with `state` as training ended, and keep it in the run."""
        if not self.interventions:
            return
        first, train = self._first_batch(), torch.from_numpy(self._data.split.train)
        batches = self._data.training(self._config, self.seed)
        evidence = CheckInputs(
            initial=self.initial,
            trained=copy.deepcopy(state.model).cpu(),
            evaluated=copy.deepcopy(self.evaluated_in(state)).cpu(),
            images=first.images,
            labels=first.labels,
            true_labels=self._data.true_labels[train],
            given_labels=self._data.store.labels[train],
            batches_per_epoch=batches.n_batches(state.accelerator.num_processes),
            steps_per_epoch=state.step / max(state.epoch, 1),
        )
        self._network.save_interventions(self.report(evidence))

    def _first_batch(self) -> Batch:
        """The first training batch of all processes together, on the CPU."""
        return next(self._data.first_epoch(self._config, self.seed))
