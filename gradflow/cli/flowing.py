"""Help as running text: a docstring's lines end where its file's do, not a terminal's."""

from cyclopts.help import DefaultFormatter, HelpPanel, InlineText
from rich.console import Console, ConsoleOptions
from rich.text import Text


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
