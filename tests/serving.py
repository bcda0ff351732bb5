"""What the tests of the server share: weights, picture files good and bad, the server as a process of its own."""

import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from kithkin.checkpoint import save_model
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

# Everything that the server's process connects to or looks up is written to its error stream.
COMMAND = """
import sys
def watch(event, values):
    if event in ("socket.connect", "socket.sendto") or (event == "socket.getaddrinfo" and values[0] != "127.0.0.1"):
        print("OUTWARD", event, values, file=sys.stderr, flush=True)
from kithkin.cli import main
sys.addaudithook(watch)
main()
"""


def tiny_weights(path):
    """A small network that changes a picture visibly."""
    model = KiT(KiTConfig(width=8, depth=1, n_hashes=2, n_stages=2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    save_model(model, path)
    return path


def levels(height=40, width=56, channels=3, seed=0):
    """A smooth picture with noise on it, uint8."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin((x * (c + 1) + 2 * y + 40 * seed) / 17) for c in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 18, (height, width, channels))
    return (np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8)


def encoded(kind="PNG", pixels=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(levels() if pixels is None else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(side=50_000):
    """A small PNG file that would decode to side² gray pixels."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(200)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


BAD = {
    "text": ("notes.png", b"dear diary\n", 415, "notes.png: is not a picture that kithkin knows"),
    "empty": ("nothing.png", b"", 415, "nothing.png: is empty"),
    "bomb": ("bomb.png", bomb(), 413, "is 50000 x 50000 pixels large, more than the 32 megapixels"),
    "cut off": ("half.jpg", encoded("JPEG")[:900], 422, "half.jpg: is cut off"),
    "header": ("head.jpg", encoded("JPEG")[:20], 415, "head.jpg: can't be decoded as JPEG"),
    "svg": ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 415, "is an SVG file"),
    "svg as png": ("drawing.png", b'<?xml version="1.0"?><svg onload="alert(1)"/>', 415, "is an SVG file"),
    "outside": ("../../../etc/evil.png", b"x", 415, "evil.png: is not"),
    "windows": ("..\\..\\evil.png", b"x", 415, "evil.png: is not"),
    "control": ("a\tb\n.png", b"x", 415, "is not"),
}


@contextmanager
def running(*arguments):
    """`kithkin serve` on a free port: its address and the process; stopped at the end."""
    command = [sys.executable, "-c", COMMAND, "serve", "--port", "0", "--device", "cpu", *map(str, arguments)]
    # As in conftest.py: threads that wait for each other take longer than one alone.
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one)
    try:
        line = process.stdout.readline()
        assert line.startswith("kithkin: http://127.0.0.1:"), process.stderr.read()
        yield line.split()[1], process
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
        process.stderr.close()
