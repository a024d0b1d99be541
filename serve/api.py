"""The web application around the routes: errors in one shape, request ids, headers, the session.

Knows nothing of Ray, models or runs; routes come from the modules that have them.
"""

import re
import time
import uuid
from collections.abc import Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloodcells.errors import BloodcellsError, NotFoundError, StorageError
from serve.doors import COOKIE, SESSION_S, Doors, Person
from serve.errors import ApiError
from serve.logs import log_failure, log_request

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
UNLOGGED: Final = ("/healthz", "/readyz")

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_api(routers: Iterable[APIRouter], doors: Doors) -> ASGIApp:
    """Put the application together.

    Args:
        routers: the routes.
        doors: who may come in.
    """
    api = FastAPI(
        title="bloodcells",
        description="Classifies blood cells of eight types. For research use: it supports a person "
        "who decides.",
        version="1",
        docs_url=None,  # its page is made of scripts from another host
        redoc_url=None,
        responses={"default": {"description": "An error", "model": ErrorBody}},
    )
    api.add_exception_handler(ApiError, _refuse)
    api.add_exception_handler(RequestValidationError, _refuse_invalid)
    api.add_exception_handler(HTTPException, _refuse_http)
    api.add_exception_handler(BloodcellsError, _refuse_ours)
    api.add_exception_handler(Exception, _fail)
    api.include_router(session_router(doors))
    for router in routers:
        api.include_router(router)
    return Envelope(api)


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(examples=["queue_full"])
    message: str = Field(examples=["Too many images wait already; try again in 2 s."])
    request_id: str = Field(examples=["f3b0c1d2"])


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class SignIn(BaseModel):
    """A token, to be changed for a cookie."""

    model_config = ConfigDict(extra="forbid")
    token: str = Field(max_length=512, examples=["the-token-that-the-operator-gave-you"])


def session_router(doors: Doors) -> APIRouter:
    """Return the routes by which the page signs in and out."""
    router = APIRouter(prefix="/v1/session", tags=["session"])

    @router.post("", status_code=204, summary="Sign in: change a token for a cookie")
    def sign_in(given: SignIn, request: Request) -> Response:
        """Set a cookie that scripts cannot read and other sites cannot send."""
        if request.headers.get("origin"):
            doors.require_own_origin(request)
        session = doors.session_for(given.token)
        if session is None:
            raise ApiError(
                401, "unauthorised", "This token is not known; check it, or ask the operator."
            )
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE,
            session,
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=doors.secure_cookies,
        )
        return response

    @router.delete("", status_code=204, summary="Sign out")
    def sign_out() -> Response:
        """Take the cookie back."""
        response = Response(status_code=204)
        response.delete_cookie(
            COOKIE, httponly=True, samesite="strict", secure=doors.secure_cookies
        )
        return response

    @router.get("", summary="Who am I")
    def session(person: Annotated[Person, Depends(doors.require())]) -> dict[str, Any]:
        """Return the name and roles that belong to the token or cookie."""
        return {"name": person.name, "roles": sorted(person.roles)}

    return router


class Envelope:
    """What every answer has, whatever route made it: a request id, headers, a line in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if request_id != given:  # else Ray Serve repeats it
                    headers["X-Request-Id"] = request_id
                headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                headers.setdefault("Cache-Control", "no-store")
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            if scope["path"] not in UNLOGGED:
                log_request(
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    person=scope["state"].get("person", ""),
                    milliseconds=round(1000 * (time.monotonic() - began), 1),
                )


def _response(error: ApiError, request_id: str) -> JSONResponse:
    return JSONResponse(error.body(request_id), error.status, headers=error.headers)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _response(error, request.state.request_id)


async def _refuse_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    told = ApiError(422, "invalid", f"{place}: {first['msg']}.")
    return _response(told, request.state.request_id)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    told = ApiError(
        error.status_code,
        codes.get(error.status_code, "bad_request"),
        f"{error.detail}; /openapi.json lists what there is.",
        headers=error.headers,
    )
    return _response(told, request.state.request_id)


async def _refuse_ours(request: Request, error: Exception) -> Response:
    """Say what the library raised; outages may name places that the client does not know."""
    if isinstance(error, NotFoundError):
        told = ApiError(404, "not_found", "There is nothing at that place.")
    elif isinstance(error, StorageError):
        log_failure(request.state.request_id, error)
        told = ApiError(
            503,
            "storage_unavailable",
            "The storage does not answer; try again.",
            headers={"Retry-After": "10"},
        )
    else:
        told = ApiError(422, "refused", str(error))
    return _response(told, request.state.request_id)


async def _fail(request: Request, error: Exception) -> Response:
    """Answer where no route foresaw the error: the client hears of nothing but the request's id.

    Starlette raises the error again afterwards, and Ray Serve logs its stack trace.
    """
    log_failure(request.state.request_id, error)
    told = ApiError(500, "internal", "Something failed here; tell the operator the request's id.")
    return _response(told, request.state.request_id)
