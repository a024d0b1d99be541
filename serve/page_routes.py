"""The page: a closed list of files beside this module, sent as they are.

Nothing is built and nothing comes from elsewhere; what is not in the list does not exist. Nobody
needs a token for the page itself: it holds nothing, and signs in through ``/v1/session``. Knows
nothing of what the page shows.
"""

import hashlib
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.errors import ApiError

_FOLDER: Final = Path(__file__).parent / "page"

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

INDEX: Final = "index.html"
FILES: Final = (
    "page.css",
    "icon.svg",
    "app.js",
    "archives.js",
    "cells.js",
    "classes.js",
    "classify.js",
    "differential.js",
    "dom.js",
    "follow.js",
    "queue.js",
    "requests.js",
    "review.js",
    "run.js",
    "session.js",
    "upload.js",
)
"""What ``/static/`` has."""


class PageFile:
    """A file of the page, read once.

    Args:
        name: in the folder of the page.
    """

    def __init__(self, name: str) -> None:
        self.data = (_FOLDER / name).read_bytes()
        self.media_type = _TYPES[Path(name).suffix]
        self.etag = f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 where the browser has it already.

        A browser asks each time: a page of one version with scripts of another would be a fault
        that nobody could explain.
        """
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        known = [tag.strip().removeprefix("W/") for tag in _known(request)]
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers=headers, media_type=self.media_type)


def page_router() -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)
    index = PageFile(INDEX)
    files = {name: PageFile(name) for name in FILES}

    @router.get("/")
    async def page(request: Request) -> Response:
        """Return the page."""
        return index.answer(request)

    @router.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        """Return a style, script or picture of the page."""
        if name not in files:
            raise ApiError(404, "not_found", "The page has no such file.")
        return files[name].answer(request)

    return router


def _known(request: Request) -> list[str]:
    return request.headers.get("if-none-match", "").split(",")
