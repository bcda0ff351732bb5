"""Tar shards and URLs: the same pictures as in a folder give the same run, and what goes wrong is said."""

import io
import json
import multiprocessing
import operator
import os
import signal
import socket
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import kithkin.training.loop as loop
from kithkin.checkpoint import read_tensors
from kithkin.config import DataConfig, parse_config
from kithkin.data import Pairs, Photos, members, write_indexes
from kithkin.data.ahead import drawn_ahead
from kithkin.data.sampling import draw_crops
from kithkin.data.shards import expand_braces, index_shards
from kithkin.errors import ImageError, InputError
from kithkin.training import train
from kithkin.training.state import checkpoints

from s3_server import s3_server


def picture(number, height=24, width=28):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = {f"{'b' if i % 2 else 'a'}/{i:02}.png": as_png(picture(i)) for i in range(7)}
PAIRS = {f"{i:02}": (as_png(picture(i)), as_png(picture(100 + i))) for i in range(4)}


def write_tar(path, files, mtime=1.5):
    """A fraction of a second gives every member a second header."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder, files, count=3):
    """The files dealt to shards, last first, so that neither their order nor that of the shards is the folder's."""
    folder.mkdir(exist_ok=True)
    names = sorted(files, reverse=True)
    for shard in range(count):
        write_tar(folder / f"set-{shard:03}.tar", {name: files[name] for name in names[shard::count]})
    return folder / f"set-{{000..{count - 1:03}}}.tar"


def write_folder(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def of_photos(source, **changes):
    return {"kind": "photos", "folders": [str(source)], "crop": 16, "sigma": [10, 50], "cache_gb": 0, **changes}


def run_config(source, changes=None, **data):
    values = {
        "name": "toy",
        "task": "denoise",
        "seed": 1,
        "precision": "float32",
        "model": {"width": 8, "depth": 1, "n_hashes": 1, "n_stages": 1, "k": 2},
        "data": of_photos(source, **data),
        "validation": {"crop": 16, "every": 100},
        "schedule": {"batch_size": 2, "steps": 6, "epochs": 0, "warmup": 2, "lr": 3e-3, "final_lr": 1e-5},
        "optimizer": {"betas": [0.9, 0.99], "weight_decay": 1e-2, "grad_clip": 1.0, "ema_decay": 0.9},
        "loss": {"edge_weight": 0.05, "epsilon": 1e-3},
    }
    return parse_config(values, changes, source="the test")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda log, target: None)
    monkeypatch.setattr(members, "PAUSES", (0.0, 0.0))


@pytest.fixture
def memory():
    """fsspec's file system in memory, emptied."""
    system = pytest.importorskip("fsspec").filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


def put(system, folder, files):
    for name, data in files.items():
        system.pipe_file(f"{folder}/{name}", data)


def at_step(step, act):
    return lambda row: act() if row.get("step") == step and "steps" in row else None


def assert_same_crops(first, second, kind="photos"):
    config = DataConfig(**of_photos("x", kind=kind, **({} if kind == "photos" else {"sigma": None})))
    for step in range(6):  # into the second epoch
        a, b = (draw_crops(data, config, batch_size=3, seed=5, step=step) for data in (first, second))
        assert all(np.array_equal(x, y) for x, y in zip(a.sides, b.sides, strict=True))
        assert np.array_equal(a.sigmas, b.sigmas)
        assert np.array_equal(a.seeds, b.seeds)


def assert_same_end(first, second):
    tensors = [read_tensors(checkpoints(out)[-1] / "model.safetensors")[0] for out in (first, second)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (first, second)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


# The same pictures, in the same order


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("s3://b/{0}.tar", ["s3://b/{0}.tar"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern, expanded):
    assert expand_braces(pattern) == expanded


@pytest.mark.parametrize("count", [1, 3])
def test_shards_are_drawn_from_as_the_folder_of_the_same_pictures(tmp_path, count):
    folder = Photos([write_folder(tmp_path / "folder", FILES)])
    shards = Photos([write_shards(tmp_path / "shards", FILES, count)])
    assert shards.names == folder.names == sorted(FILES)
    assert_same_crops(folder, shards)


def test_what_is_no_picture_is_passed_over_in_a_shard_as_in_a_folder(tmp_path):
    more = {"a/.hidden.png": b"x", ".git/x.png": b"x", "a/00.json": b"{}", "a/00.txt": b"x", "__index__": b"x"}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        # As `tar -C folder -c .` does: folders are members too, and names begin with ./
        tar.add(write_folder(tmp_path / "folder", {**FILES, **more}), ".")
    assert Photos([tmp_path / "x.tar"]).names == Photos([tmp_path / "folder"]).names == sorted(FILES)


def test_shards_that_webdataset_writes_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    folder = write_folder(tmp_path / "folder", {f"{i:03}.png": as_png(picture(i)) for i in range(5)})
    with webdataset.ShardWriter(f"{tmp_path}/w-%06d.tar", maxcount=2, verbose=0) as writer:
        for i in range(5):
            writer.write({"__key__": f"{i:03}", "png": as_png(picture(i)), "json": {"number": i}})
    assert_same_crops(Photos([folder]), Photos([tmp_path / "w-{000000..000002}.tar"]))
    with webdataset.ShardWriter(f"{tmp_path}/p-%06d.tar", maxcount=3, verbose=0) as writer:
        for key, (degraded, target) in PAIRS.items():
            writer.write({"__key__": key, "input.png": degraded, "target.png": target})
    pairs = Pairs([tmp_path / "p-{000000..000001}.tar"])
    assert pairs.names == [f"{key}.png" for key in PAIRS]
    assert all(np.array_equal(pairs[i][0], picture(i)) for i in range(4))
    assert all(np.array_equal(pairs[i][1], picture(100 + i)) for i in range(4))


@pytest.mark.parametrize("names", ["{}.input.png {}.target.png", "{}.lq.png {}.gt.png", "input/{}.png target/{}.png"])
def test_pairs_in_a_shard_are_the_pairs_of_a_folder(tmp_path, names):
    degraded, target = names.split()
    files = {}
    for key, (first, second) in PAIRS.items():
        files |= {degraded.format(key): first, target.format(key): second}
        write_folder(tmp_path / "pairs", {f"input/{key}.png": first, f"target/{key}.png": second})
    shards = Pairs([write_tar(tmp_path / "pairs.tar", files)])
    folder = Pairs([tmp_path / "pairs"])
    assert shards.names == folder.names
    assert_same_crops(folder, shards, "pairs")


def test_shards_may_use_the_same_keys(tmp_path):
    """WebDataset's keys are unique within a shard; pairs must not meet across shards."""
    for shard in range(2):
        files = {"0.input.png": as_png(picture(shard)), "0.target.png": as_png(picture(100 + shard))}
        write_tar(tmp_path / f"{shard}.tar", files)
    pairs = Pairs([tmp_path / "{0..1}.tar"])
    assert all(np.array_equal(pairs[i][j], picture(i + 100 * j)) for i in range(2) for j in range(2))
    assert len(Photos([tmp_path / "{0..1}.tar"])) == 4


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_pictures_behind_a_url_are_drawn_from_as_the_folder(tmp_path, memory, kind):
    files = FILES
    if kind == "pairs":
        both = PAIRS.items()
        files = {f"{side}/{key}.png": pair[i] for key, pair in both for i, side in enumerate(("input", "target"))}
    put(memory, "/bucket/deep", files)
    put(memory, "/bucket/deep2", {"no.png": b"x"})
    make = Photos if kind == "photos" else Pairs
    folder, behind = make([write_folder(tmp_path / "x", files)]), make(["memory://bucket/deep/"])
    assert behind.names == folder.names
    assert_same_crops(folder, behind, kind)


def test_an_index_beside_a_shard_spares_looking_through_it(tmp_path, monkeypatch):
    pattern = write_shards(tmp_path, FILES)
    found = index_shards(pattern)
    written = {}
    write_indexes(pattern, written.__setitem__)
    assert sum(written.values()) == len(FILES)
    assert sorted(written) == [str(tmp_path / f"set-{i:03}.idx") for i in range(3)]
    monkeypatch.setattr(tarfile, "TarFile", None)
    assert index_shards(pattern) == found


def test_an_index_of_dali_is_read(tmp_path):
    """The format as wds2idx, version 1.2, writes it: one header block of 512 bytes, then the member, padded."""
    first, second = PAIRS["00"]
    write_tar(tmp_path / "x.tar", {"00.input.png": first, "00.json": b"{}", "00.target.png": second}, mtime=0)
    at = [512, 512 + -(-len(first) // 512) * 512 + 512]
    at.append(at[1] + 1024)
    (tmp_path / "x.idx").write_text(
        f"v1.2 1\ninput.png {at[0]} {len(first)} 00.input.png json {at[1]} 2 00.json "
        f"target.png {at[2]} {len(second)} 00.target.png\n"
    )
    pairs = Pairs([tmp_path / "x.tar"])
    assert np.array_equal(pairs[0][0], picture(0))
    assert np.array_equal(pairs[0][1], picture(100))


def test_a_url_stays_a_url_in_the_configuration_and_is_left_out_of_the_weights(memory, tmp_path):
    url = "memory://bucket/deep?secret=1"
    config = run_config(url, {"validation.folder": "s3://b/held-out", "validation.sigmas": [25]})
    assert config.data.folders == (url,)
    assert parse_config(config.model_dump(mode="json"), source="again") == config
    assert loop._without_paths(config)["data"]["folders"] == ["deep"]
    assert loop._without_paths(config)["validation"]["folder"] == "held-out"


# The same run


def test_training_from_shards_is_training_from_the_folder(tmp_path):
    train(run_config(write_folder(tmp_path / "folder", FILES)), tmp_path / "first")
    train(run_config(write_shards(tmp_path / "shards", FILES), cache_gb=1), tmp_path / "second")
    assert_same_end(tmp_path / "first", tmp_path / "second")


def test_a_run_with_workers_resumes_bit_for_bit(tmp_path):
    """Stopped in the middle and gone on with another number of workers, from shards, as one that used neither."""
    train(run_config(write_folder(tmp_path / "folder", FILES)), tmp_path / "whole")
    source, parts = write_shards(tmp_path / "shards", FILES), tmp_path / "parts"

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    assert train(run_config(source, workers=1), parts, report=at_step(3, stop)) is None
    values = json.loads((checkpoints(parts)[-1] / "run.json").read_text())
    assert values["step"] == 3
    train(run_config(source, workers=0), parts, resume=True)
    assert_same_end(tmp_path / "whole", parts)


def test_workers_draw_every_step_once_and_in_order():
    with drawn_ahead(operator.neg, range(3, 40), 2) as drawn:
        assert list(drawn) == [-step for step in range(3, 40)]


def test_an_error_in_a_worker_is_its_own_and_a_killed_worker_is_named():
    with pytest.raises(ZeroDivisionError), drawn_ahead((1).__floordiv__, range(3), 1) as drawn:
        next(drawn)
    with pytest.raises(InputError, match="a process that reads the data ended.*fewer data.workers"):  # noqa: SIM117
        with drawn_ahead(os._exit, range(3), 1) as drawn:
            next(drawn)


def test_a_worker_that_is_killed_ends_the_others_too():
    with pytest.raises(InputError, match="a process that reads the data ended"):  # noqa: SIM117, PT012
        with drawn_ahead(time.sleep, range(600, 604), 2) as drawn:
            killer = threading.Timer(2, lambda: multiprocessing.active_children()[0].kill())
            killer.start()
            next(drawn)
    assert multiprocessing.active_children() == []


def test_what_is_drawn_no_more_is_not_waited_for():
    started = time.monotonic()
    with drawn_ahead(time.sleep, range(0, 3000, 600), 1) as drawn:
        next(drawn)
    assert time.monotonic() - started < 300


# An S3 server


@pytest.fixture(scope="module")
def s3():
    """The client's class, beside a server with a bucket and a folder in it that AWS's variables lead to."""
    with s3_server(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        import s3fs

        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        put(system, "bucket/folder", FILES)
        yield s3fs.S3FileSystem


def test_training_from_an_s3_server_is_training_from_the_folder(tmp_path, s3):
    system, pattern = s3(), write_shards(tmp_path / "shards", FILES)
    for path in pattern.parent.glob("*.tar"):
        system.pipe_file(f"bucket/{path.name}", path.read_bytes())
    folder, shards = Photos([write_folder(tmp_path / "folder", FILES)]), f"s3://bucket/{pattern.name}"
    assert_same_crops(folder, Photos(["s3://bucket/folder/"]))
    write_indexes(shards, lambda path, count: None)
    assert system.exists("bucket/set-000.idx")
    train(run_config(tmp_path / "folder"), tmp_path / "first")
    train(run_config(shards), tmp_path / "second")
    assert_same_end(tmp_path / "first", tmp_path / "second")


def test_a_missing_bucket_shard_or_credential_of_s3_is_named(s3, monkeypatch):
    for url in ("s3://nowhere/x", "s3://nowhere/x.tar", "s3://bucket/missing-{0..3}.tar"):
        with pytest.raises(InputError, match="does not exist; check the bucket, the path and the endpoint"):
            Photos([url])
    with pytest.raises(InputError, match=r"holds no picture; check the URL"):
        Photos(["s3://bucket/empty"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3.clear_instance_cache()
    with pytest.raises(InputError, match="may not be read .*AWS_ACCESS_KEY_ID.*FSSPEC_S3_ANON=true"):
        Photos(["s3://bucket/set-000.tar"])
    s3.clear_instance_cache()


def test_a_server_that_went_away_is_named(s3, monkeypatch):
    dataset = Photos(["s3://bucket/folder"])
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*taken.getsockname()))
        monkeypatch.setattr(s3, "retries", 1)
        monkeypatch.setattr(members, "PAUSES", ())
        s3.clear_instance_cache()
        with pytest.raises(ImageError, match=r"s3://bucket/folder/a/00.png: can't be read .*check the network"):
            dataset[0]
    s3.clear_instance_cache()


# What goes wrong


def failing(memory, monkeypatch, times):
    """Let reading fail this often, as a network does, and count the attempts."""
    attempts = []
    real = type(memory).cat_file

    def cat_file(self, path, start=None, end=None, **more):
        if start is not None:
            attempts.append(path)
            if len(attempts) <= times:
                raise ConnectionResetError("connection reset by peer")
        return real(self, path, start, end, **more)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    return attempts


def test_a_failure_that_passes_is_retried(memory, monkeypatch):
    put(memory, "/bucket", FILES)
    dataset, slept = Photos(["memory://bucket"]), []
    monkeypatch.setattr(members, "PAUSES", (1.0, 3.0))
    monkeypatch.setattr(time, "sleep", slept.append)
    failing(memory, monkeypatch, 2)
    assert np.array_equal(dataset[0][0], picture(0))
    assert slept == [1.0, 3.0]


def test_a_run_whose_data_fail_keeps_what_was_done_and_goes_on(tmp_path, memory, monkeypatch):
    put(memory, "/bucket", FILES)
    train(run_config("memory://bucket"), tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_off = at_step(2, lambda: failing(memory, patch, 10**9))
        said = r"can't be read \(connection reset.*kept at step [2-5]; then go on with `resume`"
        with pytest.raises(ImageError, match=said):
            train(run_config("memory://bucket"), tmp_path / "parts", report=cut_off)
    assert 2 <= json.loads((checkpoints(tmp_path / "parts")[-1] / "run.json").read_text())["step"] < 6
    train(run_config("memory://bucket"), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_without_the_extra_local_shards_are_read_and_urls_name_it(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar", FILES)
    registry = pytest.importorskip("fsspec.registry")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        patch.delitem(registry._registry, "s3", raising=False)
        with pytest.raises(InputError, match=r'install it with: pip install "kithkin\[shards\]"'):
            Photos(["s3://bucket/x"])
    for module in ("fsspec", "fsspec.core"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(Photos([tmp_path / "x.tar"])) == len(FILES)
    for url in ("s3://bucket/x-{0..1}.tar", "memory://bucket"):
        with pytest.raises(InputError, match=r'install it with: pip install "kithkin\[shards\]"'):
            Photos([url])


@pytest.mark.parametrize("cut", [100, 512 + 40, -10240, -10240 - 512 - 7])
def test_a_shard_that_was_cut_off_is_refused(tmp_path, cut):
    """Within the first header, within a picture, before the end mark, and within the last picture."""
    path = write_tar(tmp_path / "x.tar", FILES)
    members = index_shards(path)
    whole = path.read_bytes()
    end = max(-(-(m.offset + m.size) // 512) * 512 for m in members)
    path.write_bytes(whole[:cut] if cut > 0 else whole[: end + 10240 + cut])
    with pytest.raises(InputError, match=r"x\.tar is (damaged, )?cut off.*copy it again"):
        Photos([path])


@pytest.mark.parametrize(
    ("mtime", "said"),
    [(0, r"at byte [\d,]+, where a member or the end"), (1.5, r".*\(invalid header\); copy it again")],
)
def test_a_shard_that_is_damaged_is_refused(tmp_path, mtime, said):
    path = write_tar(tmp_path / "x.tar", FILES, mtime)
    data = bytearray(path.read_bytes())
    start = index_shards(path)[3].offset - 512
    data[start : start + 512] = b"\x07" * 512
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"x\.tar is damaged.*{said}"):
        Photos([path])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "x.tar", r"x\.tar does not exist; check the path, and of a set of shards"),
        (lambda folder: write_tar(folder / "x.tar", {"a.npy": b"x"}), "holds no picture; shards hold members such as"),
        (lambda folder: write_tar(folder / "x.tar", {}), "holds no picture"),
        (lambda folder: folder / "x.tar.gz", "is a compressed tar file.*unpack it to .tar"),
        (lambda folder: folder / "x-{3..0}.tar", r"runs from low to high; the shards of a set are \{0\.\.3\}"),
        (lambda folder: "nosuch://x/y", "fsspec does not know; give a folder"),
        (lambda folder: write_tar(folder / "x.tar", {}).parent, r"holds no picture.*name its shards.*x\.tar"),
    ],
    ids=["missing", "no picture", "empty", "compressed", "braces", "scheme", "a folder of shards"],
)
def test_what_is_no_set_of_shards_is_refused(tmp_path, make, said):
    with pytest.raises(InputError, match=said):
        Photos([make(tmp_path)])


def test_a_compressed_file_that_calls_itself_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(InputError, match=r"x\.tar is damaged, cut off or no tar file.*write it anew"):
        Photos([tmp_path / "x.tar"])


def test_a_picture_that_cant_be_decoded_is_named_with_its_shard(tmp_path):
    files = {**FILES, "a/00.png": FILES["a/00.png"][:-40], "a/02.png": b""}
    dataset = Photos([write_tar(tmp_path / "x.tar", files)])
    with pytest.raises(ImageError, match=r"a/00\.png in .*x\.tar: .*use"):
        dataset[0]
    with pytest.raises(ImageError, match=r"a/02\.png in .*x\.tar: is empty"):
        dataset[1]


def test_a_shard_that_changed_during_the_run_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", FILES)
    dataset = Photos([path])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"x\.tar: has 0 of the [\d,]+ bytes.*put the file back"):
        dataset[6]
    path.unlink()
    with pytest.raises(ImageError, match=r"can't be read: No such file"):
        dataset[6]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"05.input.png": b"x"}, r"1 pictures have no partner: 05\.input\.png; a pair lies in one shard as KEY\.input"),
        ({"05.png": b"x"}, r"1 pictures have no partner: 05\.png"),
        ({"00.lq.png": b"x"}, "the same side of one pair; keep one of them"),
    ],
)
def test_pairs_that_are_none_are_refused(tmp_path, change, said):
    files = {"00.input.png": PAIRS["00"][0], "00.target.png": PAIRS["00"][1], **change}
    with pytest.raises(InputError, match=said):
        Pairs([write_tar(tmp_path / "x.tar", files)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begin"),
        ("v9 1\n", "begin"),
        ("v1.2 1\npng 512 x.png\n", "zip"),
        ("v1.2 1\npng 512 99999999 x.png\n", "ends"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, text, said):
    write_tar(tmp_path / "x.tar", FILES)
    (tmp_path / "x.idx").write_text(text)
    with pytest.raises(InputError, match=rf"x\.idx does not fit its shard \(.*{said}.*remove it"):
        Photos([tmp_path / "x.tar"])


def test_what_cant_have_an_index_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a b.png": FILES["a/00.png"]})
    with pytest.raises(InputError, match=r"a b\.png in .*can't hold a name with a blank"):
        write_indexes(path, print)
    with pytest.raises(InputError, match="is no tar shard"):
        write_indexes(tmp_path, print)


@pytest.mark.parametrize("pattern", ["a-{0..99999999999}.tar", "{0..9999}-{0..9999}.tar"])
def test_braces_that_name_more_shards_than_there_can_be_are_refused(pattern):
    with pytest.raises(InputError, match="1048576"):
        expand_braces(pattern)
