"""The report: what is stored, what the page holds, and what a browser does with it."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from kithkin.errors import InputError
from kithkin.report import BUDGET, SIDE, SLIDERS, ReportBuilder, noise_curves

NASTY = """a <b> & "c" 'd' </script><script>document.title='broken'</script><!-- é.png"""
PROTOCOL = {"name": "gaussian", "psnr": "rgb-uint8", "window": "wang2d", "summary": "noise of <seed> 0"}


def evaluation(method, values, *, conditions=("sigma 15", "sigma 50"), dataset="set"):
    """Picture i of every condition has the i-th value, 10 dB less before; the last name is a nasty one."""
    names = [f"{i}.png" for i in range(len(values) - 1)] + [NASTY]
    images = [
        {
            "image": name,
            "condition": condition,
            "psnr_input": None if value is None else value - 10,
            "psnr": value,
            "ssim_input": 0.5,
            "ssim": 0.9,
            "seconds": 1.0,
            "megapixels": 0.5,
        }
        for condition in conditions
        for name, value in zip(names, values, strict=True)
    ]
    means = {
        condition: {
            "psnr_input": 20.0 + i,
            "psnr": 30.0 - i,
            "ssim_input": 0.5,
            "ssim": 0.9,
            "images": len(values),
            "seconds_per_megapixel": 2.0,
        }
        for i, condition in enumerate(conditions)
    }
    return {"method": method, "dataset": dataset, "protocol": PROTOCOL, "means": means, "images": images}


def filled(folder, evaluations, size=(48, 64)):
    """A builder with three flat pictures for every row: 0.2 before, 0.5 after, 0.8 the target."""
    builder = ReportBuilder(folder, title="A title with </title><b>")
    views = [np.full((*size, 3), value, np.float32) for value in (0.2, 0.5, 0.8)]
    for e in evaluations:
        for row in e["images"]:
            builder.add_picture({**row, "method": e["method"], "dataset": e["dataset"]}, *views)
    return builder


def embedded(page):
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def opened(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))))


def test_pictures_are_stored_once_bounded_and_by_view(tmp_path):
    evaluations = [evaluation("a", [30, 31]), evaluation("b", [29, 30])]
    builder = filled(tmp_path, evaluations)
    stored = sorted((tmp_path / "pictures").iterdir())
    # Two pictures: a target each, an input for both conditions, an output for both methods too.
    assert len(stored) == 2 * (1 + 2 + 4)
    assert all(re.fullmatch(r"[\w.-]+\.jpg", path.name) for path in stored)
    row = {**evaluations[0]["images"][0], "method": "a", "dataset": "set"}
    before = {path: path.read_bytes() for path in stored}
    builder.add_picture(row, *(np.ones((48, 64, 3), np.float32) for _ in range(3)))
    assert {path: path.read_bytes() for path in stored} == before
    # A large picture: the middle of it, not scaled.
    large = np.zeros((900, 700, 3), np.uint8)
    large[449:451, 349:351] = 255
    builder.add_picture({**row, "image": "large"}, large, large, None)
    shown = np.asarray(Image.open(next((tmp_path / "pictures").glob("large-after-*.jpg"))))
    assert shown.shape == (SIDE, SIDE, 3)
    assert shown[SIDE // 2, SIDE // 2].min() > 200
    assert not list((tmp_path / "pictures").glob("large-target-*"))


def test_the_page_holds_every_value_and_nothing_breaks_it(tmp_path):
    evaluations = [evaluation("ours", [30.0, None, 25.5]), evaluation("</script> & peer", [29, 28, 27])]
    table = {"title": "published <i>", "columns": ["method", "25"], "rows": [["x", 30.71], ["y", None]], "source": "s"}
    page = filled(tmp_path, evaluations).write(evaluations, tables=[table])
    assert page == tmp_path / "index.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<title>A title with &lt;/title&gt;&lt;b&gt;</title>" in text
    values = embedded(page)
    assert values["evaluations"] == evaluations
    assert values["tables"] == [table]
    slider = next(s for s in values["sliders"] if s["image"] == NASTY)
    assert set(slider["after"]) == {"ours", "</script> & peer"}
    levels = [opened(uri).mean() / 255 for uri in (slider["before"], slider["after"]["ours"], slider["target"])]
    assert levels == pytest.approx([0.2, 0.5, 0.8], abs=0.01)
    # Nothing outside is named: no address but those of the formats.
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_numbers_that_are_not_finite_become_null(tmp_path):
    one = evaluation("ours", [math.inf, 30.0])
    one["means"]["sigma 15"]["psnr"] = np.float64("nan")
    values = embedded(ReportBuilder(tmp_path, title="t").write([one]))
    assert values["evaluations"][0]["images"][0]["psnr"] is None
    assert values["evaluations"][0]["means"]["sigma 15"]["psnr"] is None
    assert values["sliders"] == []


def test_sliders_are_the_worst_and_the_best_of_the_first_method(tmp_path):
    values = [*range(20, 50), None]
    evaluations = [
        evaluation("ours", values, conditions=["pairs"]),
        evaluation("peer", values[::-1], conditions=["pairs"]),
    ]
    page = filled(tmp_path, evaluations, size=(8, 8)).write(evaluations)
    shown = {slider["image"] for slider in embedded(page)["sliders"]}
    worst, best = {f"{i}.png" for i in range(6)}, {f"{i}.png" for i in range(25, 30)} | {NASTY}
    assert len(shown) == SLIDERS
    assert shown == worst | best


def test_the_page_stays_small(tmp_path, monkeypatch):
    evaluations = [evaluation("ours", [30, 31, 32])]
    builder = filled(tmp_path, evaluations)
    size = next((tmp_path / "pictures").glob("*.jpg")).stat().st_size
    monkeypatch.setattr("kithkin.report.BUDGET", 7 * size)
    assert len(embedded(builder.write(evaluations))["sliders"]) == 2  # three pictures each
    assert BUDGET * 4 / 3 < 20e6


def test_curves_of_noise_levels():
    (curve,) = noise_curves(
        [evaluation("a", [1, 2]), evaluation("b", [1, 2]), evaluation("c", [1], conditions=["pairs"])]
    )
    assert [s["name"] for s in curve["series"]] == ["a", "b"]
    assert curve["series"][0]["points"] == [[15.0, 30.0], [50.0, 29.0]]
    assert "gaussian" in curve["title"]


def test_wrong_requests_are_refused(tmp_path):
    builder = ReportBuilder(tmp_path, title="t")
    row = {"method": "m", "dataset": "d", "image": "i", "condition": "c"}
    good = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(InputError, match="dataset"):
        builder.add_picture({"method": "m", "image": "i", "condition": "c"}, good, good, None)
    with pytest.raises(InputError, match=r"\(H, W, 3\)"):
        builder.add_picture(row, good, good[..., 0], None)
    with pytest.raises(InputError, match="means"):
        builder.write([{"method": "m", "dataset": "d", "protocol": PROTOCOL, "images": []}])
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(InputError, match="is a file"):  # before anything is measured for it
            ReportBuilder(place, title="t")


@pytest.fixture(scope="module")
def window(browser, tmp_path_factory):
    """(page, console messages, requests) of a report of two methods."""
    evaluations = [evaluation("ours", [30.0, None, 25.5, 33.0]), evaluation("</script> & peer", [29, 28, 27, 34])]
    table = {"title": "published", "columns": ["method", "25"], "rows": [["x", 30.71], ["y", None]], "source": "s"}
    builder = filled(tmp_path_factory.mktemp("report"), evaluations, size=(300, 500))
    path = builder.write(evaluations, tables=[table])
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, said, asked


@pytest.fixture
def report(window):
    """The page as it opens; at the end, that it said nothing and asked for nothing else."""
    page, said, asked = window
    page.reload()
    yield page
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {page.url}


def test_browser_shows_the_tables_and_asks_for_nothing(report):
    page = report
    assert page.title() == "A title with </title><b>"
    rows = page.locator("#means tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["input", "ours", "</script> & peer"]
    assert rows[1].split("\t")[1:4] == ["30.00", "0.9000", "2.00"]
    assert "gaussian" in page.locator("#means .about").inner_text()
    assert page.locator("#published tbody tr").count() == 2
    assert page.locator("#curves polyline").count() == 2
    assert page.locator("main script").count() == 0
    images = page.locator("#sliders img")
    assert images.count() == 8
    assert all(images.nth(i).get_attribute("alt") for i in range(8))
    assert images.first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 500


def test_browser_moves_a_slider_by_mouse_and_keyboard(report):
    page = report
    pair = page.locator(".pair").first
    pair.scroll_into_view_if_needed()
    place = pair.bounding_box()
    before = pair.screenshot()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.9, place["y"] + place["height"] / 2, steps=5)
    page.mouse.up()
    at = float(pair.evaluate("node => node.style.getPropertyValue('--at')").rstrip("%"))
    assert at == pytest.approx(90, abs=4)
    assert pair.screenshot() != before
    pair.locator("input").press("ArrowLeft")
    moved = float(pair.evaluate("node => node.style.getPropertyValue('--at')").rstrip("%"))
    assert moved < at
    # What lies left of the line is the input, and right of it the output.
    shown = np.asarray(Image.open(io.BytesIO(pair.screenshot())).convert("L"))
    assert shown[20, 20] == pytest.approx(0.2 * 255, abs=3)
    assert shown[20, -6] == pytest.approx(0.5 * 255, abs=3)


def test_browser_toggles_the_scale(report):
    page = report
    card = page.locator(".card").first
    width = "node => node.querySelector('img').getBoundingClientRect().width"
    assert card.evaluate(width) < 500
    card.get_by_role("button", name="1:1").click()
    assert card.evaluate(width) == 500
    assert card.get_by_role("button").get_attribute("aria-pressed") == "true"


def test_browser_orders_and_selects(report):
    page = report
    names = lambda: page.locator(".card b").all_inner_texts()  # noqa: E731
    assert names() == ["2.png", "0.png", NASTY, "1.png"]  # 25.5, 30, 33 dB, and equal pictures
    page.locator("#sliders [data-field=order]").select_option("best")
    assert names() == ["1.png", NASTY, "0.png", "2.png"]
    page.locator("#sliders [data-field=left]").select_option("target")
    page.locator("#sliders [data-field=right]").select_option(label="</script> & peer")
    assert page.locator(".pair img").first.get_attribute("alt") == "1.png, sigma 15: </script> & peer"
    page.get_by_label("Pictures of").select_option(label="set, sigma 50 (gaussian)")
    assert page.locator(".pair img").first.get_attribute("alt").startswith("1.png, sigma 50")


def test_browser_compares_two_methods(report):
    page = report
    hint = page.locator("#scatter .hint")
    # Of three pictures with a PSNR by both: 30 > 29, 25.5 < 27, 33 < 34.
    assert "higher PSNR on 1 of 3 pictures" in hint.inner_text()
    dots = page.locator("#scatter .dot")
    assert dots.count() == 3
    dots.first.hover()
    assert page.locator(".tip").inner_text() == "0.png: ours 30.00 dB, </script> & peer 29.00 dB"
    page.get_by_label("horizontal").select_option("input")
    assert "higher PSNR on 3 of 3 pictures" in hint.inner_text()
    assert "10.00 dB" in hint.inner_text()


def test_browser_sorts_the_pictures(report):
    page = report
    first = lambda: page.locator("#rows tbody th").all_inner_texts()  # noqa: E731
    assert first() == ["2.png", "0.png", NASTY, "1.png"]
    assert page.locator("#rows tbody tr").all_inner_texts()[-1].split("\t")[1:4] == ["∞", "∞", "28.00"]
    page.get_by_role("button", name="PSNR, ours").click()
    assert first() == ["1.png", NASTY, "0.png", "2.png"]
    page.get_by_role("button", name="picture", exact=True).click()
    assert first() == ["0.png", "1.png", "2.png", NASTY]
    assert page.locator("#rows th[aria-sort=ascending]").inner_text() == "picture"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_shows_every_width_and_scheme(report, width, scheme):
    page = report
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    level = lambda colour: sum(int(x) for x in re.findall(r"\d+", colour)[:3])  # noqa: E731
    assert (level(ground) < level(ink)) == (scheme == "dark")
