"""The Recorder: true values under what people train with, and no trace of it afterwards."""

import copy
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from byhand import batch, sgd, small_net, value
from byhand import plain_step as train_step
from torch import Tensor, nn

from gradflow import Recorder, every, resnet_18
from gradflow.record import PARAMETER_MEASURES


class Chain(nn.Module):
    """y = wⁿ x through n linear layers of one weight each."""

    def __init__(self, weight: float, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(depth))
        for layer in self.layers:
            nn.init.constant_(layer.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_gradients_of_a_scalar_chain_are_geometric() -> None:
    """y = 0.5⁶ x: dy/dz_k = 0.5^(5−k), and dy/dw_k = 0.5⁵ everywhere."""
    model = Chain(0.5, 6)
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    trace = recorder.trace
    for k in range(6):
        assert value(trace, "output_grad_norm", f"layers.{k}") == pytest.approx(0.5 ** (5 - k))
        assert value(trace, "output_rms", f"layers.{k}") == pytest.approx(0.5 ** (k + 1))
        weight = f"layers.{k}.weight"
        assert value(trace, "grad_norm", weight) == pytest.approx(0.5**5)
        assert value(trace, "weight_norm", weight) == pytest.approx(0.5)
        assert value(trace, "grad_dot_weight", weight) == pytest.approx(0.5**6)
        assert value(trace, "update_norm", weight) == pytest.approx(0.1 * 0.5**5, rel=1e-5)


@pytest.mark.parametrize("interval", [1, 3])
def test_recorded_and_unrecorded_training_are_bit_identical(interval: int) -> None:
    finals = []
    for record in (False, True):
        torch.manual_seed(0)
        model = resnet_18(5, stem="small", seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        recorder = Recorder(model, optimizer, every=interval) if record else None
        for seed in range(4):
            train_step(model, optimizer, seed)
        if recorder:
            recorder.close()
        finals.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*finals, strict=True))


def test_only_scheduled_steps_are_recorded_and_others_carry_no_hook() -> None:
    model = small_net()
    optimizer = sgd(model)
    hooks_seen = []
    with Recorder(model, optimizer, every=4) as recorder:
        for step in range(10):
            hooks_seen.append(bool(model[0]._forward_hooks))
            train_step(model, optimizer, step)
    assert recorder.trace.steps.tolist() == [0, 4, 8]
    assert hooks_seen == [step % 4 == 0 for step in range(10)]
    with Recorder(model, optimizer, every=lambda step: step in (2, 3)) as recorder:
        for step in range(5):
            train_step(model, optimizer, step)
    assert recorder.trace.steps.tolist() == [2, 3]


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_a_wrong_interval_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="`every` to be a whole number of at least 1, but got"):
        every(wrong)  # type: ignore[arg-type]


def test_close_leaves_nothing_behind_also_after_an_error() -> None:
    model = small_net()
    optimizer = sgd(model)
    with suppress(ZeroDivisionError), Recorder(model, optimizer) as recorder:
        train_step(model, optimizer)
        raise ZeroDivisionError
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train_step(model, optimizer)
    assert len(recorder.trace) == 1
    copy.deepcopy(model)


def test_nan_is_counted_where_it_appears() -> None:
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        train_step(model, optimizer)
        model[1].weight.data[2] = float("nan")
        train_step(model, optimizer)
    trace = recorder.trace
    assert value(trace, "output_nonfinite", "0", 1) == 0
    assert value(trace, "output_nonfinite", "1", 1) == 8 * 16
    assert value(trace, "grad_nonfinite", "4.weight", 1) == 3 * 64
    assert (trace.select("output_nonfinite").values[0] == 0).all()


def test_an_output_of_one_number_is_measured() -> None:
    class Sum(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum()

    model = nn.Sequential(Sum(2, 2))
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        model(torch.ones(2)).backward()
        optimizer.step()
    assert value(recorder.trace, "output_rms", "0") > 0
    assert value(recorder.trace, "output_grad_norm", "0") == 1


def test_folder_and_memory_give_the_same_trace(tmp_path: Path) -> None:
    traces = []
    for folder in (None, tmp_path):
        model = small_net()
        optimizer = sgd(model)
        with Recorder(model, optimizer, folder=folder) as recorder:
            for seed in range(70):  # more than one buffer
                train_step(model, optimizer, seed)
        traces.append(recorder.trace)
    memory, disk = traces
    assert len(list(tmp_path.glob("records/*.parquet"))) == 2
    assert (memory.sites, memory.kinds) == (disk.sites, disk.kinds)
    for measure in memory.measures:
        np.testing.assert_allclose(disk.values[measure], memory.values[measure], rtol=1e-6)


def test_records_of_two_trainings_do_not_mix_in_one_folder(tmp_path: Path) -> None:
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, folder=tmp_path) as recorder:
        assert len(recorder.trace) == 0
        train_step(model, optimizer)
    with pytest.raises(FileExistsError, match="no records from step 0 on.*holds 1 recorded step"):
        Recorder(model, optimizer, folder=tmp_path)
    with Recorder(model, optimizer, folder=tmp_path, first_step=1) as recorder:
        train_step(model, optimizer)
    assert recorder.trace.steps.tolist() == [0, 1]


# torch 2.11 warns of itself when torch.compile is imported.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_what_cannot_be_recorded_is_refused_with_a_way_out() -> None:
    model = small_net()
    with pytest.raises(TypeError, match="DataParallel.*Use DistributedDataParallel"):
        Recorder(nn.DataParallel(model), sgd(model))
    compiled = torch.compile(model)
    with pytest.raises(TypeError, match="torch.compile.*`measures=PARAMETER_MEASURES`"):
        Recorder(compiled, sgd(model))
    optimizer = sgd(model)
    with Recorder(compiled, optimizer, measures=PARAMETER_MEASURES) as recorder:
        train_step(model, optimizer)
    assert "0.weight" in recorder.trace.sites
    with pytest.raises(ValueError, match="holds none of them"):
        Recorder(model, sgd(small_net()))


@pytest.mark.cuda
def test_on_cuda_norms_equal_autograd_and_training_is_unchanged() -> None:
    finals = []
    for record in (False, True):
        model = resnet_18(5, stem="small", seed=0).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        recorder = Recorder(model, optimizer) if record else None
        torch.backends.cudnn.deterministic = True
        images, labels = batch()
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(images.cuda()), labels.cuda()).backward()
            optimizer.step()
        finals.append(list(model.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*finals, strict=True))
    assert recorder is not None
    for name, parameter in model.named_parameters():
        want = parameter.grad.double().norm().item()
        assert value(recorder.trace, "grad_norm", name, 1) == pytest.approx(want, rel=1e-5)
