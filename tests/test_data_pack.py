"""Photographs in tar shards of a given size."""

import hashlib
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.data import PackOptions, Photos, pack_photos
from kithkin.errors import InputError


def photograph(path, height, width, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "my photos"
    for i in range(9):
        photograph(folder / f"{i % 2}/a {i}.jpg", 40 + i, 60, seed=i, quality=95)
    return folder


def pattern(report):
    return str(report.parts[0].parent / f"part-{{000..{len(report.parts) - 1:03}}}.tar")


def test_whole_files_keep_their_bytes_and_no_part_is_too_large(photographs, tmp_path):
    report = pack_photos([photographs], tmp_path / "pack", PackOptions(part_mb=0.01))
    assert report.pictures == 9
    assert len(report.parts) > 1
    assert all(path.stat().st_size <= 10_000 for path in report.parts)
    packed = {}
    for path in report.parts:
        with tarfile.open(path) as tar:
            packed |= {member.name: tar.extractfile(member).read() for member in tar}
    expected = {"_".join(f"my photos/{p.relative_to(photographs)}".split()): p for p in photographs.rglob("*.jpg")}
    assert packed == {name: path.read_bytes() for name, path in expected.items()}
    index = json.loads((tmp_path / "pack/pack.json").read_text())
    assert {row["name"]: row["sha256"] for row in index["pictures"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in packed.items()
    }
    assert index["parts"] == [path.name for path in report.parts]


def test_a_run_reads_the_parts_as_it_reads_the_folder(photographs, tmp_path):
    report = pack_photos([photographs], tmp_path / "pack", PackOptions(part_mb=0.01))
    assert all(path.with_suffix(".idx").is_file() for path in report.parts)
    packed, folder = Photos([pattern(report)]), Photos([photographs])
    assert len(packed) == len(folder)
    for i in range(len(folder)):
        np.testing.assert_array_equal(packed[i][0], folder[i][0])


def test_crops_are_cut_side_by_side_and_small_photographs_are_counted(tmp_path):
    large = photograph(tmp_path / "in/large.png", 100, 150, seed=1)
    photograph(tmp_path / "in/small.png", 47, 200, seed=2)
    exact = photograph(tmp_path / "in/exact.jpg", 48, 48, seed=3)
    report = pack_photos([tmp_path / "in"], tmp_path / "pack", PackOptions(crop=48))
    assert (report.pictures, report.small) == (2 * 3 + 1, 1)
    rows = json.loads((tmp_path / "pack/pack.json").read_text())["pictures"]
    assert {tuple(row["size"]) for row in rows} == {(48, 48)}
    whole = np.asarray(Image.open(large)).astype(int)
    photos = Photos([pattern(report)])
    for name, i in zip(photos.names, range(len(photos)), strict=True):
        if "large" in name:
            top, left = (int(x) for x in name.removesuffix(".jpg").split("-")[-2:])
            assert top % 8 == left % 8 == 0
            assert np.abs(photos[i][0] - whole[top : top + 48, left : left + 48]).mean() < 3
        else:
            np.testing.assert_array_equal(photos[i][0], np.asarray(Image.open(exact)))


def test_what_the_parts_have_no_room_for_is_counted(photographs, tmp_path):
    report = pack_photos([photographs], tmp_path / "pack", PackOptions(part_mb=0.01, parts=1))
    assert len(report.parts) == 1
    assert report.pictures + report.left_out == 9
    assert report.left_out > 0


def test_photographs_of_a_list_are_left_out(photographs, tmp_path):
    (tmp_path / "held.tsv").write_text("file\tkind\nmy_photos/0/a_2.jpg\tmixed\nmy_photos/1/a_3.jpg\tsoft\n")
    arguments = ["data", "pack", str(photographs), "-o", str(tmp_path / "pack"), "--exclude"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "held.tsv")])
    assert result.exit_code == 0
    assert "7 pictures in 1 parts" in result.stdout
    assert "Left out: 2 photographs that" in result.stdout
    names = {row["name"] for row in json.loads((tmp_path / "pack/pack.json").read_text())["pictures"]}
    assert not names & {"my_photos/0/a_2.jpg", "my_photos/1/a_3.jpg"}
    missing = CliRunner().invoke(app, [*arguments, str(tmp_path / "none.txt")])
    assert missing.exit_code != 0


def test_the_order_is_mixed_and_follows_from_the_seed(photographs, tmp_path):
    def names(out, seed):
        pack_photos([photographs], tmp_path / out, PackOptions(seed=seed))
        return [row["name"] for row in json.loads((tmp_path / out / "pack.json").read_text())["pictures"]]

    first = names("a", 0)
    assert first == names("b", 0)
    assert first != names("c", 1)
    assert first != sorted(first)


def test_bad_input_is_refused(photographs, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no photograph"):
        pack_photos([tmp_path / "none"], tmp_path / "pack")
    with pytest.raises(InputError, match="bytes and a part holds 1,000"):
        pack_photos([photographs], tmp_path / "tiny", PackOptions(part_mb=0.001))
    for options in (PackOptions(part_mb=0), PackOptions(parts=0), PackOptions(crop=0)):
        with pytest.raises(InputError, match="at least 1"):
            pack_photos([photographs], tmp_path / "pack", options)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        pack_photos([photographs], tmp_path / "file")
    pack_photos([photographs], tmp_path / "pack")
    with pytest.raises(InputError, match="holds a pack already"):
        pack_photos([photographs], tmp_path / "pack")
    with pytest.raises(InputError, match="same name in the pack"):
        pack_photos([photographs, photographs], tmp_path / "twice")


def test_the_command_says_what_it_left_out_and_fails_for_damage(photographs, tmp_path):
    (photographs / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    result = CliRunner().invoke(
        app, ["data", "pack", str(photographs), "-o", str(tmp_path / "pack"), "--part-mb", "0.01", "--parts", "1"]
    )
    assert result.exit_code == 1
    assert "in 1 parts" in result.stdout
    assert "for which the parts had no room" in result.stdout
    assert "broken.jpg" in result.stderr
    assert "Left out: 1 files that can't be read" in result.stderr
