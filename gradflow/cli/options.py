"""Exit codes, kinds of options that several commands have, and what the help shows beside them."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.help import DefaultFormatter, HelpPanel, InlineText
from rich.console import Console, ConsoleOptions
from rich.text import Text

from gradflow.training.config import TrainConfig

OK, FAILED, USAGE, JUDGED, INTERRUPTED = 0, 1, 2, 3, 130

Flag = Annotated[bool, Parameter(negative=())]
Output = Annotated[Path | None, Parameter(name=("--output", "-o"))]


# -- what the help shows: where to start, commands to copy, groups of options ----------------------

START = """Start here:
  your own loop   with gradflow.watch(model, optimizer, folder="records"): ...
  then            gradflow report records
  or try it out   gradflow train --arch both --log-grads    (digits, 2 minutes)
"""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "gradflow train --arch both --log-grads",
        "gradflow train --data photos/ --arch both --log-grads --max-overhead 2%",
        "gradflow train --arch resnet_18 --optimizer sgd --lr 0.1 --epochs 30",
        "gradflow train --arch both --seeds 5 --log-grads --wandb online",
    ),
    "watch": ("gradflow watch runs/20261124-101500-digits",),
    "data": ("gradflow data photos/",),
    "saliency": ("gradflow saliency image.jpg --method occlusion",),
    "check": ("gradflow check resnet50 --input 3,224,224",),
    "diagnose": ("gradflow diagnose plain-s0 plain-s1 residual-s0 residual-s1",),
    "compare": ("gradflow compare --size scale_invariant",),
    "report": ("gradflow report records-of-today",),
    "study": ("gradflow study experiments/studies/digits-30-epochs.yaml --plan",),
    "wandb-panels": ("gradflow wandb-panels --entity my-team",),
    "bench": ("gradflow bench --arch plain_34 --image-size 32",),
}

# Of the options of `train`, by the field that begins each; the others follow in their order.
GROUPS = {
    "data": "Data",
    "arch": "Network",
    "seeds": "Training",
    "device": "Machine",
    "alarms": "Recording",
    "wandb": "Output",
}


class Flowing(DefaultFormatter):
    """The library's own panels, in which an explanation is one paragraph."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        for entry in panel.entries:
            said = entry.description
            if isinstance(said, InlineText) and isinstance(said.primary_renderable, Text):
                said.primary_renderable = Text(" ".join(said.primary_renderable.plain.split()))
        super().__call__(console, options, panel)


def description(docstring: str) -> str:
    """Of a command, what stands above its parameters: a line for each paragraph.

    >>> description('''Say it.
    ...
    ...     In many
    ...     words.
    ...
    ...     Parameters
    ...     ----------
    ... ''')
    'Say it.\\n\\nIn many words.'
    """
    above = docstring.partition("Parameters\n")[0]
    paragraphs = (" ".join(one.split()) for one in above.split("\n\n"))
    return "\n\n".join(filter(None, paragraphs))


def epilogue(command: str) -> str:
    lines = EXAMPLES[command]
    return "\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *(f"  {line}" for line in lines)])


def _set_groups(config: type[TrainConfig]) -> None:
    """Tell the fields of the config in which group of `train --help` they stand.

    Here and not in the class, since only the command line knows the library that reads them.
    """
    group = None
    for field in fields(config):
        group = Group.create_ordered(GROUPS[field.name]) if field.name in GROUPS else group
        config.__annotations__[field.name] = Annotated[field.type, Parameter(group=group)]


_set_groups(TrainConfig)
Config = Annotated[TrainConfig, Parameter(name="*")]  # one option for each of its fields
ConfigFile = Annotated[Path | None, Parameter(name="--config")]
SlurmOptions = Annotated[dict[str, str] | None, Parameter(name="--slurm")]
