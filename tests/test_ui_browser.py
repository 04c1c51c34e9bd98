"""`semu ui` in a real browser: every control does what it says, nothing is asked of anyone else, readable at any width."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patches import random_patch
from saved_models import saved_model
from test_report_browser import LOW_CONTRAST, browser  # noqa: F401  (a fixture)
from test_ui import run_with
from text_models import tiny_pipeline
from tiny_models import tiny_model

from semu_diffusion.pipelines.runs.folder import status_of
from semu_diffusion.pipelines.ui import server
from semu_diffusion.pipelines.ui.desk import Desk
from semu_diffusion.pipelines.ui.pictures import Studio
from semu_diffusion.pipelines.ui.shelf import Shelf

Open = Callable[..., Any]
PATIENCE = 180_000  # milliseconds that a step may take


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    home = tmp_path_factory.mktemp("ui")
    saved_model(home / "my-ddpm")
    tiny_pipeline().save_pretrained(home / "my-sd")
    run_with(random_patch(tiny_pipeline().unet, size=0.5), home / "runs" / "no-cat")
    run_with(random_patch(tiny_model().denoiser, size=0.5), home / "runs" / "no-red")
    desk = Desk(Shelf(home / "runs", (str(home / "my-ddpm"), str(home / "my-sd"))), Studio("cpu"))
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def address(browser: Any, desk: Desk) -> Iterator[str]:  # noqa: F811
    pytest.importorskip("gradio", reason="gradio is not installed")
    server.require_gradio()
    listening = server.listen("127.0.0.1", 0)
    running = server.server(server.application(desk))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    running.should_exit = True
    thread.join()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Open]:  # noqa: F811
    """Opens the page; at the end none may have logged an error, or asked another address than the server's for anything."""
    trouble: list[str] = []
    contexts: list[Any] = []

    def opened(width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.on("console", lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None)
        context.on("weberror", lambda error: trouble.append(str(error.error)))
        context.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else trouble.append(asked.url))
        context.on("response", lambda found: trouble.append(f"{found.status} {found.url}") if found.status >= 400 else None)
        page = context.new_page()
        page.goto(address)
        page.locator("#patches").get_by_text(
            re.compile("red$")
        ).first.wait_for()  # the newest patch is picked: the page is ready
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not trouble


def pictures(page: Any, side: str) -> list[str]:
    return page.locator(f"#pictures img.{side}").evaluate_all("all => all.map(one => one.src)")


def choose(page: Any, where: str, option: str) -> None:
    page.locator(f"{where} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def set_number(page: Any, where: str, value: int) -> None:
    page.locator(f"{where} input[type=number]").fill(str(value))


def erase(page: Any, what: str, steps: int) -> None:
    page.get_by_role("tab", name="Erase").click()
    choose(page, "#what", what)
    page.get_by_text("Settings").click()
    for where, value in (("#training-steps", steps), ("#images", 2), ("#sampling-steps", 2)):
        set_number(page, where, value)
    page.click("#start")


def test_a_class_is_drawn_and_strength_0_shows_the_same_picture_twice(open_page: Open) -> None:
    page = open_page()
    choose(page, "#class", "green")
    page.click("#draw")
    page.locator("#pictures img.erased[alt='erased: green, seed 0']").wait_for()
    (first,), (second,) = pictures(page, "original"), pictures(page, "erased")
    assert first.startswith("data:image/png")
    assert first != second
    strength = page.locator("#strength input[type=range]")
    box = strength.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    page.get_by_text("The same to the bit.").wait_for()
    assert strength.input_value() == "0"
    assert pictures(page, "original") == pictures(page, "erased") == [first]
    page.mouse.click(box["x"] + box["width"] * 2 / 3, box["y"] + box["height"] / 2)
    page.get_by_text("only the patch differs").wait_for()
    set_number(page, "#count", 4)
    set_number(page, "#seed", 5)
    page.click("#draw")
    page.locator("#pictures img[alt='original: green, seed 8']").wait_for()
    assert len(set(pictures(page, "original") + pictures(page, "erased"))) == 8


def test_a_prompt_that_is_typed_for_a_text_model_is_drawn_before_and_after(open_page: Open) -> None:
    page = open_page()
    choose(page, "#model", "my-sd")
    page.locator("#patches").get_by_text("no-cat").first.wait_for()
    assert not page.locator("#class").is_visible()
    words = page.locator("#prompt textarea, #prompt input")
    words.fill("a photo of a cat")
    page.click("#draw")
    page.locator("#pictures img.erased[alt='erased: a photo of a cat, seed 0']").wait_for()
    (first,), (second,) = pictures(page, "original"), pictures(page, "erased")
    assert first != second
    widths = page.locator("#pictures img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert len(widths) == 2
    assert all(widths)
    words.fill("a dog at night")
    page.keyboard.press("Enter")
    page.locator("#pictures img.original[alt='original: a dog at night, seed 0']").wait_for()
    assert pictures(page, "original") != [first]


def test_an_erasure_shows_how_far_it_is_and_stops(open_page: Open, desk: Desk) -> None:
    page = open_page()
    erase(page, "blue", 100_000)
    page.get_by_text("training R").wait_for()
    assert int(page.locator("#job progress").get_attribute("max")) == 100_000
    assert page.locator("#start").is_disabled()
    page.click("#stop")
    page.locator("#job .status").wait_for()
    assert page.inner_text("#job .status") == "interrupted"
    assert status_of(desk.shelf.folder / "blue") == "interrupted"
    assert page.locator("#stop").is_disabled()


def test_an_erasure_ends_in_a_run_whose_report_opens_and_whose_patch_is_picked(open_page: Open, desk: Desk) -> None:
    page = open_page()
    erase(page, "red", 2)
    ended = page.locator("#job p", has_text="red:").locator(".status")  # not that of the erasure before it
    ended.wait_for()
    assert ended.inner_text() == "complete"
    assert status_of(desk.shelf.folder / "red") == "complete"
    with page.expect_popup() as opened:
        page.click("#job a.report")
    report = opened.value
    report.locator("[role=tab]").first.wait_for()
    report.click("#tab-protocol")
    assert report.locator("#protocol").is_visible()
    assert "red" in report.inner_text("h1")
    page.get_by_role("tab", name="Runs").click()
    row = page.locator("#runs tr", has=page.get_by_role("rowheader", name="red", exact=True))
    assert row.locator("td").first.inner_text() == "complete"
    page.get_by_role("tab", name="Look").click()
    page.locator("#patches input").click()
    page.get_by_role("option", name="red", exact=True).click()
    page.click("#draw")
    page.get_by_text("only the patch differs").wait_for()


def test_what_is_wrong_is_said_on_the_page(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("tab", name="Erase").click()
    page.click("#start")
    page.locator("#refused .problem").wait_for()
    assert re.search("nothing to erase", page.inner_text("#refused"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_overflows_and_every_text_can_be_read(open_page: Open, scheme: str, width: int) -> None:
    page = open_page(width, color_scheme=scheme)
    page.click("#draw")
    page.locator("#pictures img.erased").wait_for()
    for tab in ("Look", "Erase", "Runs"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(LOW_CONTRAST) == []


def test_a_file_of_the_folder_is_reached_by_no_address(address: str, desk: Desk, open_page: Open) -> None:
    page = open_page()
    for path in (desk.shelf.patch("no-red"), Path("/etc/hosts")):
        found = page.request.get(f"{address}gradio_api/file={path}")
        assert found.status == 404
