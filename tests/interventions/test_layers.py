"""Layers by number and stage; both networks count alike."""

import pytest

from gradflow.examine.path import path_layers
from gradflow.interventions.layers import chosen_layers
from gradflow.nets import plain_18, resnet_18


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
