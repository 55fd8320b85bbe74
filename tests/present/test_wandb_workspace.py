"""The saved workspace as W&B would get it. Nothing is sent: there is no account here."""

import json
import sys
from typing import Any

import pytest

from gradflow.cli import main
from gradflow.nets import plain_18
from gradflow.present.tracking import verdict_log
from gradflow.present.tracking.wandb_workspace import to_json, workspace
from tests.conftest import Command
from tests.present.epochs import Memory, Terminal, Training

ASK = ["wandb-panels", "--entity", "team", "--project", "food"]


pytestmark = pytest.mark.usefixtures("no_account")
Sections = dict[str, list[dict[str, Any]]]  # name -> panels


@pytest.fixture
def sections() -> Sections:
    spec = to_json(workspace("team", "food"))["spec"]["section"]
    assert spec["panelBankConfig"]["settings"]["autoOrganizePrefix"] == 1, "other keys, by it"
    assert spec["settings"]["shouldAutoGeneratePanels"] is False
    bank = spec["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in bank}


def lines(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["config"] for one in panels if one["viewType"] == "Run History Line Plot"]


def test_runs_are_grouped_by_architecture_with_the_seeds_as_a_band(sections: Sections) -> None:
    shown = {name: len(lines(panels)) for name, panels in sections.items()}
    assert list(shown.items()) == [("Verdict", 0), ("Gradient by depth", 3),
                                   ("Gradient norms by stage", 12), ("Training", 5)]  # fmt: skip
    for line in (line for panels in sections.values() for line in lines(panels)):
        grouping = (line["groupBy"], line["groupAgg"], line["groupArea"], line["aggregate"])
        assert grouping == ("arch.value", "mean", "minmax", True)
        assert line["limit"] == 100


def test_profiles_have_the_layer_as_their_axis_and_norms_a_logarithmic_one(
    sections: Sections,
) -> None:
    profiles = lines(sections["Gradient by depth"])
    assert {line["xAxis"] for line in profiles} == {"profile/layer"}
    assert [line["metrics"] for line in profiles] == [
        [f"profile/{size}"] for size in ("output_gradient", "scale_invariant", "gradient_rms")
    ]
    stages = lines(sections["Gradient norms by stage"])
    assert {line["xAxis"] for line in stages} == {"trainer/step"}
    assert all(line["yLogScale"] for line in profiles + stages)
    accuracies = [one for one in lines(sections["Training"]) if "accuracy" in one["metrics"][0]]
    assert not any(one.get("yLogScale") for one in accuracies)


def test_a_title_says_what_one_sees(sections: Sections) -> None:
    titles = [one["config"].get("chartTitle", one["config"].get("title"))
              for name in ("Gradient by depth", "Gradient norms by stage", "Training")
              for one in sections[name]]  # fmt: skip
    assert titles[:2] == [
        "By depth: the gradient passed on (δ)", "By depth: the effect of a weight (ŝ)",
    ]  # fmt: skip
    assert "layer1: gradient of the weights" in titles
    assert all(title and "/" not in title for title in titles), titles
    assert len(set(titles)) == len(titles)


def test_every_panel_shows_a_key_that_is_logged(sections: Sections) -> None:
    memory = Memory()
    training = Training(memory)
    training.epoch()
    training.log.close({})
    logged = {key for _, _, row in memory.rows for key in row}
    logged |= {axis for axis, _, _ in memory.rows} | {key for key, _, _ in memory.pictures}
    # The trace at hand is of one stage; those of gradflow's networks are the parts of their names.
    stages = {name.split(".")[0] for name, _ in plain_18(2).named_parameters()} - {"bn1"}
    logged |= {f"stage/{stage}/{kind}" for stage in stages for kind in ("weight", "output")}
    logged |= {verdict_log.PROFILES}
    shown = set()
    for panel in (panel for panels in sections.values() for panel in panels):
        config = panel["config"]
        shown |= {*config.get("metrics", []), *config.get("mediaKeys", [])}
        shown |= {config["xAxis"]} if "xAxis" in config else set()
    assert shown <= logged
    assert {f"stage/{stage}/weight" for stage in stages} <= shown, "no stage is missing"
    tables = json.dumps(sections["Verdict"])
    assert verdict_log.ANSWER in tables
    assert verdict_log.FINDINGS in tables


def test_json_prints_the_workspace_and_sends_nothing(command: Command) -> None:
    printed = json.loads(command(*ASK, "--name", "depth", "--json").out)
    told = (printed["entity"], printed["project"], printed["displayName"])
    assert told == ("team", "food", "depth")


def test_without_a_login_it_says_so_and_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(ASK) == 1
    err = sys.stderr.getvalue()
    assert "Expected W&B to save the workspace in team/food" in err
    assert "Log in with `wandb login`, or look at it with --json." in err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    said = command(*ASK)
    assert (said.code, "`pip install 'wandb-workspaces>=0.4.8'`" in said.err) == (2, True)
