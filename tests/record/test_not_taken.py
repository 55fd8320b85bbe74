"""What cannot be read is not taken, said once, and never an exception in somebody's training."""

import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from byhand import ByHand, inputs, mlp, said, sgd, train_by_hand, value
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES
from gradflow.record import outputs as record_outputs
from gradflow.record import parameters as record_parameters
from gradflow.record.readable import unreadable
from gradflow.record.sites import first_floating_tensor, unknown_type

ALL = [*DEFAULT_MEASURES, "grad_dot_update", "angle_from_start", "grad_cosine", "grad_noise"]


def train_twice(
    model: nn.Module, run: Callable[[], Tensor], measures: Any = ALL
) -> tuple[Trace, dict[str, Tensor]]:
    """With a Recorder, and without one for the weights that must come out."""
    start = {name: x.clone() for name, x in model.state_dict().items()}
    finals = []
    for records in (False, True):
        model.load_state_dict(start)
        model.zero_grad()
        optimizer = sgd(model)
        recorder = Recorder(model, optimizer, measures=measures) if records else None
        for _ in range(2):
            optimizer.zero_grad()
            run().backward()
            optimizer.step()
        finals.append({name: x.detach().clone() for name, x in model.named_parameters()})
    assert recorder is not None
    recorder.close()
    for name, x in finals[0].items():
        assert torch.equal(finals[1][name].to_dense(), x.to_dense()), name
    return recorder.trace, finals[0]


# -- tensors -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(layout: torch.layout, caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    parts = [inputs(n, 4) for n in (2, 5, 3)]

    def run() -> Tensor:
        out = model(torch.nested.nested_tensor(parts, layout=layout))
        return torch.cat([one.flatten() for one in out.unbind()]).square().mean()

    trace, _ = train_twice(model, run)
    assert value(trace, "grad_norm", "0.weight") > 0
    assert value(trace, "update_norm", "2.bias", 1) > 0
    assert not {"0", "1", "2"} & set(trace.sites)
    assert [text.partition("'")[2].partition("'")[0] for text in said(caplog)] == ["0", "1", "2"]


def test_a_nested_tensor_among_others_is_nan_where_it_is() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.middle, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 2, 6]))
            return self.last(self.middle(x).values())

    model = Net()
    trace, _ = train_twice(model, lambda: model(inputs()).square().mean())
    for measure in ("output_rms", "output_grad_norm", "output_dead_fraction"):
        for site, is_there in (("first", True), ("middle", False), ("last", True)):
            assert np.isfinite(value(trace, measure, site, 1)) == is_there, (measure, site)
    assert trace.sites.index("first") < trace.sites.index("middle") < trace.sites.index("last")
    assert trace.select("output_rms").sites == ("first", "last")


def test_per_sample_gradients_of_a_watched_model(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    optimizer, hand = sgd(model), ByHand(model)
    x, y = inputs(), torch.arange(6) % 2

    def loss(p: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, p, (xi[None],)), yi[None])

    with Recorder(model, optimizer) as recorder:
        p = {name: w.detach() for name, w in model.named_parameters()}
        for name, g in vmap(grad(loss), in_dims=(None, 0, 0))(p, x, y).items():
            model.get_parameter(name).grad = g.mean(0)
        with hand.step():
            optimizer.step()
    hand.compare(recorder.trace)  # parameters, and nothing besides
    assert len(said(caplog)) == 3
    assert "'0': a transform of torch.func is running" in said(caplog)[0]


@pytest.mark.parametrize("transform", ["jacrev", "functional", "forward ad", "jit.trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transforms_between_forward_and_backward(transform: str) -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    optimizer, hand = sgd(model), ByHand(model)
    x = inputs()
    with Recorder(model, optimizer) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            with hand.forward():
                loss = model(x).square().mean()
            if transform == "jacrev":
                jacrev(model)(x)
            elif transform == "functional":
                torch.autograd.functional.jacobian(model, x)
                torch.autograd.functional.hvp(lambda z: model(z).sum(), x, torch.ones_like(x))
            elif transform == "forward ad":
                with torch.autograd.forward_ad.dual_level():
                    model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            else:
                torch.jit.trace(model, x, check_trace=False)
            loss.backward()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z[:1].expand(5, *z.shape[1:]),
        lambda z: z.as_strided((4, 3), (1, 1)),
        lambda z: z.T,
        lambda z: z[:, ::2],
        lambda z: torch.complex(z, z).conj(),
        lambda z: torch.complex(z, z).conj().imag,
        lambda z: z[0, 0],
        lambda z: z.half(),
    ],
    ids=["expanded", "overlapping", "turned", "strided", "conjugate", "negative", "scalar", "half"],
)
def test_outputs_of_all_strides(change: Any) -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(inputs(seed=1))

        def forward(self, x: Tensor) -> Tensor:
            return change(x * self.weight)

    model = nn.Sequential(Changed())
    optimizer = sgd(model, 0.01)
    seen: list[Tensor] = []
    with Recorder(model, optimizer) as recorder:
        z = model(inputs())
        z.register_hook(lambda g: seen.append(g))
        z.abs().square().sum().backward()
        optimizer.step()
    as_one = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (z, seen[0])]
    z, g = (t.detach().double() for t in as_one)
    trace = recorder.trace
    assert value(trace, "output_rms", "0") == pytest.approx(
        z.square().mean().sqrt().item(), rel=1e-3
    )
    assert value(trace, "output_grad_norm", "0") == pytest.approx(g.norm().item(), rel=1e-3)


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


@dataclass(slots=True)
class Slots:
    logits: Tensor


@dataclass
class Late:
    label: str
    hidden: Tensor
    never: Tensor = field(init=False)


class Opaque:
    def __init__(self, z: Tensor) -> None:
        self.z = z


Named = namedtuple("Named", "count hidden")


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (Slots, lambda out: out.logits),
        (lambda z: Late("x", z), lambda out: out.hidden),
        (lambda z: Named(3, z), lambda out: out.hidden),
        (lambda z: {"a": None, "b": [Slots(z)]}, lambda out: out["b"][0].logits),
        (lambda z: (Opaque(z), z), lambda out: out[1]),
        (lambda z: nn.utils.rnn.pack_sequence([z[:1], z[1:]]), lambda out: out.data),
    ],
    ids=["slots", "dataclass", "namedtuple", "nested", "beside unknown", "packed"],
)
def test_containers_that_are_known(pack: Any, unpack: Any) -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([3.0, 4.0, -1.0]))

        def forward(self, x: Tensor) -> Any:
            return pack(x * self.weight)

    model = nn.Sequential(Packs())
    x = inputs(2, 4, 3)[:, 0]
    train_by_hand(model, lambda *_: unpack(model(x)).square().sum(), unpack=unpack)


def test_outputs_of_unknown_types_are_told_and_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Gives(nn.Module):
        def __init__(self, pack: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.layer, self.pack = nn.Linear(4, 4), pack
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Any:
            return self.pack(self.layer(x) * self.scale)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.lazy, self.opaque = Gives(lambda z: (row for row in z)), Gives(Opaque)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.stack(list(self.lazy(x)))  # a generator that was looked into would be empty
            return self.opaque(x).z

    model = Net()
    trace, _ = train_twice(model, lambda: model(inputs()).square().mean())
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


class SparseLinear(nn.Module):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        weight = torch.eye(4) * torch.tensor([1.0, -2.0, 3.0, 0.5])
        self.weight = nn.Parameter(weight.to_sparse(layout=layout))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.weight, x.T).T


def test_a_sparse_parameter_is_read_by_what_it_stores() -> None:
    model = SparseLinear(torch.sparse_coo)
    optimizer = sgd(model)
    with Recorder(model, optimizer, measures=ALL) as recorder:
        before = model.weight.detach().to_dense().double()
        z = model(inputs(5, 4))
        z.square().sum().backward()
        g = model.weight.grad.to_dense().double()
        optimizer.step()
    delta = model.weight.detach().to_dense().double() - before
    trace = recorder.trace
    wants = {
        "weight_norm": before.norm(),
        "grad_norm": g.norm(),
        "grad_dot_weight": (g * before).sum(),
        "filter_grad_size": (g.square().sum(1) * before.square().sum(1)).sum().sqrt(),
        "update_norm": delta.norm(),
        "update_changed_fraction": (delta != 0).double().mean(),
        "grad_nonfinite": 0,
    }
    for measure, want in wants.items():
        assert value(trace, measure, "weight") == pytest.approx(float(want), rel=1e-5), measure
    want = 2 * z.detach().double()
    assert value(trace, "output_grad_norm", "") == pytest.approx(want.norm().item(), rel=1e-5)


def test_a_gradient_that_is_sparse_by_element_is_no_embedding() -> None:
    class Gathers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(inputs(5, 6, seed=1))

        def forward(self, index: Tensor) -> Tensor:
            return torch.gather(self.table, 1, index, sparse_grad=True)

    model = Gathers()
    index = torch.tensor([[0, 3], [1, 1], [5, 2], [0, 0], [4, 5]])
    train_by_hand(model, lambda *_: model(index).square().sum())
    assert model.table.grad.is_sparse
    assert model.table.grad.sparse_dim() == 2


def test_parameters_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    model.ids = nn.Parameter(torch.arange(3), requires_grad=False)
    model.ghost = nn.Parameter(torch.ones(3, device="meta"))
    model.forward = lambda x: nn.Sequential.forward(model[:3], x)  # type: ignore[method-assign]
    optimizer = sgd(model[:3])
    with Recorder(model, optimizer, measures=ALL) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs()).square().mean().backward()
            optimizer.step()
    assert value(recorder.trace, "grad_norm", "2.weight", 1) > 0
    assert not {"ids", "ghost"} & set(recorder.trace.sites)
    assert said(caplog) == [
        "gradflow does not take the parameter 'ids': its type is torch.int64.",
        "gradflow does not take the parameter 'ghost': a tensor on the meta device has no "
        "elements.",
    ]


def test_memory_that_was_given_back(caplog: pytest.LogCaptureFixture) -> None:
    """As where a parameter is gathered for its layer only."""
    model = mlp()
    model.rest = nn.Parameter(torch.ones(3))
    model.forward = lambda x: nn.Sequential.forward(model[:3], x)  # type: ignore[method-assign]
    optimizer = sgd(model[:3])
    with Recorder(model, optimizer) as recorder:
        optimizer.zero_grad()
        model(inputs(6, 4)).square().mean().backward()
        model.rest.untyped_storage().resize_(0)
        optimizer.step()
    assert value(recorder.trace, "grad_norm", "2.weight") > 0
    assert "rest" not in recorder.trace.sites
    assert said(caplog) == [
        "gradflow does not take the parameter 'rest': its memory was given back."
    ]


@pytest.mark.parametrize("rows", [0, 4, 800])
def test_a_gradient_of_another_shape_than_its_parameter(
    rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The weight holds a part, nothing, or more for the moment: no memory beyond it is read."""
    model = mlp()
    optimizer = sgd(model[2])
    model(inputs(6, 4)).square().mean().backward()
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
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer, histograms=True) as recorder:
        for seed in range(2):
            x = inputs(6, 4, seed=seed)
            with torch.device("meta"):
                optimizer.zero_grad()
                with hand.forward():
                    loss = model(x).square().mean()
                loss.backward()
                hand.before_step()
                optimizer.step()
                recorder.state_dict()
            hand.after_step()
    hand.compare(recorder.trace)


class ByWeightAlone(nn.Module):
    """Its layers are used in all the ways in which they have no output, and one in none."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(4)])
        self.attention = nn.MultiheadAttention(4, 2)
        self.position = nn.Embedding(6, 4)
        self.unused = nn.Linear(4, 4)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scales[0] + self.position.weight
        return self.head(self.attention(x, x, x)[0])


def test_a_layer_that_is_used_by_its_weight_alone_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    model = ByWeightAlone()
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        for seed in range(2):
            optimizer.zero_grad()
            model(inputs(6, 4, seed=seed)).square().mean().backward()
            optimizer.step()
    assert value(recorder.trace, "grad_norm", "position.weight") > 0
    assert "position" not in recorder.trace.sites
    (one,) = said(caplog)
    assert one.startswith("gradflow does not take the output of 'position': parameters there")


def test_a_name_that_reads_like_a_second_call(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.ModuleDict({"a": nn.Linear(4, 4), "a#1": nn.Linear(4, 4)}))
    layers = model[0]
    model.forward = lambda x: layers["a#1"](layers["a"](layers["a"](x)))  # type: ignore[method-assign]
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer) as recorder:
        x = inputs(6, 4)
        with hand.forward():
            loss = model(x).square().mean()
        loss.backward()
        with hand.step():
            optimizer.step()
    want = hand._outputs[0]["0.a#1"][0].grad
    assert want is not None
    got = value(recorder.trace, "output_grad_norm", "0.a#1")
    assert got == pytest.approx(want.norm().item(), rel=1e-5), "of the second call of 'a'"
    assert value(recorder.trace, "grad_norm", "0.a#1.weight") > 0
    assert said(caplog) == [
        "gradflow does not take the output of '0.a#1': its name has a '#', which tells the calls "
        "of one layer apart."
    ]


# -- scripted modules --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_modules_are_recorded_by_their_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(inner), nn.Linear(4, 2))
    trace, _ = train_twice(model, lambda: model(inputs()).square().mean(), DEFAULT_MEASURES)
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
    train_twice(model, lambda: model(inputs()).square().mean(), DEFAULT_MEASURES)
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
        optimizer.zero_grad()
        model(inputs()).square().mean().backward()
        if step == 5:
            monkeypatch.setattr(Trace, "save_part", real)
        optimizer.step()
    recorder.close()
    assert recorder.trace.steps.tolist() == list(range(6))
    assert len(list(tmp_path.glob("records/*.parquet"))) == 3
    assert "records to the files yet" in said(caplog)[0]


def test_a_model_can_be_traced_and_exported_while_it_is_recorded() -> None:
    model, x = mlp(n_out=2, activation=nn.ReLU), inputs()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, optimizer) as recorder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jit is deprecated
            torch.jit.trace(model, x)  # checks that a second run gives the same graph
        torch.export.export(model, (x,))
        z = model(x)
        want = torch.autograd.grad(z.square().sum(), z, retain_graph=True)[0].norm().item()
        z.square().sum().backward()
        optimizer.step()
    assert value(recorder.trace, "output_grad_norm", "2") == pytest.approx(want, rel=1e-6)
