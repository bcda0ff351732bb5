"""Damaged and hostile input of every kind that kithkin reads beside pictures: it is taken, or refused with a sentence.

The damage is seeded, so that what fails once fails again.
"""

import json
import random
from contextlib import suppress
from functools import partial

import pytest
import torch

from kithkin.checkpoint import read_model, read_tensors, save_model
from kithkin.config import RunConfig, list_recipes, load_config, parse_config
from kithkin.errors import CheckpointError, InputError
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.training.state import read_run

from serving import encoded, levels

ODD = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", "x", "9" * 400, [], {}]
ODD += [[[[[]]]], {"a": {"b": 1}}, "\0", "\ud800", "../../x", ["a", 1], "true"]


def damaged(data, chance, *, until=None):
    """Bytes with some of them changed, left out, repeated or cut off, most of them before ``until``."""
    found = bytearray(data)
    end = min(until or len(data), len(data))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(end, 1))
        how = chance.randrange(5)
        if how == 0:
            found[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            found[at : at + chance.randint(1, 40)] = b""
        elif how == 2:
            found[at:at] = found[at : at + chance.randint(1, 40)]
        elif how == 3:
            found[at : at + 1] = chance.choice([b"9" * 30, b"-", b"[" * 200, b"{", b'"', b"\xff\xfe", b"1e999"])
        else:
            found[chance.randrange(1, len(found) + 1) :] = b""
        end = min(end, len(found)) or 1
    return bytes(found)


def replaced(values, chance):
    """Plain values, one of which, however deep, is another."""
    values = json.loads(json.dumps(values))
    place = values
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.2:
            place[key] = chance.choice(ODD)
            return values
        place = place[key]


def taken_or_refused(read, error, name):
    """What is read, or None where it is refused; the sentence names what it is about."""
    with suppress(error):
        try:
            return read()
        except error as refusal:
            if name not in str(refusal):
                raise AssertionError(f"{refusal} does not name {name}") from refusal
            raise
    return None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    with torch.random.fork_rng(devices=[]):
        save_model(KiT(KiTConfig(width=8, depth=1, n_hashes=1, n_stages=1)), path, metadata={"task": "x"})
    return path.read_bytes()


def test_damaged_checkpoints(checkpoint, tmp_path):
    chance, path, taken = random.Random(1), tmp_path / "a.safetensors", 0
    header = 8 + int.from_bytes(checkpoint[:8], "little")
    for i in range(200):
        path.write_bytes(damaged(checkpoint, chance, until=(header, 12, None)[i % 3]))
        for read in (read_model, read_tensors):
            taken += taken_or_refused(partial(read, path), CheckpointError, str(path)) is not None
    assert 0 < taken < 300  # where numbers alone were changed, and not everywhere


def test_checkpoints_with_odd_configurations(checkpoint, tmp_path):
    from safetensors.torch import save

    chance, path = random.Random(2), tmp_path / "a.safetensors"
    path.write_bytes(checkpoint)
    tensors, header = read_tensors(path)
    config = json.loads(header["config"])
    for _ in range(100):
        path.write_bytes(save(tensors, {**header, "config": json.dumps(replaced(config, chance))}))
        taken_or_refused(partial(read_model, path), CheckpointError, str(path))


def test_damaged_recipes(tmp_path):
    chance, path = random.Random(3), tmp_path / "a.toml"
    recipes = [recipe.read_bytes() for recipe in list_recipes().values()]
    for _ in range(150):
        path.write_bytes(damaged(chance.choice(recipes), chance))
        found = taken_or_refused(partial(load_config, path), InputError, "a.toml")
        assert found is None or isinstance(found, RunConfig)


def test_recipes_with_odd_values():
    chance = random.Random(4)
    recipes = [load_config(recipe).model_dump(mode="json", exclude_none=True) for recipe in list_recipes()]
    for _ in range(300):
        values = replaced(chance.choice(recipes), chance)
        found = taken_or_refused(partial(parse_config, values, source="odd"), InputError, "odd: ")
        assert found is None or isinstance(found, RunConfig)


def test_damaged_states_of_a_run(tmp_path):
    chance, folder = random.Random(5), tmp_path / "step-00000001"
    folder.mkdir()
    run = {"step": 7, "seconds": 1.5, "losses": [0.5, 0.25], "items": 3, "config": {"name": "x", "data": {"crop": 8}}}
    for i in range(200):
        text = json.dumps(replaced(run, chance)).encode()
        (folder / "run.json").write_bytes(text if i % 2 else damaged(text, chance))
        found = taken_or_refused(partial(read_run, folder), CheckpointError, str(folder))
        assert found is None or (isinstance(found["step"], int) and isinstance(found["config"], dict))


# HTTP


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    testing = pytest.importorskip("fastapi.testclient", reason="the extra web is not installed")
    from kithkin.web import Limits, create_app, served_models

    from serving import tiny_weights

    weights = tiny_weights(tmp_path_factory.mktemp("model") / "tiny.safetensors")
    app = create_app(served_models([str(weights)]), limits=Limits(megabytes=1, megapixels=0.01))
    # What escapes from the application is raised here.
    with testing.TestClient(app, base_url="http://127.0.0.1") as opened:
        yield opened


def told(answer):
    """An answer is what was asked for, or a refusal in one sentence, with the headers of every answer."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert answer.status_code != 500
        assert isinstance(answer.json()["detail"], str)
        assert "\n" not in answer.json()["detail"]
    return answer.status_code


def test_odd_forms(client):
    chance, picture = random.Random(6), encoded(pixels=levels(9, 11))
    fields = ["model", "strength", "tile", "id", "x", "y", "picture", "\0", "strengh", "a" * 300, ""]
    values = [
        "",
        "1",
        "-1",
        "nan",
        "inf",
        "1e999",
        "9" * 500,
        "tiny",
        "auto",
        "64",
        "\0",
        "../x",
        "ä\r\n",
        "0x10",
        "[]",
    ]
    found = set()
    for _ in range(150):
        data = {chance.choice(fields): chance.choice(values) for _ in range(chance.randint(0, 3))}
        sent = damaged(picture, chance) if chance.random() < 0.5 else picture
        name = chance.choice(["a.png", "", "..", "\0.png", "a" * 5000 + ".png", "ä\n.tif", "x.svg"])
        files = {"picture": (name, sent)} if chance.random() < 0.9 else None
        path = chance.choice(["/restore", "/jobs", "/neighbors"])
        found.add(told(client.post(path, files=files, data=data)))
    assert {200, 422} <= found


def test_odd_bodies(client):
    chance = random.Random(7)
    whole = (
        b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
        + encoded()
        + b"\r\n--x--\r\n"
    )
    kinds = [
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/json",
        "text/plain",
        "",
        "a/b; boundary=",
    ]
    kinds += ["application/x-www-form-urlencoded", "multipart/form-data; boundary=" + "y" * 500]
    for i in range(150):
        kind = kinds[0] if i % 2 else chance.choice(kinds)
        body = damaged(whole, chance, until=120)
        told(client.post(chance.choice(["/restore", "/jobs"]), content=body, headers={"content-type": kind}))


def test_odd_requests(client):
    chance = random.Random(8)
    paths = [
        "/",
        "/docs",
        "/about",
        "/jobs",
        "/jobs/x",
        "/jobs/" + "y" * 3000,
        "/jobs/x/result",
        "/page/..%2f",
        "/page/%00",
    ]
    paths += ["/restore", "//", "/%ff", "/about?x=1", "/about?%00", "/openapi.json", "/page/page.js?" + "a=b&" * 500]
    headers = [{}, {"host": "evil.example"}, {"origin": "null"}, {"content-length": "x"}, {"range": "bytes=9-1"}]
    headers += [{"accept": "*" * 500}, {"host": ""}, {"sec-fetch-site": "cross-site"}, {"expect": "100-continue"}]
    for _ in range(250):
        method = chance.choice(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
        told(client.request(method, chance.choice(paths), headers=chance.choice(headers)))
