"""The HTTP interface: the fields of a form, error answers, the state of a job, and their
description."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from kithkin.messages import one_line
from kithkin.web._jobs import Busy
from kithkin.web._pictures import Refused

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_errors(app: "FastAPI") -> None:
    """Every refusal is ``{"detail": sentence}``."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        detail = f"the server has as many pictures as it takes; try again in {error.seconds} seconds"
        return JSONResponse({"detail": detail}, 503, {"Retry-After": str(error.seconds)})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(_fault(e) for e in error.errors())
        return JSONResponse({"detail": f"{request.url.path}: {faults}; see /docs for what it takes"}, 422)

    @app.exception_handler(HTTPException)
    async def refused_by_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        path = one_line(request.url.path)[:100]
        detail = {
            404: f"{path}: there is nothing here; see /docs for what there is",
            405: f"{path}: does not take {request.method}; see /docs for what it takes",
        }.get(error.status_code, str(error.detail))
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        detail = "the server failed on this request, which is a fault in kithkin; please report it"
        return JSONResponse({"detail": detail}, 500)


def _fault(error: Mapping[str, Any]) -> str:
    """What is wrong with a field, in words that a user of curl knows."""
    name = ".".join(str(part) for part in error["loc"][1:]) or "the form"
    if error["type"] == "missing":
        return f"{name}: is missing"
    if name == "picture":
        return f"{name}: expected a file, got text; with curl: -F {name}=@photo.jpg"
    return f"{name}: {error['msg']}"


def strict(*fields: str) -> Any:
    """A dependency that refuses query parameters, fields of a form that are not among these, and
    fields given twice."""
    from fastapi import Depends, Request

    async def check(request: Request) -> None:
        path = request.url.path
        if request.query_params:
            name = next(iter(request.query_params))
            place = f"as a field of the form: -F {name}=…" if name in fields else "see /docs for what it takes"
            raise Refused(422, f"{path}: takes no query parameters, got {name[:60]!r}; {place}")
        given = [name for name, _ in (await request.form()).multi_items()] if fields else []
        for name in given:
            if name not in fields:
                near = get_close_matches(name, fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(fields)}"
                raise Refused(422, f"{path}: no field is called {name[:60]!r}; {hint}")
            if given.count(name) > 1:
                raise Refused(422, f"{path}: {name} is given {given.count(name)} times; give it once")

    return Depends(check)


class JobState(BaseModel):
    """What is known of a job."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    ahead: Annotated[int, Field(description="Pictures that come before it.")]
    fraction: Annotated[float, Field(description="From 0 to 1, of the work.")]
    eta_seconds: Annotated[float, Field(description="About so many seconds until it is finished.")]
    tiles: Annotated[
        list[tuple[int, int, int, int]],
        Field(description="Left, top, width and height of the finished tiles, while it runs and was given a view."),
    ]
    detail: Annotated[str | None, Field(description="Why it failed, else null.")] = None


def documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that takes a picture and gives these types: only what FastAPI can't know itself."""
    refusals = {
        408: "The upload took too long.",
        413: "Too many bytes or pixels.",
        415: "Not a picture of a known format.",
        422: "A damaged picture, a field that is missing or unknown, or a value that is not taken.",
        503: "The queue is full (see Retry-After)" + (", or the picture took too long." if kinds else "."),
    }
    file: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {} for kind in kinds}}} if kinds else {}
    return {**file, **{status: {"description": text, "model": Refusal} for status, text in refusals.items()}}


class Refusal(BaseModel):
    """A sentence that says what was wrong and what to do."""

    detail: str


NO_JOB: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such job (any more).", "model": Refusal}}
