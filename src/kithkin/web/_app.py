"""The application: its routes, and what they answer."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import torch

from kithkin import __version__
from kithkin.errors import InputError
from kithkin.model import KiT
from kithkin.restoration import restore
from kithkin.web._api_page import api_page
from kithkin.web._guard import Guard
from kithkin.web._interface import NO_JOB, JobState, Refusal, add_errors, documented, strict
from kithkin.web._jobs import Answer, Job, Jobs, Problem
from kithkin.web._limits import Limits
from kithkin.web._pictures import Refused, Upload, clean_name, neighbors_job, restore_job
from kithkin.zoo import find_model, list_models, load_model

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response, UploadFile

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_WARM_UPS = (64, 192)
"""Sides of pictures that are restored before the first one comes: a first pass is slower, the second tells the pace."""


@dataclass(frozen=True)
class ServedModel:
    """A network, and what the page says about it."""

    name: str
    task: str
    summary: str
    network: KiT


def served_models(names: Sequence[str] = (), *, device: str = "cpu") -> dict[str, ServedModel]:
    """Load the models by these names, tasks or paths; without any, the default of each task that ships, and first of
    them the one that ``kithkin restore`` takes.

    Args:
        names: as ``kithkin.load_model`` takes them.
        device: where they run.

    Raises:
        CheckpointError: no such model, or it is damaged.
        InputError: two models have one name.
    """
    found: dict[str, ServedModel] = {}
    shipped = sorted(list_models().values(), key=lambda card: card.task != "denoise-real")
    for name in names or [card.name for card in shipped if card.default]:
        card = find_model(name)
        own = Path(name).stem if card is None else card.name
        if own in found:
            raise InputError(f"serve: two models are called {own!r}; leave one out or rename its file")
        network = load_model(name, device=device)
        task, summary = (own, f"From {Path(name).name}.") if card is None else (card.task, card.summary)
        found[own] = ServedModel(own, task, summary, network)
    return found


def create_app(
    models: Mapping[str, ServedModel], *, limits: Limits | None = None, host_names: Iterable[str] = ()
) -> "FastAPI":
    """The page and the HTTP interface as an ASGI application. Nothing is kept after an answer.

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
        jobs.start([_warm_up(name, model.network, side) for name, model in models.items() for side in _WARM_UPS])
        yield
        await asyncio.to_thread(jobs.close)

    app = FastAPI(
        title="kithkin",
        version=__version__,
        description="Restores photographs. Nothing is kept after an answer.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    add_errors(app)
    _add_page(app)
    _add_about(app, models, limits)
    desk = _Desk(jobs, models, limits)
    _add_restore(app, desk)
    _add_jobs(app, desk)
    app.add_middleware(Guard, limits=limits, names=host_names)
    return app


def _warm_up(name: str, network: KiT, side: int) -> Job:
    def run(progress: Callable[[float], None]) -> Answer:
        restore(network, torch.full((3, side, side), 0.5))
        return Answer(b"", "text/plain", "")

    return Job(f"restore {name} auto", "warm-up", side**2, 0, run)


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
    listed = [{"name": model.name, "task": model.task, "summary": model.summary} for model in models.values()]

    @app.get("/about", dependencies=[strict()], summary="Version, models (the first is the default) and limits")
    def about() -> dict[str, Any]:
        return {"version": __version__, "models": listed, "limits": asdict(limits)}


class _Desk:
    """Takes requests to the queue and brings answers back."""

    def __init__(self, jobs: Jobs, models: Mapping[str, ServedModel], limits: Limits) -> None:
        self.jobs, self.models, self.limits = jobs, models, limits
        self._door = asyncio.Lock()

    def model(self, name: str) -> ServedModel:
        """By name or task; the first one for an empty name."""
        if not name:
            return next(iter(self.models.values()))
        by_task = {model.task: model for model in reversed(list(self.models.values()))}
        found = self.models.get(name) or by_task.get(name)
        if found is None:
            known = ", ".join(self.models)
            raise Refused(422, f"restore: no model is called {name[:60]!r} on this server; there are {known}")
        return found

    async def restore(self, picture: "UploadFile", model: str, options: dict[str, Any], *, job_id: str | None) -> Job:
        """Submit a picture to restore; under an id it waits until somebody asks, without one for the answer."""
        served = self.model(model)
        options = {"model": served.name, **options}
        return await self._admit(
            picture, lambda upload: restore_job(upload, served.network, options, self.limits), job_id
        )

    async def neighbors(self, picture: "UploadFile", model: str, point: tuple[int, int]) -> Job:
        """Submit a picture whose neighbours are looked for."""
        network = self.model(model).network
        return await self._admit(picture, lambda upload: neighbors_job(upload, network, point, self.limits), None)

    async def _admit(self, picture: "UploadFile", make: Callable[[Upload], Job], job_id: str | None) -> Job:
        """Read one upload at a time, and only where there is room for it, so that memory is bounded."""
        async with self._door:
            if job_id and (known := self.jobs.find(job_id)) is not None:
                return known
            self.jobs.check_room(picture.size or 0)
            upload = Upload(clean_name(picture.filename), await picture.read())
            job = await asyncio.to_thread(make, upload)
            job.patient = job_id is None
            job.id = job_id or job.id
            self.jobs.submit(job)
        return job

    async def answer(self, request: "Request", job: Job) -> "Response":
        """Wait for a job and answer; a client that goes away takes it with it."""
        finished = asyncio.wrap_future(job.finished)
        try:
            while not (await asyncio.wait([finished], timeout=0.5))[0]:
                if await request.is_disconnected():
                    break
            return _response(self.jobs.take(job))
        finally:
            self.jobs.drop(job)


def _response(outcome: Answer | Problem | None) -> "Response":
    from fastapi.responses import Response

    if outcome is None:
        raise Refused(410, "the job was given up")
    if isinstance(outcome, Problem):
        raise Refused(outcome.status, outcome.detail)
    plain = outcome.name.encode("ascii", "replace").decode().replace('"', "'").replace("\\", "_").replace("?", "_")
    headers = {
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(outcome.name, safe='')}"
    }
    if outcome.notes:
        headers["X-Kithkin-Notes"] = json.dumps(outcome.notes)
    return Response(outcome.body, media_type=outcome.media_type, headers=headers)


def _add_restore(app: "FastAPI", desk: _Desk) -> None:
    from fastapi import File, Form, Request, Response, UploadFile

    Picture = Annotated[UploadFile, File(description="A PNG, JPEG, WebP, TIFF or BMP file.")]
    Model = Annotated[str, Form(description="A name or a task from /about; the first of them where it is left out.")]
    Strength = Annotated[float, Form(description="1 is fully restored, 0 the input.")]
    Tile = Annotated[str, Form(description="auto, or the largest side of a tile in pixels.")]

    @app.post(
        "/restore",
        dependencies=[strict("picture", "model", "strength", "tile")],
        summary="Restore a picture: the PNG file that `kithkin restore --format png` writes",
        response_class=Response,
        responses=documented("image/png"),
    )
    async def restore_now(
        request: Request, picture: Picture, model: Model = "", strength: Strength = 1.0, tile: Tile = "auto"
    ) -> Response:
        options = {"strength": strength, "tile": tile}
        return await desk.answer(request, await desk.restore(picture, model, options, job_id=None))

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
        return await desk.answer(request, await desk.neighbors(picture, model, (x, y)))

    @app.post(
        "/jobs",
        status_code=202,
        dependencies=[strict("picture", "model", "strength", "tile", "id")],
        response_model=JobState,
        summary="The same as /restore, but ask for the state and fetch it later",
        responses=documented(),
    )
    async def submit(
        picture: Picture,
        model: Model = "",
        strength: Strength = 1.0,
        tile: Tile = "auto",
        id: Annotated[
            str,
            Form(
                pattern=r"^[A-Za-z0-9_-]{16,64}$|^$",
                description="A random name for the job. Sent again under the same one, as after a cut of the network, "
                "the picture is not restored twice. Left out, the server makes one.",
            ),
        ] = "",
    ) -> dict[str, Any]:
        options = {"strength": strength, "tile": tile}
        job = await desk.restore(picture, model, options, job_id=id or secrets.token_urlsafe(16))
        return _state(desk.jobs, job)


def _state(jobs: Jobs, job: Job) -> dict[str, Any]:
    detail = job.outcome.detail if isinstance(job.outcome, Problem) else None
    return {"id": job.id, **jobs.status(job), "detail": detail}


def _add_jobs(app: "FastAPI", desk: _Desk) -> None:
    from fastapi import Response

    def found(job_id: str) -> Job:
        job = desk.jobs.find(job_id)
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
        return _state(desk.jobs, found(job_id))

    @app.delete(
        "/jobs/{job_id}",
        dependencies=[strict()],
        status_code=204,
        summary="Give it up; work ends after the tile at hand",
        responses=NO_JOB,
    )
    async def cancel(job_id: str) -> None:
        desk.jobs.drop(found(job_id))

    @app.get(
        "/jobs/{job_id}/result",
        dependencies=[strict()],
        summary="The result, once: it is forgotten with that",
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}}},
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
        return _response(desk.jobs.take(job))
