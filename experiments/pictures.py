"""The pictures of docs/tutorial.md and of the front page: what a reader sees of a real training.

    python experiments/pictures.py       # two minutes on 2 cores; needs playwright and Chromium

The page's own Python blocks and its last report are run in a folder of their own. `terminal.svg` is
the screen of a terminal while the sick network trains, `report-top.png` the top of the report,
`gallery/histograms.png` one of the figures of the first.
W&B draws its pages on its servers, so that there is none without an account.
"""

import io
import os
import pty
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 96  # columns of the terminal
TOP = {"width": 1280, "height": 860}  # of the page, in pixels
CODE = re.compile(r"\r|\n|\x1b\[(\d*)([A-Za-z])|\x1b\[\?\d+[hl]")


def main() -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    first, last = re.findall(r"```bash\n(gradflow report .*?)\n```", text)
    with tempfile.TemporaryDirectory() as room:
        os.chdir(room)
        Path("first.py").write_text(blocks[0], encoding="utf-8")
        screen = next(one for one in reversed(list(screens("first.py"))) if "by depth" in one)
        save_terminal(screen, DOCS / "images" / "terminal.svg")
        shutil.rmtree("sick-s0")
        Path("all.py").write_text("\n".join(blocks[:3]), encoding="utf-8")
        runpy.run_path("all.py")
        subprocess.run([sys.executable, "-m", *first.split()], check=True)
        shutil.copy("sick-s0/figures/histograms.png", DOCS / "images" / "gallery")
        subprocess.run([sys.executable, "-m", *last.split()], check=True)
        save_top(Path("sick-s0", "report.html"), DOCS / "images" / "report-top.png")


def screens(script: str) -> Iterator[str]:
    """What stands on a terminal after each piece that a program writes, with its colours."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"}
        os.execv(sys.executable, [sys.executable, script])
    screen = Screen()
    try:
        while piece := os.read(terminal, 2**16):
            screen.write(piece.decode(errors="replace"))
            yield "\n".join(screen.lines)
    except OSError:  # the end, on Linux
        pass
    os.waitpid(child, 0)


class Screen:
    """As much of a terminal as rich needs: whole lines, the cursor up, and erasing a line."""

    def __init__(self) -> None:
        self.lines, self._row = [""], 0

    def write(self, text: str) -> None:
        end = 0
        for code in CODE.finditer(text):
            if code[2] == "m":  # a colour stays with its text
                continue
            self.lines[self._row] += text[end : code.start()]
            end = code.end()
            if code[0] == "\n":
                self._row += 1
                self.lines += [""] * (self._row == len(self.lines))
            elif code[2] == "A":
                self._row = max(0, self._row - int(code[1] or 1))
            elif code[2] == "K":
                self.lines[self._row] = ""
        self.lines[self._row] += text[end:]


def save_terminal(screen: str, path: Path) -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("$ python loop.py", style="bold"))
    shown = Text.from_ansi(screen.rstrip())
    # On its own: its characters are as wide as the others in a terminal, but not in every font.
    shown.highlight_regex(r"[\u2800-\u28ff]+", "cyan")
    console.print(shown)
    drawn = console.export_svg(title="a loop under gradflow.watch")
    # Without the fonts that rich has from the web: a picture in a page may load nothing.
    path.write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.S), encoding="utf-8")


def save_top(page: Path, path: Path) -> None:
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport=TOP)
        tab.goto(page.absolute().as_uri(), timeout=120_000)
        tab.wait_for_timeout(2000)  # until plotly has drawn
        tab.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main()
