"""A person at the page: a tab of a real Chromium, and all that it complained of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, FilePayload, Page, expect

from tests.serving import Served

PATIENCE_MS = 60_000
SCREENSHOTS = os.environ.get("BLOODCELLS_SCREENSHOTS", "")
"""A folder for pictures of what the tests saw; empty for none."""

WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


class Visit:
    """One person's tab, and all that the browser complained of.

    Args:
        context: of the browser; it holds the person's cookie.
        url: of the endpoint.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        context.add_init_script(WATCH_POLICY)
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on(
            "console",
            lambda told: (
                self.complaints.append(told.text) if told.type in ("error", "warning") else None
            ),
        )

    def _asked(self, url: str) -> None:
        if urlsplit(url).scheme not in ("blob", "data"):
            self.hosts.add(urlsplit(url).netloc)

    def sign_in(self, token: str) -> Page:
        self.page.goto(self.url)
        expect(self.page.get_by_label("Token")).to_be_focused()
        self.page.keyboard.insert_text(token)
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("button", name="Sign out")).to_be_visible()
        return self.page

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Give files to the box, as a person who chose them."""
        self.page.locator(".drop input").set_input_files(
            [FilePayload(name=name, mimeType="", buffer=data) for name, data in files]
        )

    def drop(self, path: Path) -> None:
        """Let a file fall on the box."""
        data = self.page.evaluate_handle(
            """([name, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], name));
              return data;
            }""",
            [path.name, list(path.read_bytes())],
        )
        box = self.page.locator(".drop").first
        for kind in ("dragenter", "dragover", "drop"):
            box.dispatch_event(kind, {"dataTransfer": data})

    def picture(self, name: str) -> None:
        if SCREENSHOTS:
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)

    def require_fits(self) -> None:
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{self.page.url} is {wide} px too wide"

    def require_well_behaved(self, *but: str) -> None:
        """No other host, no broken policy, no failed script; ``but`` are complaints to expect."""
        assert self.hosts == {urlsplit(self.url).netloc}
        assert [c for c in self.complaints if not any(part in c for part in but)] == []
        assert self.page.evaluate("window.violations") == []
        assert self.page.evaluate("window.pwned") is None


@contextlib.contextmanager
def visit(browser: Browser, endpoint: Served, **settings: Any) -> Iterator[Visit]:
    expect.set_options(timeout=PATIENCE_MS)
    with contextlib.closing(browser.new_context(**settings)) as context:
        yield Visit(context, endpoint.url)
