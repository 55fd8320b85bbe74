"""nn.RNN, nn.LSTM and nn.GRU as loops over time, in which each time step can be measured."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CELLS: dict[type[nn.RNNBase], Callable[..., nn.RNNCellBase]] = {
    nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell,
}  # fmt: skip
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
State = Tensor | tuple[Tensor, Tensor]


class Unrolled(nn.Module):
    """Computes what `rnn` does, with its own parameters, one cell and one time step at a time.

    torch runs an nn.LSTM as one operation, inside which no hook looks. Here every time step is a
    call of a cell and so a site of its own: `cells.0` is the first, `cells.0#1` the second. Put it
    in the place of the layer to measure, and the layer back to train fast: both hold the same
    weights, under other names. Input, output and state are those of `rnn`, packed sequences apart.

    Raises ValueError for another layer, and for an LSTM with projections, which no cell has.

    >>> lstm = nn.LSTM(3, 4, num_layers=2)
    >>> inputs = torch.randn(5, 2, 3)  # time, batch, features
    >>> torch.allclose(Unrolled(lstm)(inputs)[0], lstm(inputs)[0], atol=1e-6)
    True
    """

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        kind = CELLS.get(type(rnn))
        if kind is None or rnn.proj_size:
            raise ValueError(
                "Expected an nn.RNN, nn.LSTM or nn.GRU without projections (proj_size=0), but got "
                f"{rnn}. Write the loop over time with cells of your own."
            )
        self.n_layers, self.n_directions = rnn.num_layers, 1 + rnn.bidirectional
        self.batch_first, self.dropout = rnn.batch_first, rnn.dropout
        self.cells = nn.ModuleList(
            _cell(rnn, kind, f"_l{layer}{'_reverse' * direction}")
            for layer in range(self.n_layers)
            for direction in range(self.n_directions)
        )

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """`inputs` (T, B, features), (B, T, features) with `batch_first`, or (T, features)."""
        turned = self.batch_first and inputs.dim() == 3
        steps = inputs.transpose(0, 1) if turned else inputs
        lasts: list[State] = []
        for layer in range(self.n_layers):
            if layer:
                steps = functional.dropout(steps, self.dropout, self.training)
            both = []
            for direction in range(self.n_directions):
                outputs, last = self._through_time(steps, len(lasts), state, direction == 1)
                both.append(outputs)
                lasts.append(last)
            steps = torch.cat(both, dim=-1)
        return (steps.transpose(0, 1) if turned else steps), _stacked(lasts)

    def _through_time(
        self, steps: Tensor, index: int, state: State | None, backwards: bool
    ) -> tuple[Tensor, State]:
        """The outputs of one cell at all steps, and its last state."""
        hidden: State | None = state
        if state is not None:
            hidden = (
                state[index] if isinstance(state, Tensor) else (state[0][index], state[1][index])
            )
        outputs = []
        for step in steps.flip(0) if backwards else steps:
            now: State = self.cells[index](step, hidden)
            outputs.append(now if isinstance(now, Tensor) else now[0])
            hidden = now
        assert hidden is not None, "torch refuses a sequence without steps as well"
        return torch.stack(outputs[::-1] if backwards else outputs), hidden


def _cell(rnn: nn.RNNBase, kind: Callable[..., nn.RNNCellBase], suffix: str) -> nn.RNNCellBase:
    """A cell that holds the parameters of `rnn` of this suffix themselves."""
    more = {"nonlinearity": rnn.nonlinearity} if isinstance(rnn, nn.RNN) else {}
    n_inputs = getattr(rnn, f"weight_ih{suffix}").shape[1]
    cell = kind(n_inputs, rnn.hidden_size, bias=rnn.bias, device="meta", **more)
    for name in PARAMETERS[: 4 if rnn.bias else 2]:
        setattr(cell, name, getattr(rnn, f"{name}{suffix}"))
    return cell


def _stacked(lasts: list[State]) -> State:
    """(layers and directions, B, hidden), of an LSTM twice."""
    if isinstance(lasts[0], Tensor):
        return torch.stack([one for one in lasts if isinstance(one, Tensor)])
    hidden, cell = zip(*lasts, strict=True)
    return torch.stack(hidden), torch.stack(cell)
