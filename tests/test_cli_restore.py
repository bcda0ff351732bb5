"""The command ``kithkin restore``, in process: lines, exit codes, bad files among good ones."""

import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image, ImageCms
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

from kithkin import restore_files as files
from kithkin.checkpoint import save_model
from kithkin.cli import _batch
from kithkin.cli._command import FileCommand
from kithkin.cli.restore import EPILOG, restore
from kithkin.estimate import Estimate
from kithkin.images import read_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore as restore_in_python
from kithkin.tiles import OVERLAP
from kithkin.zoo import load_model

app = typer.Typer()
app.command("restore", cls=FileCommand, epilog=EPILOG)(restore)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model = KiT(KiTConfig(width=8, depth=1, n_hashes=1))
    with torch.no_grad():
        weight = model.head.conv3.weight
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(model, path)
    return path


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=weights):
        return CliRunner().invoke(app, [*map(str, arguments), "--model", str(model), "--device", "cpu"])

    return call


def save(name, size=(10, 14), seed=0, **options):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def pixels_of(path):
    return np.asarray(Image.open(path))


def leftovers():
    return [path for path in Path().rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


def test_a_file_gives_one_line_and_one_file(run):
    save("a.png")
    before = Path("a.png").read_bytes()
    result = run("a.png")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a.png -> a-restored.png\n", "")
    assert pixels_of("a-restored.png").shape == (10, 14, 3)
    assert (pixels_of("a-restored.png") != pixels_of("a.png")).any()
    assert Path("a.png").read_bytes() == before
    assert leftovers() == []


def test_files_and_folders_in_order(run):
    save("b.png")
    save("trip/day/c.png")
    save("trip/a.bmp")
    result = run("b.png", "trip")
    assert result.stdout.splitlines() == [
        "b.png -> b-restored.png",
        "trip/a.bmp -> trip-restored/a.bmp",
        "trip/day/c.png -> trip-restored/day/c.png",
    ]
    assert result.exit_code == 0
    assert all(Path(line.split(" -> ")[1]).is_file() for line in result.stdout.splitlines())


def test_out_and_format(run):
    save("a.png")
    assert run("a.png", "-o", "deep/b.webp").stdout == "a.png -> deep/b.webp\n"
    assert run("a.png", "-o", "folder", "--format", "jpg").stdout == "a.png -> folder/a-restored.jpg\n"
    assert Image.open("folder/a-restored.jpg").format == "JPEG"
    assert Image.open("deep/b.webp").format == "WEBP"


def test_quality_makes_smaller_files(run):
    save("a.png", (40, 40))
    for quality in (30, 95):
        run("a.png", "-o", f"{quality}.jpg", "--quality", quality)
    assert Path("30.jpg").stat().st_size < Path("95.jpg").stat().st_size


def test_strength_0_gives_the_input_bytes(run):
    save("a.png")
    run("a.png", "--strength", "0")
    np.testing.assert_array_equal(pixels_of("a.png"), pixels_of("a-restored.png"))


def test_tile_options_reach_the_picture(run):
    save("a.png", (100, 150))
    for name, options in {
        "whole": ["--tile", "off"],
        "64": ["--tile", "64"],
        "0": ["--tile", "64", "--overlap", "0"],
    }.items():
        assert run("a.png", "-o", f"{name}.png", *options).exit_code == 0
    assert (pixels_of("whole.png") != pixels_of("64.png")).any()
    assert (pixels_of("64.png") != pixels_of("0.png")).any()


def test_the_default_overlap_is_the_librarys():
    import inspect

    assert inspect.signature(restore).parameters["overlap"].default.default == OVERLAP


def test_16_bits_stay_16_bits(run):
    imagecodecs = pytest.importorskip("imagecodecs")
    samples = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    Path("a.png").write_bytes(imagecodecs.png_encode(samples))
    assert run("a.png", "--strength", "0").exit_code == 0
    np.testing.assert_array_equal(imagecodecs.png_decode(Path("a-restored.png").read_bytes()), samples)
    run("a.png", "-o", "b.png")
    restored = imagecodecs.png_decode(Path("b.png").read_bytes())
    assert restored.dtype == np.uint16
    assert len(np.unique(restored % 256)) > 50


def test_alpha_profile_and_gray_are_kept(run):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 4), dtype=np.uint8))
    image.save("a.png", icc_profile=SRGB)
    Image.fromarray(np.asarray(image)[..., 0]).save("gray.png")
    assert run("a.png", "gray.png").exit_code == 0
    restored = Image.open("a-restored.png")
    assert restored.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    assert restored.info["icc_profile"] == SRGB
    assert Image.open("gray-restored.png").mode == "L"


def test_a_lying_photograph_is_stood_up_and_keeps_its_exif(run):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    save("a.jpg", (10, 20), exif=exif)
    assert run("a.jpg").exit_code == 0
    restored = Image.open("a-restored.jpg")
    assert restored.size == (10, 20)
    assert restored.getexif()[0x0112] == 1
    assert restored.getexif()[0x010F] == "Maker"


def test_losses_are_told_on_the_error_stream(run):
    Image.fromarray(np.zeros((5, 5, 4), np.uint8)).save("a.png")
    result = run("a.png", "--format", "jpg")
    assert result.exit_code == 0
    assert result.stderr == "kithkin: a.png: JPEG holds no transparency: the picture is laid over white\n"


def test_a_note_that_a_whole_folder_has_is_told_thrice_and_then_counted(run):
    for number in range(6):
        save(f"in/{number}.jpg", comment=b"hello")
    with open("in/5.jpg", "ab") as file:
        file.write(b"more")
    result = run("in", "--out", "out", "--format", "webp", "--json")
    lines = result.stderr.splitlines()
    assert [line for line in lines if "comment" in line] == [
        *(f"kithkin: in/{number}.jpg: WebP holds no comment: it is dropped" for number in range(3)),
        "kithkin: 3 more files alike: WebP holds no comment: it is dropped",
    ]
    assert [line for line in lines if "4 bytes behind" in line]
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert all("WebP holds no comment: it is dropped" in row["notes"] for row in rows)


def bomb():
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def encoded(kind):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


BAD = {
    "cut.png": lambda: encoded("PNG")[:900],
    "cut.jpg": lambda: encoded("JPEG")[:900],
    "text.png": lambda: b"this is no picture",
    "empty.png": lambda: b"",
    "bomb.png": bomb,
    "anim.gif": lambda: encoded("GIF"),
}


def test_bad_files_are_named_and_the_others_go_on(run):
    for name, content in BAD.items():
        Path(name).write_bytes(content())
    Path("folder.png").mkdir()
    save("first.png")
    save("last.png")
    os.mkfifo("pipe.png")
    bad = [*BAD, "folder.png", "pipe.png", "missing.png"]
    result = run("first.png", *bad, "last.png")
    assert result.exit_code == 1
    assert result.stdout == "first.png -> first-restored.png\nlast.png -> last-restored.png\n"
    lines = result.stderr.splitlines()
    told, last = lines[:-1], lines[-1]
    assert last == f"kithkin: {len(bad)} of {len(bad) + 2} failed: the reasons are above"
    assert sorted(line.removeprefix("kithkin: ").split(":")[0] for line in told) == sorted(bad)
    reasons = dict(line.removeprefix("kithkin: ").split(": ", 1) for line in told)
    assert "is empty" in reasons["empty.png"]
    assert "does not exist" in reasons["missing.png"]
    assert "holds no picture" in reasons["folder.png"]
    assert "100000 x 100000" in reasons["bomb.png"]
    assert "convert it" in reasons["anim.gif"]
    assert "not a regular file" in reasons["pipe.png"]
    assert sorted(path.name for path in Path().glob("*-restored*")) == ["first-restored.png", "last-restored.png"]
    assert leftovers() == []


def test_one_bad_file_is_one_line(run):
    result = run("missing.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "kithkin: missing.png: does not exist; check the path\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions don't bind root")
def test_permissions(run):
    save("secret.png").chmod(0)
    save("in/a.png")
    Path("closed").mkdir(mode=0o500)
    result = run("secret.png", "in", "-o", "closed/x")
    assert result.exit_code == 1
    assert result.stderr.count("check the permissions") == 4


def test_the_parser_does_not_refuse_all_for_one_unreadable_file(run, monkeypatch):
    save("secret.png")
    save("b.png")
    real = open

    def closed(path, *more, **options):
        if str(path) == "secret.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *more, **options)

    monkeypatch.setattr("builtins.open", closed)
    monkeypatch.setattr(os, "access", lambda path, mode, **options: str(path) != "secret.png")
    result = run("secret.png", "b.png")
    assert (result.exit_code, result.stdout) == (1, "b.png -> b-restored.png\n")
    assert "kithkin: secret.png: can't be read: Permission denied; check the permissions\n" in result.stderr


def test_an_output_that_cannot_be_made_is_one_failure(run):
    save("a.png")
    Path("taken").touch()
    result = run("a.png", "-o", "taken/below/x")
    assert result.exit_code == 1
    assert result.stderr.startswith("kithkin: taken/below/x/a-restored.png: can't be written")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_full_disk_leaves_nothing_half_written(run, monkeypatch, call):
    for name in ("a.png", "b.png", "c.png"):
        save(name)
    save("c-restored.png", seed=9)
    before = Path("c-restored.png").read_bytes()
    real, writes = getattr(os, call), []

    def full(what, *more, **options):
        if call == "fsync" or (str(what).endswith(".part") and more[0] & os.O_CREAT):
            writes.append(what)
            if len(writes) != 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(what, *more, **options)

    monkeypatch.setattr(os, call, full)
    result = run("a.png", "b.png", "c.png", "--overwrite")
    assert result.exit_code == 1
    assert result.stdout == "b.png -> b-restored.png\n"
    assert result.stderr.endswith("kithkin: 2 of 3 failed: the reasons are above\n")
    assert "a-restored.png: can't be written: No space left on device; free some space" in result.stderr
    assert not Path("a-restored.png").exists()
    assert Path("c-restored.png").read_bytes() == before
    assert leftovers() == []


def test_existing_results_are_skipped_and_replaced_on_request(run):
    save("a.png")
    save("b.png")
    save("a-restored.png", seed=5)
    before = Path("a-restored.png").read_bytes()
    result = run("a.png", "b.png")
    assert (result.exit_code, result.stdout) == (0, "b.png -> b-restored.png\n")
    assert result.stderr.startswith("kithkin: a-restored.png: exists already")
    assert "allow --overwrite to replace it" in result.stderr
    assert Path("a-restored.png").read_bytes() == before
    result = run("a.png", "b.png", "--overwrite")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 2
    assert Path("a-restored.png").read_bytes() != before


def test_a_wildcard_used_twice_changes_nothing(run):
    save("a.png")
    run("a.png", "--compare")
    content = {path.name: path.read_bytes() for path in Path().iterdir()}
    result = run(*sorted(content), "--compare")
    assert (result.exit_code, result.stdout) == (0, "")
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == content


def test_the_same_bytes_alone_together_and_again(run):
    for i in range(3):
        save(f"{i}.png", (20 + i, 90), seed=i)
    run("0.png", "1.png", "2.png", "-o", "all", "--tile", "64")
    run("2.png", "0.png", "-o", "two", "--tile", "64")
    run("0.png", "-o", "one", "--tile", "64")
    for name in ("two", "one"):
        for path in Path(name).iterdir():
            assert path.read_bytes() == Path("all", path.name).read_bytes()


def test_json_lines_alone_on_stdout(run):
    save("a.png")
    save("b.png")
    save("b-restored.png")
    Path("bad.png").write_bytes(b"")
    result = run("a.png", "b.png", "bad.png", "--json", "--compare")
    rows = {row["input"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.png": "written",
        "b.png": "skipped",
        "bad.png": "failed",
    }
    fields = {"input", "output", "compare", "status", "reason", "notes", "seconds", "model", "precision"}
    assert set(rows["a.png"]) == fields
    assert [rows[name]["precision"] for name in ("a.png", "b.png", "bad.png")] == ["float32", None, None]
    assert (rows["a.png"]["output"], rows["a.png"]["compare"]) == ("a-restored.png", "a-compare.png")
    assert rows["a.png"]["reason"] is None
    assert rows["a.png"]["seconds"] > 0
    assert rows["bad.png"]["reason"].startswith("bad.png: is empty")
    assert result.exit_code == 1


def test_another_k_or_h_is_said_and_recorded(run, weights):
    save("a.png", (64, 64))
    rows, results = [], []
    for model in (weights, f"{weights}[h=3,k=2]", f"{weights}[h=1]"):
        found = run("a.png", "--json", "--overwrite", model=model)
        assert found.exit_code == 0, found.output
        rows.append((json.loads(found.stdout)["model"], found.stderr))
        results.append(Path("a-restored.png").read_bytes())
    said = "kithkin: tiny.safetensors runs with k = 2 instead of 4, h = 3 instead of 1\n"
    assert rows == [("tiny.safetensors", ""), ("tiny.safetensors[k=2,h=3]", said), ("tiny.safetensors", "")]
    refused = run("a.png", "--overwrite", model=f"{weights}[h=0]")
    assert refused.exit_code == 2
    assert "h must be a whole number from 1 to 256, got 0" in refused.stderr
    assert Path("a-restored.png").read_bytes() == results[2]
    assert "is for denoise-gaussian" in run("a.png", "--uniform-blur", "light", model="denoise-gaussian[h=1]").stderr
    assert "detail can be told from noise alone" in run("a.png", "--preset", "natural", model="derain").stderr


def test_a_comparison_that_exists_is_noticed_before_the_work(run):
    save("a.png")
    save("a-compare.png")
    before = Path("a-compare.png").read_bytes()
    result = run("a.png", "--compare")
    assert result.exit_code == 1
    assert "a-compare.png: exists already" in result.stderr
    assert Path("a-compare.png").read_bytes() == before
    assert not Path("a-restored.png").exists()
    assert run("a.png", "--compare", "--overwrite").exit_code == 0
    assert Path("a-restored.png").exists()


def test_compare_shows_before_and_after(run):
    save("a.png")
    assert run("a.png", "--compare").exit_code == 0
    both = pixels_of("a-compare.png")
    assert both.shape == (10, 14 + 8 + 14, 3)
    np.testing.assert_array_equal(both[:, :14], pixels_of("a.png"))
    np.testing.assert_array_equal(both[:, 22:], pixels_of("a-restored.png"))
    assert (both[:, 14:22] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["a.png", "--sigma", "25"], "--sigma: the models find the noise level themselves"),
        (["a.png", "--sigma", "0"], "--sigma: the models find the noise level themselves"),
        (["a.png", "--tile", "12"], "--tile must be 'auto', 'off' or at least 64 pixels, got 12"),
        (["a.png", "--tile", "-64"], "got -64"),
        (["a.png", "--tile", "big"], "got 'big'"),
        (["a.png", "--overlap", "500"], "an overlap of 500 needs tiles of at least 1000"),
        (["a.png", "--strength", "2"], "--strength must be"),
        (["a.png", "--strength", "nan"], "--strength must be"),
        (["a.png", "--luma", "2"], "--luma must be"),
        (["a.png", "--preset", "soft"], "--preset must be one of strong, natural, keep-grain, got 'soft'"),
        (["a.png", "--ensemble", "3"], "--ensemble must be one of 1, 2, 4, 8 passes, got 3"),
        (["a.png", "--quality", "0"], "--quality must be"),
        (["a.png", "--backend", "magic"], "there is no 'magic'; there are "),
        (["a.png", "a.bmp", "--format", "png"], "would both give"),
        (["a.png", "-o", "a.png", "--overwrite"], "would replace its own input"),
        (["a.png", "a.bmp", "-o", "x.png"], "is a file name, but"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(run, arguments, match):
    save("a.png")
    save("a.bmp")
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("kithkin: ")
    assert match in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a.bmp", "a.png"]


@pytest.mark.parametrize("arguments", [[], ["a.png", "--format", "gif"], ["a.png", "--nonsense"]])
def test_the_parser_exits_with_2(run, arguments):
    assert run(*arguments).exit_code == 2


def test_a_missing_model_is_exit_code_2(run):
    save("a.png")
    result = run("a.png", model="nothing.safetensors")
    assert result.exit_code == 2
    assert "nothing.safetensors" in result.stderr
    assert "Traceback" not in result.output


def test_a_device_that_is_not_there_is_exit_code_2(weights, tmp_path):
    path = save(tmp_path / "a.png")
    result = CliRunner().invoke(app, [str(path), "-m", str(weights), "--device", "abacus"])
    assert result.exit_code == 2
    assert "abacus" in result.stderr


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_a_backend_is_used(run, monkeypatch, backend):
    save("a.png")
    seen = []
    real = KiT.set_backend
    monkeypatch.setattr(KiT, "set_backend", lambda model, name: seen.append(name) or real(model, name))
    assert run("a.png", "--backend", backend).exit_code == 0
    assert seen == [backend]


def test_ctrl_c_is_130_and_what_was_written_is_whole(run, monkeypatch):
    save("a.png")
    save("b.png")
    real = files.restore_file

    def stop(model, source, target, **options):
        if source.name == "b.png":
            raise KeyboardInterrupt
        return real(model, source, target, **options)

    monkeypatch.setattr(files, "restore_file", stop)
    result = run("a.png", "b.png")
    assert result.exit_code == 130
    assert result.stdout == "a.png -> a-restored.png\n"
    assert read_picture("a-restored.png").pixels.shape == (10, 14, 3)
    assert leftovers() == []


def test_lines_stay_on_stdout_while_a_bar_is_on_the_terminal(run, monkeypatch):
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True)
    monkeypatch.setattr("kithkin.cli._progress.progress_bar", lambda: Progress(console=console))
    save("[bold]a.png")
    result = run("[bold]a.png")
    assert result.stdout == "[bold]a.png -> [bold]a-restored.png\n"
    assert "[bold]a.png" in terminal.getvalue()
    assert "->" not in terminal.getvalue()


def test_names_that_are_not_text_do_not_stop_the_command(run):
    name = os.fsdecode(b"caf\xe9\n.png")
    save("a.png").rename(name)
    result = run(name)
    assert result.exit_code == 0
    assert result.stdout == "'caf\\udce9\\n.png' -> 'caf\\udce9\\n-restored.png'\n"
    assert json.loads(run(name, "--overwrite", "--json").stdout)["input"] == name


def test_an_ensemble_is_the_mean_of_its_passes(run, weights):
    picture = read_picture(save("a.png", (40, 56)))
    assert run("a.png", "-o", "one.png").exit_code == run("a.png", "-o", "four.png", "--ensemble", "4").exit_code == 0
    one, four = (read_picture(name).pixels for name in ("one.png", "four.png"))
    want = restore_in_python(load_model(weights), picture, ensemble=4).pixels
    np.testing.assert_allclose(four, want, atol=0.51 / 255)
    assert abs(one - want).max() > 10 / 255


def test_help_tells_every_option_and_three_examples():
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["--help"])
    assert result.exit_code == 0
    options = [
        "out",
        "model",
        "tile",
        "overlap",
        "strength",
        "preset",
        "luma",
        "chroma",
        "detail",
        "ensemble",
        "device",
        "backend",
        "overwrite",
        "format",
        "quality",
        "compare",
        "json",
        "cluster",
        "workers",
        "batch",
        "manifest",
        "strict",
    ]
    assert all(f"--{option}" in result.stdout for option in options)
    assert result.stdout.count("kithkin restore ") == 3
    assert "--no-" not in result.stdout
    assert "--sigma" not in result.stdout  # it could only fail


def test_a_folder_is_told_by_content_and_what_is_not_read_is_counted_in_one_line(run):
    save("trip/a.jpg")
    save("trip/web.jfif", format="JPEG")
    save("trip/IMG_1234", format="JPEG", seed=1)
    save("trip/day/scan.jpe", format="PNG", seed=2)
    save("trip/x.gif")
    Path("trip/y.jxl").write_bytes(b"\xff\x0a")
    for name in ("notes.txt", "BMW.txt", "film.mp4", "drawing.html"):
        Path("trip", name).write_bytes(b"BM and <svg: no picture" if name != "film.mp4" else b"\0\0\0\x18ftypisom")
    result = run("trip")
    assert result.exit_code == 0
    assert sorted(result.stdout.splitlines()) == [
        "trip/IMG_1234 -> trip-restored/IMG_1234.jpg",
        "trip/a.jpg -> trip-restored/a.jpg",
        "trip/day/scan.jpe -> trip-restored/day/scan.png",
        "trip/web.jfif -> trip-restored/web.jpg",
    ]
    assert result.stderr == (
        "kithkin: 2 files skipped: 1 .gif, 1 .jxl (not read by kithkin: convert to PNG, JPEG, WebP, TIFF or "
        "BMP first, as with `magick IN OUT.png`)\n"
    )
    assert run("trip", "-o", "again", "--strict").exit_code == 1
    rows = [json.loads(line) for line in run("trip", "-o", "third", "--json").stdout.splitlines()]
    assert {row["input"]: row["status"] for row in rows if row["status"] != "written"} == dict.fromkeys(
        ["trip/x.gif", "trip/y.jxl"], "skipped"
    )


def test_a_folder_of_pictures_that_are_not_read_says_so(run):
    save("trip/IMG_1.GIF")
    result = run("trip")
    assert result.exit_code == 1
    assert "trip: holds no picture" in result.stderr
    assert "1 file skipped: 1 .gif" in result.stderr


def test_strict_counts_results_that_exist(run):
    save("a.png")
    assert run("a.png", "--strict").exit_code == 0
    assert (run("a.png").exit_code, run("a.png", "--strict").exit_code) == (0, 1)


def test_two_pictures_of_one_name_do_not_stop_a_folder(run):
    for seed, name in enumerate(("trip/a.jpg", "trip/a.png", "trip/b.webp", "trip/b.bmp", "trip/c.png")):
        save(name, seed=seed)
    result = run("trip", "--format", "png", "--compare")
    assert result.exit_code == 0
    made = sorted(path.name for path in Path("trip-restored").iterdir())
    assert [name for name in made if "compare" not in name] == [
        "a.jpg.png",
        "a.png",
        "b.bmp.png",
        "b.webp.png",
        "c.png",
    ]
    assert [name for name in made if "compare" in name] == [
        *("a.jpg-compare.png", "a.png-compare.png", "b.bmp-compare.png", "b.webp-compare.png", "c-compare.png")
    ]
    assert "kithkin: trip/a.jpg: its result is a.jpg.png: another picture gives a.png\n" in result.stderr
    again = run("trip", "--format", "png", "--compare")
    assert (again.exit_code, again.stdout) == (0, "")


def test_two_folders_with_one_name_fail_one_picture_alone(run):
    for name in ("x/a.png", "y/a.png", "y/b.png"):
        save(name)
    result = run("x", "y", "-o", "out")
    assert result.exit_code == 1
    assert sorted(result.stdout.splitlines()) == ["x/a.png -> out/a.png", "y/b.png -> out/b.png"]
    assert "x/a.png and y/a.png would both give out/a.png" in result.stderr


def test_a_comparison_that_exists_does_not_stop_a_folder(run):
    save("trip/a.png")
    save("trip/b.png")
    before = save("trip-restored/a-compare.png").read_bytes()
    result = run("trip", "--compare")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert Path("trip-restored/a-compare.png").read_bytes() == before
    assert "trip/a.png: trip-restored/a-compare.png exists already and stays as it is" in result.stderr


def test_a_place_that_can_not_be_written_is_said_once_and_before_the_work(run, monkeypatch):
    for seed in range(4):
        save(f"trip/{seed}.png")
    Path("taken").touch()
    monkeypatch.setattr(files, "restore_file", lambda *_, **options: pytest.fail("the work began"))
    result = run("trip", "-o", "taken/below")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "kithkin: taken/below: can't be written: taken is no folder; choose another place",
        "kithkin: 4 of 4 failed: the reasons are above",
    ]
    monkeypatch.setattr(os, "access", lambda path, mode, **options: str(path) != "closed")
    Path("closed").mkdir()
    result = run("trip", "-o", "closed/x")
    assert result.stderr.count("Permission denied; check the permissions") == 1


def test_a_name_that_is_too_long_is_said_before_the_work(run, monkeypatch):
    long = save("short.png").rename("x" * 250 + ".png")
    save("b.png")
    result = run(long, "b.png")
    assert (result.exit_code, result.stdout) == (1, "b.png -> b-restored.png\n")
    assert "its name has 263 bytes, and file systems take 255; choose another name" in result.stderr


@pytest.mark.parametrize(("ending", "most"), [("webp", 16383), ("jpg", 65500)])
def test_a_side_that_the_format_does_not_hold_is_said_before_the_work(run, monkeypatch, ending, most):
    save("trip/small.png")
    save("trip/wide.png", (1, most + 1))
    save("trip/fits.png", (1, most))
    monkeypatch.setattr(files, "restore_image", lambda restorer, picture, **options: picture)
    result = run("trip", "--format", ending)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == (
        f"kithkin: trip-restored/wide.{ending}: can't be written: {'WebP' if ending == 'webp' else 'JPEG'} holds at "
        f"most {most} pixels a side, and the picture has {most + 1} x 1; choose another format, such as TIFF or PNG"
    )
    assert len(result.stdout.splitlines()) == 2


def test_a_long_batch_says_how_long_before_it_begins_and_then_now_and_then(run, monkeypatch):
    for seed in range(3):
        save(f"trip/{seed}.png", (100, 100))
    monkeypatch.setattr(_batch, "LONG", 0.0)
    monkeypatch.setattr(_batch, "_FIRST_LINE", 0.0)
    monkeypatch.setattr(_batch, "_NEXT_LINES", 0.0)
    lines = run("trip", "--tile", "64").stderr.splitlines()
    assert re.fullmatch(r"kithkin: 3 pictures, 0 megapixels: about \d+ s", lines[0])
    assert all(re.fullmatch(r"kithkin: [012] of 3 done, about \d+ s left", line) for line in lines[1:])
    # Four tiles a picture, so the first line comes long before the first picture is done.
    assert lines[1].startswith("kithkin: 0 of 3 done")
    assert any(line.startswith("kithkin: 2 of 3 done") for line in lines)


def test_the_time_left_follows_from_the_first_tiles(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(_batch.time, "monotonic", lambda: clock[0])
    progress = _batch.BatchProgress([1_000_000, 2_000_000, 0], Estimate(fixed=0.01, per_pixel=1e-6))
    clock[0] = 5.0
    assert progress._left(0.25) == pytest.approx(15 + 40, rel=0.02)  # 20 s a megapixel
    clock[0] = 20.0
    progress.finish(20.0)
    assert progress._left(0.0) == pytest.approx(40, rel=0.1)
    clock[0] = 30.0
    assert progress._left(0.5) == pytest.approx(10, rel=0.01)
    progress.finish(20.0)
    assert progress._left(0.0) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (40, "40 s"), (100, "2 min"), (3600, "1 h 0 min"), (9000, "2 h 30 min"), (1e6, "278 h")],
)
def test_times_in_words(seconds, words):
    assert _batch.duration(seconds) == f"about {words}"


def test_wrong_values_are_refused_before_pytorch_is_loaded(tmp_path):
    """It takes seconds."""
    wrong = [["--strength", "2"], ["--tile", "12"], ["--quality", "0"], ["--ensemble", "3"], ["-o", "x.gif"]]
    code = f"""
import sys
from kithkin.cli import main
for arguments in {wrong}:
    sys.argv = ["kithkin", "restore", "a.png", *arguments]
    try:
        main()
    except SystemExit as end:
        print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "2 False\n" * len(wrong), done.stderr
    assert [line.startswith("kithkin: ") for line in done.stderr.splitlines()] == [True] * len(wrong)


def test_a_name_that_begins_with_a_dash(run):
    save("-dash.jpg")
    result = run("-dash.jpg")
    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", "").split())
    assert "-dash.jpg looks like an option; after -- it is a file:" in words
    assert CliRunner().invoke(app, ["-x"]).exit_code == 2


def test_quality_makes_webp_lossy(run):
    save("a.png", (64, 64))
    assert run("a.png", "-o", "whole.webp").exit_code == 0
    assert run("a.png", "-o", "whole.png").exit_code == 0
    np.testing.assert_array_equal(pixels_of("whole.webp"), pixels_of("whole.png"))
    for quality in (20, 90):
        assert run("a.png", "-o", f"{quality}.webp", "--quality", quality).exit_code == 0
    sizes = [Path(name).stat().st_size for name in ("20.webp", "90.webp", "whole.webp")]
    assert sizes == sorted(sizes)
    assert sizes[0] * 2 < sizes[2]
    assert not np.array_equal(pixels_of("90.webp"), pixels_of("whole.png"))
    assert run("a.png", "-o", "q.jpg", "--quality", "95").exit_code == run("a.png", "-o", "d.jpg").exit_code == 0
    assert Path("q.jpg").read_bytes() == Path("d.jpg").read_bytes()
