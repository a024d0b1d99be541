"""Who comes in: tokens, roles, cookies, origins; and which places may be named."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.requests import Request

from bloodcells.errors import ConfigurationError
from serve.doors import COOKIE, Doors, Person, Token, read_tokens
from serve.errors import ApiError
from serve.places import Places

ANNA, BEN = "a" * 30, "b" * 30


@pytest.fixture
def tokens(tmp_path: Path) -> list[Token]:
    path = tmp_path / "tokens"
    path.write_text(f"# who may come in\nanna classify,review {ANNA}\n\nben archives {BEN}\n")
    return read_tokens(str(path))


def request(method: str = "POST", **headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "headers": raw, "path": "/", "query_string": b""}
    return Request(scope)


def refused(doors: Doors, asked: Request, *roles: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        enter(doors, asked, *roles)
    return caught.value


def enter(doors: Doors, asked: Request, *roles: str) -> Person:
    async def wait() -> Person:
        return await doors.require(*roles)(asked)

    return asyncio.run(wait())


def test_a_token_opens_the_doors_of_its_roles(tokens: list[Token]) -> None:
    doors = Doors(tokens)
    assert enter(doors, request(authorization=f"Bearer {ANNA}"), "classify").name == "anna"
    error = refused(doors, request(authorization=f"Bearer {ANNA}"), "archives")
    assert (error.status, error.code) == (403, "forbidden") and "anna" in error.message


@pytest.mark.parametrize(
    "given", ["Bearer wrong", "Bearer", f"Basic {ANNA}", f"Bearer {ANNA[:-1]}", "Bearer \udcff"]
)
def test_whoever_is_not_known_stays_outside(tokens: list[Token], given: str) -> None:
    raw = [(b"authorization", given.encode("utf-8", "surrogateescape"))]
    asked = Request({"type": "http", "method": "GET", "headers": raw, "path": "/"})
    error = refused(Doors(tokens), asked)
    assert error.status == 401 and error.headers["WWW-Authenticate"] == "Bearer"


def test_a_wrong_token_is_not_saved_by_a_good_cookie(tokens: list[Token]) -> None:
    doors = Doors(tokens)
    cookie = f"{COOKIE}={doors.session_for(ANNA)}"
    assert refused(doors, request("GET", authorization="Bearer x", cookie=cookie)).status == 401


def test_the_cookie_is_good_for_the_page_alone(tokens: list[Token]) -> None:
    doors = Doors(tokens, origins=["https://cells.lab.example/"])
    cookie = f"{COOKIE}={doors.session_for(ANNA)}"
    seen = request("GET", cookie=cookie, host="here:8000")
    assert enter(doors, seen, "review").name == "anna"
    own = request(cookie=cookie, host="here:8000", origin="http://here:8000")
    listed = request(cookie=cookie, host="inner", origin="https://cells.lab.example")
    assert enter(doors, own).name == enter(doors, listed).name == "anna"
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {},
        {"origin": "http://here:8000.evil.example"},
    ):
        error = refused(doors, request(cookie=cookie, host="here:8000", **headers))
        assert (error.status, error.code) == (403, "foreign_origin")


def test_cookies_cannot_be_forged_or_outlive_their_token(
    tokens: list[Token], monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = Doors(tokens)
    good = doors.session_for(ANNA)
    assert good is not None and doors.session_for("c" * 30) is None
    stated, signature = good.split(".")
    others = doors.session_for(BEN)
    assert others is not None
    for forged in ("", ".", "x", f"{stated}.", f"{others.split('.')[0]}.{signature}", good[:-2]):
        assert doors.by_session(forged) is None, forged
    assert Doors(tokens[1:]).by_session(good) is None
    monkeypatch.setattr("time.time", lambda: 1e12)
    assert doors.by_session(good) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "holds no token"),
        ("# nobody", "holds no token"),
        (f"anna {ANNA}", "line 1"),
        (f"anna everything {ANNA}", "everything"),
        ("anna classify short", "fewer than 20"),
        (f"anna classify {ANNA}\nanna review {BEN}", "twice"),
        (f"<b> classify {ANNA}", "line 1"),
    ],
)
def test_a_tokens_file_that_would_not_do_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=word) as caught:
        read_tokens(str(path))
    assert ANNA not in str(caught.value), "an error message is no place for a token"


def test_tokens_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODCELLS_TOKENS", f"anna classify {ANNA};ben archives {BEN}")
    assert [token.person.name for token in read_tokens("")] == ["anna", "ben"]
    monkeypatch.delenv("BLOODCELLS_TOKENS")
    with pytest.raises(ConfigurationError, match="BLOODCELLS_TOKENS"):
        read_tokens("")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("slides", "slides-evil", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "slides" / "out").symlink_to("/etc")
    (tmp_path / "slides" / "in").symlink_to(tmp_path / "runs")
    return Places(
        read=[str(tmp_path / "slides"), "s3://lab/slides"],
        write=[str(tmp_path / "runs"), "s3://runs"],
    )


def test_what_lies_below_a_prefix_is_allowed(places: Places, tmp_path: Path) -> None:
    assert places.require_readable(f"{tmp_path}/slides/a.tar") == f"{tmp_path}/slides/a.tar"
    assert places.require_readable(f"{tmp_path}/slides/in") == f"{tmp_path}/runs"
    assert places.require_readable("s3://lab/slides/") == "s3://lab/slides"
    assert places.require_readable("s3://runs/7") == "s3://runs/7"
    assert places.require_writable("s3://runs/7") == "s3://runs/7"


@pytest.mark.parametrize(
    "given",
    [
        "/etc/passwd",
        "{tmp}",
        "{tmp}/slides-evil/a.tar",
        "{tmp}/slides/../slides-evil",
        "{tmp}/slides/out/passwd",
        "s3://lab",
        "s3://lab-evil/slides",
        "s3://lab/slides-evil",
        "s3://other",
    ],
)
def test_what_lies_elsewhere_is_not(places: Places, tmp_path: Path, given: str) -> None:
    with pytest.raises(ApiError) as caught:
        places.require_readable(given.format(tmp=tmp_path))
    assert (caught.value.status, caught.value.code) == (403, "place_not_allowed")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "slides/a.tar",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "s3://169.254.169.254:80/x",
        "s3://lab/slides/../../other",
        "s3://lab/slides//x",
        "s3://lab/./slides",
        "s3://Lab/slides",
        "s3://user@lab/slides",
        "zip://a.tar::s3://lab/slides",
        "{tmp}/slides/*.tar",
        "{tmp}/slides/a#b",
        "{tmp}/slides/a\x00b",
        "{tmp}/slides/a\nb",
        "gs://lab/slides",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(
    places: Places, tmp_path: Path, given: str
) -> None:
    with pytest.raises(ApiError) as caught:
        places.require_readable(given.format(tmp=tmp_path))
    assert (caught.value.status, caught.value.code) == (422, "bad_uri")


def test_reading_gives_no_right_to_write(places: Places, tmp_path: Path) -> None:
    for given in (f"{tmp_path}/slides/run", "s3://lab/slides/run"):
        with pytest.raises(ApiError):
            places.require_writable(given)
