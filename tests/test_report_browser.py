"""A report in a real browser: no error, nothing fetched, every control by mouse and keyboard, readable at any width."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import benchmark, run  # noqa: F401  (fixtures)

from semu_diffusion.pipelines.cli.main import main as semu

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TABS = ("erased", "kept", "depth", "patch", "protocol")

# Every visible text on the page with less contrast against what is behind it than WCAG's AA asks for.
LOW_CONTRAST = """() => {
  const numbers = (colour) => {
    const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (numbers(colour)[3] > 250) return light(numbers(colour));
    }
    return 1;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(".skip")) continue;
    const style = getComputedStyle(element);
    const ink = light(numbers(element instanceof SVGElement ? style.fill : style.color)), paper = behind(element);
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) found.push(`${element.tagName} ${element.textContent.trim().slice(0, 30)} ${contrast.toFixed(2)}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file; at the end no page may have logged an error or asked for anything but the file itself."""
    trouble: list[str] = []
    pages: list[Any] = []

    def opened(path: Path, width: int = 1200, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.on("console", lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith((path.as_uri(), "data:")) else trouble.append(asked.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not trouble


@pytest.fixture
def report(run: Path) -> Path:  # noqa: F811
    return run / "report.html"


def shown(page: Any) -> list[str]:
    return [name for name in TABS if page.locator(f"#{name}").is_visible()]


def test_tabs_work_by_mouse_by_keyboard_and_by_address(report: Path, open_page: Open) -> None:
    page = open_page(report)
    assert shown(page) == ["erased"]
    for name in TABS:
        page.click(f"#tab-{name}")
        assert shown(page) == [name]
        assert page.get_attribute(f"#tab-{name}", "aria-selected") == "true"
    page.focus("#tab-protocol")
    walk = (("ArrowRight", "erased"), ("ArrowRight", "kept"), ("End", "protocol"), ("ArrowLeft", "patch"), ("Home", "erased"))
    for key, name in walk:
        page.keyboard.press(key)
        assert shown(page) == [name]
        assert page.evaluate("document.activeElement.id") == f"tab-{name}"
    page.keyboard.press("Tab")  # the other tabs are not in the way
    assert page.evaluate("document.activeElement.closest('[role=tablist]')") is None
    page.goto(f"{report.as_uri()}#patch")
    page.reload()
    assert shown(page) == ["patch"]


def test_the_slider_wipes_from_before_to_after(report: Path, open_page: Open) -> None:
    page = open_page(report)
    pair = page.locator("#erased .pair").first
    both = [pair.locator(f".{name}").bounding_box() for name in ("before", "after")]
    assert both[0]["x"] < both[1]["x"]  # side by side at first
    assert not page.locator("#erased .wipe").is_visible()
    page.check("#erased input[value=slider]")
    both = [pair.locator(f".{name}").bounding_box() for name in ("before", "after")]
    assert both[0] == both[1]
    slider = page.locator("#erased .wipe input")
    clips = []
    for key in ("Home", "End", "ArrowLeft"):
        slider.press(key)
        clips.append(pair.locator(".after").evaluate("one => getComputedStyle(one).clipPath"))
    assert clips == ["inset(0px 0px 0px 0%)", "inset(0px 0px 0px 100%)", "inset(0px 0px 0px 99%)"]


def test_blinking_is_a_choice_and_stands_still_for_who_asked_for_it(report: Path, open_page: Open) -> None:
    for motion, name in (("no-preference", "blink"), ("reduce", "none")):
        page = open_page(report, reduced_motion=motion)
        after = page.locator("#erased .pair .after").first
        assert after.evaluate("one => getComputedStyle(one).animationName") == "none"
        page.check("#erased input[value=blink]")
        assert after.evaluate("one => getComputedStyle(one).animationName") == name


def test_filters_show_what_they_count(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.click("#tab-kept")
    everything = page.locator("#kept .card:visible").count()
    button = page.locator("#kept [data-filter=changed_most]")
    count = int(button.locator("span").inner_text())
    button.click()
    assert page.locator("#kept .card:visible").count() == count
    assert page.inner_text("#kept .shown") == f"{count} of {everything} shown"
    page.click("#kept [data-filter='']")
    assert page.locator("#kept .card:visible").count() == everything


def test_a_picture_opens_its_details_and_closes_by_keyboard(report: Path, open_page: Open) -> None:
    page = open_page(report)
    first = page.locator("#erased .open").first
    first.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    dialog = page.locator("#detail")
    assert dialog.is_visible()
    assert "red" in dialog.inner_text()
    assert "seed" in dialog.inner_text()
    assert dialog.locator(".three img:visible").count() == 3  # before, after, anchor
    top = dialog.locator("ol.top").first.locator("li").all_inner_texts()
    shares = [float(item.split()[-2]) for item in top]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    seed = page.inner_text(".sub")
    dialog.get_by_text("next →").click()
    assert page.inner_text(".sub") != seed
    dialog.locator(".wipe input").press("End")
    assert dialog.locator(".compare .after").evaluate("one => getComputedStyle(one).clipPath") == "inset(0px 0px 0px 100%)"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.className") == "open"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_nothing_overflows_and_every_text_can_be_read(
    report: Path,
    benchmark: Path,  # noqa: F811
    tmp_path: Path,
    open_page: Open,
    scheme: str,
    width: int,
) -> None:
    several = tmp_path / "several.html"
    assert semu(["report", str(report.parent), str(report.parent), str(benchmark), "--output", str(several)]) == 0
    for path in (report, several):
        page = open_page(path, width, color_scheme=scheme)
        for tab in TABS if path == report else [""]:
            if tab:
                page.click(f"#tab-{tab}")
            page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(LOW_CONTRAST) == []
        if path == report:
            page.click("#tab-erased")
            page.locator("#erased .open").first.click()
            box = page.locator("#detail").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert page.evaluate("(one => one.scrollWidth <= one.clientWidth)(document.getElementById('detail'))")
            assert page.evaluate(LOW_CONTRAST) == []


MARKS = """plot => [...plot.querySelectorAll(".point")].map((point) => {
  const text = point.querySelector("text"), number = (name) => Number(text.getAttribute(name));
  return [point.getAttribute("transform"), point.getAttribute("display") === "none", number("x"), number("y")];
})"""


def test_the_axes_of_the_front_can_be_chosen(benchmark: Path, tmp_path: Path, open_page: Open) -> None:  # noqa: F811
    several = tmp_path / "several.html"
    assert semu(["report", str(benchmark), "--output", str(several)]) == 0
    page = open_page(several)
    first, _, third, _ = page.locator(".front .plot").all()
    old = first.evaluate(MARKS)
    page.select_option(".front select >> nth=1", "UA")
    drawn, expected = first.evaluate(MARKS), third.evaluate(MARKS)  # which shows the same from the start
    assert drawn != old
    for one, other in zip(drawn, expected, strict=True):
        where = [list(map(float, found[0].removeprefix("translate(").rstrip(")").split(","))) for found in (one, other)]
        assert [*where[0], *one[1:]] == pytest.approx([*where[1], *other[1:]], abs=0.1)
    assert first.get_attribute("aria-label") == third.get_attribute("aria-label")
    assert first.locator(".y").inner_html() == third.locator(".y").inner_html()
    plain = open_page(several, java_script_enabled=False)
    assert plain.locator(".front .plot:visible").count() == 4
    assert plain.locator(".front select:visible").count() == 0


def test_print_and_a_browser_without_scripts_show_everything(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.emulate_media(media="print", color_scheme="dark")
    assert shown(page) == list(TABS)
    assert not page.locator(".tabs").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    plain = open_page(report, java_script_enabled=False)
    assert shown(plain) == list(TABS)
    assert plain.locator(".controls:visible").count() == 0


def test_a_line_to_copy_is_copied_or_marked(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.click("#tab-patch")
    button = page.locator(".copy").first
    button.click()
    page.wait_for_function("one => one.textContent !== 'Copy'", arg=button.element_handle())
    assert button.inner_text() in ("Copied", "Marked")
