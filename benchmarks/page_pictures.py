"""The pictures of the page of `kithkin serve` in the documents: docs/images/serve-*.webp.

    python benchmarks/page_pictures.py PHOTOGRAPH

PHOTOGRAPH, enlarged to more than a megapixel, gets white noise; the example picture stands beside it. Those in the
documents show gb82_city-lossless.jpg (CC0). Needs the extra `web`, playwright and a `chromium` on the path.
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from kithkin.data.degrade import benchmark_noise
from kithkin.images import read_picture, write_picture

ROOT = Path(__file__).parent.parent
DOG = ROOT / "examples/dog-noisy.png"
WIDE, NARROW = {"width": 1280, "height": 865}, {"width": 390, "height": 844}


def save(page: Page, name: str, width: int | None = None, place: str = "body") -> None:
    """Write what the page shows from a place on, narrower where a width is given."""
    page.locator(place).evaluate("(node) => node.scrollIntoView()")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    if width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.save(ROOT / f"docs/images/serve-{name}.webp", quality=80, method=6)


def opened(browser: Browser, address: str, pictures: list[Path], **options: object) -> Page:
    """The page with its pictures, the first of them chosen."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("#tasks label")
    page.set_input_files("#files", pictures)
    page.wait_for_selector("#go:not(:disabled)")
    return page


def restored(page: Page) -> None:
    """Restore the chosen picture and wait for it."""
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])")
    page.wait_for_selector("#viewer[data-after=drawn]")


def main(photograph: str) -> None:
    command = [sys.executable, "-m", "kithkin", "serve", "--port", "0", "--device", "cpu"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as driver,
    ):
        noisy = Path(folder, "city-noisy.png")
        with Image.open(photograph) as small:
            small.convert("RGB").resize((1280, 853), Image.Resampling.LANCZOS, (0, 75, 576, 459)).save(noisy)
        clean = read_picture(noisy)
        write_picture(clean.with_pixels(np.clip(benchmark_noise(clean.pixels, 25), 0, 1)), noisy, overwrite=True)
        assert server.stdout
        address = server.stdout.readline().split()[1]
        args = ["--no-sandbox", "--force-color-profile=srgb", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=args)
        try:
            draw(browser, address, noisy)
        finally:
            browser.close()
            server.terminate()


def draw(browser: Browser, address: str, noisy: Path) -> None:
    """All pictures of the page."""
    page = opened(browser, address, [noisy, DOG], viewport=WIDE)
    with page.expect_response("**/tiles/1"):
        page.click("#go-all")
    page.focus("#divider")
    page.keyboard.press("Home")  # The restored part is seen whole.
    page.wait_for_timeout(200)
    save(page, "progress", 900)
    page.wait_for_selector("#strip:not(:has(li:not(.done) .pick))")
    page.locator("#strip .pick").nth(1).click()
    page.wait_for_selector("#viewer[data-after=drawn]")
    save(page, "compare")

    page = opened(browser, address, [DOG], viewport=WIDE, color_scheme="dark")
    page.check("input[name=model][value^=denoise-gaussian]", force=True)
    restored(page)
    page.click("#how > summary")
    box = page.locator("#canvas").bounding_box()
    assert box
    page.click("#canvas", position={"x": 0.42 * box["width"], "y": 0.29 * box["height"]})
    page.wait_for_selector("#patches li")
    page.check("input[name=at-stage][value=encoder1]", force=True)
    save(page, "neighbors", place="#how")

    page = opened(browser, address, [DOG], viewport=NARROW)
    restored(page)
    save(page, "phone")


if __name__ == "__main__":
    main(sys.argv[1])
