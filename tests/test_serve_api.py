"""What every answer has, and what a client hears of an error that nobody foresaw."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

from bloodcells.cells import CLASSES
from bloodcells.errors import StorageError, UnavailableError
from serve.api import create_api
from serve.doors import Doors

PAGE = Path(__file__).parents[1] / "serve" / "page"


def client(router: APIRouter) -> TestClient:
    return TestClient(create_api([router], Doors([])), raise_server_exceptions=False)


def test_an_unforeseen_error_is_for_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    router = APIRouter()

    @router.get("/broken")
    def broken() -> None:
        raise KeyError("a secret of the server")

    with caplog.at_level(logging.INFO, "ray.serve.bloodcells"):
        answer = client(router).get("/broken", headers={"X-Request-Id": "mine-7"})
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "code": "internal",
        "message": "Something failed here; tell the operator the request's id.",
        "request_id": "mine-7",
    }
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "a secret of the server" in caplog.text and "mine-7" in caplog.text
    assert '"status": 500' in caplog.text


def test_an_outage_is_no_fault_of_the_client() -> None:
    router = APIRouter()

    @router.get("/out")
    def out() -> None:
        raise UnavailableError("/inner/place does not answer")

    answer = client(router).get("/out")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "10"
    assert "/inner/place" not in answer.text
    assert issubclass(UnavailableError, StorageError)


def test_a_request_id_that_could_forge_a_line_is_replaced() -> None:
    router = APIRouter()
    given = 'x" , "person": "root'
    answer = client(router).get("/nothing", headers={"X-Request-Id": given})
    assert answer.status_code == 404
    assert re.fullmatch(r"[0-9a-f]{32}", answer.json()["error"]["request_id"])
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


def test_the_page_knows_the_classes_in_their_order() -> None:
    """The order is that of the keys which choose a class in review."""
    text = (PAGE / "classes.js").read_text()
    listed = text[text.index("CLASSES = [") : text.index("];")]
    assert tuple(re.findall(r'"(\w+)"', listed)) == CLASSES
    style = (PAGE / "page.css").read_text()
    assert all(f".c-{name.replace('_', '-')}" in style for name in CLASSES)
