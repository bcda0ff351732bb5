"""``kithkin restore --cluster``: the same bytes as local mode, whatever fails, dies or is started again."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image, ImageCms
from typer.testing import CliRunner

from kithkin.checkpoint import save_model
from kithkin.cli.restore import EPILOG, restore
from kithkin.cluster import Manifest, Pool, Task, _pool, _worker, plan_tasks, restore_tasks
from kithkin.cluster._plan import GROUP_BYTES, GROUP_FILES, in_groups
from kithkin.cluster._pool import Size, size_pool
from kithkin.cluster._worker import Worker, WorkerConfig
from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.images import Picture, read_picture, write_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restore_files import Outcome, RestoreOptions
from kithkin.storage import read_bytes, write_bytes

from s3_server import s3_server

ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
pytest.importorskip("pyarrow", reason="the extra cluster is not installed")

app = typer.Typer()
app.command("restore", epilog=EPILOG)(restore)


@pytest.fixture(scope="module")
def model():
    made = KiT(KiTConfig(width=8, depth=1, n_hashes=1)).eval()
    with torch.no_grad():
        weight = made.head.conv3.weight
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    return made


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Ray cluster of two CPUs, whose workers find this checkout and a store that speaks S3."""
    here = Path(__file__).parent
    with s3_server(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here.parent / 'src'}{os.pathsep}{here}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments), "--model", str(weights), "--device", "cpu"])

    return call


def save(name, size=(10, 14), seed=0, channels=3, **options):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if channels == 1 else (*size, channels)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path, **options)
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {row["input"]: row for row in csv.DictReader(file)}


def archive(folder):
    """Pictures of every kind that the images are tested with, two of them no pictures."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save(f"{folder}/photo.jpg", (40, 30), exif=exif, icc_profile=profile, dpi=(300, 300))
    save(f"{folder}/alpha.png", channels=4, seed=1)
    save(f"{folder}/deep/gray.tif", channels=1, seed=2)
    save(f"{folder}/deep/er/large.webp", (150, 100), seed=3, lossless=True)
    sixteen = np.random.default_rng(4).random((12, 9), np.float32)
    write_picture(Picture(np.repeat(sixteen[..., None], 3, 2), depth=16, gray=True), f"{folder}/sixteen.png")
    Path(folder, "text.png").write_text("no picture")
    Path(folder, "cut.jpg").write_bytes(Path(folder, "photo.jpg").read_bytes()[:700])
    return folder


def test_workers_write_the_bytes_of_local_mode_and_go_on_after_bad_files(run, cluster):
    archive("trip")
    before = contents("trip")
    local = run("trip", "-o", "local", "--tile", "64")
    found = run("trip", "-o", "spread", "--tile", "64", "--cluster", "auto", "--workers", "1")
    assert (local.exit_code, found.exit_code) == (1, 1), found.output
    spread = contents("spread")
    del spread[Path("kithkin-manifest.csv")]
    assert len(spread) == 5
    assert spread == contents("local")
    assert contents("trip") == before
    assert sorted(found.stdout.splitlines()) == sorted(local.stdout.replace("-> local/", "-> spread/").splitlines())
    rows = rows_of("spread/kithkin-manifest.csv")
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"trip/text.png", "trip/cut.jpg"}
    assert "is not a picture" in rows["trip/text.png"]["error"]
    assert rows["trip/photo.jpg"] == rows["trip/photo.jpg"] | {"output": "spread/photo.jpg", "error": ""}
    assert float(rows["trip/photo.jpg"]["seconds"]) > 0

    # Again, with the bad ones gone: there is nothing to do, and the manifest is the whole list.
    for name in ("trip/text.png", "trip/cut.jpg"):
        Path(name).unlink()
    Path("spread/alpha.png").write_bytes(b"another's")
    again = run("trip", "-o", "spread", "--tile", "64", "--cluster", "auto")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "5 inputs: 0 written, 5 skipped, 0 failed" in again.stderr
    assert contents("spread")[Path("alpha.png")] == b"another's"
    assert [row["status"] for row in rows_of("spread/kithkin-manifest.csv").values()] == ["skipped"] * 5


@pytest.mark.parametrize(("able", "blocks"), [(True, "g g g"), (False, "g g g"), (True, "")])
def test_the_precision_is_settled_where_the_work_is_given_out(monkeypatch, able, blocks):
    """Whatever the workers' machines multiply: their configuration names it, and so do the outcomes."""
    monkeypatch.setattr("kithkin.precision.multiplies_bfloat16", lambda device: able)
    monkeypatch.setattr(_pool, "connected", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    monkeypatch.setattr(ray, "put", lambda value: value)
    told = []

    class Actor:
        def options(self, **resources):
            return self

        def remote(self, model, config):
            told.append(config.options.precision)

    monkeypatch.setattr(ray, "remote", lambda worker: Actor())
    outcomes = [(0, Outcome("a", "written")), (1, Outcome("c", "failed"))]
    monkeypatch.setattr(_pool, "_outcomes", lambda workers, tasks, groups: outcomes)
    network = KiT(KiTConfig(width=8, depth=1, n_stages=1, blocks=blocks, full_width=4 if blocks else 0))
    found = list(_pool.restore_tasks(network, [Task("a", "b"), Task("c", "d")]))
    expected = "bfloat16" if able and blocks else "float32"
    assert set(told) == {expected}
    assert [outcome.precision for outcome in found] == [expected, None]


def test_a_result_that_is_named_is_a_file_and_its_manifest_lies_beside_it(run, cluster):
    save("in.png")
    assert run("in.png", "-o", "local.png").exit_code == 0
    found = run("in.png", "-o", "out.png", "--cluster", "auto", "--workers", "1")
    assert (found.exit_code, found.stdout) == (0, "in.png -> out.png\n"), found.output
    assert Path("out.png").read_bytes() == Path("local.png").read_bytes()
    assert rows_of("kithkin-manifest.csv")["in.png"]["status"] == "written"
    # Once more: the result is there, and that is said.
    again = run("in.png", "-o", "out.png", "--cluster", "auto")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "kithkin: out.png: exists already" in again.stderr
    assert "1 inputs: 0 written, 1 skipped, 0 failed" in again.stderr
    assert run("in.png", "-o", "out.png", "--cluster", "auto", "--strict").exit_code == 1


def test_pictures_that_are_not_read_are_counted_and_listed(run, monkeypatch):
    save("trip/a.jfif", format="JPEG")
    save("trip/b.gif")
    run("trip", "-o", "done")
    assert [path.name for path in Path("done").iterdir()] == ["a.jpg"]
    monkeypatch.setattr(ray, "init", None)
    found = run("trip", "-o", "done", "--cluster", "auto", "--manifest", "list.csv")
    assert found.exit_code == 0, found.output
    assert "kithkin: 1 file skipped: 1 .gif (not read by kithkin" in found.stderr
    assert {name: row["status"] for name, row in rows_of("list.csv").items()} == {
        "trip/a.jfif": "skipped",
        "trip/b.gif": "skipped",
    }


def test_nothing_left_to_do_needs_no_workers_and_is_no_failure(run, monkeypatch):
    save("trip/a.png")
    run("trip", "-o", "done")
    monkeypatch.setattr(ray, "init", None)
    found = run("trip", "-o", "done", "--cluster", "auto", "--manifest", "list.parquet")
    assert found.exit_code == 0, found.output
    import pyarrow.parquet

    (row,) = pyarrow.parquet.read_table("list.parquet").to_pylist()
    expected = {"input": "trip/a.png", "output": "done/a.png", "status": "skipped", "seconds": 0.0, "error": None}
    assert row == expected | {"model": "tiny.safetensors", "precision": None}


def test_from_a_store_and_back_with_overwriting(run, cluster, model):
    import s3fs

    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.mkdir("archive")
    for seed, name in enumerate(("a.png", "scans/b.png", "scans/c.jpg", ".hidden/d.png", "notes.txt")):
        store.pipe_file(
            f"archive/in/{name}", save(f"local/{name}" if name != "notes.txt" else "x.png", seed=seed).read_bytes()
        )
    store.pipe_file("archive/in/bad.png", b"no picture")
    run("local", "-o", "expected")
    arguments = ("s3://archive/in", "-o", "s3://archive/out", "--cluster", "auto", "--workers", "1")
    found = run(*arguments, "--manifest", "s3://archive/list.csv", "--json")
    assert found.exit_code == 1, found.output
    results = {name: store.cat_file(name) for name in store.find("archive/out")}
    assert results == {f"archive/out/{name}": data for name, data in contents_of_strings("expected").items()}
    assert len(found.stdout.splitlines()) == 4
    listed = store.cat_file("archive/list.csv").decode().splitlines()
    assert len(listed) == 5
    assert "s3://archive/in/scans/b.png,s3://archive/out/scans/b.png,written" in "\n".join(listed)

    store.pipe_file("archive/out/a.png", b"old")
    store.rm("archive/in/bad.png")
    skipping = run(*arguments)
    assert (skipping.exit_code, skipping.stdout) == (0, "")
    assert store.cat_file("archive/out/a.png") == b"old"
    plan = plan_tasks(["s3://archive/in"], out="s3://archive/out", overwrite=True)
    assert [task.target for task in plan.tasks] == [f"s3://{name}" for name in sorted(results)]
    task = Task("s3://archive/in/a.png", "s3://archive/out/a.png")
    config = WorkerConfig(RestoreOptions(overwrite=True), "cpu", 1)
    assert [result.status for result in Worker(model, config).restore([task])] == ["written"]
    assert store.cat_file("archive/out/a.png") == results["archive/out/a.png"]


def contents_of_strings(folder):
    return {path.as_posix(): data for path, data in contents(folder).items()}


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_and_does_nothing_twice(cluster, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(24):
        save(source / f"{i:02d}.png", (96, 96), seed=i)
    command = [sys.executable, "-m", "kithkin", "restore", source, "-o", out, "--cluster", cluster, "--workers", "1"]
    command += ["--device", "cpu", "--tile", "64"]

    def written():
        return {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.png")}

    for number, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        before = len(written())
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            until(lambda b=before: len(written()) >= b + 3)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        assert process.returncode == expected, said
        assert not (out / "kithkin-manifest.csv").exists()
    first = written()
    assert 6 <= len(first) < 24
    assert all(read_picture(out / name).pixels.shape == (96, 96, 3) for name in first)
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    rows = rows_of(out / "kithkin-manifest.csv")
    assert len(rows) == 24
    assert {row["status"] for row in rows.values()} == {"written", "skipped"}
    after = written()
    assert len(after) == 24
    assert {name: after[name] for name in first} == first
    assert "Ray" not in last.stderr + last.stdout
    assert "raylet" not in last.stderr + last.stdout


def workers_below(pid):
    """The processes of Ray's pools that descend from a process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = []
    for child in parents:
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and b"ray::Worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(child)
    return found


def test_a_worker_that_is_killed_loses_nothing(cluster, model, tmp_path):
    tasks = [
        Task(str(save(tmp_path / f"in/{i}.png", (64, 64), seed=i)), str(tmp_path / f"out/{i}.png")) for i in range(12)
    ]
    outcomes = restore_tasks(model, tasks, pool=Pool(workers=1))
    found = [next(outcomes)]
    (pid,) = workers_below(os.getpid())
    os.kill(pid, signal.SIGKILL)
    found += outcomes
    assert sorted(outcome.source for outcome in found) == sorted(task.source for task in tasks)
    assert {outcome.status for outcome in found} == {"written"}
    for task in tasks:
        Worker(model, WorkerConfig(RestoreOptions(), "cpu", 1)).restore([Task(task.source, task.target + ".png")])
        assert Path(task.target).read_bytes() == Path(task.target + ".png").read_bytes()


def die_of_poison():
    """For workers: be killed by the system at a certain file, as by one that takes all the memory."""
    reading = _worker.read_picture

    def read(path):
        if path.name == "poison.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return reading(path)

    _worker.read_picture = read


@pytest.mark.slow
def test_a_file_that_kills_its_worker_each_time_fails_alone(cluster, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_pool, "RETRIES", 0)
    names = ["0", "1", "poison", "3", *map(str, range(4, 16))]
    tasks = [Task(str(save(tmp_path / f"in/{n}.png")), str(tmp_path / f"out/{n}.png")) for n in names]
    found = list(restore_tasks(model, tasks, pool=Pool(workers=1, prepare=die_of_poison)))
    assert len(found) == len(tasks)
    (failed,) = [outcome for outcome in found if outcome.status == "failed"]
    assert failed.source == tasks[2].source
    assert "its worker died every time" in failed.reason
    assert sorted(path.name for path in tmp_path.glob("out/*")) == sorted(f"{n}.png" for n in names if n != "poison")
    assert capsys.readouterr().out == ""


def refuse():
    raise InputError("this node has no picture tools")


def test_workers_that_can_not_start_end_the_run_with_their_reason(cluster, model, tmp_path, capsys):
    tasks = [Task(str(save(tmp_path / "a.png")), str(tmp_path / "b.png"))]
    with pytest.raises(KithkinError, match="can't start or go on: this node has no picture tools"):
        list(restore_tasks(model, tasks, pool=Pool(workers=1, prepare=refuse)))


# What follows needs no Ray: a worker is a class like any other.


@pytest.fixture
def worker(model):
    def make(**changes):
        options = RestoreOptions(
            **{k: changes.pop(k) for k in ("tile", "strength", "ensemble", "overwrite") if k in changes}
        )
        return Worker(model, WorkerConfig(options, "cpu", 1, **changes))

    return make


def tasks_of(*pairs):
    return [Task(str(source), str(target)) for source, target in pairs]


def test_pictures_of_equal_size_are_restored_together_but_for_rounding(worker, tmp_path):
    shapes = [((16, 24), 3), ((16, 24), 3), ((16, 24), 1), ((24, 16), 3), ((16, 24), 3), ((16, 24), 1), ((70, 24), 3)]
    sources = [save(tmp_path / f"in/{i}.png", size, seed=i, channels=c) for i, (size, c) in enumerate(shapes)]
    for name, batch in (("alone", 1), ("together", 2)):
        pairs = [(source, tmp_path / name / source.name) for source in sources]
        for options in ({"strength": 0.5}, {"overwrite": True, "tile": 64, "strength": 0.5, "ensemble": 2}):
            results = worker(batch=batch, **options).restore(tasks_of(*pairs))
            assert [result.source for result in results] == [str(source) for source in sources]
            assert {result.status for result in results} == {"written"}
    for source in sources:
        alone, together = (read_picture(tmp_path / name / source.name) for name in ("alone", "together"))
        assert alone.gray == together.gray
        np.testing.assert_allclose(alone.pixels, together.pixels, atol=1.01 / 255)
        assert (alone.pixels != read_picture(source).pixels).any()


def test_how_many_go_together():
    usual, small = RestoreOptions(), RestoreOptions(tile=64)
    assert usual.room_for(64, 64, 16) == 16
    assert usual.room_for(64, 64, 1) == 1
    assert usual.room_for(768, 768, 16) == 1
    assert usual.room_for(384, 384, 16) == 4
    assert usual.room_for(2000, 10, 16) == 1  # no tile holds it
    assert small.room_for(100, 20, 16) == 1
    assert small.room_for(32, 32, 16) == 4
    assert RestoreOptions(uniform_blur="light").room_for(64, 64, 16) == 1


def test_a_batch_that_fails_is_done_one_by_one(worker, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(_worker, "restore_together", full)
    pairs = [(save(tmp_path / f"{i}.png", seed=i), tmp_path / f"out/{i}.png") for i in range(2)]
    assert [result.status for result in worker(batch=2).restore(tasks_of(*pairs))] == ["written"] * 2


def test_what_is_there_when_a_group_is_taken_up_again_is_kept(worker, tmp_path):
    there = tmp_path / "there.png"
    there.write_bytes(b"complete")
    (result,) = worker().restore(tasks_of((save(tmp_path / "a.png"), there)))
    assert (result.status, there.read_bytes()) == ("skipped", b"complete")
    assert "was there already" in result.reason
    (result,) = worker(overwrite=True).restore(tasks_of((tmp_path / "a.png", there)))
    assert read_picture(there).pixels.shape == (10, 14, 3)


def test_an_unexpected_error_fails_one_file_and_a_broken_gpu_the_worker(worker, tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    pairs = [(save(tmp_path / f"{i}.png", seed=i), tmp_path / f"out/{i}.png") for i in range(3)]
    errors = iter([RuntimeError("a bug\nof ours"), RuntimeError("CUDA error: an illegal memory access"), None])
    restoring = _worker.restore_image

    def sometimes(*arguments, **options):
        error = next(errors)
        if error:
            raise error
        return restoring(*arguments, **options)

    monkeypatch.setattr(_worker, "restore_image", sometimes)
    found = worker().restore(tasks_of(*pairs))
    assert [result.status for result in found] == ["failed", "failed", "written"]
    assert found[0].reason == f"{tmp_path}/0.png: failed unexpectedly (RuntimeError: a bug of ours)"
    assert ended == [1]


def test_another_version_or_a_backend_that_is_not_there_is_refused(worker, monkeypatch):
    with pytest.raises(InputError, match="this node has kithkin .*, the command is of 0.0.0; install the same"):
        worker(version="0.0.0")
    monkeypatch.setattr(_worker, "available_backends", lambda device: {"native": f"no library for {device}"})
    with pytest.raises(InputError, match="the backend native can't be used: no library for cpu"):
        worker(backend="native")


def test_a_store_that_refuses_cuts_off_and_dawdles_costs_no_picture(worker, tmp_path, monkeypatch):
    """As stores do under load. Every question about an input or a result goes wrong first; one object never comes."""
    for name in ("a.png", "b.png", "c.jpg"):
        save(tmp_path / f"in/{name}", (40, 40))
    pairs = [(path, tmp_path / "expected" / path.name) for path in sorted(tmp_path.glob("in/*"))]
    assert [result.status for result in worker().restore(tasks_of(*pairs))] == ["written"] * 3
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # of the client; s3fs adds its own
    faults = {"/gone.png": ["busy"] * 99, "/box/in/": ["busy", "cut", "cut", "slow"], "/box/out/": ["busy", "lost"]}
    with s3_server({**faults, "/box": ["busy", "cut"]}):
        import s3fs

        monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 1000)  # so that our pictures are large ones
        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.mkdir("box")
        for path, _ in pairs:
            assert path.stat().st_size > 1000
            store.pipe_file(f"box/in/{path.name}", path.read_bytes())
        plan = plan_tasks(["s3://box/in"], out="s3://box/out")
        assert [task.source for task in plan.tasks] == [f"s3://box/in/{path.name}" for path, _ in pairs]
        found = worker().restore([*plan.tasks, Task("s3://box/in/gone.png", "s3://box/out/absent.png")])
        assert [result.status for result in found] == ["written"] * 3 + ["failed"], found
        assert found[3].reason.startswith("s3://box/in/gone.png: can't be read")
        assert {name: store.cat_file(name, start=0) for name in store.find("box/out")} == {
            f"box/out/{target.name}": target.read_bytes() for _, target in pairs
        }
        write_bytes("s3://box/in/empty.png", b"")
        assert read_bytes("s3://box/in/empty.png") == b""
        with pytest.raises(ImageError, match=r"^s3://box/in/gone\.png: can't be written \("):
            write_bytes("s3://box/in/gone.png", b"x")


def test_a_put_that_fails_leaves_nothing_where_stores_have_no_atomic_one(monkeypatch):
    import fsspec

    store = fsspec.filesystem("memory")
    write_bytes("memory://box/deep/a.png", b"first")
    assert store.find("box") == ["/box/deep/a.png"]
    monkeypatch.setattr(type(store), "mv", lambda *a: 1 / 0)
    with pytest.raises(ImageError, match=r"memory://box/deep/a.png: can't be written"):
        write_bytes("memory://box/deep/a.png", b"second")
    assert {name: store.cat_file(name) for name in store.find("box")} == {"/box/deep/a.png": b"first"}


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_manifest_is_complete_or_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"of before")
    broken = Manifest(name, model="a")
    broken.add(Outcome("a.png", "written", "b.png"))
    broken.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert Path(name).read_bytes() == b"of before"
    with Manifest(name, model="a[k=8,h=2]") as manifest:
        for i in range(2500):
            manifest.add(Outcome(f"{i}.png", "failed", reason='a "reason", quoted', seconds=i / 3))
        manifest.add(Outcome(os.fsdecode(b"\xff.png"), "written", "b.png", precision="bfloat16"))
    if name.endswith("csv"):
        with open(name, newline="", encoding="utf-8", errors="surrogateescape") as file:
            found, nothing = list(csv.DictReader(file)), ""
    else:
        import pyarrow.parquet

        found, nothing = pyarrow.parquet.read_table(name).to_pylist(), None
    assert len(found) == 2501
    assert list(found[0]) == ["input", "output", "status", "seconds", "error", "model", "precision"]
    assert found[7] == found[7] | {
        "input": "7.png",
        "output": nothing,
        "error": 'a "reason", quoted',
        "model": "a[k=8,h=2]",
    }
    assert (found[7]["precision"], found[2500]["precision"]) == (nothing, "bfloat16")
    assert float(found[7]["seconds"]) == pytest.approx(7 / 3, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_manifest_takes_every_text(tmp_path, ending):
    """Whatever an input is called and an error says, the table has its row and can be read again. Seeded."""
    rng = random.Random(3)
    letters = ["a", ",", '"', "\n", "\r", "\0", ";", "ü", "\udce9", "\ud83d", "\udfff", "😀", " ", "\t"]
    texts = ["".join(rng.choices(letters, k=rng.randrange(20))) for _ in range(1500)]
    path = tmp_path / f"a.{ending}"
    with Manifest(str(path), model="a") as manifest:
        for text in texts:
            manifest.add(Outcome(text, "failed", text, reason=text, seconds=rng.random()))
    if ending == "csv":
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            found = [row["input"] for row in csv.DictReader(file)]
        assert found == [text.replace("\ud83d", "?").replace("\udfff", "?") for text in texts]
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(path).num_rows == len(texts)


def test_a_manifest_says_what_is_wrong_before_anything_starts(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.csv or \.parquet, got list.txt"):
        Manifest("list.txt", model="a")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        Manifest(str(tmp_path / "file/list.csv"), model="a")


def test_groups_are_many_small_files_or_one_large_one():
    small = [Task("a", "b", 1000)] * 1000
    cut = list(in_groups(small, 2))
    assert [i for group in cut for i in group] == list(range(1000))
    assert max(map(len, cut)) == GROUP_FILES
    large = [Task("a", "b", GROUP_BYTES)] * 3 + [Task("a", "b", 10)] * 50
    assert list(in_groups(large, 1))[:3] == [range(1), range(1, 2), range(2, 3)]
    assert list(map(len, in_groups(small[:8], 2))) == [1] * 8  # several for each worker
    assert list(in_groups([], 2)) == []


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "expected"),
    [
        ([(2, 0)], None, None, Size(2, 1, 0)),
        ([(8, 0)], 2, None, Size(2, 4, 0)),
        ([(8, 0), (8, 0)], 3, None, Size(3, 4, 0)),  # 5 each would fit only twice
        ([(16, 2), (16, 2)], None, None, Size(4, 8, 1)),
        ([(16, 2), (16, 0)], None, "cuda", Size(2, 8, 1)),  # the second node has no GPU to use
        ([(16, 2)], 4, None, Size(4, 4, 0.5)),
        ([(1, 2)], None, None, Size(2, 0, 1)),
        ([(16, 2)], None, "cpu", Size(16, 1, 0)),
    ],
)
def test_the_pool_uses_what_there_is_and_no_more(nodes, workers, device, expected):
    assert size_pool(nodes, workers, device) == expected


def test_a_pool_that_can_not_be_is_refused():
    with pytest.raises(InputError, match="has no GPU"):
        size_pool([(4, 0)], None, "cuda")
    with pytest.raises(InputError, match="workers must be at most 4, .* got 5"):
        size_pool([(4, 0)], 5, None)
    for wrong in ({"workers": 0}, {"batch": 0}, {"cpus": 0}, {"device": "tpu"}, {"backend": "magic"}):
        with pytest.raises(InputError):
            Pool(**wrong)


def test_urls_are_planned_like_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("trip/a.png")
    save("b.jpg")
    plan = plan_tasks([f"file://{tmp_path}/trip", "b.jpg"], out=f"file://{tmp_path}/out", ending="webp")
    assert [(e.source, e.target) for e in plan.tasks] == [
        (f"{tmp_path}/trip/a.png", f"{tmp_path}/out/a.webp"),
        ("b.jpg", f"{tmp_path}/out/b-restored.webp"),
    ]
    with pytest.raises(InputError, match="name a place for the results"):
        plan_tasks(["s3://a/b"])
    with pytest.raises(InputError, match="memory:// exists within one process"):
        plan_tasks(["memory://a"], out="x")
    with pytest.raises(InputError, match="fsspec does not know"):
        plan_tasks(["nothing://a"], out="x")
    with pytest.raises(InputError, match="picture's name"):
        plan_tasks(["s3://a"], out="x.png")


def test_results_below_a_url_are_no_inputs_the_next_time(monkeypatch):
    from kithkin import restore_inputs
    from kithkin.cluster import _plan

    names = ["a.png", "out/a.png"]
    monkeypatch.setattr(restore_inputs, "_listed", lambda url: [(f"{url}/{name}", name, 1) for name in names])
    monkeypatch.setattr(_plan, "list_files", lambda url, missing_ok: {"s3://box/out/a.png": 1})
    plan = plan_tasks(["s3://box"], out="s3://box/out")
    assert plan.tasks == ()
    assert [(outcome.source, outcome.status) for outcome in plan.settled] == [
        ("s3://box/out/a.png", "skipped"),
        ("s3://box/a.png", "skipped"),
    ]
    with pytest.raises(InputError, match="would replace its own input"):
        plan_tasks(["s3://box"], out="s3://box", overwrite=True)
    clashing = plan_tasks(["s3://box", "s3://bag"], out="s3://out")
    assert {task.source for task in clashing.tasks} == {"s3://box/a.png", "s3://box/out/a.png"}
    assert [outcome.status for outcome in clashing.settled] == ["failed", "failed"]
    assert "s3://box/a.png and s3://bag/a.png would both give s3://out/a.png" in clashing.settled[0].reason


@pytest.mark.parametrize("out", ["done", "s3://box/out"])
def test_a_listing_can_not_lead_out_of_the_place_for_results(tmp_path, monkeypatch, out):
    from kithkin import restore_inputs
    from kithkin.cluster import _plan

    monkeypatch.chdir(tmp_path)
    names = ["../../escaped.png", "a/../../x.png", "b.png"]
    monkeypatch.setattr(restore_inputs, "_listed", lambda url: [(f"{url}/{name}", name, 1) for name in names])
    monkeypatch.setattr(_plan, "list_files", lambda url, missing_ok: {})
    plan = plan_tasks(["s3://bag"], out=out)
    assert [task.target for task in plan.tasks] == [f"{out}/b.png"]
    assert [outcome.status for outcome in plan.settled] == ["failed", "failed"]
    assert "names no file below" in plan.settled[0].reason


def test_without_ray_local_mode_works_and_cluster_mode_says_what_to_install(run, monkeypatch):
    save("a.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("a.png").exit_code == 0
    found = run("a.png", "-o", "out", "--cluster", "auto")
    assert found.exit_code == 2
    assert 'install it with: pip install "kithkin[cluster]"' in found.stderr
    assert not Path("out").exists()


def test_local_mode_does_not_import_ray(weights, tmp_path):
    save(tmp_path / "a.png")
    code = "import sys\nfrom kithkin.cli import app\ntry: app()\nexcept SystemExit as end: assert not end.code\n"
    code += "print({'ray', 'pyarrow', 'fsspec'} & set(sys.modules))"
    command = [sys.executable, "-c", code, "restore", tmp_path / "a.png", "-m", weights]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout.endswith("set()\n"), found.stdout + found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "--workers", "2"], "--workers: only with --cluster"),
        (["a.png", "--manifest", "m.csv"], "--manifest: only with --cluster"),
        (["s3://box/a.png", "-o", "out"], "s3://box/a.png: only with --cluster"),
        (["a.png", "--cluster", "auto", "--compare"], "leave --compare out"),
        (["a.png", "--cluster", "auto", "--manifest", "m.txt"], "must end in .csv or .parquet"),
        (["a.png", "--cluster", "auto", "--workers", "0"], "cluster: --workers must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, arguments, said):
    save("a.png")
    found = run(*arguments)
    assert found.exit_code == 2
    assert said in found.stderr
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_auto_joins_what_ray_start_made_or_starts_one(monkeypatch):
    """Ray itself is asked first without an address: it would join any program's private cluster with 'auto'."""
    calls = []

    def init(**options):
        calls.append(options)
        if answers:
            raise answers.pop(0)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    for raised, expected in (
        ([], [{"object_store_memory"}]),
        ([ValueError("runs")], [{"object_store_memory"}, set()]),
        ([ValueError("ran"), ConnectionError()], [{"object_store_memory"}, set(), {"object_store_memory", "address"}]),
    ):
        calls.clear()
        answers = list(raised)
        with _pool.connected("auto"):
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert calls.pop() == "shutdown"
        assert [set(call) & {"object_store_memory", "address"} for call in calls] == expected
        assert all(call["log_to_driver"] is False for call in calls)
    answers = [ConnectionError("nobody there")]
    with pytest.raises(KithkinError, match="cluster 10.0.0.9:6379: no Ray cluster can be reached"):
        _pool.connected("10.0.0.9:6379").__enter__()
