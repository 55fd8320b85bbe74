"""The Recorder: true values under what people train with, and no trace of it afterwards."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from byhand import value
from loops import batch, loss_of, plain_step, recorded, sgd, small_net
from torch import Tensor, nn

from gradflow import Recorder, every, resnet_18
from gradflow.record import PARAMETER_MEASURES


def test_gradients_of_a_scalar_chain_are_geometric() -> None:
    """y = 0.5⁶ x: dy/dz_k = 0.5^(5−k), and dy/dw_k = 0.5⁵ everywhere."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(6)))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    trace = recorded(model, lambda _: model(torch.ones(1, 1)).sum())
    for k in range(6):
        assert value(trace, "output_grad_norm", f"{k}") == pytest.approx(0.5 ** (5 - k))
        assert value(trace, "output_rms", f"{k}") == pytest.approx(0.5 ** (k + 1))
        weight = f"{k}.weight"
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
            plain_step(model, optimizer, seed)
        if recorder:
            recorder.close()
        finals.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*finals, strict=True))


@pytest.mark.parametrize(
    ("interval", "steps"), [(4, [0, 4, 8]), (lambda step: step in (2, 3), [2, 3])]
)
def test_only_scheduled_steps_are_recorded_and_others_carry_no_hook(
    interval: Any, steps: list[int]
) -> None:
    model, with_hooks = small_net(), []

    def loss(step: int) -> Tensor:
        with_hooks.extend([step] * bool(model[0]._forward_hooks))
        return loss_of(model, step)

    trace = recorded(model, loss, n_steps=10, every=interval)
    assert trace.steps.tolist() == with_hooks == steps


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_a_wrong_interval_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="`every` to be a whole number of at least 1, but got"):
        every(wrong)  # type: ignore[arg-type]


def test_nan_is_counted_where_it_appears() -> None:
    model = small_net()

    def loss(step: int) -> Tensor:
        if step == 1:
            model[1].weight.data[2] = float("nan")
        return loss_of(model)

    trace = recorded(model, loss, n_steps=2)
    assert value(trace, "output_nonfinite", "0", 1) == 0
    assert value(trace, "output_nonfinite", "1", 1) == 8 * 16
    assert value(trace, "grad_nonfinite", "4.weight", 1) == 3 * 64
    assert (trace.select("output_nonfinite").values[0] == 0).all()


def test_folder_and_memory_give_the_same_trace(tmp_path: Path) -> None:
    traces = []
    for folder in (None, tmp_path):
        model = small_net()
        loss = partial(loss_of, model)
        traces.append(recorded(model, loss, n_steps=70, folder=folder))  # more than one buffer
    memory, disk = traces
    assert len(list(tmp_path.glob("records/*.parquet"))) == 2
    assert (memory.sites, memory.kinds) == (disk.sites, disk.kinds)
    for measure in memory.measures:
        np.testing.assert_allclose(disk.values[measure], memory.values[measure], rtol=1e-6)


def test_records_of_two_trainings_do_not_mix_in_one_folder(tmp_path: Path) -> None:
    model = small_net()
    loss = partial(loss_of, model)
    assert len(recorded(model, loss, folder=tmp_path)) == 1
    with pytest.raises(FileExistsError, match="no records from step 0 on.*holds 1 recorded step"):
        Recorder(model, sgd(model), folder=tmp_path)
    assert recorded(model, loss, folder=tmp_path, first_step=1).steps.tolist() == [0, 1]


# torch 2.11 warns of itself when torch.compile is imported.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_what_cannot_be_recorded_is_refused_with_a_way_out() -> None:
    model = small_net()
    with pytest.raises(TypeError, match="DataParallel.*Use DistributedDataParallel"):
        Recorder(nn.DataParallel(model), sgd(model))
    compiled = torch.compile(model)
    with pytest.raises(TypeError, match="torch.compile.*`measures=PARAMETER_MEASURES`"):
        Recorder(compiled, sgd(model))
    trace = recorded(compiled, lambda _: loss_of(model), measures=PARAMETER_MEASURES)
    assert trace.sites[0] == "0.weight"


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
