"""The application: its routes, and what they answer."""

import asyncio
import inspect
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from kithkin import __version__
from kithkin.errors import InputError
from kithkin.images import readable
from kithkin.model import KiT
from kithkin.names import TASKS
from kithkin.neighbors import attention_places
from kithkin.precision import settled_precision
from kithkin.restore_options import PRESETS, RestoreOptions, default_preset
from kithkin.restorers import restore_image
from kithkin.web._api_page import api_page
from kithkin.web._guard import Guard
from kithkin.web._interface import NO_JOB, JobState, Refusal, add_errors, documented, strict
from kithkin.web._jobs import Answer, Job, Jobs, Problem
from kithkin.web._limits import Limits
from kithkin.web._pictures import MEDIA_TYPES, Refused
from kithkin.web._service import JobService, ServedModel, place, response

if TYPE_CHECKING:
    from fastapi import FastAPI

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".webp": "image/webp"}
_VIEW = r"^\d{1,6},\d{1,6}$|^$"
_WARM_UPS = (64, 192)
"""Sides of pictures that are restored before the first one comes: a first pass is slower, the
second tells the pace."""


def create_app(
    models: Mapping[str, ServedModel], *, limits: Limits | None = None, host_names: Iterable[str] = ()
) -> "FastAPI":
    """The page and the HTTP interface as an ASGI application. Pictures stay in memory, for a short time.

    Args:
        models: from ``served_models``, the first one is taken where a request names none.
        limits: None takes the defaults.
        host_names: names that the server answers to, besides IP addresses and localhost.

    Raises:
        InputError: no models.
        ImportError: the extra ``web`` is not installed.
    """
    from fastapi import FastAPI

    if not models:
        raise InputError("serve: expected at least one model, got none")
    limits = limits or Limits()
    jobs = Jobs(limits)

    @asynccontextmanager
    async def lifespan(app: "FastAPI") -> AsyncIterator[None]:
        jobs.start([_warm_up(model, side) for model in models.values() for side in _WARM_UPS])
        yield
        await asyncio.to_thread(jobs.close)

    app = FastAPI(
        title="kithkin",
        version=__version__,
        description="Restores photographs. Nothing is stored.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    add_errors(app)
    _add_page(app)
    _add_about(app, models, limits)
    service = JobService(jobs, models, limits)
    _add_restore(app, service)
    _add_jobs(app, service)
    app.add_middleware(Guard, limits=limits, names=host_names)
    return app


def _warm_up(model: ServedModel, side: int) -> Job:
    def run(progress: Callable[[float], None]) -> Answer:
        restorer = RestoreOptions(precision=model.precision).compose(model.network, note=lambda sentence: None)
        restore_image(restorer, torch.full((3, side, side), 0.5))
        return Answer(b"", "text/plain", "")

    return Job(f"restore {model.name} auto", "warm-up", side**2, 0, run)


def _add_page(app: "FastAPI") -> None:
    from fastapi.responses import HTMLResponse, Response

    folder = resources.files("kithkin") / "web" / "page"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in _KINDS}

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return Response(files["index.html"], media_type=_KINDS[".html"])

    @app.get("/page/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        if name not in files:
            raise Refused(404, "the page has no such part")
        return Response(files[name], media_type=_KINDS[Path(name).suffix])

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(api_page(app.openapi()))


def _add_about(app: "FastAPI", models: Mapping[str, ServedModel], limits: Limits) -> None:
    listed = [
        {
            "name": model.name,
            "task": model.task,
            "removes": TASKS.get(model.task, model.name),
            "summary": model.summary,
            "preset": default_preset(model.task),
            "precision": settled_precision(model.precision, model.network),
            "attention": isinstance(model.network, KiT) and bool(attention_places(model.network)),
        }
        for model in models.values()
    ]

    formats = readable()
    presets = {name: dict(zip(("luma", "chroma", "detail"), values, strict=True)) for name, values in PRESETS.items()}

    @app.get(
        "/about",
        dependencies=[strict()],
        summary="Version, models (the first is the default), presets, formats and limits",
    )
    def about() -> dict[str, Any]:
        return {
            "version": __version__,
            "models": listed,
            "presets": presets,
            "formats": formats,
            "limits": asdict(limits),
        }


def _add_restore(app: "FastAPI", service: JobService) -> None:
    from fastapi import Depends, File, Form, Request, Response, UploadFile

    Picture = Annotated[UploadFile, File(description="A picture file of one of the formats in /about.")]
    View = Annotated[
        str,
        Form(
            pattern=_VIEW,
            description="x,y: what lies around this pixel is restored first, and each tile can be fetched when it is "
            "finished. The restoration stays in memory for a while, so that another strength takes no second pass.",
        ),
    ]
    Model = Annotated[str, Form(description="A name or a task from /about; the first of them where it is left out.")]

    def asked(
        strength: Annotated[float, Form(description="1 is fully restored, 0 the input.")] = 1.0,
        preset: Annotated[
            str | None,
            Form(description="luma, chroma and detail by name, see /about; that of the model where it is left out."),
        ] = None,
        luma: Annotated[float | None, Form(description="How much of the grain to remove, 0 to 1.")] = None,
        chroma: Annotated[float | None, Form(description="How much of the colour speckle to remove, 0 to 1.")] = None,
        detail: Annotated[float | None, Form(description="How much fine texture to bring back, 0 to 1.")] = None,
        tile: Annotated[str, Form(description="auto, or the largest side of a tile in pixels.")] = "auto",
        format: Annotated[Literal["png", "jpg"], Form(description="Of the result: png, or jpg of quality 95.")] = "png",
    ) -> dict[str, Any]:
        return locals()

    Options = Annotated[dict[str, Any], Depends(asked)]
    fields = list(inspect.signature(asked).parameters)

    @app.post(
        "/restore",
        dependencies=[strict("picture", "model", *fields)],
        summary="Restore a picture: the file that `kithkin restore --format` writes",
        response_class=Response,
        responses=documented(*MEDIA_TYPES.values()),
    )
    async def restore_now(request: Request, picture: Picture, options: Options, model: Model = "") -> Response:
        return await service.answer(request, await service.restore(picture, model, options))

    @app.post(
        "/neighbors",
        dependencies=[strict("picture", "x", "y", "model")],
        summary="Which patches every patch around a pixel attends to, in every block of the network, with weights",
        response_class=Response,
        responses=documented("application/json"),
    )
    async def neighbors(
        request: Request,
        picture: Picture,
        x: Annotated[int, Form(description="Pixels from the left edge.")],
        y: Annotated[int, Form(description="Pixels from the upper edge.")],
        model: Model = "",
    ) -> Response:
        return await service.answer(request, await service.neighbors(picture, model, (x, y)))

    @app.post(
        "/jobs",
        status_code=202,
        dependencies=[strict("picture", "model", *fields, "view", "id")],
        response_model=JobState,
        summary="The same as /restore, but ask for the state and fetch it later",
        responses=documented(),
    )
    async def submit(
        picture: Picture,
        options: Options,
        model: Model = "",
        view: View = "",
        id: Annotated[
            str,
            Form(
                pattern=r"^[A-Za-z0-9_-]{16,64}$|^$",
                description="A random name for the job. Sent again under the same one, as after a cut of the network, "
                "the picture is not restored twice. Left out, the server makes one.",
            ),
        ] = "",
    ) -> dict[str, Any]:
        id = id or secrets.token_urlsafe(16)
        job = await service.restore(picture, model, options, job_id=id, view=view)
        return _state(service.jobs, job)


def _state(jobs: Jobs, job: Job) -> dict[str, Any]:
    detail = job.outcome.detail if isinstance(job.outcome, Problem) else None
    tiles = list(job.preview.tiles) if job.preview else []
    return {"id": job.id, **jobs.status(job), "tiles": tiles, "detail": detail}


def _add_jobs(app: "FastAPI", service: JobService) -> None:
    from fastapi import Form, Response

    def found(job_id: str) -> Job:
        job = service.jobs.find(job_id)
        if job is None:
            raise Refused(404, "there is no such job: it was fetched, cancelled, or nobody asked for it in time")
        return job

    @app.get(
        "/jobs/{job_id}",
        dependencies=[strict()],
        response_model=JobState,
        summary="queued, running, done or failed; how many are before it; what it took and takes",
        responses=NO_JOB,
    )
    async def status(job_id: str) -> dict[str, Any]:
        return _state(service.jobs, found(job_id))

    @app.put(
        "/jobs/{job_id}/view",
        dependencies=[strict("view")],
        status_code=204,
        summary="Restore what lies around this pixel next, of a job that was submitted with a view",
        responses=NO_JOB,
    )
    async def look(job_id: str, view: Annotated[str, Form(pattern=_VIEW, description="x,y")]) -> None:
        preview = found(job_id).preview
        if preview is not None and view:
            preview.place = place(view)

    @app.get(
        "/jobs/{job_id}/tiles/{index}",
        dependencies=[strict()],
        summary="A finished tile, restored in full, as JPEG: the index-th of `tiles` in the state of the job",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **NO_JOB},
    )
    async def tile(job_id: str, index: int) -> Response:
        preview = found(job_id).preview
        if preview is None or not 0 <= index < len(preview.tiles):
            raise Refused(404, "there is no such tile (any more): the job is finished, or the tile is not")
        return Response(preview.files[index], media_type="image/jpeg")

    @app.delete(
        "/jobs/{job_id}",
        dependencies=[strict()],
        status_code=204,
        summary="Give it up; work ends after the tile at hand",
        responses=NO_JOB,
    )
    async def cancel(job_id: str) -> None:
        service.jobs.drop(found(job_id))

    @app.get(
        "/jobs/{job_id}/result",
        dependencies=[strict()],
        summary="The result, once: it is forgotten with that",
        response_class=Response,
        responses={
            200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}},
            **NO_JOB,
            409: {"description": "It is not finished.", "model": Refusal},
            413: {"description": "It did not fit in memory.", "model": Refusal},
            422: {"description": "The picture is damaged.", "model": Refusal},
            503: {"description": "The picture took too long.", "model": Refusal},
        },
    )
    async def result(job_id: str) -> Response:
        job = found(job_id)
        if job.outcome is None:
            raise Refused(409, "the job is not finished; ask /jobs/{id} for its state")
        return response(service.jobs.take(job))
