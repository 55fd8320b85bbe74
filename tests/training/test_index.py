"""index.md names what is there, and takes no other file's place."""

from pathlib import Path

from gradflow.training.index import INDEX, write_index


def folder_with(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return root


def test_an_index_names_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    made = ("config.yaml", "figures/loss.png", "plain_18-s0/best.pt", "plain_18-s0/last.pt")
    run = folder_with(tmp_path, *made, "resnet_18-s0/best.pt")
    write_index(run)
    rows = (run / INDEX).read_text("utf-8").splitlines()[4:]
    assert [row.split(" |")[0] for row in rows] == [
        "| [figures/](figures/)",
        "| [config.yaml](config.yaml)",
        "| best.pt in plain_18-s0/, resnet_18-s0/",
        "| last.pt in plain_18-s0/",
    ]
    folder_with(run, "report.html")
    write_index(run)
    assert "[report.html](report.html)" in (run / INDEX).read_text("utf-8")


def test_an_index_takes_no_other_files_place(tmp_path: Path) -> None:
    run = folder_with(tmp_path, "records/part-000000000.parquet")
    (run / INDEX).write_text("# My notes\n")
    write_index(run)
    assert (run / INDEX).read_text() == "# My notes\n"


def test_a_folder_without_results_gets_no_index(tmp_path: Path) -> None:
    write_index(folder_with(tmp_path, "report.html", "figures/loss.png"))
    assert not (tmp_path / INDEX).exists()
