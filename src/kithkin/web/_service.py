"""The models that are served, and the way of a request to the queue and of its answer back."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kithkin.errors import InputError
from kithkin.methods import open_restorer
from kithkin.model import KiT
from kithkin.names import TASKS, current_name
from kithkin.precision import settled_precision
from kithkin.restore_options import RestoreOptions
from kithkin.restorers import Restorer
from kithkin.web._jobs import Answer, Job, Jobs, Problem
from kithkin.web._limits import Limits
from kithkin.web._pictures import Refused, Upload, clean_name, neighbors_job, options_of, restore_job
from kithkin.web._preview import Preview
from kithkin.zoo import grouping_text, list_models, split_grouping

if TYPE_CHECKING:
    from fastapi import Request, Response, UploadFile


@dataclass(frozen=True)
class ServedModel:
    """A network or another restorer, what the page says about it, and the ``precision`` that it
    restores in. ``task`` is that of its card, and empty for a user's own file."""

    name: str
    task: str
    summary: str
    network: KiT | Restorer
    precision: str = "auto"


def served_models(names: Sequence[str] = (), *, device: str = "cpu", precision: str = "auto") -> dict[str, ServedModel]:
    """Load the models by these names, tasks or paths; without any, the default of each task that
    ships, and first of them the one that ``kithkin restore`` takes.

    Args:
        names: as ``kithkin.methods.open_restorer`` takes them.
        device: where they run.
        precision: as in ``kithkin.RestoreOptions``.

    Raises:
        CheckpointError: no such model, or it is damaged.
        InputError: two models have one name, or there is no such precision.
    """
    RestoreOptions(precision=precision)
    served: dict[str, ServedModel] = {}
    shipped = sorted(list_models().values(), key=lambda card: list(TASKS).index(card.task))
    for name in names or [card.name for card in shipped if card.default]:
        network, own_name, card, remark = open_restorer(name, device=device)
        if card is None:
            plain, grouping = split_grouping(own_name)
            own_name = Path(plain).stem + grouping_text(grouping)
        if own_name in served:
            raise InputError(f"serve: two models are called {own_name!r}; leave one out or rename its file")
        task, summary = ("", f"From {Path(name).name}.") if card is None else (card.task, card.summary)
        summary = f"{summary} {remark}." if remark else summary
        served[own_name] = ServedModel(own_name, task, summary, network, settled_precision(precision, network))
    return served


class JobService:
    """Takes requests to the queue and brings answers back."""

    def __init__(self, jobs: Jobs, models: Mapping[str, ServedModel], limits: Limits) -> None:
        self.jobs, self.models, self.limits = jobs, models, limits
        self._one_upload = asyncio.Lock()

    def model(self, name: str) -> ServedModel:
        """By name or task; the first one for an empty name."""
        if not name:
            return next(iter(self.models.values()))
        by_task = {model.task: model for model in reversed(list(self.models.values()))}
        name = current_name(name)
        model = self.models.get(name) or by_task.get(name)
        if model is None:
            known = ", ".join(self.models)
            raise Refused(422, f"restore: no model is called {name[:60]!r} on this server; there are {known}")
        return model

    async def restore(
        self, picture: "UploadFile", model: str, form: dict[str, Any], *, job_id: str | None = None, view: str = ""
    ) -> Job:
        """Submit a picture to restore; under an id it waits until somebody asks, without one for
        the answer. Where a place is viewed, it is restored first, and the restoration is kept."""
        served = self.model(model)
        form = dict(form)
        ending = form.pop("format")
        options = options_of(form, served.precision, self.limits, (served.name, served.task))
        make = partial(
            restore_job,
            name=served.name,
            model=served.network,
            options=options,
            ending=ending,
            preview=Preview(place(view)) if view else None,
            kept=self.jobs.kept,
            limits=self.limits,
        )
        return await self._admit(picture, make, job_id)

    async def neighbors(self, picture: "UploadFile", model: str, point: tuple[int, int]) -> Job:
        """Submit a picture whose neighbours are looked for."""
        network = self.model(model).network
        return await self._admit(picture, lambda upload: neighbors_job(upload, network, point, self.limits), None)

    async def _admit(self, picture: "UploadFile", make: Callable[[Upload], Job], job_id: str | None) -> Job:
        """Read one upload at a time, and only where there is room for it, so that memory is
        bounded."""
        async with self._one_upload:
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
            return response(self.jobs.take(job))
        finally:
            self.jobs.drop(job)


def place(text: str) -> tuple[int, int]:
    """A pixel as a form names it: "x,y"."""
    x, y = text.split(",")
    return int(x), int(y)


def response(outcome: Answer | Problem | None) -> "Response":
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
