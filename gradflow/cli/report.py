"""`gradflow report`: one page with all of it."""

import sys
from pathlib import Path

from gradflow.cli.console import show, show_json
from gradflow.cli.diagnose import newest_run
from gradflow.cli.options import OK, Flag, Output


def report(
    *runs: Path,
    accused: str | None = None,
    reference: str | None = None,
    images: str | None = None,
    static: Flag = False,
    output: Output = None,
    json: Flag = False,
) -> int:
    """Write one page with the results of runs: verdict, figures, accuracies, how to repeat them.

    The page needs no network and no other file. The same is written as Markdown and JSON, with
    every figure as SVG and PNG, on white and on dark paper.

    Parameters
    ----------
    runs
        Folders as for `diagnose`; by default the newest run in runs/.
    accused
        The network that is said to suffer from vanishing gradients; by default the first.
    reference
        The network to compare it with; by default the other one.
    images
        The folder of the training images, for the worst mistakes. Required for a run that you did
        not train on this machine.
    static
        Leave out plotly.js (5 MB): the figures are pictures, without hovering.
    output
        The page, whose name ends in .html; by default report.html in the first run's folder.
    json
        Print the numbers as one JSON object on stdout.
    """
    from gradflow.present.letter import letter, profiles
    from gradflow.present.report import page
    from gradflow.present.report.content import collect
    from gradflow.present.report.numbers import to_json
    from gradflow.present.report.story import answer, charts
    from gradflow.present.study_story import study_section
    from gradflow.present.terminal_plot import can_show_braille

    runs = runs or (newest_run(),)
    path = page.page_path(runs, output)
    content = collect(runs, accused=accused, reference=reference, images=images)
    written = page.write(content, charts(content), path, static=static)
    if json:
        show_json(to_json(content))
    else:
        show(letter(answer(content)))
        if content.verdict is not None:
            show(profiles(content.verdict, braille=can_show_braille(sys.stdout.encoding)))
        if content.study is not None:
            show("", letter(study_section(content.study)))
        show(f"\nreport   {written[0]}", f"also     {', '.join(one.name for one in written[1:])}")
    return OK
