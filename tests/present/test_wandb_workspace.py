"""The saved workspace as W&B would get it. Nothing is sent: there is no account here."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gradflow.cli import main
from gradflow.nets import plain_18
from gradflow.present.tracking import verdict_log
from gradflow.present.tracking.wandb_workspace import to_json, workspace
from tests.present.epochs import Memory, Training

Capture = pytest.CaptureFixture[str]
ASK = ["wandb-panels", "--entity", "team", "--project", "food"]


@pytest.fixture(autouse=True)
def _without_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def sections() -> dict[str, list[dict[str, Any]]]:
    """Name -> panels."""
    spec = to_json(workspace("team", "food"))["spec"]["section"]
    bank = spec["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in bank}


def lines(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["config"] for one in panels if one["viewType"] == "Run History Line Plot"]


def test_it_has_verdict_depth_stages_and_training_in_this_order(
    sections: dict[str, list[dict[str, Any]]],
) -> None:
    assert list(sections) == [
        "Verdict",
        "Gradient by depth",
        "Gradient norms by stage",
        "Training",
    ]


def test_runs_are_grouped_by_architecture_with_the_seeds_as_a_band(
    sections: dict[str, list[dict[str, Any]]],
) -> None:
    every = [line for panels in sections.values() for line in lines(panels)]
    assert len(every) == 3 + 12 + 5
    for line in every:
        grouping = (line["groupBy"], line["groupAgg"], line["groupArea"], line["aggregate"])
        assert grouping == ("arch.value", "mean", "minmax", True)
        assert line["limit"] == 100


def test_profiles_have_the_layer_as_their_axis_and_norms_a_logarithmic_one(
    sections: dict[str, list[dict[str, Any]]],
) -> None:
    profiles = lines(sections["Gradient by depth"])
    assert {line["xAxis"] for line in profiles} == {"profile/layer"}
    assert [line["metrics"] for line in profiles] == [
        ["profile/output_gradient"],
        ["profile/scale_invariant"],
        ["profile/gradient_rms"],
    ]
    stages = lines(sections["Gradient norms by stage"])
    assert {line["xAxis"] for line in stages} == {"trainer/step"}
    assert all(line["yLogScale"] for line in profiles + stages)
    assert not [one for one in lines(sections["Training"]) if "accuracy" in one["metrics"][0]
                and one.get("yLogScale")]  # fmt: skip


def test_a_title_says_what_one_sees(sections: dict[str, list[dict[str, Any]]]) -> None:
    titles = [one["config"].get("chartTitle", one["config"].get("title"))
              for name in ("Gradient by depth", "Gradient norms by stage", "Training")
              for one in sections[name]]  # fmt: skip
    assert titles[:2] == [
        "By depth: the gradient passed on (δ)", "By depth: the effect of a weight (ŝ)",
    ]  # fmt: skip
    assert "layer1: gradient of the weights" in titles
    assert all(title and "/" not in title for title in titles), titles
    assert len(set(titles)) == len(titles)


def test_every_panel_shows_a_key_that_is_logged(
    sections: dict[str, list[dict[str, Any]]],
) -> None:
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


def test_keys_without_a_panel_are_grouped_by_the_first_part_of_their_name() -> None:
    spec = to_json(workspace("team", "food"))["spec"]["section"]
    assert spec["panelBankConfig"]["settings"]["autoOrganizePrefix"] == 1
    assert spec["settings"]["shouldAutoGeneratePanels"] is False


def test_json_prints_the_workspace_and_sends_nothing(capsys: Capture) -> None:
    assert main([*ASK, "--name", "depth", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    told = (printed["entity"], printed["project"], printed["displayName"])
    assert told == ("team", "food", "depth")


def test_without_a_login_it_says_so_and_asks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, *args: Any) -> str:
            pytest.fail("wandb asked for a key")

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(ASK) == 1
    err = sys.stderr.getvalue()
    assert "Expected W&B to save the workspace in team/food" in err
    assert "Log in with `wandb login`, or look at it with --json." in err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(ASK) == 2
    assert "`pip install 'wandb-workspaces>=0.4.8'`" in capsys.readouterr().err
