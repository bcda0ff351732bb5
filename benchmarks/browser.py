"""What docs/browser takes for a picture of one megapixel in headless Chromium, on one thread.

    python docs/browser/prepare.py  # once; end it when it serves
    python benchmarks/browser.py

Seconds count the processor's time of the process that holds page and network, which other work on the machine disturbs
less than a clock. The first picture also waits for the network to load.
"""

import io
import runpy
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from kithkin.export._parity import _photograph
from kithkin.restore_options import RestoreOptions
from kithkin.restorers import restore_image
from kithkin.zoo import load_model

from measure import keep

PAGE = Path(__file__).parent.parent / "docs/browser"
SIDE, RUNS, TILE = 1024, 2, 512
PATIENCE = 3_600_000


class Plain(SimpleHTTPRequestHandler):
    """Without the headers that allow threads."""

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    torch.set_num_threads(1)
    pixels = (_photograph(SIDE, SIDE)[0].transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=PAGE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seconds = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(accept_downloads=True)
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        processes = browser.new_browser_cdp_session()

        def renderer() -> dict:
            found = processes.send("SystemInfo.getProcessInfo")["processInfo"]
            return max((process for process in found if process["type"] == "renderer"), key=lambda p: p["cpuTime"])

        for _ in range(RUNS):
            before = renderer()["cpuTime"]
            page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture.getvalue()})
            page.wait_for_selector("#result", state="hidden")
            page.wait_for_selector("#result:visible")
            seconds.append(round(renderer()["cpuTime"] - before, 1))
        with page.expect_download() as download:
            page.click("#save")
        result = np.asarray(Image.open(download.value.path()).convert("RGB"))
        version, status = browser.version, Path(f"/proc/{renderer()['id']}/status").read_text(encoding="utf-8")
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
    server.shutdown()
    expected, own_seconds = with_kithkin(pixels)
    difference = np.abs(result.astype(int) - expected)
    keep(
        "browser",
        {
            "chromium": version,
            "runtime": runpy.run_path(str(PAGE / "prepare.py"))["RUNTIME"],
            "side": SIDE,
            "seconds": seconds,
            "megabytes": round(peak),
            "kithkin's seconds": own_seconds,
            "of values": difference.size,
            "differ": int((difference > 0).sum()),
            "by at most": int(difference.max()),
        },
    )


def with_kithkin(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture restored in the same tiles by PyTorch, and the processor's seconds, the least of three runs."""
    restorer, times = RestoreOptions(tile=TILE).compose(load_model("denoise")), []
    for _ in range(3):
        started = time.process_time()
        result = restore_image(restorer, pixels)
        times.append(time.process_time() - started)
    return result, round(min(times), 1)


if __name__ == "__main__":
    main()
