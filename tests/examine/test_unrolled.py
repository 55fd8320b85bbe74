"""The loop over time computes what torch's own layers do, and shows each time step."""

from typing import Any

import pytest
import torch
from torch import nn

from gradflow.analysis.layers import main_path
from gradflow.examine.unrolled import Unrolled
from gradflow.record import Recorder, Trace


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "bidirectional": True, "batch_first": True},
        {"num_layers": 2, "bias": False},
    ],
)
@pytest.mark.parametrize("with_state", [False, True])
def test_outputs_states_and_gradients_are_those_of_torch(
    kind: type[nn.RNNBase], options: dict[str, Any], with_state: bool
) -> None:
    torch.manual_seed(0)
    rnn = kind(3, 4, **options).double()
    inputs = torch.randn(5, 2, 3, dtype=torch.float64)
    n_states, n_images = (1 + rnn.bidirectional) * rnn.num_layers, 5 if rnn.batch_first else 2
    state = torch.randn(n_states, n_images, 4, dtype=torch.float64)
    given = (state, -state) if kind is nn.LSTM else state
    found = []
    for module in (rnn, Unrolled(rnn)):
        outputs, last = module(inputs, given if with_state else None)
        (outputs.square().sum()).backward()
        found.append(
            [
                outputs,
                *(last if kind is nn.LSTM else [last]),
                rnn.get_parameter("weight_hh_l0").grad,
            ]
        )
        rnn.zero_grad()
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected)


def test_inputs_without_a_batch_and_relu_are_taken() -> None:
    rnn = nn.RNN(3, 4, nonlinearity="relu")
    inputs = torch.randn(6, 3)
    torch.testing.assert_close(Unrolled(rnn)(inputs), rnn(inputs))


def recorded(model: nn.Module, inputs: torch.Tensor) -> Trace:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer) as recorder:
        outputs, _ = model(inputs)
        outputs[-1].sum().backward()
        optimizer.step()
    return recorder.trace


def test_the_gradient_by_time_step_of_a_linear_loop_is_geometric() -> None:
    """h_t = w h_{t-1} + x_t with the loss at the end: ∂L/∂h_t = w^(T - 1 - t)."""
    rnn = nn.RNN(1, 1, bias=False, nonlinearity="relu")
    with torch.no_grad():
        rnn.get_parameter("weight_ih_l0").fill_(1.0)
        rnn.get_parameter("weight_hh_l0").fill_(0.5)
    trace = recorded(Unrolled(rnn), torch.ones(10, 1, 1))
    found = trace.select("output_grad_norm")
    assert found.sites == ("cells.0", *(f"cells.0#{t}" for t in range(1, 10)))
    assert found.values[0] == pytest.approx([0.5 ** (9 - t) for t in range(10)])
    steps = [int(layer.name.partition("#")[2] or 0) for layer in main_path(trace)]
    assert steps == sorted(steps), "time is depth"
    assert set(steps) == set(range(10))


def test_a_layer_without_a_cell_of_its_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"without projections \(proj_size=0\), but got LSTM"):
        Unrolled(nn.LSTM(3, 4, proj_size=2))
