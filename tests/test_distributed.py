"""Several processes train as one would, whatever happens to them on the way."""

import json
import os
import shutil
import signal
import subprocess
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from kithkin.checkpoint import read_tensors
from kithkin.errors import InputError
from kithkin.training.distributed import _fresh_start
from kithkin.training.state import checkpoints

from ranks import Torchrun, alone, free_port, together, toml_of, values_of, wait_for_step

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch knows no other processes")

PARTS = ("model", "average", "exp_avg", "exp_avg_sq")
ULP = 2.0**-23  # of a float32 in [1, 2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures of waves."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:48, 0:48] / 48
    for i in range(12):
        a, b = np.random.default_rng(i).normal(0, 6, (2, 3))
        picture = 0.5 + 0.3 * np.sin(a * x[..., None] + b * y[..., None])
        Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """One and the same run of 50 steps by (folder, stories): one process with the whole batch at a time, one with two
    halves of it one after the other, two processes, two with FSDP2."""
    root = tmp_path_factory.mktemp("runs")
    halves, sharded = values_of(photos, schedule__accumulate=2), values_of(photos, distributed__kind="fsdp")
    return {
        "whole": (root / "whole", [alone(values_of(photos), root / "whole")]),
        "halves": (root / "halves", [alone(halves, root / "halves")]),
        "two": (root / "two", together(2, values_of(photos), [root / "two", root / "nothing"])),
        "sharded": (root / "sharded", together(2, sharded, root / "sharded")),
    }


def tensors_of(out, parts=PARTS):
    newest = checkpoints(out)[-1]
    return {(part, name): x for part in parts for name, x in read_tensors(newest / f"{part}.safetensors")[0].items()}


def log_of(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "crops_per_s")} for row in rows]


def assert_same_weights(first, second):
    """Everything that a checkpoint holds, and what was exported, bit for bit."""
    assert checkpoints(first)[-1].name == checkpoints(second)[-1].name
    a, b = tensors_of(first), tensors_of(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    a, b = (read_tensors(out / "toy.safetensors")[0] for out in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def distance(first, second):
    """The largest difference of a weight of the two networks."""
    a, b = tensors_of(first, ["model"]), tensors_of(second, ["model"])
    return max((a[name] - b[name]).abs().max().item() for name in a)


def losses_of(run):
    losses = np.array(run[1][0]["losses"])
    assert len(losses) == 50
    return losses


# As one process


def test_two_processes_are_one_that_adds_up_two_halves_of_the_batch_bit_for_bit(runs):
    """The mean of two gradients is the sum of two halves of them, without a rounding of its own."""
    assert_same_weights(runs["halves"][0], runs["two"][0])
    log = log_of(runs["two"][0])
    assert log == log_of(runs["halves"][0])  # with what validation found, though the processes shared the pictures
    watched = [row["psnr"]["sigma25"] for row in log if "psnr" in row]
    assert watched[1] > watched[0]
    assert np.array_equal(losses_of(runs["halves"]), losses_of(runs["two"]))


@pytest.mark.parametrize(("one", "other"), [("whole", "two"), ("whole", "sharded"), ("two", "sharded")])
def test_the_losses_of_fifty_steps_are_those_of_one_process_to_rounding(runs, one, other):
    """Four units in the last place: a loss is put together in a handful of float32 operations (two means over pixels,
    the weight and the sum of Eq. 11, the mean over the parts), each of which rounds by up to half a unit."""
    a, b = losses_of(runs[one]), losses_of(runs[other])
    assert np.max(np.abs(a - b) / a) < 4 * ULP


@pytest.mark.parametrize("which", ["two", "sharded"])
def test_the_weights_are_those_of_one_process_to_rounding(runs, which):
    """As near as a single process comes to itself when it adds up the same numbers in another order."""
    assert 0 < distance(runs["whole"][0], runs["halves"][0]) < 1e-4
    assert distance(runs["whole"][0], runs[which][0]) < 3 * distance(runs["whole"][0], runs["halves"][0])


def test_fsdp_draws_the_first_losses_of_ddp_bit_for_bit(runs):
    """Before the first step nothing has been rounded differently; the norm of spread gradients is."""
    assert losses_of(runs["two"])[0] == losses_of(runs["sharded"])[0]


def test_muon_steps_alike_whatever_the_processes_share(photos, tmp_path):
    """Five steps: what a process orthogonalises is the whole weight, not its part of it."""
    values = values_of(photos, optimizer__kind="muon", schedule__steps=5, validation__every=5)
    alone(values, tmp_path / "one")
    together(2, values, [tmp_path / "two", tmp_path / "nothing"])
    sharded = values_of(
        photos, optimizer__kind="muon", schedule__steps=5, validation__every=5, distributed__kind="fsdp"
    )
    together(2, sharded, tmp_path / "sharded")
    start = tensors_of(tmp_path / "one", ["exp_avg"])
    assert len(start) > 20
    for other in ("two", "sharded"):
        assert tensors_of(tmp_path / other).keys() == tensors_of(tmp_path / "one").keys()
        assert distance(tmp_path / "one", tmp_path / other) < 1e-4


def test_no_crop_is_seen_twice_and_none_is_left_out(runs, photos, tmp_path):
    whole = runs["whole"][1][0]["crops"]
    assert len(set(whole)) == len(whole) == 50 * 4
    for which in ("two", "sharded"):
        first, second = (story["crops"] for story in runs[which][1])
        assert not set(first) & set(second)
        merged = [crop for step in range(50) for part in (first, second) for crop in part[2 * step : 2 * step + 2]]
        assert merged == whole
    larger = values_of(photos, schedule__batch_size=6, schedule__steps=4)
    three, one = together(3, larger, tmp_path / "three"), alone(larger, tmp_path / "one")
    assert sorted(crop for story in three for crop in story["crops"]) == sorted(one["crops"])
    assert len(set(one["crops"])) == 6 * 4


def test_only_the_first_process_writes_and_reports(runs):
    first, second = runs["two"][1]
    assert not (runs["two"][0].parent / "nothing").exists()
    assert second["reports"] == []
    assert [row for row in first["reports"] if "steps" in row] == [{"step": i, "steps": 50} for i in range(1, 51)]
    assert first["final"] == str(runs["two"][0] / "toy.safetensors")


# It refuses, on every process


def test_a_batch_that_can_not_be_shared_is_refused(photos, tmp_path):
    for values in (values_of(photos, schedule__batch_size=3), values_of(photos, schedule__accumulate=4)):
        for story in together(2, values, tmp_path / "out"):
            assert story["error"].startswith("InputError: train: a batch of")
            assert "split evenly over 2 processes" in story["error"]
    assert not (tmp_path / "out").exists()


def test_processes_that_see_other_pictures_are_refused(photos, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    (fewer / "3.png").unlink()
    stories = together(2, [values_of(photos), values_of(fewer)], tmp_path / "out")
    assert [story["error"] for story in stories] == [stories[0]["error"]] * 2
    assert "see [11, 12] pictures" in stories[0]["error"]


def test_what_the_first_process_can_not_do_ends_all(photos, tmp_path):
    """The others don't touch the folder: they hear of it."""
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    stories = together(2, values_of(photos), [tmp_path / "file", tmp_path / "nothing"])
    assert all("can't be the folder of a run" in story["error"] for story in stories)


def test_nodes_that_could_not_meet_again_are_refused(monkeypatch):
    """torchrun keeps the addresses of dead processes in a store that all its starts share, unless it is told not to."""
    elastic = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2"}
    for name, value in elastic.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        _fresh_start()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert _fresh_start() == "2"


# It goes on


def test_any_number_of_processes_goes_on_with_the_run_of_another(photos, runs, tmp_path):
    """One, then two, then one: the same bits as two all along. Then two with FSDP2, to rounding."""
    halves, two = values_of(photos, schedule__accumulate=2), values_of(photos)
    out = tmp_path / "out"
    assert alone(halves, out, terminate={0: 10})["final"] is None
    second = together(2, two, [out, tmp_path / "nothing"], terminate={0: 20})
    assert [story["final"] for story in second] == [None, None]
    assert len(second[0]["losses"]) == 10
    shutil.copytree(out, tmp_path / "sharded")
    assert alone(halves, out)["final"] == str(out / "toy.safetensors")
    assert_same_weights(out, runs["two"][0])
    assert log_of(out) == log_of(runs["two"][0])
    out = tmp_path / "sharded"
    together(2, values_of(photos, distributed__kind="fsdp"), out, terminate={1: 35})
    assert checkpoints(out)[-1].name == "step-00000035"
    assert alone(two, out)["final"] is not None
    assert distance(out, runs["two"][0]) < 3 * distance(runs["whole"][0], runs["halves"][0])


def test_processes_end_by_themselves(runs):
    """Taken down in the wrong order, DDP waits for a thread that waits for it."""
    assert {name: [story["exit"] for story in stories] for name, (_, stories) in runs.items()} == {
        "whole": [0],
        "halves": [0],
        "two": [0, 0],
        "sharded": [0, 0],
    }


def test_a_signal_to_any_process_stops_all_after_the_same_step(photos, runs, tmp_path):
    out = tmp_path / "out"
    stories = together(2, values_of(photos), out, terminate={1: 7})
    assert [story["final"] for story in stories] == [None, None]
    assert [len(story["losses"]) for story in stories] == [7, 7]
    assert checkpoints(out)[-1].name == "step-00000007"
    together(2, values_of(photos), out)
    assert_same_weights(out, runs["two"][0])


def test_one_process_under_torchrun_is_one_without(photos, runs, tmp_path):
    for kind in ("ddp", "fsdp"):
        out = tmp_path / kind
        (story,) = together(1, values_of(photos, distributed__kind=kind), out)
        assert story["losses"] == runs["whole"][1][0]["losses"]


# Under torchrun


@pytest.fixture
def recipe(photos, tmp_path):
    """Of the same run, with a checkpoint after every step."""
    path = tmp_path / "toy.toml"
    path.write_text(toml_of(values_of(photos, schedule__checkpoint_seconds=0)), encoding="utf-8")
    return path


def test_a_run_goes_on_whatever_ends_its_processes(recipe, photos, runs, tmp_path):
    """One process is killed, and torchrun starts all again. Then a scheduler wants the machine back and signals
    torchrun and its processes alike. Then the power fails."""
    out = tmp_path / "out"
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "3")
    with Torchrun(recipe, out, *options) as job:
        wait_for_step(out, 5)
        killed = job.workers()[1]
        os.kill(killed, signal.SIGKILL)
        job.wait_for_words(f"exitcode: -9) local_rank: 1 (pid: {killed})")
        signalled_at = wait_for_step(out, wait_for_step(out, 1) + 3)
        for pid in (*job.workers(), job.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert job.wait() != 0  # torchrun's own way to say that it was terminated
    assert "stopped before the end; continue with --resume" in job.log.read_text()
    assert signalled_at <= int(checkpoints(out)[-1].name.removeprefix("step-")) < 50
    assert not list(out.glob("*.part"))
    with Torchrun(recipe, out, *options) as job:
        failed_at = wait_for_step(out, wait_for_step(out, 1) + 3)
        job.kill()
    assert failed_at < 50
    together(2, values_of(photos), out)
    assert [row["step"] for row in log_of(out) if "psnr" in row] == [25, 50]
    assert_same_weights(out, runs["two"][0])


# Two nodes


class Node(NamedTuple):
    """A machine as far as the network can tell.

    Attributes:
        address, interface: of its end of the wire.
        inside: the command that runs another on it.
    """

    address: str
    interface: str
    inside: tuple[str, ...]

    def call(self, *command):
        return subprocess.run((*self.inside, *command), capture_output=True, text=True)


@pytest.fixture
def nodes():
    """Two network namespaces with a wire between them; where they are not allowed, two addresses of this machine."""
    names = [f"kithkin-{os.getpid()}-{i}" for i in (1, 2)]
    ends = [f"kk{os.getpid() % 10**7}{end}" for end in "ab"]
    link = ["name", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1]]
    here = Node("127.0.0.1", "lo", ())
    try:
        made = shutil.which("ip") and not any(here.call("ip", "netns", "add", name).returncode for name in names)
        if not made or here.call("ip", "link", "add", *link).returncode:
            yield [here, Node("127.0.0.2", "lo", ())]
            return
        for i, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            here.call("ip", "-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", end)
            for interface in (end, "lo"):
                here.call("ip", "-n", name, "link", "set", interface, "up")
        yield [Node(f"10.77.0.{i + 1}", ends[i], ("ip", "netns", "exec", names[i])) for i in range(2)]
    finally:
        if shutil.which("ip"):
            for name in names:
                here.call("ip", "netns", "del", name)


def start(recipe, out, nodes, number, port):
    """torchrun with one process on this node, its rendezvous on the first."""
    own = nodes[number]
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{nodes[0].address}:{port}", "--rdzv-id", "toy")
    address = ("--rdzv-conf", f"is_host={1 - number}", "--local-addr", own.address)
    count = ("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3")
    environment = {"GLOO_SOCKET_IFNAME": own.interface, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return Torchrun(recipe, out, *count, *rendezvous, *address, before=own.inside, environment=environment)


def cut_for_two_seconds(node, out):
    """Take one end of the wire down and up again: meanwhile the run stands still."""
    node.call("ip", "link", "set", node.interface, "down")
    time.sleep(0.5)
    stuck_at = wait_for_step(out, 1)
    time.sleep(1.5)
    assert wait_for_step(out, 1) == stuck_at
    node.call("ip", "link", "set", node.interface, "up")
    return stuck_at


def test_two_nodes_train_over_the_wire_which_is_cut_and_one_of_them_fails(recipe, runs, nodes, tmp_path):
    """After the cut TCP sends again. Then a node loses power, and its scheduler starts it again."""
    out, port, real = tmp_path / "out", free_port(), bool(nodes[0].inside)
    with start(recipe, out, nodes, 0, port) as first, start(recipe, out, nodes, 1, port) as second:
        wait_for_step(out, 4)
        stuck_at = cut_for_two_seconds(nodes[0], out) if real else 4
        at = wait_for_step(out, stuck_at + 4)
        second.kill()
        assert at < 50
        with start(recipe, out, nodes, 1, port) as again:
            assert first.wait() == 0, first.log.read_text()
            assert again.wait() == 0, again.log.read_text()
    if real:
        sent = int(nodes[0].call("cat", f"/sys/class/net/{nodes[0].interface}/statistics/tx_bytes").stdout)
        gradient = 4 * sum(x.numel() for x in tensors_of(out, ["model"]).values())
        assert sent > 50 * gradient  # a ring of two sends the gradients once a step
    assert_same_weights(out, runs["two"][0])
