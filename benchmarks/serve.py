"""`kithkin serve`: time to the first picture, and many users at once: right answers, time, memory.

    python benchmarks/serve.py [USERS]

The server runs as a process of its own with the model `denoise-gaussian`. Every user sends a crop of the example
picture of its own at the same moment, and the answer is compared with the bytes that `restore_file` writes. Memory is
the server's resident set at its highest, after one user and after all of them.
"""

import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from kithkin.images import Picture, read_picture, write_picture
from kithkin.restore_files import restore_file
from kithkin.zoo import load_model

from measure import keep

EXAMPLE = Path(__file__).parent.parent / "examples/dog-noisy.png"
SIDE = 384


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """The address and the process number of `kithkin serve`."""
    command = [sys.executable, "-m", "kithkin", "serve", "--model", "denoise-gaussian", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1], process.pid
        finally:
            process.terminate()


def peak_megabytes(number: int) -> float:
    lines = Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")) / 1e6


def sent(address: str, data: bytes) -> tuple[bytes, float]:
    """The answer to POST /restore, and the seconds that it took."""
    head = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    started = time.perf_counter()
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=900)
    connection.request(
        "POST", "/restore", head + data + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}
    )
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    return body, time.perf_counter() - started


def crops(folder: Path, count: int) -> list[Path]:
    """Different parts of the example, as files."""
    picture = read_picture(EXAMPLE)
    room = picture.pixels.shape[0] - SIDE
    paths = []
    for i in range(count):
        top, left = 7 * i % room, 31 * i % room
        part = np.ascontiguousarray(picture.pixels[top : top + SIDE, left : left + SIDE])
        paths.append(folder / f"{i}.png")
        write_picture(Picture(part), paths[-1])
    return paths


def main(users: int) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, server() as (address, number):
        listening = time.perf_counter() - started
        with urllib.request.urlopen(address) as page:
            page.read()
        shown = time.perf_counter() - started
        sent(address, EXAMPLE.read_bytes())
        first = time.perf_counter() - started
        folder = Path(name)
        paths = crops(folder, users)
        alone, seconds_alone = sent(address, paths[0].read_bytes())
        memory_alone = peak_megabytes(number)
        start = threading.Barrier(users)

        def user(path: Path) -> tuple[bytes, float]:
            data = path.read_bytes()
            start.wait()
            return sent(address, data)

        began = time.perf_counter()
        with ThreadPoolExecutor(users) as pool:
            found = list(pool.map(user, paths))
        wall = time.perf_counter() - began
        memory = peak_megabytes(number)
        model = load_model("denoise-gaussian")
        right = 0
        for path, (body, _) in zip(paths, found, strict=True):
            target = path.with_suffix(".restored.png")
            restore_file(model, path, target)
            right += target.read_bytes() == body
        keep(
            "serve",
            {
                "start": {
                    "address_s": round(listening, 1),
                    "page_s": round(shown, 1),
                    "first_picture_s": round(first, 1),
                },
                "load_average": round(os.getloadavg()[0], 1),
                "picture": f"{SIDE} x {SIDE}, PNG",
                "alone": {"seconds": round(seconds_alone, 2), "peak_mb": round(memory_alone)},
                "together": {
                    "users": users,
                    "right_answers": right,
                    "seconds": round(wall, 1),
                    "longest_s": round(max(seconds for _, seconds in found), 1),
                    "peak_mb": round(memory),
                },
            },
        )
        assert right == users
        assert alone == found[0][0]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
