"""Put beside the page what it needs, and serve it: python docs/browser/prepare.py [PORT]

onnxruntime-web comes from npm (into ``ort``), the network from ``kithkin export`` (``denoise.onnx``). Files that are
there already are left alone. The server sends the headers without which a browser lets a page have no threads.
"""

import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def prepare() -> None:
    if not (HERE / "denoise.onnx").exists():
        export = ["export", "denoise", "--to", "onnx", "--half", "-o", HERE / "denoise.onnx"]
        subprocess.run([sys.executable, "-m", "kithkin", *export], check=True)
    if not (HERE / "ort" / FILES[-1]).exists():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["npm", "pack", "--silent", RUNTIME], cwd=folder, check=True)
            (packed,) = Path(folder).iterdir()
            with tarfile.open(packed) as archive:
                found = {name: archive.extractfile(f"package/dist/{name}").read() for name in FILES}
        (HERE / "ort").mkdir(exist_ok=True)
        for name, content in found.items():
            (HERE / "ort" / name).write_bytes(content)


class Isolated(SimpleHTTPRequestHandler):
    """Serves a folder in such a way that no other site shares a process with it, so it may have threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


if __name__ == "__main__":
    prepare()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8001
    with ThreadingHTTPServer(("127.0.0.1", port), partial(Isolated, directory=HERE)) as server:
        print(f"http://127.0.0.1:{server.server_port}/index.html; Ctrl-C stops it")
        server.serve_forever()
