"""Who may come in: bearer tokens, roles, and the page's cookie.

A person's token is given in ``Authorization: Bearer …``; the page changes it once for a cookie that
scripts cannot read and other sites cannot send. Tokens are kept as digests and compared in constant
time. Knows nothing of what lies behind the doors.

A tokens file has one person a line, ``NAME ROLES TOKEN``, roles separated by commas; lines that
begin with ``#`` are remarks. ``BLOODCELLS_TOKENS`` holds the same text, lines separated by ``;`` or
by line breaks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from bloodcells import storage
from bloodcells.errors import ConfigurationError
from serve.errors import ApiError

ROLES: Final = ("classify", "archives", "review")
COOKIE: Final = "bloodcells_session"
SESSION_S: Final = 12 * 3600
LEAST_TOKEN_CHARS: Final = 20
TOKENS_VARIABLE: Final = "BLOODCELLS_TOKENS"
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")

_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone with a token.

    Attributes:
        name: as the tokens file has it; it stands in runs and reviews.
        roles: what they may do, of ``ROLES``.
    """

    name: str
    roles: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Token:
    """A person and the sha256 of their token."""

    person: Person
    digest: bytes


class Doors:
    """Recognises people by token or cookie.

    Args:
        tokens: everybody's; at least one.
        origins: origins of the page besides the host that a request names.
        secure_cookies: whether the cookie is for https only.
    """

    def __init__(
        self, tokens: Iterable[Token], *, origins: Iterable[str] = (), secure_cookies: bool = True
    ) -> None:
        self._tokens = list(tokens)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self.secure_cookies = secure_cookies

    def require(self, *roles: str) -> Callable[[Request], Awaitable[Person]]:
        """Return a FastAPI dependency that lets in who has one of ``roles``, and names them.

        The dependency raises ``ApiError``: 401 for nobody known, 403 for a missing role or a
        request that another site made with the page's cookie.
        """

        # Waits for nothing; but a plain function would run in a thread, a fifth of the loop's time.
        async def enter(request: Request) -> Person:
            person = self.recognise(request)
            request.state.person = person.name
            if roles and not person.roles.intersection(roles):
                raise ApiError(
                    403,
                    "forbidden",
                    f"{person.name} lacks the role {' or '.join(roles)}; ask the operator for it.",
                )
            return person

        return enter

    def recognise(self, request: Request) -> Person:
        """Return who sends a request.

        Raises:
            ApiError: 401 or 403.
        """
        given = request.headers.get("authorization")
        if given is not None:
            scheme, _, token = given.partition(" ")
            person = self.by_token(token.strip()) if scheme.lower() == "bearer" else None
            if person is None:
                raise _unknown("This token is not known; check it, or ask the operator for one.")
            return person
        session = request.cookies.get(COOKIE)
        person = self.by_session(session) if session else None
        if person is None:
            raise _unknown("Send a token in 'Authorization: Bearer …', or sign in on the page.")
        if request.method not in SAFE_METHODS:
            self.require_own_origin(request)
        return person

    def by_token(self, token: str) -> Person | None:
        """Return whose token it is; takes as long for a wrong one as for a right one."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = None
        for known in self._tokens:
            if hmac.compare_digest(known.digest, digest):
                found = known.person
        return found

    def session_for(self, token: str) -> str | None:
        """Return a cookie's value for a token, good for ``SESSION_S``; ``None`` if not known."""
        person = self.by_token(token)
        if person is None:
            return None
        stated = f"{person.name}.{int(time.time()) + SESSION_S}"
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        return f"{_base64(stated.encode())}.{_base64(_signature(digest, stated))}"

    def by_session(self, value: str) -> Person | None:
        """Return whose cookie it is; ``None`` if it is forged, expired, or its token is gone."""
        try:
            first, _, second = value.partition(".")
            stated, given = _unbase64(first).decode(), _unbase64(second)
            expires = int(stated.rpartition(".")[2])
        except ValueError:
            return None
        found = None
        for known in self._tokens:
            if hmac.compare_digest(_signature(known.digest, stated), given):
                found = known.person
        return found if time.time() < expires else None

    def require_own_origin(self, request: Request) -> None:
        """Refuse what another site's page sends; browsers state the origin of such requests.

        Raises:
            ApiError: 403, the origin is another or is not stated.
        """
        origin = request.headers.get("origin", "")
        host = request.headers.get("host", "").lower()
        if origin.lower() in self._origins or (host and urlsplit(origin).netloc.lower() == host):
            return
        raise ApiError(
            403,
            "foreign_origin",
            "The page's cookie is good for requests of the page alone; programs send a token in "
            "'Authorization: Bearer …'.",
        )


def read_tokens(tokens_file: str) -> list[Token]:
    """Read the tokens from a file, or where none is named from ``BLOODCELLS_TOKENS``.

    Raises:
        ConfigurationError: there are none, or a line is not ``NAME ROLES TOKEN``.
        StorageError: the file cannot be read.
    """
    if tokens_file:
        origin = tokens_file
        text = storage.read(storage.normalise(tokens_file)).decode("utf-8", "replace")
    else:
        origin, text = TOKENS_VARIABLE, os.environ.get(TOKENS_VARIABLE, "").replace(";", "\n")
    tokens = [
        _token_of(line.split(), f"{origin}, line {number}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not tokens:
        raise ConfigurationError(
            f"{origin} holds no token; give lines 'NAME ROLES TOKEN' in the file that tokens_file "
            f"names, or in {TOKENS_VARIABLE}. Nobody could come in without"
        )
    names = [token.person.name for token in tokens]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"{origin} names {twice[0]} twice; give each person one line")
    return tokens


def _token_of(words: list[str], where: str) -> Token:
    if len(words) != 3 or not _NAME.fullmatch(words[0]):
        raise ConfigurationError(f"{where} is not 'NAME ROLES TOKEN'; its three words are needed")
    name, roles, token = words
    unknown = sorted(set(roles.split(",")) - set(ROLES))
    if unknown:
        raise ConfigurationError(f"{where}: no role {unknown[0]!r}; there are {', '.join(ROLES)}")
    if len(token) < LEAST_TOKEN_CHARS:
        raise ConfigurationError(
            f"{where}: the token of {name} has fewer than {LEAST_TOKEN_CHARS} characters; make "
            "one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    person = Person(name=name, roles=frozenset(roles.split(",")))
    return Token(person=person, digest=hashlib.sha256(token.encode()).digest())


def _unknown(message: str) -> ApiError:
    return ApiError(401, "unauthorised", message, headers={"WWW-Authenticate": "Bearer"})


def _signature(key: bytes, stated: str) -> bytes:
    return hmac.new(key, f"session {stated}".encode(), hashlib.sha256).digest()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
