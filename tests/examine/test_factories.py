"""Networks by name, and what to do where there is none."""

from pathlib import Path

import pytest
from torch import nn

from gradflow.examine.factories import load_factory
from gradflow.nets import ResNet

MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, n_classes, *, width=3):
        super().__init__()

def make_net():
    return nn.Linear(2, 2)

net, size = nn.Linear(2, 2), 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder."""
    name = f"nets_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_function_of_a_module(module: str) -> None:
    assert isinstance(load_factory(f"{module}:make_net")(), nn.Linear)
    assert isinstance(load_factory(f"{module}:net"), nn.Linear), "a network is taken as it is"


def test_networks_of_gradflow_and_of_torchvision() -> None:
    model = load_factory("plain_34")()
    assert isinstance(model, ResNet)
    assert model.fc.out_features == 10
    for name in ("squeezenet1_1", "torchvision:squeezenet1_1"):
        assert type(load_factory(name)()).__name__ == "SqueezeNet"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"got 'resnet51'. Did you mean .*resnet50"),
        ("plain_43", "plain_34"),
        ("torchvision:nonsense_xyz", "nonsense_xyz"),
        ("no_such_module_here:make", "there is no 'no_such_module_here'"),
        ("{module}x:make_net", "Did you mean {module}"),
        ("{module}:make_nett", "no such name. Did you mean make_net"),
        ("{module}:size", "is of type int"),
        ("{module}:Net", r"needs n_classes.*`def make\(\): return Net\(n_classes=…\)`"),
    ],
)
def test_errors_say_what_to_do(name: str, message: str, module: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{module}", module)):
        load_factory(name.replace("{module}", module))


def test_an_error_inside_the_module_is_not_hidden(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}_broken.py").write_text("import a_library_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        load_factory(f"{module}_broken:make")
