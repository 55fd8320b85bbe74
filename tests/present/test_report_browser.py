"""The report's page in a real browser, on a screen and on a phone, in the light and in the dark."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow.present import plots


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium`")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        instance = driver.chromium.launch(executable_path=found, args=options, timeout=120_000)
        yield instance
        instance.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_it_asks_nothing_of_the_network_and_fits(
    browser: Any, text: str, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("#gradient-profiles .main-svg")
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    _pictures_have_the_paper_of_the_page(tab, scheme)
    _nothing_lies_over_another(tab, width)
    if width == 1280:
        figure = tab.locator("#gradient-profiles .nsewdrag").first.bounding_box()
        assert figure["y"] + 100 < 900, "the profiles begin on the first screen"
        _hover_and_see(tab)
        _switch_and_see(tab)
        _zoom_and_see(tab)
    _choices_can_be_read(tab)
    assert said == []
    context.close()


# Of every figure: where the legend, the data and the buttons stand, and which words are cut off.
BOXES = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
  const box = one => { const r = one.getBoundingClientRect();
                       return [r.left, r.top, r.right, r.bottom].map(Math.round); };
  const paper = box(plot.querySelector('.main-svg')), tools = plot.querySelector('.modebar');
  const group = getComputedStyle(tools.querySelector('.modebar-group') || tools);
  const shows = getComputedStyle(tools).display !== 'none' && group.opacity > 0;
  const is_out = b => b[0] < paper[0] - 1 || b[2] > paper[2] + 1 || b[3] > paper[3] + 1;
  const words = [...plot.querySelectorAll('text')].filter(one => one.getBoundingClientRect().width);
  return {id: plot.id, legend: plot.querySelector('.legend') && box(plot.querySelector('.legend')),
          data: box(plot.querySelector('.nsewdrag')), paper: paper, shows: shows, tools: box(tools),
          cut: words.filter(one => is_out(box(one))).map(one => one.textContent)};
})"""


def _nothing_lies_over_another(tab: Any, width: int) -> None:
    found = tab.evaluate(BOXES)
    assert {"gradient-profiles", "histograms"} <= {one["id"] for one in found}
    for one in found:
        assert 0 <= one["paper"][0] < one["paper"][2] <= width, one
        assert one["cut"] == [], one
        assert not one["shows"], "the buttons wait for the mouse"
        if one["legend"]:
            assert one["legend"][3] <= one["data"][1], "the legend stands above the data"
            assert width > 640 or one["tools"][2] == 0, "a phone has no buttons at all"
    for left, right in tab.eval_on_selector_all(
        "figure img", "all => all.map(one => [one.getBoundingClientRect().left, "
        "one.getBoundingClientRect().right])"
    ):  # fmt: skip
        assert 0 <= left < right <= width
    ticks = "all => all.map(one => one.textContent)"
    epochs = tab.eval_on_selector_all("#loss-by-epoch .xtick text", ticks)
    assert epochs == list(dict.fromkeys(epochs)), "each epoch once"
    assert all(re.fullmatch(r"\d+", one) for one in epochs)


def _choices_can_be_read(tab: Any) -> None:
    """What can be chosen stands out from what it stands on, by the browser's own colours."""
    colours = [
        tab.eval_on_selector("select", f"one => getComputedStyle(one).{one}")
        for one in ("color", "backgroundColor")
    ]
    text, ground = (np.array(re.findall(r"\d+", colour)[:3], int) for colour in colours)
    assert abs(text - ground).min() > 120


def _pictures_have_the_paper_of_the_page(tab: Any, scheme: str) -> None:
    shown = tab.eval_on_selector_all(
        "picture img", "all => all.map(one => [one.currentSrc, one.naturalWidth])"
    )
    assert shown
    for source, width in shown:
        drawing = base64.b64decode(source.split(",")[1]).decode()
        assert (plots.GROUND["dark"][0] in drawing) == (scheme == "dark")
        assert width > 100, "it could be drawn"


def _switch_and_see(tab: Any) -> None:
    """Choosing a size or a window draws other data, and choosing a network another heat map.

    A click on the name of a network hides it with its band, and the next one shows it again.
    """
    for figure, key, value in (
        ("gradient-profiles", "size", "scale_invariant"),
        ("gradient-profiles", "window", "whole"),
        ("gradient-heat-map", "network", "resnet_18"),
        ("gradient-heat-map", "size", "gradient_rms"),
    ):
        plot = f"document.getElementById('{figure}')"
        shown = f"{plot}.data.filter(one => one.visible !== false).map(one => one.meta)"
        before = tab.evaluate(shown)
        tab.select_option(f"select[data-figure='{figure}'][data-key='{key}']", value)
        after = tab.evaluate(shown)
        assert value not in {one[key] for one in before}
        assert {one[key] for one in after} == {value}
    plot = "document.getElementById('gradient-profiles')"
    drawn = f"{plot}.data.filter(one => one.visible === true && one.legendgroup === 'plain_18')"
    assert tab.evaluate(f"{drawn}.length") == 3, "a line and the edges of its band"
    buttons = tab.locator("#gradient-profiles .modebar-btn").all()
    titles = [one.get_attribute("data-title") for one in buttons]
    wanted = {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}
    assert set(titles) == wanted, "and none that sends"
    for left in (0, 3):
        tab.locator("#gradient-profiles .legendtoggle").first.click()
        for _ in range(50):  # plotly waits whether a second click comes
            if tab.evaluate(f"{drawn}.length") == left:
                break
            tab.wait_for_timeout(100)
        assert tab.evaluate(f"{drawn}.length") == left
    label = "document.getElementById('gradient-profiles').layout.yaxis.title.text"
    assert tab.evaluate(label) == "ŝ (loss)"


def _zoom_and_see(tab: Any) -> None:
    """The strip below the heat map chooses the steps: its ends are handles that can be drawn."""
    plot = "document.getElementById('gradient-heat-map')"
    tab.evaluate(f"{plot}.scrollIntoView()")
    before = tab.evaluate(f"{plot}.layout.xaxis.range")
    handle = tab.locator("#gradient-heat-map .rangeslider-grabarea-min").bounding_box()
    width = tab.locator("#gradient-heat-map .rangeslider-bg").bounding_box()["width"]
    tab.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(handle["x"] + width / 2, handle["y"] + handle["height"] / 2, steps=5)
    tab.mouse.up()
    after = tab.evaluate(f"{plot}.layout.xaxis.range")
    assert after[0] > before[0] + 0.2 * (before[1] - before[0])
    assert after[1] == pytest.approx(before[1])


def _hover_and_see(tab: Any) -> None:
    """Pointing at the heat map says which step and layer it is, and the value."""
    tab.evaluate("document.getElementById('gradient-heat-map').scrollIntoView()")
    area = tab.locator("#gradient-heat-map .nsewdrag").first.bounding_box()
    tab.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    tab.mouse.move(area["x"] + area["width"] / 2 + 2, area["y"] + area["height"] / 2)
    said = tab.wait_for_selector("#gradient-heat-map .hoverlayer .hovertext").text_content()
    assert re.search(r"step \d+.*(conv|layer).*10\^-?\d", said)
