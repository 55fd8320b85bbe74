"""What goes wrong in a study: each training fails alone, nothing is lost, and it is said why."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tiny import full_disk, read, run_here, tiny, write

from gradflow.present.report.story import charts
from gradflow.studies import Cell, Study, StudyDir
from gradflow.studies.cell import load_once, run_cell
from gradflow.studies.engine import Engine
from gradflow.studies.folder import CellDir
from gradflow.studies.plan import plan_study
from gradflow.studies.results import Results
from gradflow.studies.run import run_study
from gradflow.training.images import load_data

pytestmark = pytest.mark.usefixtures("in_this_process")


def states(folder: StudyDir, study: Study) -> dict[str, str]:
    cells = study.cells(folder.cells)
    return {cell.name: CellDir(cell.folder).state().get("state", "none") for cell in cells}


Copy = Callable[[str], StudyDir]


def test_a_loss_of_nan_is_a_result_and_the_others_go_on(
    all_but: Copy, pictures: Path, tmp_path: Path, command: Any
) -> None:
    folder = all_but("bias/reference-s0")
    arms = {"hot": {"tests": "lr", "networks": "accused", "set": {"lr": 1e30}},
            "bias": {"tests": "explosion", "intervene": "norm_bias(beta=1)"}}  # fmt: skip
    file = write(tmp_path / "tiny.yaml", tiny(pictures, arms=arms))
    said = command("study", file, "--out", folder.path)
    found = states(folder, folder.study())
    assert found.pop("hot/accused-s0") == "diverged"
    assert set(found.values()) == {"done"}
    assert said.code == 0
    assert "hot/accused-s0 diverged: The loss was" in said.out
    assert "hot: 0 of 1 seeds are complete" in said.out


def test_a_full_disk_fails_one_training_and_the_next_call_completes_it(
    all_but: Copy, pictures: Path
) -> None:
    folder, study = all_but("bias"), read(pictures)
    with full_disk("bias/reference"):
        found = run_study(study, folder, Engine())
    assert states(folder, study) == {
        "baseline/accused-s0": "done", "baseline/reference-s0": "done",
        "bias/accused-s0": "done", "bias/reference-s0": "failed",
    }  # fmt: skip
    assert any("bias/reference-s0 failed: OSError" in note and "No space left" in note
               for note in found.notes)  # fmt: skip
    again = run_study(study, folder, Engine())
    assert set(states(folder, study).values()) == {"done"}
    assert not again.notes


def test_a_failure_that_could_not_be_written_is_noted_all_the_same(
    all_but: Copy, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = all_but("bias/reference-s0"), CellDir.save_state

    def full(self: CellDir, state: Any) -> None:
        if self.path.as_posix().endswith("bias/reference-s0"):
            raise OSError(28, "No space left on device")
        save(self, state)

    monkeypatch.setattr(CellDir, "save_state", full)
    found = run_study(read(pictures), folder, Engine())
    assert [note for note in found.notes if note.startswith("bias/reference-s0 failed: OSError")]


def test_cells_that_share_their_images_do_not_share_changed_labels(pictures: Path) -> None:
    arms = {"shuffled": {"tests": "capacity", "intervene": "random_labels()"}}
    study = read(pictures, arms=arms, restores="")
    for arm in ("baseline", "shuffled", "baseline"):
        config = study.config(arm, "accused", 0)
        resolved, data = load_once(config)
        expected_config, expected = load_data(config)
        assert resolved == expected_config
        assert torch.equal(data.store.labels, expected.store.labels)
        assert (arm == "baseline") == torch.equal(data.store.labels, data.true_labels)
    again = load_once(study.config("shuffled", "accused", 0))[1]
    assert again.store.pixels is data.store.pixels, "decoded once"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("freeze(layers=1-40)", "arm 'late', plain_18: .*from 1 to 18"),
        ("skip(alpha=0.5)", "arm 'late', plain_18: Expected a residual network"),
    ],
)
def test_an_arm_that_fits_no_network_is_refused_before_anything_is_trained(
    pictures: Path, tmp_path: Path, change: str, message: str
) -> None:
    arms = dict(tiny(pictures)["arms"]) | {"late": {"tests": "depth", "intervene": change}}
    study, folder = read(pictures, arms=arms), StudyDir(tmp_path / "study")
    for begin in (lambda: plan_study(study, folder, 1), lambda: run_study(study, folder, Engine())):
        with pytest.raises(ValueError, match=message):
            begin()
    assert not folder.path.exists()


CONSTANT = {"tests": "schedule", "networks": "accused", "set": {"schedule": "constant"}}


def test_seeds_and_arms_may_be_added_and_only_they_are_trained(
    all_but: Copy, pictures: Path
) -> None:
    folder = all_but("")
    before = {path: path.stat().st_mtime_ns for path in folder.cells.rglob("evaluation.json")}
    arms = dict(tiny(pictures)["arms"]) | {"constant": CONSTANT}
    more = read(pictures, seeds=2, arms=arms)
    run_study(more, folder, Engine())
    assert set(states(folder, more).values()) == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(list(folder.cells.rglob("evaluation.json"))) == 10


BIAS = {"tests": "explosion", "intervene": "norm_bias(beta=1)"}
SGD = {"role": "baseline", "set": {"optimizer": "sgd"}, "tune": {"lr": [0.001, 0.05]}}


@pytest.mark.parametrize(
    ("begun", "now", "message"),
    [
        ([{}], {"base": {"weight_decay": 0.5}}, "baseline/accused differs in weight_decay.*--out"),
        # Of an arm that was left out and comes back, the trainings are still there.
        ([{}, {"arms": {"constant": CONSTANT}, "restores": ""}],
         {"arms": {"bias": BIAS | {"intervene": "norm_bias(beta=2)"}}},
         "bias/accused differs in intervene"),
        ([{"arms": {"bias": BIAS, "sgd": SGD}}],
         {"arms": {"bias": BIAS, "sgd": SGD | {"tune": {"lr": [0.001, 0.1]}}}},
         "sgd/accused differs in tune"),
    ],
)  # fmt: skip
def test_what_was_begun_in_a_folder_may_not_change(
    begun: list[dict[str, Any]], now: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    folder = StudyDir(tmp_path)
    for changes in begun:
        folder.begin(read(pictures, **changes))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(ValueError, match=message):
        run_study(read(pictures, **now), folder, Engine())
    assert before == {path: path.read_bytes() for path in before}
    folder.begin(read(pictures, **begun[0]))


def test_a_disk_that_is_full_when_a_training_begins_costs_nothing(
    all_but: Copy, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, study = all_but("bias/reference-s0"), read(pictures)
    write_whole = Path.write_text

    def full(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        if self.parent.as_posix().endswith("bias/reference-s0") and self.suffix == ".yaml":
            write_whole(self, "", *args, **kwargs)
            raise OSError(28, "No space left on device")
        return write_whole(self, text, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        found = run_study(study, folder, Engine())
    assert any("bias/reference-s0 failed: OSError" in note for note in found.notes)
    assert not (folder.cells / "bias" / "reference-s0" / "config.yaml").exists()
    assert not run_study(study, folder, Engine()).notes


def test_a_training_with_an_empty_configuration_and_no_epoch_begins_anew(
    pictures: Path, tmp_path: Path
) -> None:
    cell = read(pictures).cells(tmp_path)[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").touch()
    assert CellDir(cell.folder).network() is None
    assert run_cell(cell).state == "done"
    (cell.folder / "config.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="the file is empty"):
        CellDir(cell.folder).network()


EXAMINED = {"log_grads": True, "rivals": True, "checkpoint_budget": 0.01, "epochs": 1}


class Killed(BaseException):
    """What nothing catches, as a signal that ends the process."""


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def weights_in(cell: Cell) -> list[Path]:
    return list(cell.folder.rglob("*.pt"))


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")])
def test_a_training_that_ends_while_its_rivals_are_measured_goes_on_there(
    error: BaseException, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = read(pictures, base=EXAMINED).cells(tmp_path)[0]
    with monkeypatch.context() as patch:
        patch.setattr("gradflow.training.examination.examine_network", raising(error))
        with suppress(Killed):
            assert run_cell(cell).state == "failed"
    network = CellDir(cell.folder).network()
    assert network is not None, "the training itself is over"
    assert network.examination() is None
    assert weights_in(cell)
    CellDir(cell.folder).save_state({"state": "waiting"})  # as the next call does
    assert run_cell(cell).state == "done"
    assert network.examination() is not None
    assert not weights_in(cell)


def test_rivals_that_could_not_be_measured_are_measured_by_diagnose(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(pictures, base=EXAMINED))
    cells = Study.load(file).cells(tmp_path / "study" / "cells")
    with monkeypatch.context() as patch:
        patch.setattr(
            "gradflow.training.examination.examine_network", raising(RuntimeError("defect"))
        )
        with pytest.warns(UserWarning, match="defect.*diagnose RUN --measure.*of its study"):
            assert command("study", file, "--out", tmp_path / "study").code == 0
    assert {cell.arm for cell in cells if weights_in(cell)} == {"baseline"}
    assert command("diagnose", tmp_path / "study", "--measure", "--json").code == 0
    for cell in cells:
        network = CellDir(cell.folder).network()
        assert network is not None
        assert (network.examination() is not None) == (cell.arm == "baseline")
        assert not weights_in(cell)


def three_arms(pictures: Path) -> dict[str, Any]:
    """Of which two are doses of one explanation."""
    arms = dict(tiny(pictures)["arms"])
    arms["more bias"] = {"tests": "explosion", "intervene": "norm_bias(beta=1.1)"}
    arms["constant"] = {"tests": "schedule", "set": {"schedule": "constant"}}
    return arms


def combined(pictures: Path, **changes: Any) -> Study:
    return read(pictures, **{"arms": three_arms(pictures), "combine": "strongest"} | changes)


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """A study that combines its two strongest arms: its folder and what it found."""
    path = tmp_path_factory.mktemp("undisturbed")
    return path, run_here(combined(pictures), StudyDir(path))


def test_the_two_strongest_arms_are_trained_together(
    pictures: Path, undisturbed: tuple[Path, Results]
) -> None:
    path, found = undisturbed
    alone = [one for one in found.strongest if " + " not in one.arm.name]
    shares = [one.shares["train_loss"].value for one in alone]
    assert shares == sorted(shares, reverse=True)
    first = alone[0].arm
    second = next(one.arm for one in alone if one.arm.tests != first.tests)
    assert StudyDir(path).combination(combined(pictures)) == (first.name, second.name)
    assert f"{first.name} + {second.name}" in [one.arm.name for one in found.arms]
    assert run_study(combined(pictures), StudyDir(path), Engine()).to_json() == found.to_json()


def test_a_training_that_failed_does_not_decide_which_arms_are_strongest(
    pictures: Path, undisturbed: tuple[Path, Results], tmp_path: Path
) -> None:
    done, expected = undisturbed
    strongest = next(one.arm.name for one in expected.strongest if " + " not in one.arm.name)
    shutil.copytree(done, tmp_path / "study")
    study, folder = combined(pictures), StudyDir(tmp_path / "study")
    (folder.path / "combination.json").unlink()
    for path in folder.cells.iterdir():
        if path.name == strongest or " + " in path.name:
            shutil.rmtree(path)
    with full_disk(f"cells/{strongest}/"):
        found = run_study(study, folder, Engine())
    assert folder.combination(study) is None
    assert any("combined when every training has ended" in note for note in found.notes)
    assert run_study(study, folder, Engine()).to_json() == expected.to_json()


def test_two_arms_that_the_file_names_are_trained_together(pictures: Path, tmp_path: Path) -> None:
    folder = StudyDir(tmp_path / "study")
    found = run_here(combined(pictures, combine=["bias", "constant"]), folder)
    assert [one.arm.name for one in found.arms] == [*three_arms(pictures), "bias + constant"]
    assert found.interaction is not None


def test_an_arm_that_was_combined_may_be_left_out(
    pictures: Path, undisturbed: tuple[Path, Results], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0], tmp_path / "study")
    folder = StudyDir(tmp_path / "study")
    arms = three_arms(pictures)
    del arms["constant"]
    found = run_study(combined(pictures, arms=arms), folder, Engine())
    assert {one.arm.name for one in found.arms} == set(arms), "two doses are not combined"
    assert folder.study().names == {"baseline", *arms}


def test_two_processes_do_not_work_in_one_folder(
    pictures: Path, tmp_path: Path, command: Any
) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(pictures))
    out = tmp_path / "study"
    out.mkdir()
    with FileLock(out / ".lock"):
        said = command("study", file, "--out", out)
    assert (said.code, "another process is using it" in " ".join(said.err.split())) == (1, True)


def test_the_plan_counts_and_trains_nothing(pictures: Path, tmp_path: Path, command: Any) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(pictures, seeds=3))
    out = tmp_path / "study"
    plan = json.loads(command("study", file, "--out", out, "--plan", "--json").out)
    assert len(plan["cells"]) == 2 * 2 * 3
    # 60 pictures, 20 % test, 10 % of the distinct ones validate: 42 train, 3 batches, 2 epochs.
    assert {cell["steps"] for cell in plan["cells"]} == {6}
    assert plan["seconds"] > 0
    assert not out.exists()


@pytest.mark.parametrize("combine", ["strongest", ["bias", "constant"]])
def test_the_plan_counts_the_arms_that_are_combined(pictures: Path, combine: Any) -> None:
    arms = dict(tiny(pictures)["arms"])
    arms["constant"] = {"tests": "schedule", "set": {"schedule": "constant"}}
    study = read(pictures, arms=arms, combine=combine, base={"log_grads": True})
    planned = plan_study(study, StudyDir(Path("nowhere")), 1)
    names = [one.cell.arm for one in planned.cells]
    together = "bias + constant" if combine != "strongest" else "the two strongest together"
    assert (len(names), names.count(together)) == (8, 2)


def test_a_study_ends_in_a_table_a_verdict_and_a_report(
    pictures: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gradflow.present.report.story.charts",
        lambda report: [one for one in charts(report) if one.section == "study"],
    )
    content = tiny(pictures, seeds=3, base={"log_grads": True, "epochs": 1})
    file, out = write(tmp_path / "tiny.yaml", content), tmp_path / "study"
    table = command("study", file, "--out", out).out
    assert "share of the gap" in table
    assert "bias" in table
    assert (out / "figures" / "forest.png").exists()
    letter = command("diagnose", out, "--full", "-o", tmp_path / "verdict.png").out
    assert "link 4, it causes the gap" in letter
    assert "left open: 3 seeds cannot decide; 5 are the least" in " ".join(letter.split())
    assert command("report", out, "-o", tmp_path / "report.html", "--static").code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What the interventions say" in page
