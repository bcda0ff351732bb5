"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import base64
import io
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import kithkin
from kithkin.cli import app as commands
from kithkin.neighbors import map_neighbors
from kithkin.zoo import load_model

from serving import BAD, encoded, levels, running, tiny_weights

pytest.importorskip("fastapi", reason="the extra web is not installed")

STYLE = (Path(kithkin.__file__).parent / "web/page/page.css").read_text(encoding="utf-8")
PATIENCE = 60_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def address(weights):
    with running("-m", weights, "-m", "derain") as (found, process):
        yield found
        process.terminate()
        assert "OUTWARD" not in process.stderr.read()


@pytest.fixture
def visit(browser, address):
    """Open the page; at the end, the console must be free of errors and no request may have left this machine."""
    contexts, errors, hosts, refused = [], [], set(), []

    def open_page(width=1100, height=800, at=address, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add((urlsplit(request.url).scheme, urlsplit(request.url).hostname)))
        page.on("response", lambda response: refused.append(response.status) if response.status >= 400 else None)
        page.goto(at)
        page.wait_for_selector("#tasks label")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # The browser itself writes a line for each answer that is a refusal, and for each request while it is offline.
    errors = [error for error in errors if "net::ERR_INTERNET_DISCONNECTED" not in error]
    own = [error for error in errors if not error.startswith("Failed to load resource: the server responded with")]
    assert own == []
    assert len(errors) <= len(refused)
    assert {host for scheme, host in hosts if scheme not in ("blob", "data")} == {"127.0.0.1"}


@pytest.fixture(scope="module")
def command(weights, tmp_path_factory):
    """The bytes that the command line writes for a file."""
    folder = tmp_path_factory.mktemp("command")

    def call(name, data, *options, ending="png"):
        (folder / name).write_bytes(data)
        arguments = [
            "restore",
            folder / name,
            "--format",
            ending,
            "--overwrite",
            "-m",
            weights,
            "--device",
            "cpu",
            *options,
        ]
        assert CliRunner().invoke(commands, list(map(str, arguments))).exit_code == 0
        return (folder / f"{Path(name).stem}-restored.{ending}").read_bytes()

    return call


def choose(page, **files):
    """Choose files; each is name (with _ for .) = bytes."""
    page.set_input_files("#files", [{"name": n, "mimeType": "image/png", "buffer": data} for n, data in files.items()])


def add(page, name, data):
    choose(page, **{name: data})
    page.wait_for_selector("#go:not(:disabled)")


def restore(page):
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])")


def downloaded(page):
    with page.expect_download() as waiting:
        page.click("#download")
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_a_picture_is_restored_compared_and_downloaded(visit, command):
    page, data = visit(), encoded(pixels=levels(120, 200))
    add(page, "photo.png", data)
    assert "photo.png · 200 × 120" in page.inner_text("#caption")
    assert page.is_hidden("#divider")
    restore(page)
    assert page.inner_text("#strip .done .state") == "restored"
    assert downloaded(page) == ("photo-restored.png", command("photo.png", data))

    page.check("input[name=zoom][value='1']", force=True)
    divider = page.locator("#divider")
    left, top = framed(page, 200, 120)
    box = page.locator("#viewer").bounding_box()
    page.mouse.move(box["x"] + left + 100, box["y"] + top + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + left + 80, box["y"] + top + 50, steps=4)
    page.mouse.move(box["x"] + left + 50, box["y"] + top + 50, steps=4)
    page.mouse.up()
    assert divider.get_attribute("aria-valuenow") == "25"
    shown = drawn(page)[top : top + 120, left : left + 200]
    before, after = pixels_of(data), pixels_of(command("photo.png", data))
    # At 1:1 every pixel is the file's own; the line, its knob and the tags lie elsewhere.
    assert (shown[5:30, 5:45] == before[5:30, 5:45]).all()
    assert (shown[5:30, 60:195] == after[5:30, 60:195]).all()
    assert (before[5:30, 60:195] != after[5:30, 60:195]).any()


def framed(page, width, height):
    """Where a picture of this many screen pixels lies in the middle of its frame: left, top."""
    size = page.evaluate("(({ width, height }) => [width, height])(document.querySelector('#viewer'))")
    return (size[0] - width + 1) // 2, (size[1] - height + 1) // 2


def drawn(page):
    """What is drawn of the picture: (H, W, 3)."""
    address = page.evaluate("document.querySelector('#viewer').toDataURL()")
    return pixels_of(base64.b64decode(address.partition(",")[2]))


def test_the_divider_follows_the_keys_and_says_where_it_is(visit):
    page = visit()
    add(page, "photo.png", encoded())
    restore(page)
    divider = page.locator("#divider")
    divider.focus()
    for key, value in ("ArrowRight", 52), ("PageDown", 42), ("Home", 0), ("ArrowLeft", 0), ("PageUp", 10), ("End", 100):
        page.keyboard.press(key)
        assert divider.get_attribute("aria-valuenow") == str(value)
    assert divider.get_attribute("aria-valuetext") == "100 % before, 0 % after"
    assert page.get_attribute("#viewer", "aria-label") == "photo.png, before and after"


def test_strength_and_task_reach_the_server(visit, command):
    page, data = visit(), encoded()
    add(page, "photo.png", data)
    page.fill("#strength", "35")
    assert page.inner_text("#strength-shown") == "35 %"
    restore(page)
    assert downloaded(page)[1] == command("photo.png", data, "--strength", "0.35")
    page.check("input[name=model][value=derain-small]", force=True)
    page.fill("#strength", "100")
    page.click("#go")
    page.wait_for_selector("#about-result:has-text('Removed: rain, in')")
    assert downloaded(page)[1] == command("photo.png", data, "-m", "derain")


def test_presets_and_amounts_reach_the_server(visit, command):
    page, data = visit(), encoded(pixels=levels(80, 120))
    add(page, "photo.png", data)
    assert page.is_checked("input[name=preset][value=strong]")
    page.check("input[name=preset][value=natural]", force=True)
    page.click("#noise summary")
    assert [page.inner_text(f"#{name}-shown") for name in ("luma", "chroma", "detail")] == ["85 %", "100 %", "50 %"]
    restore(page)
    assert downloaded(page)[1] == command("photo.png", data, "--preset", "natural")
    page.fill("#luma", "30")
    assert page.locator("input[name=preset]:checked").count() == 0
    assert downloaded(page)[1] == command("photo.png", data, "--luma", "0.3", "--detail", "0.5")
    page.check("input[name=model][value=derain-small]", force=True)
    assert page.is_hidden("#noise")
    page.click("#go")
    page.wait_for_selector("#about-result:has-text('Removed: rain, in')")
    assert downloaded(page)[1] == command("photo.png", data, "-m", "derain")


def test_several_pictures_in_a_row(visit, command):
    page = visit()
    pictures = {f"photo{i}.png": encoded(pixels=levels(40 + 8 * i, 60, seed=i)) for i in range(3)}
    choose(page, **pictures)
    page.click("#go-all:has-text('Restore all 3')")
    finish(page)
    for i, (name, data) in enumerate(pictures.items()):
        page.locator("#strip .pick").nth(i).click()
        assert downloaded(page) == (f"photo{i}-restored.png", command(name, data))
    page.click("#strip li:nth-child(2) .remove")
    assert page.locator("#strip .pick").count() == 2
    assert "photo2.png" in page.inner_text("#caption") + page.inner_text("#strip")


def finish(page):
    page.wait_for_selector("#strip:not(:has(li:not(.done) .pick))")


def test_all_results_are_downloaded_at_once(visit, command):
    page, saved = visit(), []
    page.on("download", lambda download: saved.append(download))
    pictures = {f"photo{i}.png": encoded(pixels=levels(40, 60, seed=i)) for i in range(3)}
    choose(page, **pictures)
    page.click("#go-all:has-text('Restore all 3')")
    finish(page)
    page.click("#download-all:has-text('Download all 3')")
    for _ in range(PATIENCE // 50):
        if len(saved) == 3:
            break
        page.wait_for_timeout(50)
    assert page.evaluate("dispatchEvent(new Event('beforeunload', {cancelable: true}))")  # All are saved.
    found = {one.suggested_filename: Path(one.path()).read_bytes() for one in saved}
    assert found == {f"photo{i}-restored.png": command(f"photo{i}.png", pictures[f"photo{i}.png"]) for i in range(3)}


def test_several_pictures_have_one_progress_and_are_cancelled_at_once(visit):
    page = visit()
    choose(page, **{"small.png": encoded(), "large.png": LARGE, "next.png": encoded(), "last.png": encoded()})
    page.click("#go-all:has-text('Restore all 4')")
    page.wait_for_selector("#progress-text:has-text('1 of 4, ')")
    page.wait_for_selector("#progress-text:has-text(' left')")
    # A small picture beside three: its share is that of its pixels.
    shares = [int(page.get_attribute("#track", "aria-valuenow"))]
    assert re.fullmatch(r"\d+ % · small.png · kithkin", page.title())
    page.locator("#strip .pick").last.click()  # The progress is that of all, whichever is shown.
    assert "last.png" in page.title()
    while shares[-1] < 30:
        page.wait_for_timeout(50)
        shares.append(int(page.get_attribute("#track", "aria-valuenow")))
    assert shares == sorted(shares)
    page.click("#cancel:has-text('Cancel all 3')")
    page.wait_for_selector("#strip li.cancelled:nth-child(2)")
    assert page.locator("#strip li.done").count() == 1
    assert page.locator("#strip li.cancelled").count() == 3
    assert page.is_hidden("#progress")
    assert page.title() == "last.png · kithkin"


def test_the_empty_page_has_an_example(visit):
    page = visit()
    assert page.evaluate("document.querySelector('#example img').naturalWidth") == 384
    page.click("#example")
    page.wait_for_selector("#go:not(:disabled)")
    assert "example.webp · 384 × 384" in page.inner_text("#caption")
    restore(page)
    assert downloaded(page)[0] == "example-restored.png"


def test_what_the_browser_can_not_show_is_shown_by_the_server(visit, command):
    page, data = visit(), encoded("TIFF", levels(40, 70))
    add(page, "scan.tiff", data)
    page.wait_for_selector("#viewer[data-before=drawn]")
    assert "70 × 40" in page.inner_text("#caption")
    restore(page)
    assert downloaded(page) == ("scan-restored.png", command("scan.tiff", data))


def test_pictures_are_dropped_and_pasted(visit):
    page = visit()
    raw = list(encoded())
    event = "([type, key, raw]) => { const data = new DataTransfer();"
    event += "data.items.add(new File([new Uint8Array(raw)], 'given.png', {type: 'image/png'}));"
    event += "const made = type === 'paste' ? new ClipboardEvent(type, {clipboardData: data, bubbles: true})"
    event += " : new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true});"
    event += "document.body.dispatchEvent(made); }"
    page.evaluate(event, ["dragenter", "", raw])
    assert page.is_visible("#over")
    page.evaluate(event, ["drop", "", raw])
    assert page.is_hidden("#over")
    page.wait_for_selector("#strip li.new")
    page.evaluate(event, ["paste", "", raw])
    page.wait_for_selector("#strip li.new:nth-child(2)")


def test_the_neighbors_of_a_patch_are_shown(visit, weights):
    page, pixels = visit(), levels(64, 96)
    add(page, "photo.png", encoded(pixels=pixels))
    page.click("#how > summary")
    canvas = page.locator("#canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 50 / 96, "y": box["height"] * 37 / 64})
    page.wait_for_selector("#patches li")
    page.check("input[name=at-stage][value=encoder0]", force=True)
    block = map_neighbors(load_model(weights), pixels)[0]
    own = 37 // block.patch_side * block.columns + 50 // block.patch_side
    assert f"row {own // block.columns + 1}, column {own % block.columns + 1}" in page.inner_text("#neighbors-hint")
    weight = dict.fromkeys(block.candidates[own].tolist(), 0.0)
    weight.pop(-1, None)
    for index, value in zip(block.candidates[own], block.weights[own], strict=True):
        if index >= 0:
            weight[int(index)] += float(value)
    shown = page.locator("#patches li").all_inner_texts()
    wanted = sorted((value for index, value in weight.items() if index != own), reverse=True)
    percents = [100 * value for value in (weight[own], *wanted)]
    assert [int(text.split()[0]) for text in shown] == pytest.approx(percents, abs=0.52)

    drawn = pixels_of(page.locator("#canvas").screenshot()).mean(axis=2)
    scale = drawn.shape[1] / 96
    side = block.patch_side

    def light(index):
        x, y = index % block.columns * side, index // block.columns * side
        top, bottom, left, right = (int(at * scale) for at in (y + 3, y + side - 3, x + 3, x + side - 3))
        inner = drawn[top:bottom, left:right]
        original = pixels[y + 3 : y + side - 3, x + 3 : x + side - 3].mean()
        return inner.mean() / original

    others = set(range(block.rows * block.columns)) - set(weight)
    assert min(light(index) for index in weight) > 0.8
    assert max(light(index) for index in others) < 0.5


def test_a_model_with_attention_shows_neighbors_in_place_of_one_without(visit, weights):
    with running("-m", "denoise-tiny", "-m", "derain", "-m", weights) as (address, _):
        page = visit(at=address)
        add(page, "photo.png", encoded(pixels=levels(64, 96)))
        assert page.is_hidden("#no-neighbors")
        page.click("#how > summary")
        for model, shown in (
            ("denoise-tiny", "Shown by derain-small: denoise-tiny has no attention."),
            ("tiny", "Shown by tiny."),
        ):
            page.check(f"input[name=model][value={model}]", force=True)
            page.locator("#canvas").click()
            page.wait_for_selector("#patches li")
            assert page.inner_text("#neighbors-hint").startswith(f"{shown} Patches of")
            page.click("#whole")


def test_a_photograph_keeps_some_texture_unless_told_otherwise(visit, command):
    with running("-m", "denoise-tiny") as (address, _):
        page, data = visit(at=address), encoded()
        add(page, "photo.png", data)
        assert page.is_checked("input[name=preset][value=natural]")
        restore(page)
        assert downloaded(page)[1] == command("photo.png", data, "-m", "denoise-tiny")
        page.check("input[name=preset][value=strong]", force=True)
        assert downloaded(page)[1] == command("photo.png", data, "-m", "denoise-tiny", "--preset", "strong")


def test_the_amounts_follow_the_model_until_they_are_changed(visit, weights):
    with running("-m", "denoise-tiny", "-m", weights) as (address, _):
        page = visit(at=address)
        for model, preset in ("tiny", "strong"), ("denoise-tiny", "natural"):
            page.check(f"input[name=model][value={model}]", force=True)
            assert page.is_checked(f"input[name=preset][value={preset}]")
        page.check("input[name=preset][value=keep-grain]", force=True)
        page.check("input[name=model][value=tiny]", force=True)
        assert page.is_checked("input[name=preset][value=keep-grain]")


def test_neighbors_are_disabled_where_no_model_has_attention(visit):
    with running("-m", "denoise-tiny") as (address, _):
        page = visit(at=address)
        add(page, "photo.png", encoded())
        page.click("#how > summary")
        sentence = "Neighbours need a model with attention, and this server has none."
        assert page.inner_text("#no-neighbors") == sentence
        assert page.is_hidden("#canvas")
        restore(page)


def test_neighbors_by_keyboard_in_every_stage_and_round(visit):
    page = visit()
    add(page, "photo.png", encoded(pixels=levels(64, 96)))
    page.click("#how > summary")
    page.locator("#canvas").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#patches li")
    place = page.inner_text("#neighbors-hint")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#neighbors-hint") != place
    assert "looks at" in page.inner_text("#status")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#neighbors-hint") == place
    stages = page.locator("#stages input")
    names = [stages.nth(i).input_value() for i in range(stages.count())]
    assert names == ["encoder0", "encoder1", "decoder1", "decoder0"]
    seen = set()
    for i in range(stages.count()):
        stages.nth(i).check(force=True)
        for value in ("0", "1", "all"):
            page.check(f"input[name=at-round][value='{value}']", force=True)
            seen.add(page.inner_text("#patches"))
            assert page.locator("#patches li").count() >= 2
    assert len(seen) >= 8
    assert "Patches of 8 × 8 pixels" in page.inner_text("#neighbors-hint")
    page.locator("#canvas").focus()
    page.keyboard.press("Escape")
    assert page.is_hidden("#places")
    assert page.locator("#patches li").count() == 0


def ramp():
    """Red says the column and green the row, each of four pixels; 900 x 900."""
    at = np.arange(900) // 4
    return np.dstack(np.broadcast_arrays(at[None, :], at[:, None], 0)).astype(np.uint8)


def pixel(page, x, y):
    """The column and row, of the ramp, that the frame shows at a place."""
    return 4 * drawn(page)[y, x, :2] + 1.5


def test_the_wheel_a_double_click_and_keys_zoom(visit):
    page = visit()
    add(page, "ramp.png", encoded(pixels=ramp()))
    page.wait_for_selector("#viewer[data-before=drawn]")
    frame = page.locator("#viewer").bounding_box()
    x, y = int(frame["width"] / 2) + 60, int(frame["height"] / 2) + 40
    page.mouse.move(frame["x"] + x, frame["y"] + y)
    place = pixel(page, x, y)
    for _ in range(3):
        page.mouse.wheel(0, -200)
    # What is under the pointer stays there, and what lies beside it moves away.
    assert pixel(page, x, y) == pytest.approx(place, abs=6)
    fit = frame["height"] / 900
    scale = fit * np.exp(0.002 * 600)
    assert pixel(page, x + 40, y)[0] - pixel(page, x, y)[0] == pytest.approx(40 / scale, abs=5)
    assert page.locator("input[name=zoom]:checked").count() == 0
    page.mouse.wheel(0, 3000)
    assert page.is_checked("input[name=zoom][value=fit]")
    page.mouse.dblclick(frame["x"] + x, frame["y"] + y)
    assert page.is_checked("input[name=zoom][value='1']")
    assert pixel(page, x, y) == pytest.approx(place, abs=6)
    page.mouse.down()
    page.mouse.move(frame["x"] + x - 50, frame["y"] + y - 30, steps=3)
    page.mouse.up()
    assert pixel(page, x - 50, y - 30) == pytest.approx(place, abs=6)
    page.focus("#viewer")
    page.keyboard.press("ArrowLeft")
    assert pixel(page, x + 10, y - 30) == pytest.approx(place, abs=6)
    page.keyboard.press("0")
    assert page.is_checked("input[name=zoom][value=fit]")
    page.keyboard.press("+")
    assert pixel(page, x + 40, y)[0] - pixel(page, x, y)[0] == pytest.approx(40 / fit / 1.25, abs=5)
    page.check("input[name=zoom][value='2']", force=True)
    assert pixel(page, x + 40, y)[0] - pixel(page, x, y)[0] == pytest.approx(20, abs=4)


def test_two_fingers_zoom(visit):
    page = visit(390, 844, has_touch=True)
    add(page, "ramp.png", encoded(pixels=ramp()))
    page.wait_for_selector("#viewer[data-before=drawn]")
    frame = page.locator("#viewer").bounding_box()
    x, y = int(frame["width"] / 2), int(frame["height"] / 2)
    place = pixel(page, x, y)
    before = pixel(page, x + 20, y)[0] - place[0]
    touch = page.context.new_cdp_session(page)

    def fingers(kind, apart):
        points = [{"x": frame["x"] + x + side * apart, "y": frame["y"] + y, "id": side} for side in (-1, 1) if apart]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 30)
    for apart in (40, 50, 60, 75, 90):
        fingers("touchMove", apart)
    fingers("touchEnd", 0)
    assert pixel(page, x, y) == pytest.approx(place, abs=9)
    assert pixel(page, x + 20, y)[0] - pixel(page, x, y)[0] == pytest.approx(before / 3, abs=4.5)


def test_the_original_is_shown_while_the_picture_the_button_or_the_space_bar_is_held(visit):
    page = visit()
    add(page, "photo.png", encoded(pixels=levels(120, 200)))
    page.wait_for_selector("#viewer[data-before=drawn]")
    page.check("input[name=zoom][value='1']", force=True)
    assert page.is_disabled("#hold")
    original = drawn(page)
    restore(page)
    page.wait_for_selector("#viewer[data-after=drawn]")
    (left, top), frame = framed(page, 200, 120), page.locator("#viewer").bounding_box()

    def part(seen):
        return seen[top : top + 80, left + 130 : left + 180]  # Beside the divider, above the labels.

    restored = drawn(page)
    assert (part(restored) != part(original)).any()

    def begin(where):
        if where == "button":
            page.locator("#hold").hover()
            page.mouse.down()
        elif where == "picture":
            page.mouse.move(frame["x"] + left + 150, frame["y"] + top + 60)
            page.mouse.down()
        else:
            page.focus("#viewer")
            page.keyboard.down(" ")

    for where in ("button", "picture", "space bar"):
        begin(where)
        page.wait_for_selector("#hold[aria-pressed=true]")
        assert (part(drawn(page)) == part(original)).all(), where
        (page.keyboard.up(" ") if where == "space bar" else page.mouse.up())
        page.wait_for_selector("#hold[aria-pressed=false]")
        assert (part(drawn(page)) == part(restored)).all(), where


def test_arrows_go_from_picture_to_picture(visit):
    page = visit()
    choose(page, **{f"{name}.png": encoded() for name in "abc"})
    page.wait_for_selector("#strip:not(:has(li.opening))")

    def shown():
        return page.inner_text("#caption")[0] + page.inner_text("#position")

    assert shown() == "a1 of 3"
    page.click("#next")
    assert shown() == "b2 of 3"
    page.keyboard.press("ArrowRight")
    assert shown() == "c3 of 3"
    page.focus("#viewer")
    page.keyboard.press("ArrowRight")
    assert shown() == "a1 of 3"
    page.keyboard.press("ArrowLeft")
    assert shown() == "c3 of 3"
    page.focus("#strength")  # There they move the slider.
    page.keyboard.press("ArrowLeft")
    assert shown() == "c3 of 3"


@pytest.mark.parametrize("case", ["text", "empty", "bomb", "cut off", "svg", "svg as png"])
def test_a_bad_file_gets_a_sentence_and_the_next_one_is_restored(visit, command, case):
    name, data, _, sentence = BAD[case]
    page, good = visit(), encoded()
    choose(page, **{name: data})
    page.wait_for_selector("#strip li.failed, #strip li.new")
    if page.is_enabled("#go"):  # What the browser shows, the server may still refuse.
        page.click("#go")
    page.wait_for_selector("#strip li.failed")
    assert sentence.replace(f"{name}: ", "") in page.inner_text("#problem")
    add(page, "good.png", good)
    page.locator("#strip .pick").last.click()
    restore(page)
    assert page.is_hidden("#problem")
    assert downloaded(page) == ("good-restored.png", command("good.png", good))


def test_a_name_is_text_and_never_markup(visit):
    page = visit()
    name = "<img src=x onerror=document.title='changed'>.png"
    add(page, name, encoded())
    restore(page)
    assert name in page.inner_text("#caption")
    assert page.title() == f"{name} · kithkin"
    assert page.locator("img[src=x]").count() == 0


def test_long_work_shows_its_progress_and_is_cancelled(visit, address):
    page = visit()
    add(page, "large.png", encoded(pixels=np.tile(levels(500, 800), (4, 4, 1))))
    page.click("#go")
    page.wait_for_selector("#progress-text:has-text('%')")
    assert page.get_attribute("#track", "role") == "progressbar"
    page.click("#cancel")
    page.wait_for_selector("#strip li.cancelled")
    page.wait_for_selector("#go:not(:disabled)")
    assert page.is_hidden("#progress")
    assert page.is_hidden("#result")
    assert page.evaluate("document.activeElement.id") == "go"
    add(page, "small.png", encoded())
    page.locator("#strip .pick").last.click()
    restore(page)


def test_everything_is_reached_with_the_keyboard_and_focus_is_seen(visit):
    page = visit()
    add(page, "photo.png", encoded())
    restore(page)
    page.evaluate("document.activeElement.blur()")
    reached, unseen = [], []
    look = "const e = document.activeElement, s = getComputedStyle(e), n = e.nextElementSibling;"
    look += "const shown = (x) => x && getComputedStyle(x).outlineStyle !== 'none';"
    look += "return [e.id || e.name || e.className || e.tagName, shown(e) || shown(n) || shown(e.firstElementChild)]"
    for _ in range(30):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(f"() => {{ {look} }}")
        reached.append(name)
        unseen += [] if visible or name == "BODY" else [name]
    assert unseen == []
    wanted = {
        "skip",
        "zoom",
        "SUMMARY",
        "format",
        "hold",
        "viewer",
        "divider",
        "pick",
        "remove",
        "add",
        "model",
        "strength",
        "preset",
        "go",
    }
    assert (wanted | {"download"}) - set(reached) == set()


def test_everything_has_a_name(visit):
    page = visit()
    add(page, "photo.png", encoded())
    restore(page)
    nameless = page.evaluate(
        """() =>
        [...document.querySelectorAll("button, a, input, canvas, [role], img, section, aside, ul")].filter((e) =>
        !(e.getAttribute("aria-label") || e.textContent.trim() || e.alt || e.labels?.length || e.ariaHidden
          || (e.tagName === "IMG" && e.hasAttribute("alt")) || e.role === "status" || e.role === "alert"
          || ["notes", "patches"].includes(e.id))).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(visit, scheme):
    page = visit(390, 844, color_scheme=scheme, device_scale_factor=2, has_touch=True)
    add(page, "a-rather-long-name-of-a-picture-from-a-camera-2026-11-24.png", encoded(pixels=levels(90, 130)))
    restore(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#how > summary")
    page.locator("#canvas").tap()
    page.wait_for_selector("#patches li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all((int(value) > 200) == (scheme == "light") for value in re.findall(r"\d+", ground)[:3])


LARGE = encoded(pixels=np.tile(levels(500, 800), (2, 2, 1)))


def test_a_cut_of_the_network_fails_no_picture_and_repeats_no_work(visit):
    page, sent = visit(), []
    page.on("request", lambda request: sent.append(request.method) if request.url.endswith("/jobs") else None)
    choose(page, **{"large.png": LARGE, "small.png": encoded()})
    page.click("#go-all:has-text('Restore all 2')")
    page.wait_for_selector("#progress-text:has-text('%')")
    page.context.set_offline(True)
    page.wait_for_selector("#progress-text:has-text('The server does not answer. Trying again in')")
    page.wait_for_timeout(3000)
    page.context.set_offline(False)
    page.wait_for_selector("#strip:not(:has(li:not(.done) .pick))")
    assert sent == ["POST", "POST"]
    assert page.is_hidden("#problem")


def test_a_picture_that_the_server_forgot_is_sent_again(visit, command):
    page, data, asked = visit(), encoded(), []

    def forget(route):
        asked.append(route.request.method)
        if len(asked) == 1:
            route.fulfill(status=404, json={"detail": "there is no such job"})
        else:
            route.continue_()

    page.route("**/jobs/*", forget)
    add(page, "photo.png", data)
    restore(page)
    assert downloaded(page) == ("photo-restored.png", command("photo.png", data))


def test_a_job_that_was_given_up_before_its_answer_came_is_deleted(visit):
    page, deleted = visit(), []
    page.on("request", lambda request: deleted.append(request.url) if request.method == "DELETE" else None)
    page.route("**/jobs", lambda route: None)  # No answer, ever.
    add(page, "photo.png", encoded())
    page.click("#go")
    page.wait_for_selector("#progress-text:has-text('Sending')")
    page.click("#cancel")
    page.wait_for_selector("#strip li.cancelled")
    page.wait_for_timeout(300)
    assert re.fullmatch(r".*/jobs/[0-9a-f]{32}", deleted[0])
    page.unroute("**/jobs")


def test_leaving_asks_where_a_result_is_not_saved(visit):
    page, asked = visit(), []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    add(page, "photo.png", encoded())
    leaves = "dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert page.evaluate(leaves)
    restore(page)
    assert not page.evaluate(leaves)
    page.close(run_before_unload=True)  # With the browser's own question, which is answered with no.
    page.wait_for_timeout(300)
    assert asked == ["beforeunload"]
    downloaded(page)
    assert page.evaluate(leaves)


def test_the_description_of_http_opens_beside(visit):
    page = visit()
    with page.context.expect_page() as opened:
        page.click("text=HTTP interface")
    assert opened.value.url.endswith("/docs")
    assert page.title() == "kithkin"


def test_the_focus_stays_on_what_can_be_pressed(visit):
    page = visit()
    add(page, "large.png", LARGE)
    page.focus("#go")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "cancel"
    page.keyboard.press("Enter")
    page.wait_for_selector("#go:not(:disabled)")
    assert page.evaluate("document.activeElement.id") == "go"


def test_a_result_says_that_it_is_of_another_task(visit):
    page = visit()
    add(page, "photo.png", encoded())
    restore(page)
    assert page.inner_text("#go") == "Restore again"
    page.check("input[name=model][value=derain-small]", force=True)
    assert page.inner_text("#go") == "Restore"
    assert "Restore again for the task that is chosen now." in page.inner_text("#about-result")


def test_a_download_may_be_a_jpeg(visit, command):
    page, data = visit(), encoded(pixels=levels(80, 120))
    add(page, "photo.png", data)
    restore(page)
    page.check("input[name=format][value=jpg]", force=True)
    assert page.inner_text("#download") == "Download JPEG"
    assert downloaded(page) == ("photo-restored.jpg", command("photo.png", data, ending="jpg"))


def test_amounts_are_live_and_the_download_is_exact(visit, command):
    page, data = visit(), encoded(pixels=levels(120, 200))
    add(page, "photo.png", data)
    restore(page)
    page.wait_for_selector("#viewer[data-after=drawn]")
    page.check("input[name=zoom][value='1']", force=True)
    page.focus("#divider")
    page.keyboard.press("Home")
    left, top = framed(page, 200, 120)
    seen = (slice(0, 80), slice(30, 200))  # Beside the knob, above the labels.
    full = pixels_of(command("photo.png", data))[seen]
    inside = (full > 0) & (full < 255)  # What the network carries beyond is cut off before it is blended here.
    assert inside.mean() > 0.5
    posted = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    page.click("#noise summary")
    for amounts in {"strength": 50}, {"strength": 100, "luma": 30}, {"strength": 80, "luma": 90, "chroma": 20}:
        for name, value in amounts.items():
            page.fill(f"#{name}", str(value))
        count = len(posted)
        shown = drawn(page)[top : top + 120, left : left + 200][seen]
        assert len(posted) == count
        options = [part for name, value in amounts.items() for part in (f"--{name}", str(value / 100))]
        wanted = command("photo.png", data, *options)
        assert downloaded(page)[1] == wanted
        difference = np.abs(shown - pixels_of(wanted)[seen])
        assert difference[inside.all(axis=2)].max() <= 1
        assert (shown != full).any()


def test_the_place_that_is_looked_at_comes_first_and_tiles_as_they_finish(visit):
    page, held = visit(), []
    # The first tile comes, and nothing else.
    page.route(re.compile("/tiles/[1-9]"), lambda route: None)
    page.route("**/result", lambda route: held.append(route))
    # Of its own: what the server still has of an earlier test takes no tiles.
    add(page, "large.png", encoded(pixels=np.tile(levels(500, 800, seed=9), (2, 3, 1))))
    page.wait_for_selector("#viewer[data-before=drawn]")
    page.check("input[name=zoom][value='1']", force=True)
    page.focus("#viewer")
    for _ in range(40):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
    before = drawn(page)
    with page.expect_response("**/tiles/0"):
        page.click("#go")
    page.wait_for_selector("#divider:not([hidden])")
    for _ in range(PATIENCE // 50):
        changed = (drawn(page) != before).any(axis=2)
        middle = changed.shape[1] // 2
        if changed[50:-50, middle + 40 :].mean() > 0.9:
            break
        page.wait_for_timeout(50)
    assert changed[50:-50, middle + 40 :].mean() > 0.9
    assert not changed[50:-50, : middle - 40].any()
    assert page.is_hidden("#result")
    while not held:
        page.wait_for_timeout(50)
    held[0].continue_()
    page.wait_for_selector("#result:not([hidden])")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (844, 390)])
def test_the_main_buttons_are_in_reach_on_a_phone(visit, width, height):
    page = visit(width, height, device_scale_factor=2, has_touch=True, is_mobile=True)

    def reached(*names):
        page.evaluate("scrollTo(0, 0)")
        boxes = [page.locator(name).bounding_box() for name in names]
        assert all(box and box["y"] >= 0 and box["y"] + box["height"] <= height for box in boxes), boxes

    reached("#choose-photos", "#go")
    add(page, "photo.png", encoded(pixels=levels(90, 130)))
    reached("#choose-photos", "#go", "#viewer")
    restore(page)
    reached("#choose-photos", "#download", "#viewer")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("moving.gif", encoded("GIF"), "moving.gif"),
        ("vast.png", encoded(pixels=np.zeros((6000, 6000), np.uint8)), "more than the 32 megapixels"),
    ],
)
def test_what_the_browser_shows_and_the_server_refuses_is_not_ready(visit, name, data, sentence):
    page = visit()
    choose(page, **{name: data})
    page.wait_for_selector("#strip li.failed")
    assert sentence in page.inner_text("#problem")
    assert page.is_disabled("#go")


def test_the_labels_of_a_tiny_picture_stand_beside_it(visit):
    page = visit()
    add(page, "dot.png", encoded(pixels=levels(1, 1)))
    restore(page)
    before, after = (page.locator(f"#tag-{name}").bounding_box() for name in ("before", "after"))
    assert before["x"] + before["width"] <= after["x"]


def test_what_scrolls_has_the_keyboard_and_all_is_in_a_landmark(visit):
    """Of axe's rules, those that the page broke."""
    page = visit()
    add(page, "photo.png", encoded(pixels=levels(64, 96)))
    assert page.evaluate("document.querySelector('#files').closest('main') !== null")
    page.click("#how > summary")
    page.locator("#canvas").click()
    page.wait_for_selector("#patches li")
    assert page.evaluate("document.querySelector('#patches').tabIndex") == 0


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_enough(scheme):
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", re.findall(r":root \{(.*?)\}", STYLE, re.S)[scheme]))
    assert len(colours) == 10
    pairs = [(text, ground) for text in ("ink", "soft", "accent", "bad") for ground in ("page", "card", "tint")]
    pairs += [("on-accent", "accent"), ("ink", "stage"), ("soft", "stage")]
    for text, ground in pairs:
        bright, dim = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, ground)
