"""The study file: what it means, and what is said of a wrong one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradflow.studies import Study
from gradflow.studies.arms import PLACES
from gradflow.studies.run import needed_arms

FILES = sorted((Path(__file__).parents[2] / "experiments" / "studies").glob("*.yaml"))


def content(**changes: Any) -> dict[str, Any]:
    """A study of two arms; `changes` of its top level, None takes a field away."""
    whole = {
        "base": {"data": "digits", "epochs": 2},
        "accused": "plain_18",
        "reference": "resnet_18",
        "seeds": 2,
        "arms": {
            "bias": {"tests": "explosion", "intervene": "norm_bias(beta=1)"},
            "constant": {"tests": "schedule", "set": {"schedule": "constant"}},
        },
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


TUNED = {"role": "baseline", "set": {"optimizer": "sgd"}, "tune": {"lr": [0.001, 0.05]}}


def read(**changes: Any) -> Study:
    return Study.read(content(**changes), name="study", changes={})


def arms(**arms: Any) -> Study:
    return read(arms=arms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_studies_of_this_repository_can_be_read(path: Path) -> None:
    study = Study.load(path)
    causes = [arm.name for arm in study.arms if arm.role == "cause"]
    assert not study.restores or study.restores in causes
    assert all(arm.says and (arm.tests or arm.role == "baseline") for arm in study.arms[1:])


def test_a_study_is_every_arm_with_every_network_and_every_seed_in_whole_pairs() -> None:
    cells = read().cells(Path("cells"))
    assert [(cell.seed, cell.arm, cell.place) for cell in cells] == [
        (seed, arm, place)
        for seed in (0, 1)
        for arm in ("baseline", "bias", "constant")
        for place in ("accused", "reference")
    ]
    assert cells[0].folder == Path("cells/baseline/accused-s0")
    assert {cell.config.arch for cell in cells if cell.place == "accused"} == {"plain_18"}
    assert all(cell.config.seed_list == (cell.seed,) for cell in cells)


def test_an_arm_changes_its_field_and_no_other() -> None:
    study = read()
    without = dataclasses.asdict(study.config("baseline", "accused", 0))
    for name, field, value in [
        ("bias", "intervene", "norm_bias(beta=1)"),
        ("constant", "schedule", "constant"),
    ]:
        changed = dataclasses.asdict(study.config(name, "accused", 0))
        differing = {key for key in without if without[key] != changed[key]}
        # The rivals are measured in the baseline alone, which the verdict is about.
        assert differing == {field, "rivals", "checkpoint_budget"}
        assert changed[field] == value


def test_interventions_are_added_to_those_that_are_there_and_set_replaces_them() -> None:
    study = read(
        base={"data": "digits", "intervene": "leaky(slope=0.1)"},
        accused={"arch": "plain_18", "intervene": "norm_free(init=keep)"},
        arms={
            "added": {"intervene": "lsuv()"},
            "replaced": {"set": {"intervene": "lsuv()"}},
        },
    )
    added = study.config("added", "accused", 0).intervene
    assert added == "leaky(slope=0.1); norm_free(init=keep); lsuv()"
    assert study.config("added", "reference", 0).intervene == "leaky(slope=0.1); lsuv()"
    assert study.config("replaced", "accused", 0).intervene == "lsuv()"


def test_an_arm_starts_from_the_one_that_it_is_compared_with() -> None:
    study = arms(
        up={"tests": "vanishing", "intervene": "gradient_scale(layers=1, factor=10)"},
        sgd={"role": "baseline", "networks": "accused", "set": {"optimizer": "sgd", "lr": 0.1}},
        down={
            "role": "positive control", "against": "sgd", "networks": ["accused"],
            "tests": "vanishing", "intervene": "gradient_scale(layers=1, factor=0.1)",
        },
    )  # fmt: skip
    config = study.config("down", "accused", 0)
    assert (config.optimizer, config.lr) == ("sgd", 0.1)
    assert study.trained_in("down", "reference") == "baseline", "no arm of the way treats it"
    assert study.trained_in("down", "accused") == "down"


def test_the_combination_of_two_arms_makes_both_changes() -> None:
    study = read()
    both = study.with_arm(study.combined("bias", "constant"))
    config = both.config("bias + constant", "accused", 0)
    assert (config.intervene, config.schedule) == ("norm_bias(beta=1)", "constant")
    assert read(combine=["bias", "constant"]).arms == both.arms


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"tests": "explosion", "set": {"lr": 1}}, {"tests": "explosion", "intervene": "lsuv()"},
         "two explanations.*both test explosion"),
        (TUNED, {"intervene": "lsuv()"}, "is tuned"),
        ({"set": {"lr": 1}}, {"set": {"lr": 2}}, "both set lr"),
        ({"set": {"lr": 1}}, {"networks": "accused", "intervene": "lsuv()"}, "do not start from"),
    ],
)  # fmt: skip
def test_what_excludes_each_other_is_not_combined(one: Any, other: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arms(one=one, other=other).combined("one", "other")


def test_a_transplant_waits_for_the_cells_that_it_reads(tmp_path: Path) -> None:
    profile = "transplant(profile={cells}/baseline/reference-s{seed}/resnet_18-s{seed})"
    study = arms(given={"networks": "accused", "intervene": profile})
    late = [cell for cell in study.cells(tmp_path) if cell.needs_others]
    assert {cell.arm for cell in late} == {"given"}
    assert str(tmp_path) in late[0].config.intervene


def test_what_a_study_keeps_of_its_file_gives_the_same_study(tmp_path: Path) -> None:
    study = Study.read(content(), name="study", changes={"epochs": 3})
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(dict(study.source)), encoding="utf-8")
    assert Study.load(path).cells(tmp_path) == study.cells(tmp_path)
    assert study.base.epochs == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"epocs": 3}}, "'epocs'. Did you mean 'epochs'"),
        ({"base": {"epochs": 0}}, "`epochs` to be from 1 to"),
        ({"base": 3}, "`base` to be a mapping"),
        ({"accused": None}, "`accused` in the study, but it is missing"),
        ({"arms": {}}, "`arms` to be a mapping"),
        ({"accused": "plain_99"}, "plain_99"),
        ({"seeds": [1, 1]}, r"different `seeds` of 0 or more, but got \[1, 1\]"),
        ({"seeds": "many"}, "a count up to 1000 or a list of whole numbers"),
        ({"restores": "bais"}, "`restores` to be one of baseline, bias, constant, but got 'bais'"),
        ({"combine": "all"}, "`combine` to be one of none, strongest"),
        ({"combine": ["bias", "no"]}, "`combine` to be one of"),
        ({"threads": 0}, "`threads` from 1 to 1024"),
        ({"arms": 3}, "`arms` to be a mapping"),
        ({"precision": 0}, "`precision` above 0"),
        ({"arms": {"baseline": {"intervene": "lsuv()"}}}, "no arm named 'baseline'"),
        ({"arms": {"a": {"intervene": "lsvu()"}}}, "arm 'a', accused.*lsvu"),
        ({"arms": {"a": {"intervenes": "lsuv()"}}}, "Did you mean 'intervene'"),
        ({"arms": {"a": {}}}, "arm 'a' to change something"),
        ({"arms": {"a": {"set": {"seeds": "3"}}}}, "without seeds.*whole study"),
        ({"arms": {"a": {"set": {"lr": 1}, "role": "cuase"}}}, "`role` of arm 'a'"),
        ({"arms": {"a": {"set": {"lr": 1}, "networks": "plain"}}}, "`networks` of arm 'a'"),
        ({"arms": {"a": {"set": {"lr": 1}, "networks": []}}}, "to have `networks`"),
        ({"arms": {"a": {"set": {"lr": 1}, "series": "lr"}}}, "`series` and `dose`"),
        ({"arms": {"a": {"set": {"lr": 1}, "against": "b"}}}, "`against` of arm 'a'"),
        ({"arms": {"a/b": {"set": {"lr": 1}}}}, "suit a folder"),
        ({"arms": {"a": {"tune": [0.1, 0.2]}}}, "`tune` of arm 'a' to be a mapping"),
        ({"arms": {"a": {"tune": {"lr": [0.1, "hot"]}}}}, "a value of `tune` for lr.* a number"),
        ({"arms": {"a": {"set": ["lr"]}}}, "`set` of arm 'a' to be a mapping"),
        ({"arms": {"a": {"set": {"lr": "high"}}}}, "`lr` of arm 'a', accused to be a number"),
        ({"arms": {"a": {"set": {"lr": 1}, "networks": 3}}}, "`networks` of arm 'a'"),
        ({"arms": {"a": {"intervene": ["lsuv()"]}}}, "`intervene` of arm 'a' to be text"),
        ({"arms": {"a": {"set": {"lr": 1}, "series": "lr", "dose": "much"}}}, "`dose`.*a number"),
        ({"arms": {"a": {"set": {"lr": 1}, "role": ["cause"]}}}, "`role` of arm 'a'"),
        ({"arms": {"a": {"set": {"label_smoothing": 0.1}}}}, "without label_smoothing.*two ways"),
        ({"arms": {"a": {"tune": {"test_fraction": [0.1, 0.2]}}}}, "without test_fraction.*gap"),
        ({"accused": {"arch": "plain_18", "set": {"data": "cifar10"}}}, "`set` of plain_18.*data"),
        ({"accused": {"arch": "plain_18", "set": {"seeds": "2"}}}, "`set` of plain_18.*seeds"),
        (
            {"arms": {"a": {"tests": "vanishing", "set": {"lr": 1}},
                      "b": {"tests": "vanshing", "set": {"lr": 2}, "role": "positive control"}}},
            "control 'b'.*one of 'vanishing', but got 'vanshing'. Did you mean 'vanishing'",
        ),
        *(({"arms": {"a": {"tests": "lr", **arm}}}, message) for arm, message in (
            ({"tune": {"lr": [0.1, 0.2], "momentum": [0, 0.9]}}, "one field with a list of two"),
            ({"tune": {"lr": [0.1]}}, "two or more values"),
            ({"tune": {"lr": 0.1}}, "two or more values"),
            ({"tune": {"lr": [0.1, 0.1]}}, "different values"),
            ({"set": {"lr": 0.1}, "tune": {"lr": [0.1, 0.2]}}, "lr not in `set`"),
            ({"tune": {"seeds": [1, 2]}}, "holds for the whole study"),
            ({"tune": {"lr": [-1, 0.1]}}, "lr"),
            ({"tune": {"rate": [0.1, 0.2]}}, "got 'rate'"),
            ({"tune": {"lr": [0.1, 0.2]}, "intervene": "transplant(profile={cells}/x)"},
             "without `tune`: its intervention reads"),
        )),
        ({"arms": {"sgd": TUNED, "a": {"against": "sgd", "tune": {"weight_decay": [0, 0.1]}}}},
         "one tuned field on the way"),
        ({"arms": {"sgd": TUNED}, "seeds": [0, 999]}, "without 999, the seed of the trials"),
        ({"expected_gap": "wide"}, "`expected_gap` of the study to be a number"),
        ({"base": {"epochs": True}}, "`epochs` of `base` to be a whole number"),
        ({"base": {"log_grads": 1}}, "`log_grads` of `base` to be true or false"),
        ({"threads": "one"}, "`threads` of the study to be a whole number"),
        ({"combine": ["bias", "bias"]}, "two arms, got 'bias' twice"),
        ({"combine": ["baseline", "bias"]}, "`combine` to be one of bias"),
        ({"arms": {"a": {"set": {"lr": 1}}, "b": {"set": {"epochs": 3}},
                   "a + b": {"set": {"lr": 2}}}, "combine": ["a", "b"], "restores": ""},
         "a name of its own"),
        (
            {"arms": {"a": {"set": {"lr": 1}, "against": "b"},
                      "b": {"set": {"lr": 2}, "against": "a"}}},
            "go in a circle",
        ),
    ],
)  # fmt: skip
def test_a_wrong_study_file_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_a_number_without_a_point_is_one(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text."""
    written = """
        base: {data: digits, lr: 1e-3}
        accused: plain_18
        reference: resnet_18
        expected_gap: 1e0
        arms:
          down: {intervene: "gradient_scale(factor=1e-3)", series: s, dose: 1e-3}
          tuned: {tune: {lr: [1e-3, 1e-2]}}
    """
    (tmp_path / "study.yaml").write_text(written, encoding="utf-8")
    study = Study.load(tmp_path / "study.yaml")
    assert (study.base.lr, study.expected_gap, study.arm("down").dose) == (0.001, 1.0, 0.001)
    assert study.arm("tuned").tune == {"lr": [0.001, 0.01]}


def test_a_file_that_is_no_yaml_and_one_that_is_not_there_say_so(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Study.load(path)
    path.write_text("arms: [", encoding="utf-8")
    with pytest.raises(ValueError, match="a study file in .*, but it holds none"):
        Study.load(path)
    path.write_text("- just a list", encoding="utf-8")
    with pytest.raises(ValueError, match=r"study\.yaml: Expected the study to be a mapping"):
        Study.load(path)


def test_the_split_may_vary_with_the_seed() -> None:
    content = {
        "base": {"data": "digits", "split_seed": "seed"}, "accused": "plain_18",
        "reference": "resnet_18", "seeds": [3, 8],
        "arms": {"constant": {"set": {"schedule": "constant"}}},
    }  # fmt: skip
    study = Study.read(content, name="study", changes={})
    splits = {cell.seed: cell.config.split_seed for cell in study.cells(Path())}
    assert splits == {3: 3, 8: 8}
    fixed = Study.read(content | {"base": {"split_seed": 7}}, name="study", changes={})
    assert {cell.config.split_seed for cell in fixed.cells(Path())} == {7}


def test_some_arms_need_those_that_they_start_from_and_what_combines_them() -> None:
    arms: dict[str, Any] = {
        "slow": {"tests": "rate", "set": {"lr": 1e-4}},
        "flat": {"tests": "schedule", "against": "slow", "set": {"schedule": "constant"}},
        "bias": {"tests": "explosion", "intervene": "norm_bias(beta=1)"},
        "wide": {"tests": "width", "set": {"width": 0.5}},
    }
    study = read(arms=arms)
    both = study.with_arm(study.combined("bias", "wide"))
    assert needed_arms(both, ["flat"]) == {"baseline", "slow", "flat"}
    assert needed_arms(both, "bias") == {"baseline", "bias"}
    assert needed_arms(both, ["bias", "wide"]) == {"baseline", "bias", "wide", "bias + wide"}
    with pytest.raises(ValueError, match="every arm to train to be one of .*, but got 'zzz'"):
        needed_arms(both, ["zzz"])


def test_a_training_that_two_arms_share_is_named_unless_only_one_is_asked_for() -> None:
    same = {"set": {"lr": 1e-4}}
    study = read(arms={"one": {"tests": "a", **same}, "other": {"tests": "b", **same}})
    repeated = {cell.name: cell.same_as for cell in study.ready(Path("cells")) if cell.same_as}
    assert set(repeated.values()) == {
        Path("cells/one") / f"{place}-s{seed}" for place in PLACES for seed in study.seeds
    }
    assert all(name.startswith("other/") for name in repeated)
    assert not any(cell.same_as for cell in study.ready(Path("cells"), {"baseline", "other"}))
