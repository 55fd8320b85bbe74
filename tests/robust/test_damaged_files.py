"""A damaged or foreign file of a run is named, with what to do; other networks are judged still."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gradflow.files import DamagedFile
from gradflow.record.trace import load_parts

PLAIN = "plain_18-s0"
PART = f"{PLAIN}/records/part-000000000.parquet"


def replaced(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def changed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Of a JSON file, what `change` returns or, where that is None, has made of it."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text("utf-8"))
        other = change(content)
        path.write_text(json.dumps(content if other is None else other), "utf-8")

    return damage


def parquet(**columns: Any) -> Callable[[Path], None]:
    """Records with some columns replaced, or left out where they are None."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        for name, make in columns.items():
            at = table.column_names.index(name)
            table = table.remove_column(at)
            if make is not None:
                table = table.add_column(at, name, pa.array([make(i) for i in range(len(table))]))
        pq.write_table(table, path)

    return damage


BYTES: dict[str, Callable[[Path], None]] = {
    "empty": replaced(b""),
    "binary": replaced(bytes(range(256))),
    "deep": replaced(b"[" * 100_000),
    "a number": replaced(b"3"),
    "a list": replaced(b"[1, 2]"),
    "a mapping": replaced(b"{}"),
    "text": replaced(b'"words"'),
    "a huge number": replaced(b"1" * 5000),
    "cut off": cut,
    "a pipe": pipe,
    "endless": endless,
}
JSON = ("data.json", f"{PLAIN}/history.json", f"{PLAIN}/evaluation.json",
        f"{PLAIN}/examination.json")  # fmt: skip
BY_FILE: list[tuple[str, str, Callable[[Path], None]]] = [
    *((file, name, how) for file in (*JSON, "config.yaml") for name, how in BYTES.items()
      if (name, Path(file).name) != ("a mapping", "examination.json")),  # {}: nothing was measured
    ("config.yaml", "wrong types", replaced(b"epochs: many\nout: runs\n")),
    ("config.yaml", "unknown field", replaced(b"epoch: 3\nout: runs\n")),
    ("config.yaml", "no last line",
     lambda path: path.write_bytes(path.read_bytes().rpartition(b"\nout:")[0]) and None),
    ("data.json", "no classes", changed(lambda it: it.pop("classes") and None)),
    ("data.json", "classes renamed", changed(lambda it: it.update(classes=["a", "b", "c"]))),
    ("data.json", "one class more", changed(lambda it: it["classes"].append("x"))),
    ("data.json", "counts as text", changed(lambda it: it["split"].update(counts={"train": "x"}))),
    (f"{PLAIN}/history.json", "no losses", changed(lambda it: it[0].pop("step_losses") and None)),
    (f"{PLAIN}/history.json", "empty", changed(lambda it: it.clear())),
    (f"{PLAIN}/history.json", "a loss is text", changed(lambda it: it[0].update(val_loss="low"))),
    (f"{PLAIN}/history.json", "an epoch twice", changed(lambda it: it.append(it[0]))),
    (f"{PLAIN}/history.json", "a mapping of one", changed(lambda it: {"index": 0})),
    (f"{PLAIN}/evaluation.json", "no last", changed(lambda it: it.pop("last") and None)),
    (f"{PLAIN}/evaluation.json", "no test", changed(lambda it: it["last"].pop("test") and None)),
    (f"{PLAIN}/evaluation.json", "accuracy is text",
     changed(lambda it: it["last"]["test"].update(accuracy="high"))),
    (f"{PLAIN}/evaluation.json", "fewer answers",
     changed(lambda it: it["last"]["test"]["is_right"].pop() and None)),
    (f"{PLAIN}/evaluation.json", "class 99",
     changed(lambda it: it["last"]["test"].update(predicted=[99] * it["last"]["test"]["n"]))),
    (f"{PLAIN}/evaluation.json", "half a matrix",
     changed(lambda it: it["last"]["test"]["confusion_matrix"].pop() and None)),
    (f"{PLAIN}/evaluation.json", "no interval",
     changed(lambda it: it["last"]["test"].update(accuracy_interval=[]))),
    (f"{PLAIN}/evaluation.json", "accuracy is 7",
     changed(lambda it: it["last"]["test"].update(accuracy=7))),
    (f"{PLAIN}/evaluation.json", "accuracy of others",
     changed(lambda it: it["last"]["test"].update(accuracy=0.99))),
    (f"{PLAIN}/evaluation.json", "counts below 0",
     changed(lambda it: it["last"]["test"].update(confusion_matrix=[[-1, 1, 0]] * 3))),
    (f"{PLAIN}/evaluation.json", "probabilities below 0",
     changed(lambda it: it["last"]["test"].update(
         probabilities=[[-1.0, 1.0, 1.0]] * it["last"]["test"]["n"]))),
    (f"{PLAIN}/evaluation.json", "an interval beyond 1",
     changed(lambda it: it["last"]["test"].update(accuracy_interval=[0.0, 1.5]))),
    (f"{PLAIN}/examination.json", "dead is a list", changed(lambda it: it.update(dead=[1]))),
    (f"{PLAIN}/examination.json", "rank is text",
     changed(lambda it: it.update(rank={"0": {"effective_rank": "high"}}))),
    (PART, "0 bytes", replaced(b"")),
    (PART, "no magic", replaced(b"hello" * 100)),
    (PART, "magic only", replaced(b"PAR1PAR1")),
    (PART, "cut off", cut),
    (PART, "a pipe", pipe),
    (PART, "step is text", parquet(step=lambda i: "x")),
    (PART, "steps fall", parquet(step=lambda i: -i)),
    (PART, "no site", parquet(site=None)),
    (PART, "no size", parquet(size=None)),
    (PART, "size is a fraction", parquet(size=lambda i: 0.5)),
    (PART, "size is negative", parquet(size=lambda i: -1)),
    (PART, "a norm is negative", parquet(grad_norm=lambda i: -1.0)),
    (PART, "a measure is text", parquet(grad_norm=lambda i: "x")),
    (PART, "site is a number", parquet(site=lambda i: i)),
    (PART, "kind is null", parquet(kind=lambda i: None)),
]  # fmt: skip


def test_a_share_above_1_is_no_record(run: Path) -> None:
    """`diagnose` reads no shares, the report does."""
    parquet(output_zero_fraction=lambda i: 7.0)(run / PART)
    with pytest.raises(DamagedFile, match="shares above 1"):
        load_parts((run / PART).parent)


@pytest.mark.parametrize(
    ("file", "name", "damage"), BY_FILE, ids=[f"{file}-{name}" for file, name, _ in BY_FILE]
)
def test_a_damaged_file_is_named_and_the_other_network_is_judged(
    file: str, name: str, damage: Callable[[Path], None], run: Path, command: Any
) -> None:
    damage(run / file)
    said = command("diagnose", run, "--json")
    if file.startswith(PLAIN):
        assert said.code == 0, said.err
        notes = json.loads(said.out)["notes"]
        assert any(PLAIN in note and Path(file).name in note for note in notes), notes
    elif said.code == 2:
        assert Path(file).name in said.err or "classes" in said.err, said.err
    else:  # nothing is read of it
        assert file in ("data.json",)


def saved(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Every tensor of the weights changed."""

    def damage(path: Path) -> None:
        content = torch.load(path.with_name("best.pt"), weights_only=True)
        torch.save({name: change(one) for name, one in content.items()}, path)

    return damage


class Runs:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no weights")


WEIGHTS: dict[str, Callable[[Path], None]] = {
    "empty": replaced(b""),
    "text": replaced(b"weights"),
    "cut off": cut,
    "a pipe": pipe,
    "endless": endless,
    "zip": zipped,
    "pickle that runs code": replaced(pickle.dumps(Runs())),
    "torch file that runs code": saved({"conv1.weight": Runs()}),
    "a list": saved([1, 2]),
    "a number": saved(3),
    "no weights": saved({}),
    "another network": saved({"conv9.weight": torch.zeros(3)}),
    "another shape": saved({"conv1.weight": torch.zeros(3)}),
    "other numbers": each(lambda one: one.to(torch.complex64)),
    "NaN": each(lambda one: one * torch.nan if one.is_floating_point() else one),
    "infinity": each(lambda one: one / 0 if one.is_floating_point() else one),
    "one number for a whole shape": each(
        lambda one: one.flatten()[:1].clone().expand(one.shape) if one.dim() else one
    ),
    "a sparse tensor": saved({"conv1.weight": torch.eye(3).to_sparse()}),
    "text as weights": saved({"conv1.weight": "x"}),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_damaged_weights_are_named_and_never_trusted(
    damage: str, run: Path, command: Any, pictures: Path
) -> None:
    WEIGHTS[damage](run / PLAIN / "best.pt")
    said = command(
        "saliency", pictures / "red" / "00.png", "--run", run, "-o", run.parent / "x.png"
    )
    assert said.code == 2
    assert "best.pt" in said.err
    assert "weights_only" not in said.err
    assert "must not be printed" not in said.out


@pytest.mark.parametrize("damage", [*WEIGHTS, "other content"])
def test_a_damaged_checkpoint_is_named_when_the_training_goes_on(
    damage: str, run: Path, command: Any
) -> None:
    network = run / PLAIN
    (network / "evaluation.json").unlink()
    checkpoint = network / "checkpoint.pt"
    checkpoint.write_bytes(b"x" * 100)
    if damage == "other content":
        torch.save({"model": {}, "optimizer": 3}, checkpoint)
    else:
        WEIGHTS[damage](checkpoint)
    said = command("train", "--resume", run)
    assert said.code == 2
    assert "checkpoint.pt" in said.err
    assert "weights_only" not in said.err


def test_a_stray_file_among_the_records_is_passed_over(run: Path, command: Any) -> None:
    for name in ("part-xyz.parquet", "part-.parquet", "part-000000000.parquet.bak", "notes.txt"):
        (run / PLAIN / "records" / name).write_bytes(b"hello")
    (run / PLAIN / "step-abc.pt").write_bytes(b"hello")
    said = command("diagnose", run, "--json")
    assert (said.code, "left out" in said.out) == (0, False)


def test_two_record_files_of_the_same_steps_are_named(run: Path, command: Any) -> None:
    records = run / PLAIN / "records"
    (records / "part-000000001.parquet").write_bytes((records / Path(PART).name).read_bytes())
    said = command("diagnose", run, "--json")
    assert (said.code, "part-000000001.parquet" in said.out) == (0, True)


@pytest.mark.parametrize("which", ["compare", "diagnose", "report"])
def test_a_run_in_which_no_network_can_be_read_says_why(
    which: str, run: Path, command: Any
) -> None:
    for network in (PLAIN, "resnet_18-s0"):
        (run / network / "history.json").write_text("{")
    said = command(which, run)
    assert (said.code, "history.json" in said.err) == (2, True)
    assert not (run / "report.html").exists()


def test_bytes_of_an_image_that_is_none_are_a_reason(
    run: Path, command: Any, tmp_path: Path
) -> None:
    file = tmp_path / "no.png"
    file.write_bytes(io.BytesIO(b"none").getvalue())
    said = command("saliency", file, "--run", run, "-o", tmp_path / "x.png")
    assert (said.code, "no.png" in said.err) == (2, True)
