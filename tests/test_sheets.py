"""Sheets of crops: where automatic crops lie, what is drawn, and what the command prints."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.data.degrade import benchmark_noise
from kithkin.errors import InputError
from kithkin.images import Picture, read_picture, write_picture
from kithkin.methods import open_method
from kithkin.metrics import psnr
from kithkin.sheets import Crop, Panel, choose_crops, draw_sheet, parse_crop, restored_panels

MAGENTA = (255, 0, 255)


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["compare", *(str(a) for a in arguments)])
    if code:
        assert result.exit_code, result.output
        return result
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def photo(tmp_path):
    pixels = np.rint(np.random.RandomState(0).rand(60, 80, 3) * 255).astype(np.float32) / 255
    write_picture(Picture(pixels), tmp_path / "photo.png")
    return tmp_path / "photo.png"


def dotted(size=(100, 140), place=(30, 40)):
    """Black, with one magenta pixel at (row, column)."""
    image = np.zeros((*size, 3), np.float32)
    image[place] = np.array(MAGENTA) / 255
    return image


def count(sheet, colour):
    return int((np.asarray(sheet) == colour).all(axis=2).sum())


def test_crops_are_parsed_or_refused():
    assert parse_crop("4,8,16,32") == Crop(4, 8, 16, 32)
    for text in ("4,8,16", "4,8,16,x", "-1,0,4,4", "0,0,0,4", ""):
        with pytest.raises(InputError, match="crop"):
            parse_crop(text)


def test_automatic_crops_lie_where_methods_differ_and_do_not_overlap():
    target = np.full((200, 300, 3), 0.5, np.float32)
    first, second = target.copy(), target.copy()
    first[130:140, 250:260] += 0.3  # the methods differ most here
    second[20:30, 40:50] -= 0.2  # less here
    both = (np.s_[80:90], np.s_[150:160])
    first[both] += 0.45  # not here: both are equally wrong
    second[both] += 0.45
    one, two = choose_crops([first, second], target)
    assert (one.width, one.height) == (48, 48)
    assert one.of(first - second).sum() == pytest.approx(300 * 0.3, rel=1e-4)
    assert two.of(second - first).sum() == pytest.approx(-300 * 0.2, rel=1e-4)
    # One method alone: where it is most wrong.
    assert choose_crops([first], target)[0].of(first).max() == pytest.approx(0.95)


def test_automatic_crops_fit_small_pictures():
    target = np.zeros((30, 200, 3), np.float32)
    crops = choose_crops([np.random.RandomState(0).rand(30, 200, 3)], target, count=9)
    assert len(crops) >= 3
    columns = np.zeros(200, int)
    for crop in crops:
        assert (crop.y, crop.width, crop.height) == (0, 30, 30)
        columns[crop.x : crop.x + 30] += 1
    assert columns.max() == 1


@pytest.mark.parametrize(("crops", "n"), [(1, 3), (1, 5), (2, 3), (3, 8)])
def test_every_crop_of_every_panel_is_enlarged_by_a_whole_number(crops, n):
    boxes = [Crop(20 + 3 * i, 10 + i, 48, 40) for i in range(crops)]
    panels = [Panel(f"method {i}", dotted(), 30 + i) for i in range(n)]
    whole = Panel("whole.png", np.zeros((100, 140, 3), np.float32))
    sheet = draw_sheet(whole, panels, boxes, caption="PSNR rgb-uint8")
    assert count(sheet, MAGENTA) == n * crops * 5 * 5  # 240 / 48 = 5
    pixels = np.asarray(sheet).astype(int)
    drawn = np.argwhere((pixels < 250).any(axis=2))
    assert drawn.min(axis=0).tolist() == [20, 20]  # even margins
    assert pixels.shape[1] - 1 - drawn[:, 1].max() >= 20
    assert pixels.shape[0] - 1 - drawn[:, 0].max() >= 20


def test_a_box_marks_the_crop_in_the_whole_picture_in_the_colour_of_its_panels():
    grey = np.full((240, 240, 3), 0.5, np.float32)
    sheet = np.asarray(draw_sheet(Panel("w", grey), [Panel("a", grey)], [Crop(24, 48, 60, 60), Crop(120, 96, 80, 80)]))
    for colour in ((230, 60, 40), (30, 110, 220)):
        found = np.argwhere((sheet == colour).all(axis=2))
        left, right = found[:, 1] < sheet.shape[1] // 2, found[:, 1] > sheet.shape[1] // 2
        assert left.any() and right.any()  # noqa: PT018
    # The red box begins at 48 of the picture's 240 rows, less the frame.
    top = np.argwhere((sheet[:, : sheet.shape[1] // 2] == (230, 60, 40)).all(axis=2))[:, 0].min()
    tall = np.argwhere((sheet[:, 21] == 128).all(axis=1))[:, 0].max() - 20 + 1
    assert top == pytest.approx(20 + tall * 48 / 240 - 3, abs=1.5)


def test_lanczos_smooths_what_nearest_keeps():
    whole = Panel("w", np.zeros((100, 140, 3), np.float32))
    sheets = {
        z: draw_sheet(whole, [Panel("a", dotted())], [Crop(20, 10, 48, 40)], zoom=z) for z in ("nearest", "lanczos")
    }
    colours = {zoom: len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) for zoom, sheet in sheets.items()}
    assert colours["lanczos"] > colours["nearest"]


def test_wrong_sheets_are_refused():
    whole = Panel("w", np.zeros((100, 140, 3), np.float32))
    for panels, crops, zoom in (
        ([], [Crop(0, 0, 8, 8)], "nearest"),
        ([whole], [], "nearest"),
        ([whole], [Crop(100, 0, 41, 8)], "nearest"),
        ([whole], [Crop(0, 0, 8, 8)], "cubic"),
        ([Panel("x", np.zeros((100, 141, 3)))], [Crop(0, 0, 8, 8)], "nearest"),
    ):
        with pytest.raises(InputError, match="draw_sheet|the crop"):
            draw_sheet(whole, panels, crops, zoom=zoom)


def test_values_are_of_the_whole_picture_under_the_protocol(photo):
    clean = read_picture(photo).pixels
    noisy = benchmark_noise(clean, 40)
    panels = restored_panels([open_method("input")], noisy, clean, protocol="y-matlab", sigma=40)
    assert [panel.name for panel in panels] == ["input", "input"]
    assert panels[1].psnr == psnr(noisy, clean, protocol="y-matlab")


def test_the_command_writes_a_sheet_and_prints_values(photo, tmp_path):
    out = tmp_path / "sheet.png"
    found = json.loads(call(photo, "--sigma", 25, "-m", "input", "--crop", "4,8,16,16", "-o", out, "--json").output)
    clean = read_picture(photo).pixels
    expected = psnr(benchmark_noise(clean, 25), clean, protocol="rgb-uint8")
    assert [row["psnr"] for row in found["rows"]] == pytest.approx([expected, expected])
    assert found["rows"][0]["seconds"] is None
    assert found["rows"][1]["seconds"] > 0
    assert found["crops"] == [[4, 8, 16, 16]]
    assert found["protocol"] == "rgb-uint8"
    assert read_picture(out).pixels.shape[1] > 240


def test_the_command_takes_a_degraded_picture(photo, tmp_path):
    clean = read_picture(photo).pixels
    write_picture(Picture(clean * np.float32(0.5)), tmp_path / "dark.png")
    dark = read_picture(tmp_path / "dark.png").pixels
    said = call(photo, "--input", tmp_path / "dark.png", "-m", "input", "-o", tmp_path / "sheet.jpg").output
    assert said.splitlines()[0] == f"input: {psnr(dark, clean, protocol='rgb-uint8'):.2f} dB (rgb-uint8)"
    same = json.loads(call(photo, "--input", photo, "-m", "input", "--json").output)
    assert same["rows"][0]["psnr"] is None  # equal pictures


def test_the_command_refuses_what_it_cannot_draw(photo, tmp_path):
    out = tmp_path / "sheet.png"
    for wrong in ((photo, "--sigma", 25), (photo, "-o", out), (photo, "--sigma", 25, "-m", "nothing", "-o", out)):
        assert isinstance(call(*wrong, code=1).exception, InputError)
    call(photo, "--sigma", 25, "-m", "input", "--crop", "70,0,20,20", "-o", out, code=1)
    assert not out.exists()
