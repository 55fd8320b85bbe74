"""Set-up: README, CI and CONTRIBUTING say the same, and the pinned versions are whole."""

import re
import tomllib
from pathlib import Path

import pytest

import gradflow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_runs_the_readmes_test_command_and_the_lines_of_contributing() -> None:
    (command,) = re.findall(r"^python3 -m venv .*pytest$", read("README.md"), re.MULTILINE)
    ci = read(".ci/run")
    assert command in ci
    for line in ("ruff check . && ruff format --check .", "mypy"):
        assert f"\n{line}\n" in ci
        assert f"{line}\n" in read("CONTRIBUTING.md")


def test_pinned_requirements_are_complete_with_hashes_and_without_urls() -> None:
    pinned = read("requirements.txt")
    assert "://" not in pinned
    assert "Python 3.11 on Linux" in pinned
    blocks = re.split(r"\n(?=\w)", re.sub("^#.*\n", "", pinned, flags=re.MULTILINE))
    names = {re.split(r"[=\[ ]", block)[0].lower() for block in blocks}
    assert all("==" in block and "--hash=sha256:" in block for block in blocks)
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    for requirement in wanted:
        assert re.split(r"[<>=\[]", requirement)[0].lower() in names, requirement


def test_versions_agree() -> None:
    assert PROJECT["version"] == gradflow.__version__
    assert f"[{gradflow.__version__}]" in read("CHANGELOG.md")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_to_files_of_the_repository_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", read(name)):
        assert (ROOT / target).exists(), target
