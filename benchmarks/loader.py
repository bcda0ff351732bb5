"""The loader alone, from a folder, tar shards and an S3 server on this machine, against what a training step needs:
whole photographs and crops that were cut from them, none of them kept in memory; and a folder that is.

    python benchmarks/loader.py PHOTOGRAPHS

PHOTOGRAPHS is a folder of photographs to train on. Needs the extras ``shards`` and ``test`` (moto).
"""

import io
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kithkin.config import DataConfig
from kithkin.data import CutOptions, Photos, cut_crops, write_indexes
from kithkin.data.ahead import drawn_ahead
from kithkin.data.members import read_members
from kithkin.data.sampling import draw_crops
from kithkin.data.shards import expand_braces, index_shards
from kithkin.images import find_pictures
from kithkin.storage import open_system

from measure import keep

BATCH, CORE_SECONDS, SHARDS, PIECE = 8, 0.6, 4, 192
DELAY = 0.03

# An S3 server in a process of its own, answering every request after a pause.
SERVER = """
import sys, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple
WSGIRequestHandler.log = lambda *arguments: None
WSGIRequestHandler.protocol_version = "HTTP/1.1"
app = DomainDispatcherApplication(create_backend_app)
def paused(environ, start):
    time.sleep(float(sys.argv[2]) if environ["REQUEST_METHOD"] == "GET" else 0)
    return app(environ, start)
run_simple("127.0.0.1", int(sys.argv[1]), paused, threaded=True)
"""


@contextmanager
def s3_server(folder: Path, delay: float) -> Iterator[str]:
    """The URL of the shards of a folder behind a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(delay)], stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        while server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        for path in folder.glob("*.tar"):
            system.pipe_file(f"bucket/{path.name}", path.read_bytes())
        yield f"s3://bucket/{SET}"
    finally:
        server.terminate()
        server.wait()


SET = f"set-{{0..{SHARDS - 1}}}.tar"


def write_shards(folder: Path, out: Path) -> str:
    """Deal the pictures of a folder to tar shards; the pattern that names them."""
    out.mkdir(parents=True)
    paths = find_pictures(folder)
    for shard in range(SHARDS):
        with tarfile.open(out / f"set-{shard}.tar", "w") as tar:
            for path in paths[shard::SHARDS]:
                info = tarfile.TarInfo(path.name)
                info.size = path.stat().st_size
                tar.addfile(info, io.BytesIO(path.read_bytes()))
    return str(out / SET)


def draw_step(dataset: Photos, crop: int, step: int) -> Any:
    config = DataConfig(kind="photos", folders=(), crop=crop, sigma=(0, 50), cache_gb=0)
    return draw_crops(dataset, config, batch_size=BATCH, seed=0, step=step)


def cost(dataset: Photos, crop: int, workers: int) -> tuple[float, float]:
    """(milliseconds of a core that a crop takes, crops a second) once the processes run: the first counts this process
    and its workers alone, and holds on a machine with other work; the second is what that work leaves."""
    with drawn_ahead(partial(draw_step, dataset, crop), range(10**9), workers) as crops:
        for _ in range(4 * max(1, workers) + 2):
            next(crops)
        before, started, count = core_seconds(), time.perf_counter(), 0
        while (spent := core_seconds() - before) < CORE_SECONDS:
            for _ in range(10):
                next(crops)
            count += 10 * BATCH
        return 1e3 * spent / count, count / (time.perf_counter() - started)


def core_seconds() -> float:
    """Of this process and its workers, so far."""
    ticks = 0
    for process in (multiprocessing.current_process(), *multiprocessing.active_children()):
        words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def row_of(name: str, source: str, dataset: Photos) -> dict[str, Any]:
    row: dict[str, Any] = {"pictures": name, "source": source, "core_ms_per_crop": {}, "crops_per_s": {}}
    for crop, workers in ((64, 0), (128, 0), (64, 1), (64, 2)):
        key = f"{crop}², {workers} workers"
        row["core_ms_per_crop"][key], row["crops_per_s"][key] = cost(dataset, crop, workers)
    print(row, file=sys.stderr, flush=True)
    return row


def measure(name: str, folder: Path, scratch: Path) -> Iterator[dict[str, Any]]:
    shards = write_shards(folder, scratch / f"{name}-shards")
    for source, where in (("folder", str(folder)), ("shards", shards)):
        yield row_of(name, source, Photos([where]))
    for source, delay in (("S3", 0.0), (f"S3, answers after {1e3 * DELAY:.0f} ms", DELAY)):
        with s3_server(Path(shards).parent, delay) as url:
            yield row_of(name, source, Photos([url]))


def far(folder: Path, scratch: Path) -> dict[str, Any]:
    """From the server that takes its time: how long a set of shards takes to open, with and without indexes, and
    pictures a second, one at a time, a batch at a time (as training does, in one of its threads), and in the order in
    which they lie in the shards (as a stream does)."""
    shards = write_shards(folder, scratch / "far-shards")
    with s3_server(Path(shards).parent, DELAY) as url:
        plain, members = timed(lambda: index_shards(url))
        write_indexes(url, lambda path, count: None)
        indexed, _ = timed(lambda: index_shards(url))
        chosen = members[:: max(1, len(members) // 64)][:64]
        batches = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
        single, _ = timed(lambda: [read_members([member]) for member in chosen[:BATCH]])
        together, _ = timed(lambda: [read_members(batch) for batch in batches])
        streamed, count = timed(lambda: streamed_pictures(expand_braces(url)[0]))
    return {
        "pictures": len(members),
        "bytes_each": sum(member.size for member in members) / len(members),
        "open_seconds": {"looked through": plain, "by its indexes": indexed},
        "pictures_per_s": {"one": BATCH / single, "batch": len(chosen) / together, "stream": count / streamed},
    }


def streamed_pictures(shard: str) -> int:
    """Read a shard from its beginning to its end, in blocks of 5 MiB."""
    system, path = open_system(shard)
    with (
        system.open(path, "rb", block_size=5 * 2**20, cache_type="readahead") as file,
        tarfile.open(fileobj=file, mode="r|") as tar,
    ):
        return sum(1 for info in tar if tar.extractfile(info).read())


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


class Kept(Photos):
    """Photographs of which another process begins with all, where a run begins with none and reads them once."""

    def __reduce__(self) -> tuple[Any, ...]:
        return kept, (self.folder,)


def kept(folder: Path) -> Photos:
    photos = Kept([folder], cache_gb=2)
    photos.folder = folder
    for _ in photos.read(range(len(photos))):
        pass
    return photos


def need() -> dict[str, float]:
    """Milliseconds of a core that a training step of the tiny network takes for a crop; the median of some steps."""
    from network_cpu import training_step

    torch.set_num_threads(1)  # of two, one waits for the other, and that would be counted
    found = {}
    for crop in (64, 128):
        step = training_step(BATCH, crop)
        times = []
        for _ in range(4):
            started = time.process_time()
            step()
            times.append(time.process_time() - started)
        found[f"{crop}²"] = 1e3 * statistics.median(times[1:]) / BATCH
    return found


def main(folder: Path) -> None:
    found = find_pictures(folder)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        cut_crops("photos", folder, scratch / "cut", CutOptions(crop=PIECE, overlap=0, jobs=1))
        pieces = scratch / "cut" / "crops"
        result = {
            "photographs": {"count": len(found), "megabytes": sum(path.stat().st_size for path in found) / 1e6},
            "crops": {"count": len(find_pictures(pieces)), "side": PIECE},
            "batch": BATCH,
            "load": os.getloadavg(),
            "step_core_ms_per_crop": need(),
            "far": {"photographs": far(folder, scratch / "p"), "crops": far(pieces, scratch / "c")},
            "loader": [
                *measure("photographs", folder, scratch),
                *measure(f"crops of {PIECE}²", pieces, scratch),
                row_of("photographs", "folder, kept in memory", kept(folder)),
            ],
        }
    keep("loader", result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
