"""The HTTP interface: the bytes of the command line, bad uploads, limits, the queue; many users at once."""

import asyncio
import inspect
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from typer.testing import CliRunner

from kithkin.cli import app as commands
from kithkin.cli.restore import restore as restore_command
from kithkin.errors import CheckpointError, InputError
from kithkin.images import read_picture
from kithkin.neighbors import find_neighbors
from kithkin.web import Limits, create_app, served_models
from kithkin.web._jobs import Answer, Busy, Job, Jobs, Problem
from kithkin.web._kept import Kept
from kithkin.zoo import list_models

from serving import BAD, encoded, levels, running, tiny_weights

httpx = pytest.importorskip("httpx")
TestClient = pytest.importorskip("fastapi.testclient", reason="the extra web is not installed").TestClient
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SIDEWAYS = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def models(weights):
    return served_models([str(weights)])


@pytest.fixture(scope="module")
def client(models):
    with TestClient(create_app(models), base_url="http://127.0.0.1") as opened:
        yield opened


@pytest.fixture(scope="module")
def command(weights, tmp_path_factory):
    """The bytes that the command line writes for a file."""
    folder = tmp_path_factory.mktemp("command")

    def call(name, data, *options, ending="png"):
        source = folder / name
        source.write_bytes(data)
        target = source.with_name(f"{source.stem}-restored.{ending}")
        arguments = ["restore", source, "--format", ending, "--overwrite", "-m", weights, "--device", "cpu", *options]
        result = CliRunner().invoke(commands, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return target.read_bytes()

    return call


def post(client, path="/restore", name="photo.png", data=None, **fields):
    return client.post(path, files={"picture": (name, encoded() if data is None else data)}, data=fields)


FILES = {
    "rgb.png": encoded("PNG", icc_profile=SRGB, dpi=(300, 300)),
    "alpha.png": encoded("PNG", levels(channels=4)),
    "gray.png": encoded("PNG", levels(channels=1)[..., 0]),
    "gray16.png": encoded("PNG", levels(channels=1)[..., 0].astype(np.uint16) * 257),
    "neutral.png": encoded("PNG", np.repeat(levels(channels=1), 3, axis=2)),
    "turned.jpg": encoded("JPEG", exif=b"Exif\0\0" + SIDEWAYS, icc_profile=SRGB),
    "web.webp": encoded("WEBP", lossless=True),
    "scan.tif": encoded("TIFF", dpi=(72, 72)),
    "plain.bmp": encoded("BMP"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_bytes_are_those_of_the_command_line(client, command, name):
    found = post(client, name=name, data=FILES[name])
    assert found.status_code == 200
    assert found.headers["content-type"] == "image/png"
    assert f"{Path(name).stem}-restored.png" in found.headers["content-disposition"]
    assert found.content == command(name, FILES[name])
    assert Image.open(io.BytesIO(found.content)).size == ((40, 56) if name == "turned.jpg" else (56, 40))


def test_another_application_can_mount_the_server(models, command):
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/photos", create_app(models))
    with TestClient(outer, base_url="http://127.0.0.1/photos") as client:
        job = post(client, "/jobs", data=FILES["rgb.png"]).json()["id"]
        assert finished(client, job)[1].content == command("a.png", FILES["rgb.png"])


@pytest.mark.parametrize("name", ["rgb.png", "alpha.png", "gray16.png"])
def test_a_result_may_be_a_jpeg(client, command, name):
    found = post(client, name=name, data=FILES[name], format="jpg")
    assert found.headers["content-type"] == "image/jpeg"
    assert f"{Path(name).stem}-restored.jpg" in found.headers["content-disposition"]
    assert found.content == command(name, FILES[name], ending="jpg")
    notes = json.loads(found.headers.get("x-kithkin-notes", "[]"))
    assert any("transparency" in note for note in notes) == (name == "alpha.png")


def test_a_black_and_white_picture_comes_back_without_colour(client):
    found = np.asarray(Image.open(io.BytesIO(post(client, data=FILES["neutral.png"]).content)))
    assert found.shape == (40, 56, 3)
    assert (found == found[..., :1]).all()
    assert not np.array_equal(found, np.asarray(Image.open(io.BytesIO(FILES["neutral.png"]))))


def test_metadata_is_kept(client, tmp_path):
    (tmp_path / "rgb.png").write_bytes(post(client, data=FILES["rgb.png"]).content)
    kept = read_picture(tmp_path / "rgb.png")
    assert kept.icc == SRGB
    assert kept.dpi == pytest.approx((300, 300), abs=0.1)
    (tmp_path / "turned.png").write_bytes(post(client, data=FILES["turned.jpg"]).content)
    assert read_picture(tmp_path / "turned.png").exif[:2] == b"MM"


@pytest.mark.parametrize(("strength", "tile"), [("0.35", "auto"), ("0", "auto"), ("1", "64"), ("0.5", "72")])
def test_options_mean_what_they_mean_on_the_command_line(client, command, strength, tile):
    data = encoded(pixels=levels(90, 130))
    found = post(client, data=data, strength=strength, tile=tile, model="tiny")
    assert found.content == command("options.png", data, "--strength", strength, "--tile", tile)
    whole = post(client, data=data).content
    assert (found.content == whole) == (strength == "1" and tile == "auto")


@pytest.mark.parametrize(
    "fields", [{"preset": "natural"}, {"preset": "keep-grain", "luma": "0.3"}, {"chroma": "0.5", "detail": "1"}]
)
def test_presets_and_amounts_mean_what_they_mean_on_the_command_line(client, command, fields):
    data = encoded(pixels=levels(90, 130))
    found = post(client, data=data, model="tiny", **fields)
    arguments = [part for name, value in fields.items() for part in (f"--{name}", value)]
    assert found.content == command("amounts.png", data, *arguments)
    assert found.content != post(client, data=data, model="tiny").content


def test_a_shipped_denoiser_keeps_some_texture_and_a_file_of_its_name_does_not(command, weights, tmp_path):
    data, own = encoded(pixels=levels(40, 50)), tmp_path / "denoise.safetensors"
    own.write_bytes(Path(weights).read_bytes())
    with TestClient(create_app(served_models(["denoise-tiny", str(own)])), base_url="http://127.0.0.1") as client:
        presets = {model["name"]: model["preset"] for model in client.get("/about").json()["models"]}
        assert presets == {"denoise-tiny": "natural", "denoise": "strong"}
        found = post(client, data=data).content
        assert found == command("default.png", data, "-m", "denoise-tiny")
        assert found == post(client, data=data, preset="natural").content
        assert found != post(client, data=data, preset="strong").content


def test_what_the_result_could_not_keep_is_said(client):
    buffer = io.BytesIO()
    Image.fromarray(levels()).convert("CMYK").save(buffer, "JPEG")
    found = post(client, name="inks.jpg", data=buffer.getvalue())
    assert "CMYK" in json.loads(found.headers["x-kithkin-notes"])[0]


@pytest.mark.parametrize("path", ["/restore", "/jobs", "/neighbors"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_upload_gets_a_sentence_and_harms_nothing(client, tmp_path, monkeypatch, case, path):
    monkeypatch.chdir(tmp_path)
    name, data, status, sentence = BAD[case]
    found = post(client, path, name, data, **({"x": "1", "y": "1"} if path == "/neighbors" else {}))
    if path == "/jobs" and found.status_code == 202:
        found = finished(client, found.json()["id"])[1]
    assert found.status_code == status
    detail = found.json()["detail"]
    assert sentence in detail
    assert "/" not in detail.replace(" / ", "")
    assert "\n" not in detail
    assert list(tmp_path.iterdir()) == []
    assert post(client, data=encoded(pixels=levels(16, 16))).status_code == 200


def test_a_name_is_never_a_path(client):
    found = post(client, name="../../tmp/ä b?.PNG")
    assert found.headers["content-disposition"].endswith("filename*=UTF-8''%C3%A4%20b%3F-restored.png")
    assert "/" not in found.headers["content-disposition"].replace("UTF-8''", "")
    assert "picture-restored.png" in post(client, name="..").headers["content-disposition"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"strength": "2"}, "strength must be a number from 0"),
        ({"strength": "nan"}, "strength must be a number from 0"),
        ({"strength": "full"}, "strength: Input should be a valid number"),
        ({"luma": "2"}, "luma must be a number from 0 to 1"),
        ({"preset": "soft"}, "preset must be one of strong, natural, keep-grain, got 'soft'"),
        ({"format": "gif"}, "format: Input should be 'png' or 'jpg'"),
        ({"tile": "32"}, "tile must be 'auto' or a whole number of pixels from 64 to 1024, got '32'"),
        ({"tile": "off"}, "tile must be"),
        ({"tile": "9" * 5000}, "tile must be"),
        ({"model": "/etc/passwd"}, "no model is called '/etc/passwd' on this server; there are tiny"),
    ],
)
def test_a_wrong_value_is_one_sentence(client, fields, sentence):
    found = post(client, **fields)
    assert found.status_code == 422
    assert sentence in found.json()["detail"]


def test_a_request_without_a_picture_says_what_is_missing(client):
    for options in ({}, {"data": {"picture": "text"}}, {"content": b"rubbish"}):
        found = client.post("/restore", **options)
        assert found.status_code in (400, 422)
        assert "picture" in found.json()["detail"]


@pytest.mark.parametrize(
    ("path", "fields", "query", "sentence"),
    [
        ("/restore", {"strengh": "0.1"}, "", "/restore: no field is called 'strengh'; did you mean 'strength'?"),
        (
            "/jobs",
            {"sigma": "25"},
            "",
            "/jobs: no field is called 'sigma'; "
            "it takes picture, model, strength, preset, luma, chroma, detail, tile, format, view, id",
        ),
        ("/restore", {"strength": ["1", "0.1"]}, "", "strength is given 2 times; give it once"),
        (
            "/restore",
            {},
            "?strength=0.1",
            "takes no query parameters, got 'strength'; as a field of the form: -F strength=…",
        ),
        ("/jobs", {"id": "short"}, "", "id: String should match"),
    ],
)
def test_a_field_or_a_parameter_that_nobody_reads_is_refused(client, path, fields, query, sentence):
    found = post(client, path + query, **fields)
    assert found.status_code == 422
    assert sentence in found.json()["detail"]


def test_text_instead_of_a_file_is_told_how_curl_sends_one(client):
    found = client.post("/restore", data={"picture": "hello"})
    assert found.status_code == 422
    assert "picture: expected a file, got text; with curl: -F picture=@photo.jpg" in found.json()["detail"]
    assert "picture: is missing" in client.post("/restore", data={"strength": "1"}).json()["detail"]


@pytest.mark.parametrize("path", ["/", "/docs", "/about", "/page/page.js", "/openapi.json"])
def test_the_head_of_an_answer_can_be_asked_for(client, path):
    found, whole = client.head(path), client.get(path)
    assert found.status_code == 200
    assert found.content == b""
    assert found.headers["content-length"] == str(len(whole.content))
    assert found.headers["content-security-policy"] == whole.headers["content-security-policy"]


def test_what_is_not_there_and_what_is_not_taken_is_a_sentence(client):
    assert client.get("/nothing").json() == {"detail": "/nothing: there is nothing here; see /docs for what there is"}
    assert client.put("/restore").json() == {"detail": "/restore: does not take PUT; see /docs for what it takes"}
    assert "takes no query parameters" in client.get("/about?x=1").json()["detail"]


def test_a_job_that_is_sent_again_under_its_id_is_the_same(models, held_up):
    with TestClient(create_app(models), base_url="http://127.0.0.1") as client:
        post(client)
        passes, first, on = held_up()
        own = "a-name-of-the-client"
        assert post(client, "/jobs", id=own).json()["id"] == own
        assert first.wait(60)
        again = post(client, "/jobs", id=own)
        assert (again.status_code, again.json()["id"], again.json()["state"]) == (202, own, "running")
        assert client.get("/jobs/" + post(client, "/jobs").json()["id"]).json()["ahead"] == 1
        on.set()
        assert finished(client, own)[1].status_code == 200
    assert len(passes) <= 2


def finished(client, job):
    """The last state of a job, and the answer to asking for its result."""
    for _ in range(3000):
        state = client.get(f"/jobs/{job}").json()
        if state["state"] in ("done", "failed"):
            return state, client.get(f"/jobs/{job}/result")
        time.sleep(0.02)
    raise AssertionError(state)


def test_a_job_is_fetched_once_and_then_forgotten(client):
    data = encoded(pixels=levels(seed=4))
    answer = post(client, "/jobs", data=data)
    assert answer.status_code == 202
    job = answer.json()["id"]
    state, found = finished(client, job)
    assert (state["state"], state["fraction"], state["eta_seconds"]) == ("done", 1.0, 0.0)
    assert found.content == post(client, data=data).content
    for path in (f"/jobs/{job}", f"/jobs/{job}/result"):
        assert client.get(path).status_code == 404
    assert client.delete(f"/jobs/{job}").status_code == 404
    assert client.get("/jobs/guessed").status_code == 404


@pytest.fixture
def held_up(models):
    """The network's passes, each of which waits until it may go on: (their inputs' shapes, the first began, go on)."""
    passes, first, on = [], threading.Event(), threading.Event()

    def pause(module, inputs):
        passes.append(tuple(inputs[0].shape[2:]))
        first.set()
        on.wait(60)

    hooks = []

    def start():
        hooks.append(models["tiny"].network.register_forward_pre_hook(pause))
        return passes, first, on

    yield start
    on.set()
    hooks[0].remove()


def test_a_cancelled_job_stops_between_tiles(models, held_up):
    with TestClient(create_app(models), base_url="http://127.0.0.1") as client:
        post(client)  # What the server warms up with is over then.
        passes, first, on = held_up()
        job = post(client, "/jobs", data=encoded(pixels=levels(64, 300)), tile="64").json()["id"]
        assert first.wait(60)
        assert client.get(f"/jobs/{job}").json()["state"] == "running"
        assert client.get(f"/jobs/{job}/result").status_code == 409
        behind = post(client, "/jobs", data=encoded(pixels=levels(20, 20))).json()
        assert (behind["state"], behind["ahead"]) == ("queued", 1)
        assert client.delete(f"/jobs/{job}").status_code == 204
        assert client.get(f"/jobs/{job}").status_code == 404
        on.set()
        assert finished(client, behind["id"])[1].status_code == 200
    assert passes == [(64, 64), (20, 20)]


def test_a_client_that_goes_away_takes_its_picture_with_it(models, held_up):
    app = create_app(models)
    body = START + encoded(pixels=levels(64, 300)) + TILE_64
    with TestClient(app, base_url="http://127.0.0.1") as client:
        post(client)
        passes, first, on = held_up()

        def messages(i):
            if i == 0:
                return {"type": "http.request", "body": body}
            assert first.wait(60)
            return {"type": "http.disconnect"}

        assert call(app, MULTIPART, messages)[0] == 410
        on.set()
        assert post(client, data=encoded(pixels=levels(20, 20))).status_code == 200
    assert passes == [(64, 64), (20, 20)]


def test_tiles_come_as_they_are_finished_those_near_the_view_first(models, command, held_up):
    data = encoded(pixels=levels(150, 300))
    with TestClient(create_app(models), base_url="http://127.0.0.1") as client:
        whole = post(client, data=data, tile="64").content
        _, first, on = held_up()
        job = post(client, "/jobs", data=data, tile="64", view="290,70").json()
        assert first.wait(60)
        assert client.put(f"/jobs/{job['id']}/view", data={"view": "0,149"}).status_code == 204
        on.set()
        while (state := client.get(f"/jobs/{job['id']}").json())["state"] == "running":
            time.sleep(0.02)
        tiles = state["tiles"]
        for (left, top, width, height), (x, y) in zip(tiles, [(290, 70), (0, 149)], strict=False):
            assert left <= x < left + width
            assert top <= y < top + height
        assert len(tiles) == len({tuple(tile) for tile in tiles}) > 10
        shown = np.zeros((150, 300, 3), int)
        for i, (left, top, width, height) in enumerate(tiles):
            found = client.get(f"/jobs/{job['id']}/tiles/{i}")
            assert found.headers["content-type"] == "image/jpeg"
            part = np.asarray(Image.open(io.BytesIO(found.content)))
            assert part.shape == (height, width, 3)
            shown[top : top + height, left : left + width] = part
        assert client.get(f"/jobs/{job['id']}/tiles/{len(tiles)}").status_code == 404
        result = client.get(f"/jobs/{job['id']}/result").content
        assert client.get(f"/jobs/{job['id']}/tiles/0").status_code == 404
        assert client.put(f"/jobs/{job['id']}/view", data={"view": "1,1"}).status_code == 404
        assert post(client, "/jobs", data=data, view="here").status_code == 422
    assert result == whole == command("order.png", data, "--tile", "64")
    # Tiles are JPEG files, and where they overlap the result is a blend of them.
    restored = np.asarray(Image.open(io.BytesIO(result)))
    assert 4 * np.abs(shown - restored).mean() < np.abs(shown - restored[::-1]).mean()


def test_other_amounts_of_a_picture_that_was_viewed_take_no_second_pass(models, command, held_up):
    data = encoded(pixels=levels(90, 130))
    with TestClient(create_app(models), base_url="http://127.0.0.1") as client:
        post(client, data=data)  # Not viewed, so not kept.
        passes, _, on = held_up()
        on.set()
        assert finished(client, post(client, "/jobs", data=data, view="5,5").json()["id"])[1].status_code == 200
        assert len(passes) == 1
        for fields in {"strength": "0.4"}, {"luma": "0.2", "detail": "0.5"}, {}:
            arguments = [part for name, value in fields.items() for part in (f"--{name}", value)]
            assert post(client, data=data, **fields).content == command("again.png", data, *arguments)
        assert len(passes) == 1
        post(client, data=data, tile="64")  # Another result.
        assert len(passes) > 1


def test_what_is_kept_is_bounded_and_goes_after_a_while():
    kept = Kept(Limits(again_megabytes=0.001, again_seconds=0.2))
    for name in "abc":
        kept.put(name, torch.zeros(100))
        kept.get("a")
    assert [name in kept for name in "abc"] == [True, False, True]
    kept.put("large", torch.zeros(1000))
    assert len(kept) == 0
    kept.put("a", torch.ones(100))
    time.sleep(0.3)
    kept.expire()
    assert kept.get("a") is None


def job(run, **values):
    return Job(**{"kind": "test", "name": "a.png", "pixels": 100, "size": 10, "run": run, **values})


def answer(progress):
    return Answer(b"done", "text/plain", "a.txt")


@pytest.fixture
def queue():
    """A queue with these limits, whose thread is stopped at the end."""
    opened = []

    def start(**limits):
        jobs = Jobs(Limits(**limits))
        jobs.start()
        opened.append(jobs)
        return jobs

    yield start
    for jobs in opened:
        jobs.close()


class Gate:
    """Work that goes on when it is told to."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, progress):
        progress(0.0)
        self.entered.set()
        self.open.wait(60)
        progress(0.5)
        return answer(progress)


def test_a_full_queue_asks_to_come_again(queue):
    jobs, gate = queue(queue=2), Gate()
    jobs.submit(running_job := job(gate))
    assert gate.entered.wait(60)
    first, second = job(answer), job(answer)
    jobs.submit(first)
    jobs.submit(second)
    assert [jobs.status(one)["ahead"] for one in (running_job, first, second)] == [0, 1, 2]
    with pytest.raises(Busy) as busy:
        jobs.submit(job(answer))
    assert busy.value.seconds >= 1
    gate.open.set()
    second.finished.result(60)
    jobs.submit(last := job(answer))
    last.finished.result(60)
    assert [jobs.take(one).body for one in (running_job, first, second, last)] == [b"done"] * 4


def test_what_is_held_is_bounded_results_included(queue):
    jobs = queue(held_megabytes=0.001)
    with pytest.raises(Busy):
        jobs.submit(job(answer, size=1001))
    jobs.submit(large := job(lambda progress: Answer(bytes(950), "text/plain", "a.txt"), size=100))
    large.finished.result(60)
    with pytest.raises(Busy):
        jobs.submit(job(answer, size=60))
    jobs.take(large)
    jobs.submit(job(answer, size=60))


def test_work_without_a_network_is_done_in_the_midst_of_other_work(queue):
    jobs, gate, order = queue(), Gate(), []

    def named(name):
        return lambda progress: order.append(name) or answer(progress)

    def large(progress):
        gate(progress)
        return named("large")(progress)

    jobs.submit(job(large))
    assert gate.entered.wait(60)
    jobs.submit(behind := job(named("behind")))
    jobs.submit(brief := job(named("brief"), brief=True))
    assert jobs.status(brief)["ahead"] == 0
    gate.open.set()
    behind.finished.result(60)
    assert order == ["brief", "large", "behind"]


def test_the_server_says_503_and_when_to_come_again(models):
    with TestClient(create_app(models, limits=Limits(held_megabytes=0.001)), base_url="http://127.0.0.1") as client:
        found = post(client)
    assert found.status_code == 503
    assert int(found.headers["retry-after"]) >= 1
    assert "try again in" in found.json()["detail"]


def test_results_and_jobs_that_nobody_asks_for_are_dropped(queue):
    jobs, gate = queue(keep_seconds=0.05, absent_seconds=0.05), Gate()
    # A busy machine may take longer than absent_seconds to begin: patient until it has begun.
    jobs.submit(done := job(answer, patient=True))
    done.finished.result(60)
    for _ in range(1000):  # Without any further request.
        if not jobs._known:
            break
        time.sleep(0.02)
    assert jobs._known == {}
    jobs.submit(left := job(gate, patient=True))
    assert gate.entered.wait(60)
    left.patient = False
    jobs.submit(patient := job(answer, patient=True))
    time.sleep(0.1)
    assert jobs.find(left.id) is None
    assert jobs.find(patient.id) is patient
    gate.open.set()
    patient.finished.result(60)
    assert left.outcome is None


def test_work_that_takes_too_long_is_ended(queue):
    jobs = queue(work_seconds=0.05)

    def slow(progress):
        for i in range(100):
            time.sleep(0.02)
            progress(i / 100)
        return answer(progress)

    jobs.submit(late := job(slow))
    late.finished.result(60)
    problem = jobs.take(late)
    assert problem.status == 503
    assert "a.png: took longer than the 0.05 seconds" in problem.detail


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (MemoryError(), 413, "does not fit in the server's memory"),
        (InputError("serve: expected this, got that"), 422, "expected this"),
        (ZeroDivisionError("secret"), 500, "a fault in kithkin"),
    ],
)
def test_the_worker_outlives_whatever_happens(queue, error, status, sentence):
    jobs = queue()

    def broken(progress):
        raise error

    jobs.submit(failing := job(broken))
    failing.finished.result(60)
    problem = jobs.take(failing)
    assert isinstance(problem, Problem)
    assert problem.status == status
    assert sentence in problem.detail
    assert "secret" not in problem.detail
    jobs.submit(next_one := job(answer))
    next_one.finished.result(60)
    assert jobs.take(next_one).body == b"done"


def test_the_remaining_time_comes_from_earlier_pictures_small_ones_included(queue):
    jobs, gate = queue(), Gate()

    def known(progress):
        time.sleep(0.2)
        return answer(progress)

    for _ in range(3):
        jobs.submit(small := job(known, pixels=35))
        small.finished.result(60)
    # What 35 pixels took is no pace: 0.2 s / 35 · 32e6 would be two days.
    assert 0 < jobs.status(job(answer, pixels=32_000_000))["eta_seconds"] < 400
    jobs.submit(large := job(gate, pixels=1000))
    jobs.submit(behind := job(answer, pixels=500))
    assert gate.entered.wait(60)
    elapsed = time.monotonic() - large.started
    assert jobs.status(large)["eta_seconds"] == pytest.approx(max(0, 0.2 - elapsed), abs=0.15)
    assert jobs.status(behind)["eta_seconds"] == pytest.approx(max(0, 0.2 - elapsed) + 0.2, abs=0.25)
    gate.open.set()


def test_something_is_said_of_the_first_picture_too(queue):
    assert 0 < queue().status(job(answer, pixels=10**6))["eta_seconds"] < 60


def test_the_remaining_time_and_retry_after_are_bounded(queue):
    jobs, gate = queue(work_seconds=500, queue=1), Gate()
    jobs.submit(large := job(gate, pixels=10**15))
    assert gate.entered.wait(60)
    assert 490 < jobs.status(large)["eta_seconds"] <= 500
    jobs.submit(job(answer))
    with pytest.raises(Busy) as busy:
        jobs.submit(job(answer))
    assert busy.value.seconds == 120
    gate.open.set()


def call(app, headers, messages):
    """(status, headers, detail, how many messages were taken) of a request straight to the application."""
    taken, sent = [], []

    async def receive():
        taken.append(1)
        message = messages(len(taken) - 1)
        if message is None:
            await asyncio.sleep(60)
        return message

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {
        "path": "/restore",
        "raw_path": b"/restore",
        "query_string": b"",
        "root_path": "",
        "server": ("127.0.0.1", 1),
    }
    scope["headers"] = [(b"host", b"127.0.0.1"), *((k.encode(), v.encode()) for k, v in headers.items())]
    asyncio.run(app(scope, receive, send))
    body = json.loads(b"".join(message.get("body", b"") for message in sent[1:]))
    return sent[0]["status"], dict(sent[0]["headers"]), body["detail"], len(taken)


MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
TILE_64 = b'\r\n--x\r\nContent-Disposition: form-data; name="tile"\r\n\r\n64\r\n--x--\r\n'
START = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'


def test_an_upload_is_refused_by_its_announced_length_before_it_is_read(models):
    app = create_app(models, limits=Limits(megabytes=1))
    status, headers, detail, taken = call(app, {**MULTIPART, "content-length": "2000000"}, lambda i: None)
    assert (status, taken) == (413, 0)
    assert headers[b"connection"] == b"close"
    assert "larger than the 1 MB that this server takes" in detail


def test_an_upload_of_unknown_length_is_cut_off_while_it_comes(models):
    app = create_app(models, limits=Limits(megabytes=1))

    def endless(i):
        return {"type": "http.request", "body": START if i == 0 else bytes(100_000), "more_body": True}

    status, _, detail, taken = call(app, MULTIPART, endless)
    assert status == 413
    assert "1 MB" in detail
    assert taken <= 13


def test_an_upload_that_does_not_end_is_given_up(models):
    app = create_app(models, limits=Limits(upload_seconds=0.1))

    def stuck(i):
        return {"type": "http.request", "body": START, "more_body": True} if i == 0 else None

    status, _, detail, _ = call(app, MULTIPART, stuck)
    assert status == 408
    assert "took longer than 0.1 seconds" in detail


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "192.168.0.7", "my.name:80"]
)
def test_the_server_answers_to_addresses_and_its_own_names(models, host):
    app = create_app(models, host_names=["My.Name"])
    assert TestClient(app, base_url="http://127.0.0.1").get("/about", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "", "[", "a@b"]
)
def test_a_name_that_was_bent_to_this_machine_is_refused(client, host):
    found = client.get("/about", headers={"host": host})
    assert found.status_code == 421
    assert "whoever runs it can allow that name" in found.json()["detail"]


def test_other_web_pages_are_refused(client):
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    ):
        assert client.get("/about", headers=headers).status_code == 403
        assert client.post("/restore", headers=headers).status_code == 403
    for headers in ({"origin": "http://127.0.0.1"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}):
        assert client.get("/about", headers=headers).status_code == 200


def test_headers_forbid_what_the_page_does_not_need(client):
    for path in ("/", "/page/page.js", "/docs", "/about", "/nothing"):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/").text
    assert page.startswith("<!doctype html>")
    for part in ("page.css", "page.js", "api.js", "viewer.js", "neighbors.js"):
        found = client.get(f"/page/{part}")
        assert found.status_code == 200
        page += found.text
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert "https://" not in page
    assert client.get("/page/..%2f_app.py").status_code == 404
    assert client.get("/page/_app.py").status_code == 404


def test_the_interface_describes_itself(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/about",
        "/restore",
        "/neighbors",
        "/jobs",
        "/jobs/{job_id}",
        "/jobs/{job_id}/result",
        "/jobs/{job_id}/view",
        "/jobs/{job_id}/tiles/{index}",
    }
    content = schema["paths"]["/restore"]["post"]["requestBody"]["content"]
    assert list(content) == ["multipart/form-data"]
    docs = client.get("/docs").text
    for path, operations in schema["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in docs
    state = schema["components"]["schemas"]["JobState"]["properties"]
    assert {name: about.get("type") for name, about in state.items() if name != "detail"} == {
        "id": "string",
        "state": "string",
        "ahead": "integer",
        "fraction": "number",
        "eta_seconds": "number",
        "tiles": "array",
    }
    assert {"413", "415", "422", "503"} <= set(schema["paths"]["/jobs"]["post"]["responses"])
    assert "404" in schema["paths"]["/jobs/{job_id}"]["delete"]["responses"]
    assert "<small>number, default 1.0</small>" in docs
    assert "<code>eta_seconds</code> <small>number</small>" in docs
    about = client.get("/about").json()
    assert [(model["name"], model["precision"]) for model in about["models"]] == [("tiny", "float32")]
    assert about["models"][0]["attention"] is True
    assert about["models"][0]["preset"] == "strong"
    assert about["limits"]["megapixels"] == 32


@pytest.mark.parametrize("point", [(3, 5), (155, 90), (70, 40)])
def test_neighbors_are_those_of_the_part_around_the_point(client, models, point):
    app = create_app(models, limits=Limits(neighbors_side=64))
    pixels = levels(91, 156)
    with TestClient(app, base_url="http://127.0.0.1") as small:
        found = post(small, "/neighbors", data=encoded(pixels=pixels), x=str(point[0]), y=str(point[1])).json()
    left, top, width, height = found["crop"]
    assert found["size"] == [156, 91]
    assert left <= point[0] < left + width <= 156
    assert top <= point[1] < top + height <= 91
    assert 64 - 8 < max(width, height) <= 64
    assert left % 8 == top % 8 == 0
    part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    network = models["tiny"].network
    for block in found["blocks"]:
        x, y = point[0] - left, point[1] - top
        (query,) = find_neighbors(network, part, [(x, y)], stage=block["stage"], block=block["block"]).queries
        boxes = [box for of_round in query.rounds for box in (*of_round.chunk, *of_round.look_back)]
        side, columns = block["patch_side"], block["columns"]
        own = y // side * columns + x // side
        listed = [i for i in block["candidates"][own] if i >= 0]
        assert [(i % columns * side, i // columns * side, side, side) for i in listed] == boxes
        assert sum(block["weights"][own]) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("name", ["denoise-tiny", "derain[k=1]"])
def test_a_model_without_attention_says_so_and_refuses_to_show_neighbors(name):
    with TestClient(create_app(served_models([name])), base_url="http://127.0.0.1") as client:
        (model,) = client.get("/about").json()["models"]
        assert model["attention"] is False
        assert post(client, "/neighbors", x="9", y="9").status_code == 422


def test_a_point_outside_the_picture_is_refused(client):
    found = post(client, "/neighbors", x="56", y="0")
    assert found.status_code == 422
    assert "the point 56,0 is outside the picture, which is 56 x 40" in found.json()["detail"]


def peak_megabytes(number):
    """The highest resident memory of a process so far; 0 where the system does not say."""
    path = Path(f"/proc/{number}/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), 0)


def test_twenty_users_at_once_each_get_their_own_picture(weights, command):
    pictures = [encoded(pixels=levels(24 + 8 * (i % 5), 32 + i, seed=i)) for i in range(20)]
    wanted = [command(f"user{i}.png", data) for i, data in enumerate(pictures)]
    assert len(set(wanted)) == 20
    with running("-m", weights) as (address, process):
        start = threading.Barrier(20)

        def user(i):
            start.wait(60)
            files = {"picture": (f"user{i}.png", pictures[i])}
            return httpx.post(f"{address}/restore", files=files, timeout=60, trust_env=False)

        first = {"picture": ("first.png", pictures[0])}
        assert httpx.post(f"{address}/restore", files=first, timeout=60, trust_env=False).content == wanted[0]
        before = peak_megabytes(process.pid)
        with ThreadPoolExecutor(20) as users:
            found = list(users.map(user, range(20)))
        # Pictures wait as files and are decoded one at a time.
        assert peak_megabytes(process.pid) - before < 150
        process.terminate()
        assert "OUTWARD" not in process.stderr.read()
    assert [answer.status_code for answer in found] == [200] * 20
    assert [answer.content for answer in found] == wanted


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the path")
def test_the_commands_of_the_documents_work(tmp_path):
    text = (Path(__file__).parent.parent / "docs/how-to/serve.md").read_text(encoding="utf-8")
    lines = re.findall(r"^curl .+$", text, re.M)
    assert len(lines) == 5
    (tmp_path / "photo.jpg").write_bytes(FILES["turned.jpg"])
    with running("-m", "denoise-gaussian", "-m", "derain") as (address, _):
        for line in lines:
            called = line.replace("http://127.0.0.1:8000", address).replace("curl ", "curl --fail -sS --noproxy '*' ")
            subprocess.run(called, shell=True, cwd=tmp_path, check=True, timeout=60)
    for name in ("photo-restored.png", "dry.png", "strong.jpg"):
        assert read_picture(tmp_path / name).pixels.shape == (56, 40, 3)
    assert json.loads((tmp_path / "neighbors.json").read_text())["size"] == [40, 56]


def test_the_first_model_is_the_one_of_kithkin_restore():
    defaults = [card for card in list_models().values() if card.default]
    served = served_models()
    assert sorted(served) == sorted(card.name for card in defaults)
    first = inspect.signature(restore_command).parameters["model"].default.default
    assert next(iter(served.values())).task == first


def test_models_are_found_by_name_and_task(weights):
    with pytest.raises(InputError, match="two models are called 'tiny'"):
        served_models([str(weights), str(weights)])
    changed = served_models([str(weights), f"{weights}[h=3]"])["tiny[h=3]"]
    assert changed.network.config.n_hashes == 3
    assert "h = 3" in changed.summary
    with pytest.raises(CheckpointError, match="neither a model that ships"):
        served_models(["nothing"])
    with pytest.raises(InputError, match="at least one model"):
        create_app({})
    with pytest.raises(InputError, match="the limit queue must be more than 0, got 0"):
        Limits(queue=0)


def test_the_command_says_what_keeps_it_from_serving(weights, monkeypatch):
    import socket
    import sys

    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    found = CliRunner().invoke(commands, ["serve", "--port", str(port), "-m", str(weights)])
    taken.close()
    assert isinstance(found.exception, InputError)
    assert f"can't listen on 127.0.0.1, port {port}" in str(found.exception)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    found = CliRunner().invoke(commands, ["serve"])
    assert 'pip install "kithkin[web]"' in str(found.exception)


def test_a_server_that_others_can_reach_is_warned_about(capsys):
    from kithkin.cli.serve import _announce

    for host in ("127.0.0.1", "localhost", "::1"):
        _announce("http://x", host)
        assert "warning" not in capsys.readouterr().err
    for host in ("0.0.0.0", "192.168.0.7", "my.name"):
        _announce("http://x", host)
        assert "without a password or encryption" in capsys.readouterr().err


# The server below the application


@pytest.fixture(scope="module")
def served(weights):
    """A small server as a process of its own: (its address, the process)."""
    with running("-m", weights, "--queue", "1") as found:
        yield found


def connected(served, data=b""):
    import socket

    opened = socket.create_connection(("127.0.0.1", int(served[0].rpartition(":")[2])), timeout=30)
    opened.sendall(data)
    return opened


def is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@pytest.mark.parametrize(
    "data", [b"", b"GET /about HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "], ids=["nothing", "half a head"]
)
def test_idle_connections_lock_nobody_out(served, data):
    idle = [connected(served, data) for _ in range(400)]
    for _ in range(3):
        assert httpx.get(f"{served[0]}/about", timeout=30, trust_env=False).status_code == 200
    files = {"picture": ("a.png", encoded())}
    assert httpx.post(f"{served[0]}/restore", files=files, timeout=60, trust_env=False).status_code == 200
    assert 0 < sum(map(is_open, idle)) <= Limits(queue=1).connections
    for connection in idle:
        connection.close()


def test_a_head_that_does_not_end_is_given_up_and_a_slow_one_is_not(weights):
    import socket

    from kithkin.web.server import serve_on

    # In this process, because the time is no option of the command.
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = create_app(served_models([str(weights)]))
    threading.Thread(target=serve_on, args=(app, listening, Limits(header_seconds=1)), daemon=True).start()
    stuck = connected((f"http://127.0.0.1:{port}",), b"GET /about HTTP/1.1\r\n")
    slow = connected((f"http://127.0.0.1:{port}",), b"GET /about HTTP/1.1\r\n")
    slow.sendall(b"Host: 127.0.0.1\r\n\r\n")
    assert slow.recv(12) == b"HTTP/1.1 200"
    started = time.monotonic()
    for _ in range(20):  # Another line now and then doesn't help.
        try:
            stuck.sendall(b"X: y\r\n")
        except OSError:
            break
        time.sleep(0.2)
    assert 0.5 < time.monotonic() - started < 3.5


def test_what_is_no_http_gets_the_headers_of_every_refusal(served):
    connection = connected(served, b"rubbish\r\n\r\n")
    found = b""
    while piece := connection.recv(65536):
        found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"content-security-policy: default-src 'none'" in head
    assert "expected an HTTP/1.1 request" in json.loads(body)["detail"]


def test_more_uploads_than_the_server_takes_are_asked_to_come_again(served):
    head = b"POST /restore HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    slow = [connected(served, head) for _ in range(Limits(queue=1).requests)]
    for _ in range(100):
        files = {"picture": ("a.png", encoded())}
        found = httpx.post(f"{served[0]}/restore", files=files, timeout=60, trust_env=False)
        if found.status_code == 503:
            break
        time.sleep(0.1)
    assert found.status_code == 503
    assert found.headers["x-content-type-options"] == "nosniff"
    assert int(found.headers["retry-after"]) == 10
    assert "as many uploads as it takes; try again in 10 seconds" in found.json()["detail"]
    assert httpx.get(f"{served[0]}/about", timeout=30, trust_env=False).status_code == 200
    for connection in slow:
        connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc and /proc")
def test_memory_is_given_back_after_a_large_picture(served):
    def held():
        lines = Path(f"/proc/{served[1].pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))

    def post_one(side):
        tifffile.imwrite(buffer := io.BytesIO(), noise[:side, :side])
        files = {"picture": ("a.tif", buffer.getvalue())}
        found = httpx.post(f"{served[0]}/restore", files=files, data={"strength": "0"}, timeout=60, trust_env=False)
        assert found.status_code == 200

    noise = np.random.default_rng(0).integers(0, 65535, (2000, 2000, 3), dtype=np.uint16)
    post_one(64)
    time.sleep(2.5)
    before = held()
    post_one(2000)
    needed = peak_megabytes(served[1].pid) - before
    for _ in range(40):
        if held() - before < 0.35 * needed:
            break
        time.sleep(0.25)
    assert needed > 150
    assert held() - before < 0.35 * needed  # half of it stayed before
