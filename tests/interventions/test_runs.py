"""Interventions in whole trainings: shams change no bit, checks are kept, a resume goes on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradflow.cli import main
from gradflow.interventions import INTERVENTIONS, RandomLabels, parse
from gradflow.present import terminal
from gradflow.training.config import TrainConfig
from gradflow.training.fit import make_accelerator
from gradflow.training.images import Data, load_data
from gradflow.training.rundir import NetworkDir, RunDir
from gradflow.training.summary import summarise
from gradflow.training.train import train_network
from gradflow.training.weights import load_tensors

TINY: dict[str, Any] = {
    "image_size": 8, "epochs": 2, "batch_size": 16, "log_grads": False, "rivals": False,
    "wandb": "off", "device": "cpu", "step_size": 1, "shortcut": "A",
}  # fmt: skip


def run(
    pictures: Path,
    intervene: str = "",
    arch: str = "plain_18",
    stop_after: int = 0,
    **settings: Any,
) -> tuple[RunDir, Data]:
    """A whole training, once interrupted after so many steps if these are given."""
    config = TrainConfig(
        data=str(pictures),
        out=pictures.parent / "runs",
        arch=arch,
        intervene=intervene,
        **TINY | settings,
    )
    config, data = load_data(config)
    run = RunDir.create(config)
    run.save_config(config)
    run.save_data(data.to_json())
    network, accelerator = run.network(arch, 0), make_accelerator(config)
    if stop_after:
        steps = iter(range(stop_after))

        def interrupt() -> None:
            if next(steps, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(train_network(network, config, data, accelerator, on_step=interrupt))
        config, data = load_data(run.config())
    list(train_network(network, config, data, accelerator))
    return run, data


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """Networks with few channels, so that a whole training takes about a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradflow.nets.CHANNELS_PER_STAGE", (4, 8, 8, 16))
        yield


@pytest.fixture(scope="module")
def none(
    narrow: None, draw_pictures: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    """The plain network without any intervention, recorded."""
    return run(draw_pictures(tmp_path_factory.mktemp("none")), log_grads=True)[0]


def only(run: RunDir) -> NetworkDir:
    (network,) = run.networks()
    return network


def assert_same_weights(one: RunDir, other: RunDir) -> None:
    for which in ("last", "best"):
        ours, theirs = (load_tensors(only(run).weights(which)) for run in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def results(run: RunDir) -> dict[str, Any]:
    return {which: only(run).evaluation()[which] for which in ("last", "best")}


def test_shams_are_bit_identical_to_no_intervention(none: RunDir, pictures: Path) -> None:
    """All of them in one training, where none could hide behind another: each changes nothing."""
    names = sorted(INTERVENTIONS.keys() - {"transplant", "skip"})
    shams = [str(one.sham()) for name in names for one in parse(name)]
    sham, _ = run(pictures, "; ".join(shams))
    assert_same_weights(none, sham)
    assert results(none) == results(sham)
    done = only(sham).interventions()
    assert len(done) == len(shams) >= 10
    assert all(one["passed"] for one in done)


def test_skip_of_full_strength_is_bit_identical_to_no_intervention(pictures: Path) -> None:
    none, _ = run(pictures, arch="resnet_18")
    sham, _ = run(pictures, "skip(alpha=1)", arch="resnet_18")
    assert_same_weights(none, sham)


@pytest.mark.parametrize("size", ["scale_invariant", "gradient_rms"])
def test_own_profile_is_bit_identical_to_no_intervention(
    none: RunDir, pictures: Path, size: str
) -> None:
    profile = f"{none.path}/{{arch}}-s{{seed}}"
    sham, _ = run(pictures, f"transplant(profile={profile}, size={size})")
    assert_same_weights(none, sham)


@pytest.mark.parametrize(
    "text",
    [
        "gradient_scale(layers=1-9, factor=0.1); leaky(slope=0.2); norm_bias(beta=0.5)",
        "freeze(layers=1-5); reset(layers=6-9); accumulate()",
        "norm_free(); delta_orthogonal(); lsuv()",
        "random_labels(share=0.8); accumulate(batches=2); recalibrate()",
    ],
)  # fmt: skip
def test_interrupted_training_with_interventions_ends_with_the_same_bits(
    pictures: Path, text: str
) -> None:
    settings = {"epochs": 3, "warmup": 1, "lr_sum": "step"}
    whole, _ = run(pictures, text, **settings)
    n_steps = only(whole).history()[0]["step"]
    stopped, _ = run(pictures, text, stop_after=n_steps + 1, **settings)
    assert_same_weights(whole, stopped)
    assert results(whole) == results(stopped)
    reports = [only(one).interventions() for one in (whole, stopped)]
    assert [one["intervention"] for one in reports[0]] == [str(one) for one in parse(text)]
    assert reports[0] == reports[1]
    assert all(one["checks"] for one in reports[1])


def test_a_training_that_was_killed_in_its_evaluation_keeps_what_was_seen(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "gradient_scale(layers=1-9, factor=0.1)"
    whole, _ = run(pictures, text)
    from gradflow.training import train

    evaluate, calls = train.evaluate_network, []

    def killed(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        evaluate(*args)

    monkeypatch.setattr(train, "evaluate_network", killed)
    stopped, _ = run(pictures, text, stop_after=10**6)
    assert len(calls) == 2
    assert only(stopped).interventions() == only(whole).interventions()
    assert only(stopped).interventions()[0]["checks"]


def test_transplant_from_the_residual_network_goes_through_a_run(pictures: Path) -> None:
    donor, _ = run(pictures, arch="resnet_18", optimizer="sgd", log_grads=True)
    profile = f"{donor.path}/resnet_18-s{{seed}}"
    changed, _ = run(pictures, f"transplant(profile={profile})", optimizer="sgd", log_grads=True)
    tables = [only(one).trace().select("scale_invariant_grad") for one in (donor, changed)]
    weights = [site for site in tables[1].sites if "conv" in site or site == "fc.weight"]
    values = [t.values[:, [t.sites.index(site) for site in weights]] for t in tables]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4)
    assert all(done["passed"] for done in only(changed).interventions())


def test_full_batch_is_the_mean_gradient_of_the_batches(pictures: Path) -> None:
    """One SGD step of an epoch = the mean of the steps that each batch alone would make.

    Weights are kept before and after it; without weight decay and augmentation.
    """
    settings = {
        "optimizer": "sgd", "weight_decay": 0.0, "momentum": 0.0, "rotation": 0.0, "epochs": 1,
        "flip": 0.0, "lr": 1.0, "log_grads": True,
    }  # fmt: skip
    whole, data = run(pictures, "accumulate()", **settings)
    config = whole.config()
    gradient: dict[str, torch.Tensor] = {}
    n_images = 0
    for batch in data.training(config, 0).epoch(0):
        model = only(whole).load_model(config, 3, 0).train()
        logits = model(batch.images)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels, label_smoothing=0.2)
        loss.backward()
        n_images += batch.n_total
        for name, p in model.named_parameters():
            assert p.grad is not None
            gradient[name] = gradient.get(name, 0) + batch.n_total * p.grad.double()
    before, after = (load_tensors(only(whole).weights(step)) for step in (0, "last"))
    for name, total in gradient.items():
        moved = after[name].double() - before[name].double()
        expected = -config.lr * total / n_images
        # Of the vector: where float32 sums cancel, a single small element has fewer digits.
        assert (moved - expected).norm() <= 1e-3 * expected.norm() + 2e-7
    assert only(whole).history()[0]["step"] == 1
    assert int(after["bn1.num_batches_tracked"]) == 3, "ghost batches: each has its statistics"


def test_random_labels_keep_class_sizes_and_the_images_of_other_parts(pictures: Path) -> None:
    config = TrainConfig(data=str(pictures), intervene="random_labels()", **TINY)
    _, data = load_data(config)
    train = data.split.train
    given, true = data.store.labels, data.true_labels
    assert torch.equal(given[train].bincount(), true[train].bincount())
    rest = np.setdiff1d(np.arange(60), train)
    assert torch.equal(given[rest], true[rest])
    changed = float((given[train] != true[train]).double().mean())
    assert changed == pytest.approx(2 / 3, abs=0.3)
    half = RandomLabels(share=0.5).change_labels(true, train)
    assert 0 < int((half != true).sum()) <= len(train) // 2 + 1


def test_reset_layers_are_evaluated_with_their_first_weights(none: RunDir, pictures: Path) -> None:
    whole, _ = run(pictures, "reset(layers=1-17)")
    assert_same_weights(whole, none)
    losses = [results(one)["last"]["train"]["loss"] for one in (none, whole)]
    assert losses[1] != losses[0]
    learned, left = only(whole).interventions()[0]["checks"]
    assert learned["measured"] > 0.9
    assert (left["measured"], left["passed"]) == (0.0, True)


def test_recalibration_changes_the_evaluation_alone(none: RunDir, pictures: Path) -> None:
    changed, _ = run(pictures, "recalibrate()")
    assert_same_weights(none, changed)
    losses = [results(one)["last"]["train"]["loss"] for one in (none, changed)]
    assert losses[0] != losses[1]
    replaced, moved = only(changed).interventions()[0]["checks"]
    assert replaced["passed"] is True
    assert moved["measured"] > 0


def test_summary_shows_what_was_changed_and_measured(pictures: Path) -> None:
    changed, _ = run(pictures, "gradient_scale(layers=1-9, factor=0.1); recalibrate()")
    summary = summarise(changed)
    json.dumps(summary, allow_nan=False)
    lines = terminal._intervention_lines(summary["networks"])
    assert "plain_18-s0: gradient_scale(layers=1-9, factor=0.1)" in lines
    assert any("✓ gradient norm after over before" in line and ": 0.1 " in line for line in lines)
    summary["networks"][0]["interventions"][0]["passed"] = False
    assert any("CHECK FAILED" in one for one in terminal._intervention_lines(summary["networks"]))


@pytest.mark.parametrize(
    ("text", "arch", "message"),
    [
        ("freeze(layers=1-40)", "plain_18", "from 1 to 18"),
        ("skip(alpha=0.5)", "plain_18,resnet_18", "Expected a residual network"),
        ("transplant(profile=nowhere)", "plain_18", "No records in nowhere"),
    ],
)
def test_what_fits_no_network_is_refused_before_the_run_begins(
    pictures: Path,
    text: str,
    arch: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = pictures.parent / "runs"
    flags = ["--data", str(pictures), "--arch", arch, "--image-size", "8", "--shortcut", "A"]
    flags += ["--out", str(out), "--device", "cpu", "--intervene", text]
    assert main(["train", *flags]) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
