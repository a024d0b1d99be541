"""The page in a real browser: drop, see, correct, watch, with a mouse and without."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from bloodcells.synthetic import BALANCED, draw_slide
from tests.serving import Served, served

CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=window.pwned=1>.jpg"
SECONDS_60 = 60_000

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here; install it to drive the page"
)


@dataclass
class Visit:
    """A browser window, and what happened in it that should not have."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def sign_in(self, token: str) -> None:
        self.page.goto(self.url)
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("button", name="Sign out")).to_be_visible()

    def note(self, request: Request) -> None:
        where = urlsplit(request.url)
        if where.scheme in ("http", "https", "ws") and where.netloc != urlsplit(self.url).netloc:
            self.complaints.append(f"it asked another host: {request.url}")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("page"), "--replicas", "1") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(endpoint: Served, browser: Browser) -> Iterator[Visit]:
    yield from visiting(endpoint, browser)


@pytest.fixture
def other(endpoint: Served, browser: Browser) -> Iterator[Visit]:
    """A second person, with cookies of their own."""
    yield from visiting(endpoint, browser)


def visiting(endpoint: Served, browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    visit = Visit(context.new_page(), endpoint.url)
    visit.page.on("request", visit.note)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on(
        "console",
        lambda said: (
            visit.complaints.append(said.text)
            if said.type == "error" and "status of 4" not in said.text
            else None
        ),
    )
    yield visit
    pwned = visit.page.evaluate("window.pwned")
    context.close()
    assert visit.complaints == []
    assert pwned is None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cells")
    paths = [folder / HOSTILE, *(folder / f"cell-{number}.jpg" for number in range(5))]
    for path, cell in zip(paths, draw_slide(BALANCED, 6, seed=8), strict=True):
        path.write_bytes(cell.data)
    (folder / "notes.jpg").write_bytes(b"these are notes")
    return [*paths, folder / "notes.jpg"]


def archive(seed: int, count: int) -> bytes:
    """A zip of drawn cells, one of which has a name that means no good."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as packed:
        for number, cell in enumerate(draw_slide(BALANCED, count, seed=seed)):
            packed.writestr(f"{number:03d}.jpg" if number else HOSTILE, cell.data)
    return sink.getvalue()


def drop_archive(visit: Visit, name: str, data: bytes) -> None:
    visit.page.get_by_role("link", name="Archives").click()
    chooser = visit.page.locator(".drop input")
    chooser.set_input_files({"name": name, "mimeType": "application/zip", "buffer": data})


def test_images_are_dropped_and_have_their_classes(
    endpoint: Served, visit: Visit, files: list[Path]
) -> None:
    visit.sign_in(endpoint.token)
    visit.page.locator(".drop input").set_input_files(files)
    cards = visit.page.locator(".cells > li")
    expect(visit.page.locator(".cells > li[data-state=scored]")).to_have_count(
        6, timeout=SECONDS_60
    )
    expect(visit.page.locator(".cells > li[data-state=refused]")).to_have_count(1)
    expect(cards.first.locator(".name")).to_have_text(HOSTILE)
    expect(visit.page.get_by_text("6 of 7 images classified")).to_be_visible()
    cards.first.get_by_role("button").click()
    overlay = cards.first.locator("img")
    expect(overlay).to_have_attribute("src", re.compile("^data:image/png"))


def test_an_archive_is_dropped_watched_and_corrected(
    endpoint: Served, visit: Visit, other: Visit
) -> None:
    page = visit.page
    visit.sign_in(endpoint.token)
    drop_archive(visit, "<b>slide-17.zip", archive(seed=3, count=60))
    run = page.locator(".run").first
    expect(run.locator(".state")).to_contain_text("complete: 60 of 60", timeout=SECONDS_60)
    run.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(".zip")
    expect(page.locator(".differential svg")).to_have_count(2)
    expect(page.get_by_role("link", name="slides.parquet")).to_be_visible()
    assert page.locator(".numbers th[scope=col]").count() == 3

    # Two people open the same queue; the first one answers, the second hears of it.
    page.get_by_role("link", name="Review cells", exact=True).click()
    page.get_by_label("show every cell").check()
    expect(page.get_by_text("1 of 60 cells")).to_be_visible()
    address = page.url
    other.sign_in(endpoint.token)
    other.page.goto(address)
    other.page.get_by_label("show every cell").check()
    expect(other.page.get_by_text("1 of 60 cells")).to_be_visible()
    first = page.locator(".review .cell .name").inner_text()
    assert other.page.locator(".review .cell .name").inner_text() == first

    page.locator("body").press("8")
    expect(page.get_by_text("is platelet.")).to_be_visible()
    other.page.locator("body").press("1")
    expect(other.page.get_by_text("was quicker and says platelet")).to_be_visible()
    other.page.locator("body").press("n")
    expect(other.page.get_by_text("is not a cell.")).to_be_visible()

    page.get_by_role("link", name="Back to the run").click()
    expect(page.locator(".numbers th[scope=col]")).to_have_count(4)
    expect(page.get_by_text("1 reviewed")).to_be_visible()


def test_all_of_it_works_by_keyboard(endpoint: Served, visit: Visit, files: list[Path]) -> None:
    page = visit.page
    page.goto(visit.url)
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(endpoint.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Archives")).to_be_visible()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "[document.activeElement.tagName, document.activeElement.type || '', "
            "document.activeElement.textContent.trim()].join(' ')"
        )
        reached.add(focused)
    assert any(word.startswith("INPUT file") for word in reached), reached
    assert "A  Archives" in reached and "BUTTON button Sign out" in reached, reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(
    scheme: str, endpoint: Served, visit: Visit, files: list[Path], tmp_path: Path
) -> None:
    page = visit.page
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 720})
    visit.sign_in(endpoint.token)
    page.locator(".drop input").set_input_files(files)
    expect(page.locator(".cells > li[data-state=scored]")).to_have_count(6, timeout=SECONDS_60)
    fits(page)
    drop_archive(visit, "slide-18.zip", archive(seed=4, count=12))
    run = page.locator(".run").first
    expect(run.locator(".state")).to_contain_text("complete: 12 of 12", timeout=SECONDS_60)
    fits(page)
    run.get_by_role("link").click()
    expect(page.locator(".differential svg")).to_have_count(2)
    fits(page)
    page.get_by_role("link", name="Review cells", exact=True).click()
    page.get_by_label("show every cell").check()
    expect(page.get_by_text("1 of 12 cells")).to_be_visible()
    fits(page)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(21, 18, 26)" if scheme == "dark" else "rgb(247, 245, 249)")


def fits(page: Page) -> None:
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360, page.url


def test_roles_decide_what_is_shown(endpoint: Served, visit: Visit) -> None:
    visit.sign_in(endpoint.classify_token)
    expect(visit.page.get_by_role("link", name="Cells")).to_be_visible()
    expect(visit.page.get_by_role("link", name="Archives")).to_have_count(0)
    visit.page.get_by_role("button", name="Sign out").click()
    expect(visit.page.get_by_label("Token")).to_be_visible()
    visit.page.get_by_label("Token").fill("x" * 30)
    visit.page.get_by_role("button", name="Sign in").click()
    expect(visit.page.get_by_text("This token is not known")).to_be_visible()
