"""What cannot be read is not taken, said once, and never an exception in somebody's training."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from byhand import said, value
from loops import Net, inputs, mlp, recorded, sgd, square, train_by_hand, watched
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES
from gradflow.record import outputs as record_outputs
from gradflow.record import parameters as record_parameters
from gradflow.record.readable import unreadable
from gradflow.record.sites import first_floating_tensor, unknown_type

ALL = [*DEFAULT_MEASURES, "grad_dot_update", "angle_from_start", "grad_cosine", "grad_noise"]


def train_twice(model: nn.Module, run: Callable[[], Tensor], measures: Any = ALL) -> Trace:
    """With a Recorder, and without one for the weights that must come out."""
    start = {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = sgd(model)
    for _ in range(2):
        model.zero_grad()
        run().backward()
        optimizer.step()
    want = {name: x.detach().clone() for name, x in model.named_parameters()}
    model.load_state_dict(start)
    trace = recorded(model, lambda _: run(), n_steps=2, measures=measures)
    for name, x in model.named_parameters():
        assert torch.equal(x, want[name]), name
    return trace


# -- tensors -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(layout: torch.layout, caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    parts = [inputs(n, 4) for n in (2, 5, 3)]

    def run() -> Tensor:
        out = model(torch.nested.nested_tensor(parts, layout=layout))
        return torch.cat([one.flatten() for one in out.unbind()]).square().mean()

    trace = train_twice(model, run)
    assert value(trace, "grad_norm", "0.weight") > 0
    assert value(trace, "update_norm", "2.bias", 1) > 0
    assert not {"0", "1", "2"} & set(trace.sites)
    assert [text.partition("'")[2].partition("'")[0] for text in said(caplog)] == ["0", "1", "2"]


def test_a_nested_tensor_among_others_is_nan_where_it_is() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = torch.nested.nested_tensor_from_jagged(net.first(x), torch.tensor([0, 2, 6]))
        return net.last(net.middle(x).values())

    model = Net(forward, **{name: nn.Linear(4, 4) for name in ("first", "middle", "last")})
    trace = train_twice(model, lambda: square(model))
    for measure in ("output_rms", "output_grad_norm", "output_dead_fraction"):
        for site, is_there in (("first", True), ("middle", False), ("last", True)):
            assert np.isfinite(value(trace, measure, site, 1)) == is_there, (measure, site)
    assert trace.sites.index("first") < trace.sites.index("middle") < trace.sites.index("last")
    assert trace.select("output_rms").sites == ("first", "last")


def test_per_sample_gradients_of_a_watched_model(caplog: pytest.LogCaptureFixture) -> None:
    """Parameters are recorded, and nothing besides."""
    model = mlp(n_out=2, activation=nn.ReLU)
    x, y = inputs(), torch.arange(6) % 2

    def loss(p: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, p, (xi[None],)), yi[None])

    with watched(model) as hand:
        p = {name: w.detach() for name, w in model.named_parameters()}
        for name, g in vmap(grad(loss), in_dims=(None, 0, 0))(p, x, y).items():
            model.get_parameter(name).grad = g.mean(0)
        hand.update()
    assert len(said(caplog)) == 3
    assert "'0': a transform of torch.func is running" in said(caplog)[0]


def test_tensors_that_cannot_be_read_and_those_that_can() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.masked import masked_tensor

    class Carrier(Tensor):
        pass

    x = inputs(4, 4)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = masked_tensor(x, x > 0)
        csr = x.to_sparse_csr()
    for bad in (fake, masked, csr, x.to_sparse(), x.to("meta"), x.to_mkldnn()):
        assert unreadable(bad) is not None, bad
    for good in (x, nn.Parameter(x), x.as_subclass(Carrier), x.T, x[:1].expand(3, 4), x.conj()):
        assert unreadable(good) is None, good


def test_a_subclass_that_only_carries_data_is_read() -> None:
    from torchvision.tv_tensors import Image

    class Unit(Tensor):
        """Counts what is asked of it."""

        n = 0

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            Unit.n += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    for kind in (Image, Unit):
        model = mlp(n_out=2, activation=nn.ReLU)
        x = inputs().as_subclass(kind)
        train_by_hand(model, lambda *_, model=model, x=x: model(x).square().mean())


# -- containers --------------------------------------------------------------------------------


class Opaque:
    def __init__(self, z: Tensor) -> None:
        self.z = z


def test_outputs_of_unknown_types_are_told_and_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gives(pack: Callable[[Tensor], Any]) -> Net:
        return Net(
            lambda net, x: pack(net.layer(x) * net.scale),
            layer=nn.Linear(4, 4), scale=nn.Parameter(torch.ones(())),
        )  # fmt: skip

    def forward(net: Net, x: Tensor) -> Tensor:
        x = torch.stack(list(net.lazy(x)))  # a generator that was looked into would be empty
        return net.opaque(x).z

    model = Net(forward, lazy=gives(lambda z: (row for row in z)), opaque=gives(Opaque))
    trace = train_twice(model, lambda: square(model))
    assert value(trace, "output_grad_norm", "lazy.layer") > 0
    assert said(caplog) == [
        "gradflow does not take the output of 'lazy': it is a generator.",
        "gradflow does not take the output of 'opaque': it is a Opaque.",
    ]


def test_what_holds_no_floating_tensor_needs_no_word() -> None:
    for nothing in (None, (), {"n": 3, "name": "x"}, [torch.arange(3), None], torch.empty(0), 2.5):
        assert first_floating_tensor(nothing) is None
        assert unknown_type(nothing) is None
    assert unknown_type([None, {"a": {1, 2}}]) == "set"


# -- parameters --------------------------------------------------------------------------------


def test_a_sparse_parameter_is_read_by_what_it_stores() -> None:
    weight = nn.Parameter((torch.eye(4) * torch.tensor([1.0, -2.0, 3.0, 0.5])).to_sparse())
    model = Net(lambda net, x: torch.sparse.mm(net.weight, x.T).T, weight=weight)
    measures = [name for name in ALL if name != "grad_dot_update"]  # not of a sparse gradient
    train_by_hand(model, lambda *_: square(model), measures=measures)


def test_a_gradient_that_is_sparse_by_element_is_no_embedding() -> None:
    model = Net(
        lambda net, index: torch.gather(net.table, 1, index, sparse_grad=True),
        table=nn.Parameter(inputs(5, 6, seed=1)),
    )
    index = torch.tensor([[0, 3], [1, 1], [5, 2], [0, 0], [4, 5]])
    train_by_hand(model, lambda *_: model(index).square().sum())
    assert model.table.grad.is_sparse
    assert model.table.grad.sparse_dim() == 2


def test_parameters_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    """Of another type, without memory, and whose memory was given back, as between its uses."""
    model = Net(
        lambda net, x: net.layers(x),
        layers=mlp(n_out=2, activation=nn.ReLU),
        ids=nn.Parameter(torch.arange(3), requires_grad=False),
        ghost=nn.Parameter(torch.ones(3, device="meta")),
        rest=nn.Parameter(torch.ones(3)),
    )

    def give_back(*_: object) -> None:
        model.rest.untyped_storage().resize_(0)

    optimizer = sgd(model.layers)
    optimizer.register_step_pre_hook(give_back)
    trace = recorded(model, lambda _: square(model), optimizer, n_steps=2, measures=ALL)
    assert value(trace, "grad_norm", "layers.2.weight", 1) > 0
    assert not {"ids", "ghost", "rest"} & set(trace.sites)
    assert said(caplog) == [
        "gradflow does not take the parameter 'ids': its type is torch.int64.",
        "gradflow does not take the parameter 'ghost': a tensor on the meta device has no "
        "elements.",
        "gradflow does not take the parameter 'rest': its memory was given back.",
    ]


@pytest.mark.parametrize("rows", [0, 4, 800])
def test_a_gradient_of_another_shape_than_its_parameter(
    rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The weight holds a part, nothing, or more for the moment: no memory beyond it is read."""
    model = mlp()
    optimizer = sgd(model[2])
    square(model).backward()
    with Recorder(model, optimizer) as recorder:
        model[0].weight.data = torch.ones(rows, 4)
        optimizer.step()
    trace = recorder.trace
    assert np.isnan(value(trace, "grad_norm", "0.weight"))
    assert np.isnan(value(trace, "grad_dot_weight", "0.weight"))
    assert value(trace, "weight_norm", "0.weight") == (rows * 4) ** 0.5
    want = model[2].weight.grad.double().norm().item()
    assert value(trace, "grad_norm", "2.weight") == pytest.approx(want, rel=1e-6)
    assert f"its shape is (8, 4), the parameter's ({rows}, 4)." in said(caplog)[0]


def test_another_default_device() -> None:
    """What gradflow makes for itself is on the host, where its kernel writes."""
    model = mlp()
    with watched(model, histograms=True) as hand:
        for seed in range(2):
            x = inputs(seed=seed)
            with torch.device("meta"):
                hand.zero()
                hand.backward(lambda x=x: model(x).square().mean())
                hand.before_step()
                hand.optimizer.step()
                hand.recorder.state_dict()
            hand.after_step()


def test_a_layer_that_is_used_by_its_weight_alone_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its layers are used in all the ways in which they have no output, and one in none."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = x * net.scales[0] + net.position.weight
        return net.head(net.attention(x, x, x)[0])

    model = Net(
        forward, scales=nn.ParameterList([torch.ones(4)]), attention=nn.MultiheadAttention(4, 2),
        position=nn.Embedding(6, 4), unused=nn.Linear(4, 4),
        head=nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
    )  # fmt: skip
    trace = recorded(model, lambda step: square(model, step), n_steps=2)
    assert value(trace, "grad_norm", "position.weight") > 0
    assert "position" not in trace.sites
    (one,) = said(caplog)
    assert one.startswith("gradflow does not take the output of 'position': parameters there")


def test_a_name_that_reads_like_a_second_call(caplog: pytest.LogCaptureFixture) -> None:
    layers = nn.ModuleDict({"a": nn.Linear(4, 4), "a#1": nn.Linear(4, 4)})
    model = Net(lambda net, x: layers["a#1"](layers["a"](layers["a"](x))), layers=layers)
    z = layers["a"](layers["a"](inputs()))
    want = torch.autograd.grad(layers["a#1"](z).square().mean(), z)[0].norm().item()
    trace = recorded(model, lambda _: square(model))
    got = value(trace, "output_grad_norm", "layers.a#1")
    assert got == pytest.approx(want, rel=1e-5), "of the second call of 'a'"
    assert value(trace, "grad_norm", "layers.a#1.weight") > 0
    assert said(caplog) == [
        "gradflow does not take the output of 'layers.a#1': its name has a '#', which tells the "
        "calls of one layer apart."
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_modules_are_recorded_by_their_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    model = nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2))
    trace = train_twice(model, lambda: square(model), DEFAULT_MEASURES)
    assert [site for site in trace.sites if site.isdigit()] == ["0", "2"]
    assert value(trace, "grad_norm", "1.0.weight") > 0
    assert said(caplog) == [
        "gradflow does not take outputs inside '1': scripted modules take no hook; their "
        "parameters are recorded."
    ]


# -- what nobody foresaw -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        (record_outputs, "output_sums", "the output of '0'"),
        (record_parameters, "product_sums", "the gradients"),
        (record_parameters, "compare", "the updates"),
        (record_parameters, "gradient_sums", None),
    ],
)
def test_an_error_of_gradflows_own_stays_inside(
    module: Any, name: str, what: str | None, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("nobody\nforesaw this")

    monkeypatch.setattr(module, name, fails)
    model = mlp(n_out=2, activation=nn.ReLU)
    train_twice(model, lambda: square(model), DEFAULT_MEASURES)
    if what is not None:
        why = "reading it raised ZeroDivisionError: nobody foresaw this."
        assert f"gradflow does not take {what}: {why}" in said(caplog)


def test_a_full_disk_does_not_stop_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    optimizer = sgd(model)
    monkeypatch.setattr("gradflow.record.buffer.BUFFER_STEPS", 2)
    recorder = Recorder(model, optimizer, folder=tmp_path)
    real = Trace.save_part

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Trace, "save_part", full)
    for step in range(6):
        square(model).backward()
        if step == 5:
            monkeypatch.setattr(Trace, "save_part", real)
        optimizer.step()
    recorder.close()
    assert recorder.trace.steps.tolist() == list(range(6))
    assert len(list(tmp_path.glob("records/*.parquet"))) == 3
    assert "records to the files yet" in said(caplog)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_can_be_traced_and_exported_while_it_is_recorded() -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    with watched(model) as hand:
        torch.jit.trace(model, inputs())  # checks that a second run gives the same graph
        torch.export.export(model, (inputs(),))
        hand.train(square, model)
