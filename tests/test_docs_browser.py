"""The page that restores in the browser alone, with a stand-in for onnxruntime-web: its tiles, its files, its words."""

import io
import runpy
import shutil
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import encoded, levels

PAGE = Path(__file__).parent.parent / "docs/browser"
PATIENCE = 60_000
RUNTIME = """
export const env = {{ wasm: {{}} }};
export class Tensor {{
  constructor(type, data, dims) {{ Object.assign(this, {{ type, data, dims }}); }}
}}
let calls = 0;
function network(image) {{ {network} }}
export const InferenceSession = {{
  create: async (path) => {{
    if (!(await fetch(path)).ok) throw new Error("no such file");
    return {{ run: async ({{ image }}) => ({{ restored: new Tensor("float32", network(image), image.dims) }}) }};
  }},
}};
"""
NEGATIVE = "return image.data.map((value) => 1 - value);"


@pytest.fixture
def visit(browser, tmp_path):
    """Open the page from a folder with a network of this JavaScript; None for no runtime at all."""
    for name in ("index.html", "page.js", "worker.js"):
        shutil.copy(PAGE / name, tmp_path)
    handler = runpy.run_path(str(PAGE / "prepare.py"))["Isolated"]
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    contexts = []

    def open_page(network=NEGATIVE):
        if network is not None:
            (tmp_path / "ort").mkdir()
            (tmp_path / "ort/ort.wasm.min.mjs").write_text(RUNTIME.format(network=network))
            (tmp_path / "denoise.onnx").write_bytes(b"")
        contexts.append(browser.new_context(accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        return page

    yield open_page
    for context in contexts:
        context.close()
    server.shutdown()
    server.server_close()


def choose(page, picture, name="photo.one.png"):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": picture})


def restored(page, picture):
    """The pixels of the file that the page gives for one, and that file's name."""
    choose(page, picture)
    page.wait_for_selector("#result:visible")
    with page.expect_download() as download:
        page.click("#save")
    return np.asarray(Image.open(io.BytesIO(download.value.path().read_bytes()))), download.value.suggested_filename


def wait_for_words(page, words):
    page.wait_for_function("words => document.getElementById('status').textContent.includes(words)", arg=words)


@pytest.mark.parametrize("size", [(1, 1), (40, 57), (512, 512), (513, 1100)], ids=str)
def test_every_pixel_goes_through_the_network_once(visit, size):
    pixels = levels(*size)
    result, name = restored(visit(), encoded(pixels=pixels))
    assert np.array_equal(result[..., :3], 255 - pixels)
    assert (result[..., 3] == 255).all()
    assert name == "photo.one-restored.png"


def test_tiles_are_blended_where_they_overlap(visit):
    page = visit("return image.data.fill(calls++ % 2);")  # black, white, black
    result, _ = restored(page, encoded(pixels=levels(8, 1100)))
    row = result[0, :, 0].astype(int)
    assert (row[0], row.max(), row[-1]) == (0, 255, 0)
    assert np.abs(np.diff(row)).max() <= 255 / 32 + 1


def test_transparency_stays(visit):
    pixels = np.dstack([levels(), levels(channels=1)])
    result, _ = restored(visit(), encoded(pixels=pixels))
    assert np.array_equal(result[..., 3], pixels[..., 3])


def test_the_server_lets_the_page_have_threads(visit):
    page = visit()
    assert page.evaluate("crossOriginIsolated")
    choose(page, encoded())
    wait_for_words(page, f"threads: {page.evaluate('navigator.hardwareConcurrency')}")


def test_what_is_missing_is_said(visit, tmp_path):
    wait_for_words(visit(None), "prepare.py")
    page = visit()
    (tmp_path / "denoise.onnx").unlink()
    choose(page, encoded())
    wait_for_words(page, "denoise.onnx: no such file")


def test_a_file_that_is_no_picture_is_refused_and_the_next_one_restored(visit):
    page = visit()
    choose(page, b"dear diary", "notes.png")
    wait_for_words(page, "notes.png: this browser can't read it")
    result, _ = restored(page, encoded())
    assert np.array_equal(result[..., :3], 255 - levels())
