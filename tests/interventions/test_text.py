"""The text form: what is written comes back, what is wrong is named."""

import pytest

from gradflow.examine.path import path_layers
from gradflow.interventions import INTERVENTIONS, GradientScale, Transplant, parse
from gradflow.interventions.layers import chosen_layers
from gradflow.nets import plain_18, resnet_18
from gradflow.training.config import TrainConfig

GIVEN = {"transplant": "transplant(profile=/a folder/of, commas (1)/plain_34-s{seed})"}


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_text_form_comes_back(name: str) -> None:
    (intervention,) = parse(GIVEN.get(name, name))
    assert parse(str(intervention)) == (intervention,)
    assert parse(str(intervention.sham())) == (intervention.sham(),)
    assert intervention.describe().endswith(".")


def test_several_in_their_order_with_commas_inside_of_a_value() -> None:
    text = " gradient_scale(layers=1,3-4, factor=1e-3) ;transplant(size=gradient_rms,profile=a,b);"
    assert parse(text) == (GradientScale("1,3-4", 1e-3), Transplant("a,b", size="gradient_rms"))
    assert parse("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gradient_scal(factor=1)", "(?s)one of gradient_scale, transplant.*'gradient_scal"),
        ("gradient_scale(factor=1", "Expected an intervention such as"),
        ("gradient_scale(factor=a)", "Expected `factor` to be a number, but got 'a'"),
        ("gradient_scale(facto=1)", "of layers, factor, but got 'facto=1'"),
        ("gradient_scale(factor=1, factor=2)", "each once"),
        ("gradient_scale(0.1)", "arguments name=value"),
        ("gradient_scale(factor=0)", "above 0, but got 0.0.*freeze"),
        ("gradient_scale(factor=nan)", "finite"),
        ("gradient_scale(layers=0-3)", "`layers` such as"),
        ("gradient_scale(layers=5-3)", "`layers` such as"),
        ("gradient_scale(layers=)", "`layers` such as"),
        ("transplant()", "Expected `profile`, but it is missing"),
        ("transplant(profile=a, size=rms)", "`size` in"),
        ("skip(alpha=1.5)", "`alpha` from 0 to 1, but got 1.5"),
        ("norm_bias(beta=inf)", "finite"),
        ("leaky(slope=-1)", "`slope` from 0 to 1"),
        ("norm_free(init=he)", "`init` in"),
        ("delta_orthogonal(gain=0)", "above 0"),
        ("random_labels(share=2)", "`share` from 0 to 1"),
        ("random_labels(seed=-1)", "`seed` of 0 or more"),
        ("random_labels(seed=1.5)", "a whole number"),
        ("accumulate(batches=-1)", "`batches` of 0 or more"),
        ("accumulate(); accumulate()", "at most once"),
        ("recalibrate(share=-1)", "`share` from 0 to 1"),
    ],
)
def test_a_config_refuses_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(intervene=text)


# -- layers by number and stage --------------------------------------------------------------------


def test_layers_are_counted_from_1_on_the_main_path_of_both_networks() -> None:
    plain, residual = plain_18(3, stem="small"), resnet_18(3, stem="small")
    path = path_layers(plain)
    assert chosen_layers(plain, "1") == ["conv1"]
    assert chosen_layers(plain, "18") == ["fc"]
    assert chosen_layers(plain, "all") == chosen_layers(residual, "all") == path
    assert chosen_layers(plain, "none") == []
    assert chosen_layers(residual, "2-5") == chosen_layers(residual, "layer1") == path[1:5]
    assert chosen_layers(plain, "fc, 3+1-2") == [*path[:3], "fc"]


@pytest.mark.parametrize("text", ["19", "3-19", "layer5", "conv"])
def test_layers_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"from 1 to 18 .*stages \(conv1, layer1.*but got"):
        chosen_layers(plain_18(3, stem="small"), text)
