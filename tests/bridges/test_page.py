"""The examples of docs/bridges.md run and print what they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

PAGE = Path(__file__).parents[2] / "docs" / "bridges.md"
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
LIBRARIES = {
    "Lightning": "lightning",
    "Hugging Face Trainer": "transformers",
    "Keras": "keras",
    "Accelerate": "accelerate",
}

pytestmark = [
    # Lightning 2.6 walks through nested data with a class that torch 2.15 is about to drop.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is:FutureWarning"),
    # Lightning tells where TensorBoard is missing, and logs without it.
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`:UserWarning"),
    # By default, Lightning advises to log more often and Hugging Face pins memory without a GPU.
    pytest.mark.filterwarnings(
        "ignore:The number of training batches .* is smaller than:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
    # Keras 3.15 has not followed NumPy 2 where its progress bar reads a loss.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning"),
]


def title(section: str) -> str:
    return section.partition("\n")[0]


def python_of(section: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", INTRODUCTION + section, re.DOTALL))


def run(section: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    printed: list[str] = []
    namespace: dict[str, Any] = {
        "__name__": "bridges",
        "print": lambda *values: printed.append(" ".join(map(str, values))),
        "printed": printed,
    }
    exec(compile(python_of(section), PAGE.name, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("section", SECTIONS, ids=title)
def test_examples_print_what_they_say(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(LIBRARIES[title(section)])
    promises = re.findall(r"print\(.*\)  # (.*)", python_of(section))
    assert promises
    assert run(section, tmp_path, monkeypatch)["printed"] == promises


def test_recipe_for_several_optimizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    (section,) = (section for section in SECTIONS if title(section) == "Lightning")
    page = run(section, tmp_path, monkeypatch)

    class Trains(page["Adversaries"]):  # type: ignore[misc]
        def training_step(self, noise: torch.Tensor) -> None:
            score = self.critic(self.generator(noise)).mean()
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(score)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [
                torch.optim.SGD(part.parameters(), 0.1) for part in (self.generator, self.critic)
            ]

    model = Trains()
    page["lightning"].Trainer(max_epochs=1).fit(
        model, DataLoader(torch.randn(3, 5, 4), batch_size=None)
    )
    for recorder, n_outputs in zip(model.recorders, (8, 1), strict=True):
        trace = recorder.trace
        assert trace.sites == ("", "weight", "bias")
        assert trace.sizes.tolist() == [
            5 * n_outputs,
            *(p.numel() for p in recorder.model.parameters()),
        ]
        assert len(trace) == 3
