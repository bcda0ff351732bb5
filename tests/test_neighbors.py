"""The patches that meet in a network: against the oracle's own grouping of what the layer gets, and as drawings."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from kithkin.checkpoint import save_model
from kithkin.cli import app
from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.images import Picture, read_picture, write_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.neighbors import (
    Box,
    Neighbors,
    Query,
    Round,
    draw_neighbors,
    find_neighbors,
    recorded_groups,
    stage_names,
)

import oracle

HEIGHT, WIDTH = 52, 76  # extended to 56 x 80; encoder1's map of 14 x 20 is completed to 4 x 5 patches of 16 pixels


@pytest.fixture(scope="module")
def model():
    """Weights of every block drawn at random, for an untrained network's blocks add nothing."""
    network = KiT(KiTConfig(width=8, n_stages=2, k=2, n_hashes=3))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return network.train()


def levels(height=HEIGHT, width=WIDTH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(array):
    return torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)[None]


def by_the_oracle(model, array, stage, block):
    """(patches' rows and columns, orders, hashes) of a block, from the map that its attention layer gets."""
    part = model.encoder if stage.startswith("encoder") else model.decoder
    layer = part[int(stage[7:])][block].attention
    maps = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0].detach()))
    model(tensor(array))
    handle.remove()
    x = maps[0][0].numpy()
    x = np.pad(x, ((0, -x.shape[0] % 4), (0, -x.shape[1] % 4), (0, 0)), mode="edge")
    patches = oracle.partition(x, 4)
    half = oracle.default_n_buckets(len(patches), 2) // 2
    hashes = [oracle.lsh_hash(patches.reshape(len(patches), -1), r[:, :half].numpy()) for r in layer.rotations]
    return (x.shape[0] // 4, x.shape[1] // 4), [oracle.sort_by_hash(row) for row in hashes], hashes


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(("stage", "side"), [("encoder0", 8), ("encoder1", 16), ("decoder1", 16), ("decoder0", 8)])
def test_the_boxes_are_the_oracle_s_chunks(model, stage, side, block):
    points = [(0, 0), (WIDTH - 1, HEIGHT - 1), (30, 17)]
    found = find_neighbors(model, levels(), points, stage=stage, block=block)
    (rows, columns), orders, hashes = by_the_oracle(model, levels(), stage, block)
    assert (found.size, found.k, found.patch_side) == ((WIDTH, HEIGHT), 2, side)
    assert found.buckets.tolist() == np.reshape(hashes, (3, rows, columns)).tolist()
    assert [query.point for query in found.queries] == points

    def boxes(chunk):
        return tuple((i % columns * side, i // columns * side, side, side) for i in chunk)

    for query in found.queries:
        x, y = query.point
        own = y // side * columns + x // side
        assert query.box == boxes([own])[0]
        assert len(query.rounds) == 3
        for j, of_round in enumerate(query.rounds):
            runs = oracle.chunks(orders[j], 2)
            number = next(n for n, run in enumerate(runs) if own in run)
            assert of_round.chunk == boxes(runs[number])
            assert of_round.look_back == boxes(runs[number - 1])
            assert of_round.bucket == hashes[j][own]


def test_equal_parts_of_a_picture_fall_into_one_bucket(model):
    array = levels(48, 96)
    array[:, 48:] = array[:, :48]
    buckets = find_neighbors(model, array, [], stage="encoder0").buckets
    # The columns whose patches see neither border nor the seam through the convolutions of the stem.
    assert (buckets[:, 1:5, 1:5] == buckets[:, 1:5, 7:11]).all()
    assert (buckets[:, 1:5, 1:5] != buckets[:, 1:5, 8:12]).any()


def test_a_map_of_few_patches_is_not_hashed(model):
    found = find_neighbors(model, levels(24, 24), [(3, 20)], stage="encoder1")
    assert found.buckets is None
    (query,) = found.queries
    (only,) = query.rounds
    assert set(only.chunk) == {(x, y, 16, 16) for x in (0, 16) for y in (0, 16)}
    assert only.look_back == ()
    assert only.bucket is None
    with pytest.raises(InputError, match="no buckets; take a stage with a larger map"):
        draw_neighbors(levels(24, 24), found, buckets=True)
    assert draw_neighbors(levels(24, 24), found).mode == "RGB"


def test_the_model_is_left_as_it_was(model):
    before = torch.random.get_rng_state()
    find_neighbors(model, levels(), [(1, 1)])
    assert all(module.training for module in model.modules())
    assert all(getattr(module, "recorder", None) is None for module in model.modules())
    assert torch.equal(before, torch.random.get_rng_state())
    layer = model.encoder[0][0].attention
    with pytest.raises(RuntimeError, match="stop"), recorded_groups(layer):
        raise RuntimeError("stop")
    assert layer.recorder is None


def test_every_kind_of_picture_gives_the_same(model, tmp_path):
    array = levels()
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    kinds = [
        array,
        path,
        str(path),
        Image.open(path),
        read_picture(path),
        tensor(array),
        array.astype(np.float64) / 255,
    ]
    first, *others = (find_neighbors(model, kind, [(30, 17)]).to_dict(buckets=True) for kind in kinds)
    assert all(other == first for other in others)
    assert json.loads(json.dumps(first)) == first
    assert "buckets" not in find_neighbors(model, array, []).to_dict()


def test_stages_in_the_order_in_which_they_run(model):
    assert stage_names(model) == ("encoder0", "encoder1", "bottleneck", "decoder1", "decoder0")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"points": [(WIDTH, 0)]}, r"point 76,0 is outside .* 76 x 52 .* x goes from 0 to 75 and y from 0 to 51"),
        ({"points": [(0, 0), (3, -1)]}, "point 3,-1 is outside"),
        ({"points": [(1.5, 0)]}, r"whole pixels, got \(1.5, 0\)"),
        ({"points": [(1, 2, 3)]}, r"a point is \(x, y\)"),
        ({"points": [7]}, r"a point is \(x, y\)"),
        (
            {"stage": "encoder2"},
            "no stage is called 'encoder2'; there are encoder0, encoder1, bottleneck, dec",
        ),
        (
            {"stage": "bottleneck"},
            "in the bottleneck no patch attends to others.*; take one of encoder0, enc",
        ),
        ({"block": 2}, "encoder0 has neighbours in the blocks 0, 1, got 2"),
        ({"block": -1}, "in the blocks 0, 1, got -1"),
        ({"block": True}, "got True"),
        ({"image": np.zeros((2, 3, 5))}, r"expected an array"),
        ({"image": torch.zeros(2, 3, 8, 8)}, "expected one picture, got a batch of 2"),
        ({"image": levels() * 1.0}, "expected floats in"),
    ],
)
def test_bad_input_is_refused(model, change, sentence):
    arguments = {"image": levels(), "points": [(0, 0)], **change}
    image, points = arguments.pop("image"), arguments.pop("points")
    with pytest.raises(InputError, match=sentence):
        find_neighbors(model, image, points, **arguments)


def test_a_network_without_neighbours_says_so():
    with pytest.raises(InputError, match="in this network k = 1: .* take a network with k > 1"):
        find_neighbors(KiT(KiTConfig(width=8, n_stages=1, k=1)), levels(), [(0, 0)])


def test_too_little_memory_is_said(model, monkeypatch):
    def full(self, image):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(KiT, "forward", full)
    with pytest.raises(KithkinError, match="not enough memory for 76 x 52 at once; crop"):
        find_neighbors(model, levels(), [(0, 0)])


# Drawings. A gray picture of 1008 x 1008 is drawn at its own size, with lines of 3 pixels.

SIDE, HEAD = 1008, 30
OWN, OTHER, BACK = Box(496, 496, 16, 16), Box(208, 304, 16, 16), Box(704, 96, 16, 16)


@pytest.fixture(scope="module")
def drawn():
    """The picture, and neighbours in three rounds made by hand: each a chunk of two, and one patch to look back to."""
    ramp = np.linspace(0.2, 0.8, SIDE, dtype=np.float32)
    gray = (0.5 * ramp[:, None] + 0.5 * ramp)[..., None].repeat(3, axis=2)
    rounds = tuple(Round((OWN, OTHER), (BACK,), 2 * j) for j in range(3))
    buckets = np.random.default_rng(0).integers(0, 128, (3, 63, 63))
    return gray, Neighbors((SIDE, SIDE), "encoder1", 0, 2, 16, (Query((500, 500), OWN, rounds),), buckets)


def coloured(pixels):
    return (pixels.max(-1).astype(int) - pixels.min(-1)) > 60


def test_frames_lie_around_the_patches_and_not_on_them(drawn):
    gray, found = drawn
    view = np.asarray(draw_neighbors(gray, found))[HEAD : HEAD + SIDE, :SIDE]
    far = np.ones((SIDE, SIDE), dtype=bool)
    share = {}
    for box in (OWN, OTHER, BACK):
        x, y, width, height = box
        inside = slice(y, y + height), slice(x, x + width)
        assert (np.abs(view[inside] - 255 * gray[inside]) <= 1).all()
        share[box] = coloured(view[y - 2, x - 2 : x + width + 2]).mean()
        assert coloured(view[y : y + height, x + width + 1]).any()
        far[y - 30 : y + height + 10, x - 10 : x + width + 10] = False  # the tag is above
    assert share[OWN] == share[OTHER] == 1
    assert 0.3 < share[BACK] < 0.8  # dashes
    assert coloured(view[OWN.y - 6, OWN.x : OWN.x + 16]).all()  # the second line of a query
    assert not coloured(view[OTHER.y - 6, OTHER.x : OTHER.x + 16]).any()
    assert not coloured(view[far]).any()


def test_a_panel_for_each_round_and_the_patches_below(drawn):
    gray, found = drawn
    together = draw_neighbors(gray, found)
    separate = draw_neighbors(gray, found, rounds="separate")
    assert together.width == SIDE
    assert separate.width == 2 * SIDE + 10  # three panels, two in a row
    assert separate.height > 2 * SIDE
    assert draw_neighbors(gray, replace(found, queries=())).height < together.height


def test_a_bucket_has_a_colour_of_its_own(drawn):
    _, found = drawn
    flat = np.full((SIDE, SIDE), 0.5, dtype=np.float32)
    drawing = np.asarray(draw_neighbors(flat, replace(found, queries=()), buckets=True))
    colours = drawing[HEAD + 8 : HEAD + SIDE : 16, 8:SIDE:16].reshape(-1, 3).tolist()
    pairs = set(zip(found.buckets[0].ravel().tolist(), map(tuple, colours), strict=True))
    assert len(pairs) == len({bucket for bucket, _ in pairs}) == len({colour for _, colour in pairs}) == 128


def test_a_small_picture_is_enlarged(model):
    found = find_neighbors(model, levels(), [(0, 0), (WIDTH - 1, HEIGHT - 1)], stage="encoder1")
    assert found.queries[1].box == Box(64, 48, 16, 16)  # reaches beyond the picture, so gray is shown there
    assert draw_neighbors(levels(), found).width == 13 * WIDTH


def test_drawings_that_make_no_sense_are_refused(drawn):
    gray, found = drawn
    with pytest.raises(InputError, match="of a picture of 1008 x 1008 pixels, this one has 76 x 52"):
        draw_neighbors(levels(), found)
    with pytest.raises(InputError, match="rounds must be one of together, separate, got 'both'"):
        draw_neighbors(gray, found, rounds="both")
    with pytest.raises(InputError, match="every round has buckets of its own"):
        draw_neighbors(gray, found, rounds="together", buckets=True)


# The verb


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["neighbors", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def files(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    write_picture(Picture(levels().astype(np.float32) / 255), tmp_path / "a.png")
    return tmp_path / "a.png", ["--model", tmp_path / "m.safetensors", "--device", "cpu"]


def test_the_verb_draws_and_prints_what_the_function_finds(model, files):
    path, options = files
    out = path.with_name("found.png")
    shown = call(path, "--at", "30,17", "--at", "0, 51", "--stage", "decoder1", "--block", 1, "-o", out, *options)
    assert shown.output == f"{path} -> {out}\n"
    expected = find_neighbors(model, path, [(30, 17), (0, 51)], stage="decoder1", block=1)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(draw_neighbors(path, expected)))
    printed = call(path, "--at", "30,17", "--at", "0,51", "--stage", "decoder1", "--block", 1, "--json", *options)
    assert json.loads(printed.stdout) == expected.to_dict()
    maps = json.loads(call(path, "--buckets", "--json", *options).stdout)["buckets"]
    assert np.shape(maps) == (3, 7, 10)


def test_the_verb_does_not_replace_files(files):
    path, options = files
    before = path.read_bytes()
    for out in (path, path.with_name("b.png")):
        (path.with_name("b.png")).write_bytes(b"mine")
        found = CliRunner().invoke(app, ["neighbors", str(path), "--at", "1,1", "-o", str(out), *map(str, options)])
        assert isinstance(found.exception, InputError | ImageError)
    assert path.read_bytes() == before
    assert path.with_name("b.png").read_bytes() == b"mine"
    call(path, "--at", "1,1", "-o", path.with_name("b.png"), "--overwrite", *options)
    assert Image.open(path.with_name("b.png")).width > WIDTH


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--at", "1,1"], "name the drawing with -o OUT.png, or ask for --json"),
        (["-o", "x.png"], "name a pixel with --at X,Y, or ask for --buckets"),
        (["--at", "1;1", "--json"], "--at takes X,Y in whole pixels, such as 120,80, got '1;1'"),
        (["--at", "1,1,1", "--json"], "got '1,1,1'"),
        (["--at=-1,0", "--json"], "point -1,0 is outside"),
    ],
)
def test_the_verb_says_what_is_missing(files, arguments, sentence):
    path, options = files
    found = CliRunner().invoke(app, ["neighbors", str(path), *arguments, *map(str, options)])
    assert isinstance(found.exception, InputError)
    assert re.search(re.escape(sentence), str(found.exception))
