"""The catalog of data sets: cards, checking what is on disk, cutting crops, and the command line around them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.data import CutOptions, Pairs, Photos, check_dataset, cut_crops, find_card, list_cards, open_samples
from kithkin.data.prepare import starts
from kithkin.errors import InputError
from kithkin.evaluation import PROTOCOLS

from layouts import (
    matlab73,
    picture,
    write,
    write_blocks,
    write_dnd,
    write_gopro,
    write_lmdb,
    write_pairs,
    write_sidd_originals,
)


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["data", *(str(a) for a in arguments)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result.output


def problems(report):
    return [finding.text for finding in report.findings if finding.level == "problem"]


def notes(report):
    return [finding.text for finding in report.findings if finding.level == "note"]


# Cards


@pytest.mark.parametrize("card", list_cards().values(), ids=lambda card: card.name)
def test_a_card_is_sound(card):
    assert card.url.startswith("https://") or card.name in ("pairs", "photos")
    assert card.licence
    assert card.layouts
    assert set(card.parts) <= {"train", "test"}
    assert card.protocol in {*PROTOCOLS, "realblur", "dnd"}
    assert (card.protocol == "gaussian") == (card.kind == "photos")
    assert 0 <= card.overlap < card.crop


def test_published_numbers():
    """Of the papers and the authors' pages."""
    counts = {name: {part: p.counts for part, p in card.parts.items()} for name, card in list_cards().items()}
    assert counts["gopro"] == {"test": (1111,), "train": (2103,)}
    assert counts["realblur-j"] == counts["realblur-r"] == {"test": (980,), "train": (3758,)}
    assert counts["sidd-validation"] == {"test": (40 * 32,)}
    assert counts["dnd"] == {"test": (50 * 20,)}
    assert counts["sidd"] == {"train": (320,)}
    assert [counts[n]["test"][0] for n in ("test100", "rain100h", "rain100l", "test2800", "test1200")] == [
        98,
        100,
        100,
        2800,
        1200,
    ]


def test_list():
    shown = call("list")
    cards = json.loads(call("list", "--json"))
    assert [card["name"] for card in cards] == list(list_cards())
    assert all(card["name"] in shown and card["url"] in shown for card in cards)


def test_an_unknown_name():
    with pytest.raises(InputError, match="no data set is called 'gopro2'; there are sidd, "):
        find_card("gopro2")
    assert find_card("GoPro").name == "gopro"


def test_the_processes_that_cut_need_no_pytorch():
    code = "import sys, kithkin.data.prepare\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# Checking


def test_a_set_that_is_as_it_should_be(tmp_path):
    write_pairs(tmp_path / "Datasets" / "test" / "Rain100L", [f"{i:03}" for i in range(1, 101)])
    report = check_dataset("rain100l", tmp_path / "Datasets")
    assert report.usable
    assert (report.count, report.expected, report.part) == (100, (100,), "test")
    assert report.folder == tmp_path / "Datasets" / "test" / "Rain100L"
    assert [f.text for f in report.findings] == ["100 pairs, as the test part has", "200 files read to the end"]
    assert "usable\n" in call("check", "rain100l", tmp_path / "Datasets")


def test_too_few_and_too_many(tmp_path):
    write_pairs(tmp_path / "few", ["1", "2"])
    report = check_dataset("gopro", tmp_path / "few")
    assert not report.usable
    assert problems(report)[0].startswith("2 pairs, the test part of gopro has 1,111; unpack it again, or get it from ")
    assert "name the set pairs" in problems(report)[0]
    assert check_dataset("pairs", tmp_path / "few").usable
    for i in range(19):
        write(tmp_path / "many" / f"{i}.png", picture(i))
    assert problems(check_dataset("mcmaster", tmp_path / "many")) == [
        "19 pictures, the test part of mcmaster has 18; remove what does not belong to it"
    ]
    assert check_dataset("photos", tmp_path / "many").usable


def test_everything_that_is_wrong_with_pairs_at_once(tmp_path):
    folder = write_pairs(tmp_path, [f"{i}" for i in range(9)])
    (folder / "target" / "0.png").unlink()
    (folder / "input" / "1.png").unlink()
    write(folder / "input" / "2.jpg", picture(99))
    write(folder / "target" / "3.png", picture(7, 40, 48))
    shutil.copy(folder / "target" / "4.png", folder / "input" / "4.png")
    shutil.copy(folder / "input" / "5.png", folder / "input" / "6.png")
    os.truncate(folder / "input" / "7.png", 300)
    (folder / "target" / "8.png").write_text("no picture")
    report = check_dataset("pairs", folder)
    said = "\n".join(problems(report))
    assert "2 files have no partner of the same name: input/0.png, target/1.png" in said
    assert f"{folder / 'input' / '2.png'} and {folder / 'input' / '2.jpg'} differ in their endings alone" in said
    assert "1 pairs are of unequal size: 3.png (56×40, target 48×40)" in said
    assert "1 inputs are their own targets, byte for byte: 4.png" in said
    assert f"{folder / 'input' / '7.png'}: " in said
    assert f"{folder / 'target' / '8.png'}: is not a picture that kithkin knows" in said
    assert notes(report) == ["1 files are there twice, byte for byte: 6.png = 5.png; remove one of each"]
    assert len(problems(check_dataset("pairs", folder, quick=True))) == 2
    output = call("check", "pairs", folder, code=1)
    assert output.count("  problem ") == 6
    assert output.endswith("not usable as it is\n")


def test_what_is_twice_spoils_a_test_set_but_not_a_training_set(tmp_path):
    folder = write_pairs(tmp_path / "test", ["1", "2"])
    shutil.copy(folder / "input" / "1.png", folder / "input" / "2.png")
    assert any("there twice" in text for text in problems(check_dataset("gopro", folder)))
    assert any("there twice" in text for text in notes(check_dataset("gopro", folder, part="train")))


def test_targets_may_be_alike(tmp_path):
    """Rain is drawn on one picture several times."""
    folder = write_pairs(tmp_path, ["1", "2"])
    shutil.copy(folder / "target" / "1.png", folder / "target" / "2.png")
    assert check_dataset("pairs", folder).usable


def test_training_crops_may_be_of_any_number(tmp_path):
    folder = write_pairs(tmp_path / "train" / "SIDD", ["1", "2"], ("input_crops", "target_crops"))
    report = check_dataset("sidd", tmp_path)
    assert report.usable
    assert (report.folder, report.count, report.expected) == (folder, 2, ())


def test_originals(tmp_path):
    write_gopro(tmp_path / "GOPRO_Large" / "test")
    report = check_dataset("gopro", tmp_path)
    assert report.layout == "pairs named as their authors name them"
    assert report.count == 4
    assert notes(report) == ["blur_gamma is not read: published values are of blur"]
    (tmp_path / "GOPRO_Large" / "test" / "GOPR0384_11_00" / "sharp" / "000002.png").unlink()
    assert problems(check_dataset("gopro", tmp_path))[0].startswith(
        "1 files have no partner of the same name: GOPR0384_11_00/blur/000002.png"
    )


def test_photos(tmp_path):
    for i in range(18):
        write(tmp_path / f"{i}.tif", picture(i))
    assert check_dataset("mcmaster", tmp_path).usable
    shutil.copy(tmp_path / "3.tif", tmp_path / "4.tif")
    os.truncate(tmp_path / "5.tif", 100)
    report = check_dataset("mcmaster", tmp_path)
    assert len(problems(report)) == 2
    assert any("4.tif = 3.tif" in text for text in problems(report))
    assert any("5.tif" in text for text in problems(report))
    write(tmp_path / "6.png", picture(77))
    assert any("6.tif and 6.png" in text for text in problems(check_dataset("mcmaster", tmp_path, quick=True)))


def test_lmdb(tmp_path):
    for j, name in enumerate(("input_crops.lmdb", "gt_crops.lmdb")):
        write_lmdb(tmp_path / name, {f"{i}": picture(2 * i + j) for i in range(3)})
    report = check_dataset("sidd", tmp_path)
    assert report.usable
    assert (report.layout, report.count) == ("two LMDB databases", 3)
    with (tmp_path / "input_crops.lmdb" / "meta_info.txt").open("a") as file:
        file.write("7.png (40,56,3) 1\n")
    (tmp_path / "gt_crops.lmdb" / "meta_info.txt").unlink()
    write_lmdb(tmp_path / "gt_crops.lmdb", {"8": picture(3), "1": picture(3, 8, 8)}, meta=False)
    report = check_dataset("sidd", tmp_path)
    said = "\n".join(problems(report))
    assert "meta_info.txt names 4 keys, it holds 3" in said
    assert "1 keys of" in said
    assert "gt_crops.lmdb have no partner: 8" in said
    assert "1 pairs are of unequal size: 1 (56×40, target 8×8)" in said
    assert "no meta_info.txt" in notes(report)[0]


def test_blocks(tmp_path):
    write_blocks(tmp_path, (40, 32, 2, 2, 3))
    report = check_dataset("sidd-validation", tmp_path)
    assert report.usable
    assert report.count == 1280
    assert notes(report) == ["the blocks are (40, 32, 2, 2, 3), SIDD's are (40, 32, 256, 256, 3)"]
    assert not check_dataset("sidd-validation", tmp_path / "..", quick=True).usable
    os.truncate(tmp_path / "ValidationGtBlocksSrgb.mat", os.path.getsize(tmp_path / "ValidationGtBlocksSrgb.mat") - 20)
    assert any("damaged" in text for text in problems(check_dataset("sidd-validation", tmp_path)))
    assert check_dataset("sidd-validation", tmp_path, quick=True).usable  # the headers are whole
    write_blocks(tmp_path / "a", (2, 2, 4, 4, 3))
    assert problems(check_dataset("sidd-validation", tmp_path / "a"))[0].startswith(
        "4 blocks, the test part of sidd-val"
    )
    scipy.io.savemat(tmp_path / "ValidationNoisyBlocksSrgb.mat", {"x": np.zeros(3)})
    (tmp_path / "ValidationGtBlocksSrgb.mat").unlink()
    said = problems(check_dataset("sidd-validation", tmp_path))
    assert "holds no variable ValidationNoisyBlocksSrgb (only x)" in said[0]
    assert "ValidationGtBlocksSrgb.mat does not exist" in said[1]


def test_dnd(tmp_path):
    write_dnd(tmp_path)
    report = check_dataset("dnd", tmp_path)
    assert report.usable
    assert report.count == 1000
    for number, pixels in ((3, np.zeros((3, 90, 70))), (4, np.zeros((3, 9, 7))), (5, np.full((3, 90, 70), 255.0))):
        with matlab73(tmp_path / "images_srgb" / f"{number:04}.mat") as file:
            file["Inoisy" if number == 3 else "InoisySRGB"] = pixels
    (tmp_path / "images_srgb" / "0006.mat").unlink()
    said = problems(check_dataset("dnd", tmp_path))
    assert len(said) == 5
    assert "expected InoisySRGB" in said[0]
    assert "a box of info.mat lies outside" in said[1]
    assert "reaches from 255 to 255, expected [0, 1]" in said[2]
    assert "0006.mat does not exist" in said[3]
    assert said[4].startswith("920 crops, the test part of dnd has 1,000")


def test_a_set_that_is_not_there(tmp_path):
    write_blocks(tmp_path)
    report = check_dataset("gopro", tmp_path)
    assert not report.usable
    assert report.layout is None
    assert "holds SIDD's .mat files, but gopro" in problems(report)[0]
    values = json.loads(call("check", "gopro", tmp_path, "--json", code=1))
    assert values["usable"] is False
    assert values["findings"][0]["level"] == "problem"
    with pytest.raises(InputError, match="missing is not a folder"):
        check_dataset("gopro", tmp_path / "missing")
    with pytest.raises(InputError, match="no part 'val'"):
        check_dataset("gopro", tmp_path, part="val")


# Crops


@pytest.mark.parametrize(
    ("length", "crop", "overlap", "expected"),
    [
        (1280, 512, 256, [0, 256, 512, 768]),  # GoPro: 4 × 2 crops of 1280×720
        (720, 512, 256, [0, 208]),
        (512, 512, 256, [0]),
        (400, 512, 256, [0]),
        (513, 512, 128, [0, 1]),
        (3000, 512, 128, [0, 384, 768, 1152, 1536, 1920, 2304, 2488]),
    ],
)
def test_where_crops_begin(length, crop, overlap, expected):
    assert starts(length, crop, overlap) == expected


def test_crops_of_pairs_are_read_as_pairs(tmp_path):
    folder = write_pairs(tmp_path / "data", ["a", "deep/b"])
    report = cut_crops("pairs", folder, tmp_path / "out", CutOptions(crop=24, overlap=8, jobs=1))
    assert (report.crops, report.samples, report.skipped, report.failed) == (2 * 2 * 3, 2, 0, ())
    crops = Pairs([tmp_path / "out"])
    assert len(crops) == 12
    assert crops.names[:3] == ["a-00000-00000.png", "a-00000-00016.png", "a-00000-00032.png"]
    for top, left in ((0, 0), (16, 32)):
        source, target = crops[crops.names.index(f"deep/b-{top:05}-{left:05}.png")]
        assert np.array_equal(source, picture(2)[top : top + 24, left : left + 24])
        assert np.array_equal(target, picture(3)[top : top + 24, left : left + 24])


@pytest.mark.parametrize("key", ["../../../../escaped/x", "/escaped/x", "..", "C:\\\\x"])
def test_a_key_can_not_lead_out_of_the_folder_of_crops(tmp_path, key):
    for j, name in enumerate(("input_crops.lmdb", "gt_crops.lmdb")):
        write_lmdb(tmp_path / "lmdb" / name, {key: picture(j), "a": picture(j)})
    with pytest.raises(InputError, match="names no file below"):
        cut_crops("pairs", tmp_path / "lmdb", tmp_path / "deep/er/out", CutOptions(crop=24, overlap=0, jobs=1))
    assert [path.name for path in tmp_path.iterdir()] == ["lmdb"]


def test_crops_of_photos_of_scene_folders_and_of_lmdb(tmp_path):
    write(tmp_path / "photos" / "a.png", picture(0))
    options = CutOptions(crop=40, overlap=0, jobs=1)
    assert cut_crops("photos", tmp_path / "photos", tmp_path / "a", options).crops == 2
    assert np.array_equal(Photos([tmp_path / "a"])[1][0], picture(0)[:, 16:])
    write_sidd_originals(tmp_path / "sidd", scenes=1)
    assert cut_crops("sidd", tmp_path / "sidd", tmp_path / "b", options).crops == 4
    assert np.array_equal(Pairs([tmp_path / "b"])[0][1], picture(201)[:, :40])
    for j, name in enumerate(("input_crops.lmdb", "gt_crops.lmdb")):
        write_lmdb(tmp_path / "lmdb" / name, {"1.5_s001": picture(j)})
    assert cut_crops("pairs", tmp_path / "lmdb", tmp_path / "c", options).crops == 2
    assert Pairs([tmp_path / "c"]).names == ["1.5_s001-00000-00000.png", "1.5_s001-00000-00016.png"]


def test_the_cards_sizes_are_the_default(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "s" / "blur" / "1.png", picture(0, 600, 600))
        write(tmp_path / part / "s" / "sharp" / "1.png", picture(1, 600, 600))
    report = cut_crops("gopro", tmp_path, tmp_path / "out", CutOptions(jobs=1))
    assert (report.samples, report.crops) == (1, 4)
    assert {Image.open(p).size for p in (tmp_path / "out" / "input_crops").rglob("*.png")} == {(512, 512)}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix == ".png"}


def test_a_killed_run_finishes_with_nothing_lost(tmp_path):
    folder = write_pairs(tmp_path / "data", [f"{i:02}" for i in range(6)])
    options = CutOptions(crop=16, overlap=0, jobs=1)
    assert cut_crops("pairs", folder, tmp_path / "whole", options).crops == 6 * 12
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "kithkin", "data", "prepare", "pairs", folder, "-o", out]
    run = subprocess.Popen([*map(str, command), "--crop", "16", "--overlap", "0", "--jobs", "2"])
    until = time.monotonic() + 60
    while len(list(out.glob("target_crops/*.png"))) < 15:
        assert time.monotonic() < until
        assert run.poll() is None
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = contents(out)
    assert 30 <= len(before) < 2 * 6 * 12
    with (out / "crops.jsonl").open("a") as journal:
        journal.write('{"sample": "05.png", "cro')  # what a kill in the middle of a line leaves
    (out / "input_crops" / ".kithkin-0123.part").write_bytes(b"half a picture")
    report = cut_crops("pairs", folder, out, options)
    assert report.crops == 6 * 12
    assert contents(out) == contents(tmp_path / "whole")
    assert list(out.rglob("*.part")) == []
    again = cut_crops("pairs", folder, out, options)
    assert (again.skipped, again.crops) == (6, 6 * 12)


def test_what_was_cut_and_then_deleted_is_cut_again(tmp_path):
    folder = write_pairs(tmp_path / "data", ["1", "2"])
    options = CutOptions(crop=32, overlap=0, jobs=1)
    cut_crops("pairs", folder, tmp_path / "out", options)
    before = contents(tmp_path / "out")
    next((tmp_path / "out" / "target_crops").glob("2-*.png")).unlink()
    report = cut_crops("pairs", folder, tmp_path / "out", options)
    assert (report.skipped, report.crops) == (1, 8)
    assert contents(tmp_path / "out") == before


def test_crops_of_another_kind_are_not_mixed(tmp_path):
    folder = write_pairs(tmp_path / "data", ["1"])
    cut_crops("pairs", folder, tmp_path / "out", CutOptions(crop=32, overlap=0, jobs=1))
    with pytest.raises(InputError, match=r"was cut with .*'crop': 32.*not .*'crop': 16.*give another `out`"):
        cut_crops("pairs", folder, tmp_path / "out", CutOptions(crop=16, overlap=0, jobs=1))
    (tmp_path / "other" / "input_crops").mkdir(parents=True)
    with pytest.raises(InputError, match="holds crops that it did not cut"):
        cut_crops("pairs", folder, tmp_path / "other")


def test_crops_do_not_go_among_the_pictures(tmp_path):
    write(tmp_path / "a.png", picture(0))
    for out in (tmp_path, tmp_path / "crops"):
        with pytest.raises(InputError, match="lies within the pictures"):
            cut_crops("photos", tmp_path, out)


def test_a_picture_that_gives_no_crops_does_not_stop_the_others(tmp_path):
    folder = write_pairs(tmp_path / "data", ["1", "2", "3"])
    os.truncate(folder / "input" / "2.png", 200)
    arguments = ("prepare", "pairs", folder, "-o", tmp_path / "out", "--crop", 40, "--overlap", 0, "--jobs", 1)
    output = call(*arguments, code=1)
    assert "2.png" in output
    assert f"4 crops of 3 pictures in {tmp_path / 'out'}" in output
    assert "1 pictures gave none" in output
    write(folder / "input" / "2.png", picture(2))
    assert f"6 crops of 3 pictures (2 were cut before) in {tmp_path / 'out'}" in call(*arguments)


@pytest.mark.parametrize("name", ["dnd", "sidd-validation", "rain100l", "cbsd68"])
def test_test_sets_are_not_cut(tmp_path, name):
    with pytest.raises(InputError, match="is there to measure with"):
        cut_crops(name, tmp_path, tmp_path / "out")


def test_the_test_part_is_not_cut_either(tmp_path):
    folder = write_gopro(tmp_path / "test")
    with pytest.raises(InputError, match="the test part of gopro is there to measure with"):
        cut_crops("gopro", folder, tmp_path / "out", CutOptions(part="test"))
    for side in ("input", "target"):
        (tmp_path / "named" / side).mkdir(parents=True)
        for i in range(1111):
            (tmp_path / "named" / side / f"{i}.png").touch()
    with pytest.raises(InputError, match="1,111 is the number of gopro's test pictures"):
        cut_crops("gopro", tmp_path / "named", tmp_path / "out")


def test_impossible_sizes(tmp_path):
    with pytest.raises(InputError, match=r"overlap lies in \[0, crop\), got 16 and 16"):
        cut_crops("pairs", write_pairs(tmp_path / "data", ["1"]), tmp_path / "out", CutOptions(crop=16, overlap=16))


def test_an_overlap_that_is_not_given_is_at_most_half_a_crop(tmp_path):
    report = cut_crops("pairs", write_pairs(tmp_path / "data", ["1"]), tmp_path / "out", CutOptions(crop=16, jobs=1))
    assert report.crops == len(starts(40, 16, 8)) * len(starts(56, 16, 8))


def test_evaluation_reads_what_was_cut(tmp_path):
    folder = write_pairs(tmp_path / "data", ["1"])
    cut_crops("pairs", folder, tmp_path / "out", CutOptions(crop=40, overlap=0, jobs=1))
    samples = open_samples(tmp_path / "out")
    assert samples.names == ["1-00000-00000.png", "1-00000-00016.png"]


def test_the_document_has_a_row_for_every_card():
    text = (Path(__file__).parent.parent / "docs/reference/data.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert list(rows) == list(list_cards())
    for name, row in rows.items():
        card = find_card(name)
        assert all(value in row for value in (card.title, card.kind, f"`{card.protocol}`", card.licence, card.url))
        assert all(f"{count:,}" in row for part in card.parts.values() for count in part.counts)
