"""The check that training never sees a test picture: it finds a copy, and nothing but a copy."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from kithkin.data.degrade.rain import HEAVY, RainSettings, add_rain
from kithkin.errors import InputError

import leaks
from leaks import ALIKE, find_leaks, main, thumbnail

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import validation_sets


def scene(seed, height=120, width=180):
    """A picture as of a camera: light that falls off to one side, and things in front of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / height
    light = 0.5 + 0.3 * (rng.normal() * x + rng.normal() * y)
    picture = np.repeat(light[..., None], 3, axis=2)
    for _ in range(12):
        top, left = rng.uniform(-0.1, 1), rng.uniform(-0.1, 1.5)
        thing = (abs(y - top) < rng.uniform(0.03, 0.3)) & (abs(x - left) < rng.uniform(0.03, 0.3))
        picture[thing] = rng.uniform(0, 1, 3)
    picture += rng.normal(0, 0.02, picture.shape)
    return Image.fromarray(np.rint(picture.clip(0, 1) * 255).astype(np.uint8))


def seen(picture):
    return thumbnail(np.asarray(picture.convert("RGB"), np.float32) / 255)


def recompressed(picture, quality):
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=quality)
    return Image.open(held)


def noisy(picture, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


COPIES = {
    "as it is": lambda p: p,
    "recompressed": lambda p: recompressed(p, 20),
    "half as large": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS),
    "larger, of another shape": lambda p: p.resize((333, 250), Image.Resampling.BICUBIC),
    "flipped": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda p: p.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "on its side": lambda p: p.transpose(Image.Transpose.ROTATE_90),
    "transposed": lambda p: p.transpose(Image.Transpose.TRANSPOSE),
    "gray": lambda p: p.convert("L"),
    "darker": lambda p: p.point(lambda value: value // 2),
    "blurred": lambda p: p.filter(ImageFilter.GaussianBlur(3)),
    "noisy": lambda p: noisy(p, 50),
    "without its border": lambda p: p.crop((1, 1, p.width - 1, p.height - 1)),
    "all at once": lambda p: recompressed(p.resize((90, 61)).transpose(Image.Transpose.ROTATE_270), 30),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_a_copy_is_found_among_others(copy):
    train, test = [seen(scene(i)) for i in range(20)], [seen(scene(100 + i)) for i in range(10)]
    test.insert(3, seen(copy(scene(7))))
    assert [(i, j) for i, j, _ in find_leaks(train, test)] == [(7, 3)]


def test_different_pictures_are_not_found():
    train, test = [seen(scene(i)) for i in range(40)], [seen(scene(100 + i)) for i in range(40)]
    assert find_leaks(train, test) == []
    best = find_leaks(train, test, alike=-1)
    assert len(best) == 40 * 40
    assert best[0][2] < ALIKE - 0.03


def test_every_copy_is_listed_the_most_alike_first():
    train = [seen(scene(1)), seen(scene(2)), seen(recompressed(scene(1), 10))]
    found = find_leaks(train, [seen(scene(2)), seen(scene(1))])
    assert [(i, j) for i, j, _ in found[:2]] in ([(0, 1), (1, 0)], [(1, 0), (0, 1)])
    assert found[2][:2] == (2, 1)
    assert [row[2] for row in found] == sorted((row[2] for row in found), reverse=True)
    assert found[0][2] == pytest.approx(1)


def test_the_turns_are_eight():
    shown = {x.tobytes() for x in leaks.turns(seen(scene(0)))}
    assert len(shown) == 8


def test_a_thumbnail_is_free_of_brightness_and_contrast():
    pixels = np.asarray(scene(0), np.float32) / 255
    small = thumbnail(pixels)
    assert small.shape == (16, 16)
    assert small.mean() == pytest.approx(0, abs=1e-12)
    assert np.linalg.norm(small) == pytest.approx(1)
    np.testing.assert_allclose(thumbnail(0.1 + 0.5 * pixels), small, atol=1e-5)


def test_pictures_without_contrast_are_not_alike():
    flat = [thumbnail(np.full((40, 60, 3), value, np.float32)) for value in (0.2, 0.7)]
    assert not any(x.any() for x in flat)
    assert find_leaks(flat, flat) == []


def test_nothing_is_in_nothing():
    assert find_leaks([], [seen(scene(0))]) == find_leaks([seen(scene(0))], []) == []


# The command


@pytest.fixture
def folders(tmp_path):
    for name, seeds in (("train", range(4)), ("test", range(10, 13))):
        (tmp_path / name / "deep").mkdir(parents=True)
        for i in seeds:
            scene(i).save(tmp_path / name / "deep" / f"{i}.png")
    return tmp_path


def test_the_command_is_silent_about_different_pictures(folders, capsys):
    assert main([str(folders / "train"), "--test", str(folders / "test")]) == 0
    assert capsys.readouterr().out == "4 training pictures, 3 test pictures (0 without contrast): 0 alike\n"


def test_the_command_names_a_copy(folders, capsys):
    (folders / "more").mkdir()
    recompressed(scene(2).resize((90, 60)), 50).save(folders / "more" / "copy.jpg")
    assert main([str(folders / "train"), "--test", str(folders / "test"), str(folders / "more")]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.split()[1:] == [str(folders / "train" / "deep" / "2.png"), str(folders / "more" / "copy.jpg")]
    assert last.endswith("1 alike")


def test_the_command_finds_a_scene_in_another_rain_by_its_clean_side(tmp_path, capsys):
    """Heavy rain hides a scene from the thumbnails. Pairs have a clean side, which is found."""
    for name, seeds in (("train", (0, 1, 2)), ("test", (10, 1, 12))):
        for i in seeds:
            clean = torch.from_numpy(np.array(scene(i))).permute(2, 0, 1)[None].float() / 255
            rain = torch.Generator().manual_seed(len(name) + i)
            wet, _ = add_rain(clean, rain, RainSettings((HEAVY,), (1.0,)))
            for side, picture in (("input", wet), ("target", clean)):
                (tmp_path / name / side).mkdir(parents=True, exist_ok=True)
                pixels = (picture[0] * 255).round().byte().permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(tmp_path / name / side / f"{i}.png")
    assert main([str(tmp_path / "train"), "--test", str(tmp_path / "test")]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split()[1:] == [str(tmp_path / name / "target" / "1.png") for name in ("train", "test")]


def test_the_command_refuses_an_empty_folder(folders, capsys):
    (folders / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main([str(folders / "train"), "--test", str(folders / "empty")])
    assert stopped.value.code == 2
    assert "no picture in" in capsys.readouterr().err


def test_the_command_s_exit_status(folders):
    command = [sys.executable, str(Path(leaks.__file__)), str(folders / "train"), "--test"]
    clean, alike = (
        subprocess.run([*command, str(folders / n)], capture_output=True, text=True) for n in ("test", "train")
    )
    assert clean.returncode == 0, clean.stderr
    assert alike.returncode == 1, alike.stderr
    assert "4 alike" in alike.stdout


# The photographs set aside to compare networks on


HEADER = "file\tkind\tsource\toriginal\n"
LISTED = HEADER + "a/1.png\tmixed\twho\tone.png\nb/3.png\tsoft\twho\tthree.png\nb/2.png\tleft-out\twho\tone.png\n"


@pytest.fixture
def photographs(tmp_path):
    """Five photographs in two folders, a pair, two folders of crops, and the list of what is set aside."""
    for i, folder in enumerate(("a", "a", "b", "b", "b")):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        scene(i).save(tmp_path / "in" / folder / f"{i}.png")
    for i, folder in enumerate(("rain-pairs/input", "rain-pairs/target", "crops", "crops-linked", "bsds")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        scene(20 + i).save(tmp_path / "in" / folder / f"{20 + i}.png")
    (tmp_path / "list.tsv").write_text(LISTED)
    return tmp_path


def test_what_is_set_aside_is_not_trained_on_nor_are_other_crops_of_it(photographs):
    parts = validation_sets.split(photographs / "in", photographs / "list.tsv")
    names = [x.relative_to(photographs / "in").as_posix() for x in parts.train]
    assert names == ["a/0.png", "b/4.png", "bsds/24.png", "crops/22.png", "crops-linked/23.png"]
    assert {kind: [x.name for x in files] for kind, files in parts.kinds.items()} == {
        "mixed": ["1.png"],
        "soft": ["3.png"],
    }


@pytest.mark.parametrize(
    "folder", ["a", "a/deep", "bsds", "crops", "crops-linked", "rain-pairs/input", "rain-pairs/target"]
)
def test_a_copy_of_what_is_set_aside_is_found_in_every_folder(photographs, folder):
    assert validation_sets.find_copies(validation_sets.split(photographs / "in", photographs / "list.tsv")) == []
    (photographs / "in" / folder).mkdir(exist_ok=True)
    recompressed(scene(3).resize((90, 60)), 50).save(photographs / "in" / folder / "copy.jpg")
    found = validation_sets.find_copies(validation_sets.split(photographs / "in", photographs / "list.tsv"))
    assert [(x.name, y.name) for x, y, _ in found] == [("copy.jpg", "3.png")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a/7.png\tmixed\twho\tseven.png\n", "a/7.png is not in .*; missing in all: 1"),
        ("a/1.png\tsoft\twho\tone.png\n", "a/1.png is listed twice"),
        ("b/4.png\tsoft\twho\tone.png\n", "b/4.png and a/1.png are cut from one original"),
    ],
)
def test_a_list_that_is_not_in_order_is_refused(photographs, line, said):
    (photographs / "list.tsv").write_text(LISTED + line)
    with pytest.raises(InputError, match=said):
        validation_sets.split(photographs / "in", photographs / "list.tsv")


def test_the_list_has_enough_of_each_kind_and_none_of_a_test_set():
    kinds = validation_sets.read_list()
    count = {kind: list(kinds.values()).count(kind) for kind in kinds.values()}
    assert set(count) == {"mixed", "repeated", "soft", "left-out"}
    assert min(count.values()) >= 12
    assert {name.split("/")[0] for name in kinds} <= {"crops", "photos-0", "photos-1", "photos-2"}
