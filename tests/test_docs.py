"""The documentation says what the code does: its tables equal the code, its code blocks run."""

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradflow
from gradflow.analysis.thresholds import THRESHOLDS
from gradflow.analysis.verdict import OUTCOMES
from gradflow.cli import main
from gradflow.cli.entry import app
from gradflow.interventions import INTERVENTIONS
from gradflow.present import plots
from gradflow.present.saliency import METHODS
from gradflow.present.saliency.trust import TRUST_THRESHOLDS
from gradflow.record import DEFAULT_MEASURES, DERIVED, MEASURES, Recorder, Trace
from gradflow.studies import Study
from gradflow.training.config import TrainConfig
from gradflow.training.recipes import RECIPES

DOCS = Path(__file__).parents[1] / "docs"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of the table rows that begin with something in backticks."""
    return [
        [cell.strip().strip("`").replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


def test_table_of_measures_equals_the_code() -> None:
    by_default, on_request, derived = (
        rows(part.split("\n## ")[0])
        for part in re.split(r"## (?:Recorded|Computed) [a-z ]+\n", page("measures"))[1:]
    )
    assert tuple(name for name, *_ in by_default) == DEFAULT_MEASURES
    table = {name: cells for name, *cells in by_default + on_request}
    assert table == {
        m.name: [m.of, m.formula, m.unit, m.source or "definition"] for m in MEASURES.values()
    }
    assert derived == [
        [d.name, ", ".join(f"`{name}`" for name in d.needs).strip("`"), d.formula, d.unit,
         d.source or "definition"]
        for d in DERIVED.values()
    ]  # fmt: skip


def test_columns_of_the_records_equal_the_code(trace_of_tiny_convolutions: Trace) -> None:
    (table,) = re.findall(r"\| Column \|.*?\n\n", page("run-files"), re.DOTALL)
    *documented, histograms = [name for name, *_ in rows(table)]
    assert documented == list(trace_of_tiny_convolutions.to_pandas().columns[: len(documented)])
    assert len(documented) == 4, "beside the measures"
    assert histograms == "weight_histogram`, `grad_histogram", "where they were asked for"


def test_the_gallery_shows_every_figure() -> None:
    text = page("gallery")
    figures = {one for one in dir(plots) if one.endswith(("_plot", "_grid", "_heatmap"))}
    shown = {one for line in text.splitlines() for one in re.findall(r"`(\w+)`\.\*", line)}
    assert shown == figures
    linked = [(DOCS / path).resolve() for path in re.findall(r"!\[.+?\]\((.+?)\)", text)]
    assert all(path.stat().st_size < 300_000 for path in linked)
    assert set((DOCS / "images" / "gallery").resolve().iterdir()) <= set(linked), (
        "none is left over"
    )


def test_table_of_thresholds_equals_the_code() -> None:
    section = page("verdict").split("## Thresholds\n")[1].split("\n## ")[0]
    assert rows(section) == [
        [t.name, f"{t.value:.3g}", t.unit, t.reason, t.source] for t in THRESHOLDS.values()
    ]


def test_table_of_trust_in_maps_equals_the_code() -> None:
    section = page("saliency").split("where they come from:\n")[1].split("\nInsertion and")[0]
    signs = {"insertion_minus_deletion": ">"}
    assert rows(section) == [
        [t.name, f"{signs.get(t.name, '<')} {t.value:g}", t.unit, t.reason, t.source]
        for t in TRUST_THRESHOLDS.values()
    ]


def test_every_method_of_saliency_is_explained() -> None:
    section = page("saliency").split("## The methods\n")[1].split("\n- **")[0]
    assert [name for name, *_ in rows(section)] == list(METHODS)


def test_every_outcome_of_a_verdict_is_explained() -> None:
    section = page("verdict").split("## The outcome\n")[1].split("\n## ")[0]
    explained = re.findall(r"^\| ([a-z][\w ,]+) \|", section, re.MULTILINE)
    assert explained == list(OUTCOMES)


def shown(default: Any) -> str:
    if default is None:
        return "by data"
    if default == "":
        return "none"
    return ("off", "on")[default] if isinstance(default, bool) else str(default)


def test_options_of_train_equal_the_fields_of_the_config() -> None:
    _, text = page("command-line").split("## gradflow train\n")
    section = text.split("\n## ")[0]
    documented = {flag: default.replace("`", "") for flag, default, _ in rows(section)}
    own = {name: f" (digits: {value})" for name, value in RECIPES["digits"].fields.items()}
    assert documented == {
        f"--{field.name.replace('_', '-')}": shown(field.default) + own.get(field.name, "")
        for field in dataclasses.fields(TrainConfig)
    }


COMMANDS = [
    (path.stem, line[line.index("gradflow ") :])
    for path in sorted(DOCS.glob("*.md"))
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if "gradflow " in line
]


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=lambda value: value)
def test_commands_are_understood(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for recipe in re.findall(r"```yaml\n# recipe.yaml\n(.*?)```", page(name), re.DOTALL):
        Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    _, bound, _ = app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    config = bound.arguments.get("config")
    if "recipe.yaml" in line:
        assert (config.schedule, config.wandb, config.epochs) == ("cosine", "off", 1)


def python_blocks(name: str) -> str:
    """The Python blocks of a page in their order, at the lines where they stand on the page."""
    lines, inside = [], False
    for line in page(name).splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        lines.append(line if inside else "")
    assert any(lines), f"{name} has no Python block"
    return "\n".join(lines)


@pytest.fixture
def run_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the blocks of a page as one program, warnings being errors, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, **given: Any) -> dict[str, Any]:
        namespace = dict(given)
        exec(compile(python_blocks(name), f"{name}.md", "exec"), namespace)
        return namespace

    return run


@pytest.fixture
def trace_of_tiny_convolutions() -> Trace:
    return record_tiny_convolutions()


def record_tiny_convolutions(folder: Path | None = None) -> Trace:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, folder=folder) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.rand(2, 3, 6, 6)).square().sum().backward()
            optimizer.step()
    return recorder.trace


def test_getting_started_runs(
    run_blocks: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    last = run_blocks("getting-started")
    assert last["trace"].steps.tolist() == [0, 1, 4, 8]
    printed = capsys.readouterr().out
    for output in re.findall(
        r"```python\n.*?```\n\n```text\n(.*?)```", page("getting-started"), re.S
    ):
        assert output in printed
    for line in re.findall(r"print\(.*\)  # (.*)", page("getting-started")):
        assert f"{line}\n" in printed


def test_tutorial_runs_and_its_reports_say_what_it_says(
    run_blocks: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The warning, the losses and the top of each report; their numbers differ by machine."""
    monkeypatch.setattr("gradflow.present.report.story.charts", lambda report: [])
    last = run_blocks("tutorial")
    assert min(last["sick"] + last["levelled"]) > 2.25 > 2.0 > max(last["mended"])
    commands = re.findall(r"```bash\ngradflow (.*)\n```", page("tutorial"))
    assert [main(command.split()) for command in commands] == [0, 0]

    def words(text: str) -> str:
        return " ".join(re.sub(r"\d[\d.e+-]*", "#", text).split())

    said = words("".join(capsys.readouterr()))
    outputs = re.findall(r"```text\n(.*?)```", page("tutorial"), re.S)
    assert len(outputs) == 6
    lines = [line for one in outputs for line in one.splitlines()]
    assert [line for line in lines if words(line) not in said] == []


def test_networks_through_time_print_what_their_page_says(
    run_blocks: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run_blocks("through-time")
    outputs = re.findall(r"```python\n.*?```\n\n```text\n(.*?)```", page("through-time"), re.S)
    assert "".join(outputs) == capsys.readouterr().out


def test_study_files_on_their_page_can_be_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page("studies"), re.S)
    assert blocks
    for block in blocks:
        (tmp_path / "study.yaml").write_text(block, encoding="utf-8")
        Study.load(tmp_path / "study.yaml")


def test_measures_runs(
    run_blocks: Callable[..., dict[str, Any]], trace_of_tiny_convolutions: Trace
) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        model(torch.rand(2, 4)).sum().backward()
        optimizer.step()

    last = run_blocks(
        "measures", trace=trace_of_tiny_convolutions, model=model, optimizer=optimizer, train=train
    )
    assert last["profile"].sites == ("0.weight", "2.weight")


def test_interventions_runs(run_blocks: Callable[..., dict[str, Any]]) -> None:
    last = run_blocks("interventions")
    grads = {name: p.grad for name, p in last["model"].named_parameters()}
    assert grads["conv1.weight"].norm() > 0
    assert not last["optimizer"]._optimizer_step_pre_hooks


def test_table_of_interventions_equals_the_code() -> None:
    table = rows(page("interventions").split("## All of them\n")[1].split("\n## ")[0])
    documented = {name: re.findall(r"`(.*?)`", f"`{arguments}`") for name, arguments, *_ in table}
    assert documented == {
        kind.name: [
            field.name + ("" if field.default is dataclasses.MISSING else f"={field.default}")
            for field in dataclasses.fields(kind)
        ]
        for kind in INTERVENTIONS.values()
    }
    for name in INTERVENTIONS:
        assert f"\n### {name}\n" in page("interventions"), "each has its section"


def test_run_files_runs(run_blocks: Callable[..., dict[str, Any]]) -> None:
    network = Path("RUN/plain_18-s0")
    written = record_tiny_convolutions(network)
    torch.save(gradflow.plain_18(10, stem="small").state_dict(), network / "best.pt")
    last = run_blocks("run-files")
    assert last["trace"].sites == written.sites
    assert len(last["frame"]) == len(last["columns"]) == len(written.to_pandas())


@pytest.mark.parametrize("name", sorted(path.stem for path in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([\w-]+\.md)(?:#[\w-]+)?\)", page(name)):
        assert (DOCS / target).exists(), target
