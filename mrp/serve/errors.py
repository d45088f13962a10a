"""Errors as the clients of OpenAI's API expect them: one object with message, type, param and code.

raise ApiError(404, "no model 'wukon'; did you mean 'wukong'?", param="model", code="model_not_found")
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mrp.errors import InputError, MrpError
from mrp.play.wire import RemoteError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
BUSY_S = 5  # the Retry-After where the server behind is busy


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """What every refusal and failure looks like."""

    error: ErrorBody


class ApiError(HTTPException):
    """A refusal: its HTTP status, what is wrong and how to mend it, and the field of the request that it is about."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_s: int | None = None
    ) -> None:
        super().__init__(status, message)  # FastAPI lets no other exception through where it reads a body
        self.status, self.message, self.param, self.code, self.retry_s = status, message, param, code, retry_s
        self.more_headers: dict[str, str] = {}

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status) or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = dict(self.more_headers)
        if self.retry_s is not None:
            headers["Retry-After"] = str(self.retry_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def as_api_error(error: BaseException) -> ApiError:
    """Any error as one that a client may see. What is not meant for people is not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RemoteError):
        if error.status in (429, 503):
            return ApiError(503, f"the model behind is busy: {error.what}", code="upstream_busy", retry_s=BUSY_S)
        return ApiError(502, f"the model behind failed: {error.what}", code="upstream_failed")
    if isinstance(error, InputError):
        return ApiError(400, one_line(error), code="invalid_input")
    if isinstance(error, MrpError):
        return ApiError(500, one_line(error), code="failed")
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        told = ApiError(error.status_code, str(error.detail), code="http_error")
        told.more_headers = dict(error.headers or {})  # such as Allow
        return told
    return ApiError(500, "a fault of this server; its log says more", code="internal_error")


def one_line(error: MrpError) -> str:
    """What happened, and how to fix it."""
    return f"{error.what}; {error.fix}" if error.fix else error.what


def _invalid(error: RequestValidationError) -> ApiError:
    """All faults of a request in one message; `param` is the field of the first."""
    faults = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"][1:] if not str(part).startswith(("function-", "list[", "str"))]
        faults.append((".".join(place) or None, str(fault["msg"]).removeprefix("Value error, ")))
    places = [place for place, _ in faults if place]
    # of a value that may be this or that, what was wrong within it says more than that it is not the other
    faults = [f for f in faults if not any(place.startswith(f"{f[0]}.") for place in places)]
    message = "; ".join(f"{place}: {text}" if place else text for place, text in faults[:20])
    where, what = faults[0]
    if field := re.match(r"[`'](\w+)[`'] is ", what):  # one that is refused, or that there is none of
        where = f"{where}.{field[1]}" if where else field[1]
    return ApiError(400, message, where, "invalid_request")


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: every exception as an answer."""
    told = as_api_error(error)
    if told.code == "http_error" and told.status in (404, 405):
        told.message = f"there is no {request.method} {request.url.path} here; /openapi.json lists what there is"
        told.code = "unknown_endpoint"
    return told.response()
