"""The structure: imports point one way, heavy libraries have owners, `import gradflow` is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradflow
import gradflow.controls
import gradflow.interventions

PACKAGE = Path(gradflow.__file__).parent

# A part may import the parts to its left.
ORDER = ["version", "typed", "files", "lazy", "architectures", "nets", "record", "bridges", "data",
         "analysis", "examine", "controls", "interventions", "training", "studies", "present",
         "cli"]  # fmt: skip

OWNERS = {
    "captum": {"present/saliency/methods.py", "present/saliency/trust.py"},
    "matplotlib": {
        "present/plots/style.py",
        "present/plots/profiles.py",
        "present/plots/saliency.py",
        "present/plots/results.py",
    },
    "plotly": {"present/report/interactive.py"},
    "jinja2": {"present/report/page.py"},
    "wandb": {"present/tracking/wandb_sink.py", "present/tracking/wandb_workspace.py"},
    "wandb_workspaces": {"present/tracking/wandb_workspace.py"},
    "tensorboard": {"present/tracking/tensorboard_sink.py"},
    "sklearn": {
        "training/evaluate.py",
        "data/split.py",
        "data/sources.py",
        "examine/rank.py",
    },
    "imagehash": {"data/twins.py"},
    "torchvision": {"data/sources.py", "examine/factories.py"},
    "triton": {"record/triton_device.py", "record/triton_kernel.py"},
    "cyclopts": {"cli/entry.py", "cli/options.py"},
    "lightning": {"bridges/lightning.py"},
    "pytorch_lightning": {"bridges/lightning.py"},
    "transformers": {"bridges/transformers.py"},
    "keras": {"bridges/keras.py"},
    "joblib": {"studies/engine.py"},
    "distributed": {"studies/engine.py"},
    "ray": {"studies/engine.py"},
    "submitit": {"studies/engine.py"},
    "filelock": {"files.py"},
}

FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
)


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.append(str(node.module))
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way_and_heavy_libraries_have_one_owner(path: Path) -> None:
    here = path.relative_to(PACKAGE).as_posix()
    for name in imported(path):
        root, _, rest = name.partition(".")
        theirs = rest.split(".")[0]
        if root == "gradflow" and rest:
            assert ORDER.index(theirs) <= ORDER.index(part(path)), f"{here} imports {name}"
        assert here in OWNERS.get(root, {here}), f"{root} belongs to {OWNERS[root]}, not {here}"
        assert root != "torch" or part(path) != "analysis", f"{here} must not need torch"
        if part(path) in ("record", "bridges"):
            assert root != "gradflow" or theirs in ("record", "files", "typed", "lazy"), (
                f"{here} imports {name}"
            )


def needs(path: Path) -> set[str]:
    """The modules that a file imports, now or when it comes to it; not what it names for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found & set(FILES)


def circle(graph: dict[str, set[str]]) -> tuple[str, ...]:
    """One in the graph, or none: what is left when all that need nothing that is left are gone."""
    left = dict(graph)
    while done := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in done}
    return tuple(sorted(left))


def test_no_module_needs_one_that_needs_it() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ("a", "b", "c")
    assert not circle({name: needs(path) - {name} for name, path in FILES.items()})


def loaded_by(statement: str) -> set[str]:
    """The top-level names of the modules, and the modules themselves."""
    code = f"import sys; {statement}; print(*sys.modules, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    modules = result.stderr.split()
    return {*modules, *(name.split(".")[0] for name in modules)}


HEAVY = {*OWNERS, "torch", "numpy", "accelerate", "pyarrow", "pandas", "scipy", "PIL"}


def test_importing_gradflow_is_light() -> None:
    assert not loaded_by("import gradflow") & (HEAVY | {"rich", "yaml"})
    assert loaded_by("import gradflow.nets") >= {"torch"}, "this test can fail"


def test_help_waits_for_nothing_but_its_own_library() -> None:
    help_ = "from gradflow.cli import main; main(['train', '--help'])"
    assert loaded_by(help_) & HEAVY == {"cyclopts"}


def test_a_diagnosis_needs_no_torch() -> None:
    """Beside what draws its figure: NumPy, a part of scipy, and what reads the records."""
    modules = ("training.diagnosis", "studies", "present.figures", "present.letter")
    loaded = loaded_by(
        "; ".join(f"import gradflow.{module}" for module in modules)
        + "; from gradflow.studies import StudyDir"
    )
    assert not loaded & (HEAVY - {"numpy", "scipy", "matplotlib", "PIL", "filelock"})
    assert "scipy.stats" not in loaded


def test_public_names_are_the_list_of_the_front_door() -> None:
    assert all(hasattr(gradflow, name) for name in gradflow.__all__)


@pytest.mark.parametrize("package", ["controls", "record", "studies"])
def test_no_name_that_is_looked_up_late_is_also_a_module(package: str) -> None:
    """Importing the module would put it in the place of what has its name."""
    code = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    late = [node for node in ast.walk(code) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in late for alias in node.names}
    assert len(names) > 5
    assert not names & {path.stem for path in (PACKAGE / package).glob("*.py")}


def test_old_names_still_work_and_say_so() -> None:
    with pytest.warns(DeprecationWarning, match="controls.Case is now called KnownNetwork"):
        assert gradflow.controls.Case is gradflow.controls.KnownNetwork
    with pytest.warns(DeprecationWarning, match="interventions.Evidence is now called CheckInputs"):
        assert gradflow.interventions.Evidence is gradflow.interventions.CheckInputs
    with pytest.warns(DeprecationWarning, match="`n_classes` is now called num_classes"):
        assert gradflow.plain_18(n_classes=3, stem="small", width=0.125).fc.out_features == 3
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with pytest.warns(DeprecationWarning, match="`input` is now called input_size"):
        assert gradflow.check(net, input=(4,), draws=1).layers == ("0", "1")


def test_every_file_that_the_page_on_architecture_names_is_there() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+[\w.]*)`", page)
    assert len(named) > 30
    assert [name for name in named if not (PACKAGE / name).exists()] == ["docs/measures.md"]
    assert set(ORDER[ORDER.index("record") :]) <= set(re.findall(r"\w+", page))


def test_no_file_is_too_long_to_read_at_once() -> None:
    # terminal.py is on its way to be smaller.
    long = {path.name for path in MODULES if path.read_text(encoding="utf-8").count("\n") > 400}
    assert long <= {"terminal.py"}
