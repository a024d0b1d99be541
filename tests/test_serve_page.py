"""The page in a real headless Chromium at a real server: drop, see, correct, watch a run finish."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    FilePayload,
    Page,
    Route,
    expect,
    sync_playwright,
)

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.synthetic import BALANCED, ImageFile, draw_slide, write_archive
from tests.serving import Served, believing, served
from tests.visits import Visit, visit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=window.pwned=1>.jpg"
NUM_CELLS = 40

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    credulous = folder / "bundle"
    believing(ModelBundle.load(shipped_bundle_uri())).save(str(credulous))
    with served(folder, "--replicas", "1", "--bundle", str(credulous)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-quic"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


@pytest.fixture
def anna(browser: Browser, endpoint: Served) -> Iterator[Visit]:
    with visit(browser, endpoint) as guest:
        guest.sign_in(endpoint.token)
        yield guest


@pytest.fixture(scope="module")
def cells() -> list[bytes]:
    return [cell.data for cell in draw_slide(BALANCED, 70, seed=3, size_px=120)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = list(draw_slide(BALANCED, NUM_CELLS, seed=11))
    drawn[0] = ImageFile(name=HOSTILE, label=None, data=drawn[0].data)
    folder = tmp_path_factory.mktemp("slides")
    return write_archive(folder / "slide-17.zip", drawn, "zip", labelled=False)


@pytest.fixture(scope="module")
def run_id(endpoint: Served, slide: Path) -> str:
    """A finished run, begun without the page."""
    with endpoint.client() as client:
        kind = {"Content-Type": "application/zip"}
        name = "/v1/archives?name=slide-17.zip"
        answer = client.post(name, content=slide.read_bytes(), headers=kind)
        assert answer.status_code == 202, answer.text
        view: dict[str, Any] = answer.json()
        with client.stream("GET", f"/v1/archives/{view['id']}/events") as events:
            assert "event: end" in list(events.iter_lines())
        run: str = view["id"]
    return run


def card(page: Page, name: str) -> Any:
    return page.locator(".cells li").filter(has=page.get_by_text(name, exact=True))


def a_class() -> re.Pattern[str]:
    return re.compile("|".join(name.replace("_", " ") for name in CLASSES))


# The page's files


def test_the_page_is_a_closed_list_of_files(endpoint: Served) -> None:
    with httpx.Client(base_url=endpoint.url, trust_env=False) as nobody:
        index = nobody.get("/")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        assert 'lang="en"' in index.text and "research use" in index.text
        asked = re.findall(r'(?:href|src)="(/[^"]*)"', index.text)
        assert "/static/app.js" in asked
        scripts = [path for path in asked if path.endswith(".js")]
        while scripts:  # and what they import in turn
            script = nobody.get(scripts.pop())
            assert script.headers["content-type"] == "text/javascript; charset=utf-8"
            assert "innerHTML" not in script.text and "http:" not in script.text.replace(
                "http://www.w3.org/2000/svg", ""
            )
            found = [f"/static/{n}" for n in re.findall(r'from "\./([^"]+)"', script.text)]
            scripts += [path for path in found if path not in asked]
            asked += found
        for path in set(asked):
            answer = nobody.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["cache-control"] == "no-cache"
            again = nobody.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304 and again.content == b""
        for path in ("/static/", "/static/page_routes.py", "/static/..%2fdoors.py", "/static/x.js"):
            assert nobody.get(path).status_code == 404


# Signing in


def test_a_wrong_token_stays_outside_and_signing_out_ends_it(
    browser: Browser, endpoint: Served
) -> None:
    with visit(browser, endpoint) as guest:
        page = guest.page
        page.goto(endpoint.url)
        guest.require_well_behaved()  # not even the 401 of somebody who has not signed in yet
        page.get_by_label("Token").fill("no such token, though long enough")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not known")
        page.get_by_label("Token").fill(endpoint.classify_token)
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name="Cells")).to_be_visible()
        expect(page.get_by_role("link", name="Archives")).to_have_count(0)  # ben may not
        page.reload()
        expect(page.locator(".drop")).not_to_contain_text(".zip")
        page.goto(f"{endpoint.url}/#/archives")
        expect(page.get_by_role("heading", name="Cells")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        page.reload()
        expect(page.get_by_label("Token")).to_be_visible()
        guest.require_well_behaved("status of 401")


# Single cells


def test_cells_are_shown_with_class_doubts_and_errors(anna: Visit, cells: list[bytes]) -> None:
    files = [(f"cell-{n}.jpg", data) for n, data in enumerate(cells)]  # more than one request takes
    anna.choose(*files, (HOSTILE, cells[0]), ("notes.jpg", b"no image"))
    page = anna.page
    expect(page.locator(".summary")).to_contain_text("71 of 72 images classified")
    assert page.locator(".cells li").count() == 72
    for name in ("cell-0.jpg", "cell-69.jpg", HOSTILE):
        expect(card(page, name)).to_contain_text(a_class())
        expect(card(page, name)).to_contain_text(re.compile(r"\d\.\d %"))
    expect(card(page, "notes.jpg")).to_contain_text("Cannot be scored")
    assert page.locator("img[src=x]").count() == 0
    drawn = card(page, "cell-0.jpg").locator("img")
    assert drawn.evaluate("async (image) => { await image.decode(); return image.naturalWidth }")
    doubtful = page.locator('.cells li[data-doubtful="true"]')
    flagged = page.locator(".cells li").filter(has=page.locator(".flag"))
    assert doubtful.count() == flagged.count()
    page.locator(".summary").get_by_role("combobox").select_option("without a class")
    expect(card(page, "notes.jpg")).to_be_visible()
    expect(card(page, "cell-0.jpg")).to_be_hidden()
    anna.require_well_behaved()


def test_where_the_model_looked_is_shown_on_demand(anna: Visit, cells: list[bytes]) -> None:
    anna.choose(("one.jpg", cells[0]), ("two.jpg", cells[1]))
    page = anna.page
    button = card(page, "one.jpg").get_by_role("button", name="Show where the model looked")
    button.click()
    picture = card(page, "one.jpg").locator("img")
    expect(picture).to_have_attribute("src", re.compile("^data:image/png;base64,"))
    assert picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth }")
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    expect(card(page, "one.jpg").locator("img")).to_have_attribute("src", re.compile("^blob:"))
    anna.picture("cells")
    anna.require_well_behaved()


def test_a_busy_endpoint_is_waited_for(anna: Visit, cells: list[bytes]) -> None:
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        error = {"code": "queue_full", "message": "Too many images wait.", "request_id": "x"}
        route.fulfill(status=503, headers={"Retry-After": "2"}, json={"error": error})

    anna.page.route("**/v1/classify", refuse_once)
    anna.choose(("one.jpg", cells[0]))
    expect(anna.page.get_by_text("The endpoint is busy; going on in 2 s")).to_be_visible()
    expect(card(anna.page, "one.jpg")).to_contain_text(a_class())
    expect(anna.page.get_by_text("The endpoint is busy")).to_have_count(0)
    anna.require_well_behaved("status of 503")


# Archives and review


def test_a_dropped_archive_is_watched_until_it_is_complete(anna: Visit, slide: Path) -> None:
    anna.drop(slide)
    page = anna.page
    run = page.get_by_role("list", name="Archive runs").get_by_role("listitem").first
    expect(run).to_contain_text("slide-17.zip")
    expect(run.locator(".status")).to_have_text("complete")
    expect(run).to_contain_text(f"{NUM_CELLS} of {NUM_CELLS} images scored")
    run.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("slide-17.zip")
    bars = page.get_by_role("img", name=re.compile("^Machine, .* 95 % interval"))
    expect(bars).to_have_count(len(CLASSES))
    for name in ("Report", "slides.parquet"):
        expect(page.get_by_role("link", name=name)).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="slides.parquet").click()
    assert download.value.path().read_bytes()[:4] == b"PAR1"
    with page.expect_popup() as report:
        page.get_by_role("link", name="Report").click()
    expect(report.value.get_by_role("heading", level=1)).to_contain_text(f"{NUM_CELLS}")
    assert report.value.evaluate("typeof window.pwned") == "undefined"
    anna.require_well_behaved()


def test_a_store_that_may_not_be_read_is_refused_in_words(anna: Visit) -> None:
    page = anna.page
    page.get_by_role("link", name="Archives").click()
    page.get_by_text("Or name a store").click()
    page.get_by_label("Folder, archive or table").fill("/etc")
    page.get_by_role("button", name="Score it").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    anna.require_well_behaved("status of 4")


def open_queue(guest: Visit, run_id: str) -> str:
    """Open a run's queue; returns the URI of its first cell once that can be judged."""
    guest.page.goto(f"{guest.url}/#/archives/{run_id}/review")
    return judged(guest.page)


def judged(page: Page, *, but: str = "") -> str:
    """Wait until a cell other than ``but`` can be judged, and return its URI."""
    name = page.locator(".picture .uri")
    if but:
        expect(name).not_to_have_attribute("title", but)
    expect(page.locator(".choices button").first).to_be_enabled()
    return name.get_attribute("title") or ""


def said(endpoint: Served, run_id: str, uri: str) -> tuple[str | None, int]:
    """What people say of a cell, and how often they spoke."""
    with endpoint.client() as client:
        found = client.get(f"/v1/archives/{run_id}/review", params={"all": "true", "limit": 200})
        (cell,) = [c for c in found.json()["cells"] if c["image_uri"] == uri]
    return cell["reviewed_class"], cell["revision"]


def test_a_correction_stands_beside_the_machine(anna: Visit, endpoint: Served, run_id: str) -> None:
    page = anna.page
    first = open_queue(anna, run_id)
    picture = page.get_by_role("img", name="The cell")
    assert picture.evaluate("(image) => image.naturalWidth")
    anna.picture("review")
    page.keyboard.press(str(CLASSES.index("basophil") + 1))
    second = judged(page, but=first)
    page.keyboard.press("n")
    third = judged(page, but=second)
    machine = page.locator(".verdict > .class").inner_text()
    page.keyboard.press("Enter")
    judged(page, but=third)
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".standing")).to_contain_text("anna said")
    assert said(endpoint, run_id, first) == ("basophil", 1)
    assert said(endpoint, run_id, second) == ("not_a_cell", 1)
    confirmed, revision = said(endpoint, run_id, third)
    assert confirmed is not None and revision == 1
    assert machine.startswith(confirmed.replace("_", " "))
    page.get_by_role("link", name="Back to the run").click()
    expect(page.get_by_role("columnheader", name="Corrected by people").first).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Corrected by people, "))).to_have_count(8)
    expect(page.get_by_text("3 cells of them reviewed by people")).to_be_visible()
    anna.picture("run")
    anna.require_well_behaved()


def test_a_cell_is_not_judged_unseen(anna: Visit, endpoint: Served, run_id: str) -> None:
    page = anna.page
    page.route("**/image?*", lambda route: route.abort())
    page.goto(f"{anna.url}/#/archives/{run_id}/review")
    expect(page.get_by_text("The picture cannot be shown")).to_be_visible()
    uri = page.locator(".picture .uri").get_attribute("title") or ""
    page.keyboard.press("Enter")
    page.keyboard.press("3")
    expect(page.locator(".choices button").first).to_be_disabled()
    assert said(endpoint, run_id, uri) == (None, 0)


def test_of_two_people_the_second_decides_knowingly(
    anna: Visit, endpoint: Served, run_id: str
) -> None:
    page = anna.page
    uri = open_queue(anna, run_id)
    with endpoint.client(endpoint.review_token) as other:
        given = {"image_uri": uri, "class": "monocyte", "revision": 0}
        assert other.post(f"/v1/archives/{run_id}/reviews", json=given).status_code == 201
    page.keyboard.press(str(CLASSES.index("platelet") + 1))
    expect(page.get_by_role("alert")).to_contain_text(
        re.compile("cara reviewed this cell while you looked.*monocyte.*Yours is not saved")
    )
    assert said(endpoint, run_id, uri) == ("monocyte", 1)
    page.keyboard.press("4")  # no key decides while the question stands
    page.get_by_role("button", name="Say platelet all the same").click()
    judged(page, but=uri)
    assert said(endpoint, run_id, uri) == ("platelet", 2)
    anna.require_well_behaved("status of 409")


def test_names_of_an_archives_members_stay_text(anna: Visit, run_id: str) -> None:
    page = anna.page
    open_queue(anna, run_id)
    page.get_by_label("also cells that the model is sure of").check()
    expect(page.get_by_text(f"1 of {NUM_CELLS}")).to_be_visible()
    name = page.locator(".picture .uri")
    for place in range(2, NUM_CELLS + 1):
        if name.inner_text() == HOSTILE:
            break
        page.keyboard.press("Tab")  # the keys work wherever the focus is, but in a field
        page.get_by_role("button", name="Skip").click()
        expect(page.get_by_text(f"{place} of {NUM_CELLS}")).to_be_visible()
    expect(name).to_have_text(HOSTILE)
    assert page.locator("img[src=x]").count() == 0
    anna.require_well_behaved()


# Keyboard and phone


def test_the_keyboard_is_enough(browser: Browser, endpoint: Served, cells: list[bytes]) -> None:
    with visit(browser, endpoint) as guest:
        # Before it is needed: on a busy machine the browser learns of it late.
        chosen = FilePayload(name="a.jpg", mimeType="", buffer=cells[0])
        guest.page.on("filechooser", lambda chooser: chooser.set_files(chosen))
        page = guest.sign_in(endpoint.token)
        reach(page, ".drop input")
        page.keyboard.press("Enter")
        expect(card(page, "a.jpg")).to_contain_text(a_class())
        reach(page, ".looking button")
        page.keyboard.press("Enter")
        expect(page.locator(".cells img")).to_have_attribute("src", re.compile("^data:"))
        page.get_by_role("link", name="Archives").focus()
        page.keyboard.press("Enter")
        reach(page, ".starting summary")
        page.keyboard.press("Enter")
        reach(page, "#store")
        guest.require_well_behaved()


def reach(page: Page, selector: str) -> None:
    """Press Tab until something has the focus, and shows it."""
    page.locator(selector).first.wait_for(state="attached")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            break
    else:
        raise AssertionError(f"Tab never comes to {selector}")
    assert page.evaluate(
        """() => [document.activeElement, document.activeElement.parentElement]
          .some((element) => getComputedStyle(element).outlineStyle === "solid")"""
    ), f"{selector} does not show that it has the focus"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(
    browser: Browser, endpoint: Served, cells: list[bytes], run_id: str, scheme: Any
) -> None:
    phone = {"width": 360, "height": 740}
    with visit(browser, endpoint, viewport=phone, color_scheme=scheme) as guest:
        page = guest.page
        page.goto(endpoint.url)
        guest.require_fits()
        guest.sign_in(endpoint.token)
        anyway = "a-name-without-any-space-" * 8
        guest.choose(
            (f"{anyway}.jpg", cells[0]),
            ("notes.jpg", b"no image"),
            *((f"{number}.jpg", data) for number, data in enumerate(cells[1:31])),
        )
        expect(page.locator(".summary")).to_contain_text("31 of 32 images classified")
        expect(page.locator(".legend")).to_contain_text("immature granulocyte")  # the longest
        guest.require_fits()
        guest.picture(f"phone-{scheme}-cells")
        page.goto(f"{endpoint.url}/#/archives")
        page.get_by_text("Or name a store").click()
        expect(page.locator(".runs li .status").first).to_be_visible()
        guest.require_fits()
        page.goto(f"{endpoint.url}/#/archives/{run_id}")
        expect(page.get_by_role("img", name=re.compile("neutrophil")).first).to_be_visible()
        expect(page.locator(".files li").first).to_be_visible()
        guest.require_fits()
        guest.picture(f"phone-{scheme}-run")
        open_queue(guest, run_id)
        guest.require_fits()
        guest.picture(f"phone-{scheme}-review")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
        guest.require_well_behaved()
