"""Three machines, as far as the network can tell, one of which is lost for good: network namespaces, between which this
process carries every packet, 30 ms late, and one in a hundred never.

    sudo python benchmarks/three_machines.py train      # with torchrun
    sudo python benchmarks/three_machines.py restore    # with Ray

Needs Linux, root, `ip` and /dev/net/tun. (The kernel's own netem is missing from many.)
"""

import argparse
import contextlib
import csv
import fcntl
import json
import os
import random
import secrets
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kithkin.checkpoint import read_tensors, save_model
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.training.state import checkpoints

from measure import RESULTS, keep

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
from ranks import Torchrun, alone, toml_of, values_of, wait_for_step  # noqa: E402

DELAY = 0.03  # seconds, one way
LOSS = 0.01
STEPS = 30
JOIN_TIMEOUT = 60  # seconds that torchrun waits for a machine that is missing; 600 where nobody says
PICTURES = 120
MANIFEST = "kithkin-manifest.csv"
LOSSES = {"a machine": (0, 2), "the head": (1, 0)}
"""Where the command runs, and which machine is lost."""
TUNSETIFF, TUN, NO_HEADER = 0x400454CA, 0x0001, 0x1000  # from linux/if_tun.h


class Machine:
    """A network namespace.

    Attributes:
        address, interface: in the network of the machines.
        inside: the command that runs another there, with a /tmp/ray of its own.
        device: the file descriptor with the packets from and to it; None after it was cut off.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.address, self.interface = f"10.77.0.{number + 1}", f"kk{number}"
        self._name = f"kithkin-{os.getpid()}-{number}"
        ray = folder / f"ray-{number}"
        ray.mkdir()
        own = f'mkdir -p /tmp/ray && mount --bind {ray} /tmp/ray && exec "$@"'
        self.inside = ("ip", "netns", "exec", self._name, "sh", "-c", own, "sh")
        self.device: int | None = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.device, TUNSETIFF, struct.pack("16sH", self.interface.encode(), TUN | NO_HEADER))
        at = ("ip", "-n", self._name)
        for command in (
            ("ip", "netns", "add", self._name),
            ("ip", "link", "set", self.interface, "netns", self._name),
            (*at, "addr", "add", f"{self.address}/24", "dev", self.interface),
            (*at, "link", "set", self.interface, "up"),
            (*at, "link", "set", "lo", "up"),
            (*at, "route", "add", "default", "dev", self.interface),  # Ray finds its own address with it
        ):
            subprocess.run(command, check=True)

    def processes(self) -> list[int]:
        """Whatever runs there."""
        found = subprocess.run(("ip", "netns", "pids", self._name), capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def lose(self) -> None:
        """As by a power failure: nobody there says goodbye, no packet comes from it any more."""
        self.device = None
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def remove(self) -> None:
        """End what is left of it."""
        self.lose()
        subprocess.run(("ip", "netns", "del", self._name), check=True)


class Network:
    """What carries the packets."""

    def __init__(self, machines: list[Machine]) -> None:
        self.carried = self.lost = 0
        self._machines = {bytes(map(int, machine.address.split("."))): machine for machine in machines}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry)

    def __enter__(self) -> "Network":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _carry(self) -> None:
        chance, on_the_way = random.Random(1), deque[tuple[float, bytes]]()
        while not self._ended.is_set():
            devices = [machine.device for machine in self._machines.values() if machine.device is not None]
            patience = min(0.1, max(0.0, on_the_way[0][0] - time.monotonic())) if on_the_way else 0.1
            for device in select.select(devices, [], [], patience)[0]:
                packet = os.read(device, 2**16)
                if chance.random() < LOSS:
                    self.lost += 1
                else:
                    on_the_way.append((time.monotonic() + DELAY, packet))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                packet = on_the_way.popleft()[1]
                to = self._machines.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                if to is not None and to.device is not None:
                    self.carried += 1
                    with contextlib.suppress(BlockingIOError):
                        os.write(to.device, packet)


@contextlib.contextmanager
def three_machines(folder: Path) -> Iterator[tuple[list[Machine], Network]]:
    """Make them, and remove them at the end."""
    place, machines = Path(tempfile.mkdtemp(dir=folder)), []
    try:
        machines += [Machine(number, place) for number in range(3)]
        with Network(machines) as network:
            yield machines, network
    finally:
        for machine in machines:
            machine.remove()


def write_pictures(folder: Path, count: int, side: int) -> Path:
    """Waves, PNG."""
    folder.mkdir()
    y, x = np.mgrid[0:side, 0:side] / side
    for i in range(count):
        a, b = np.random.default_rng(i).normal(0, 6, (2, 3))
        picture = 0.5 + 0.3 * np.sin(a * x[..., None] + b * y[..., None])
        Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


# Training


def torchrun(recipe: Path, out: Path, machines: list[Machine], number: int, count: str) -> Torchrun:
    """Start the one process of a machine; the first one has the rendezvous."""
    own = machines[number]
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{machines[0].address}:29500", "--rdzv-id", out.name)
    conf = ("--rdzv-conf", f"is_host={int(number == 0)},join_timeout={JOIN_TIMEOUT}", "--local-addr", own.address)
    options = ("--nnodes", count, "--nproc-per-node", "1", "--max-restarts", "3", *meeting, *conf)
    environment = {"GLOO_SOCKET_IFNAME": own.interface, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return Torchrun(recipe, out, *options, before=own.inside, environment=environment)


def farthest(first: Path, second: Path) -> float:
    """The largest difference of a weight between two finished runs."""
    a, b = (read_tensors(checkpoints(out)[-1] / "model.safetensors")[0] for out in (first, second))
    return max((a[name] - b[name]).abs().max().item() for name in a)


def train(folder: Path) -> dict[str, Any]:
    """A run over three machines; the same with a machine lost, which torchrun may or may not go on without."""
    photos = write_pictures(folder / "photos", 12, 48)
    options = {"schedule__batch_size": 6, "schedule__steps": STEPS, "schedule__checkpoint_seconds": 0}
    values = values_of(photos, **options, validation__every=STEPS)
    recipe = folder / "toy.toml"
    recipe.write_text(toml_of(values), encoding="utf-8")
    alone(values, folder / "whole")
    alone(values | {"schedule": values["schedule"] | {"accumulate": 3}}, folder / "thirds")
    result = {
        "steps": STEPS,
        "one process, in three parts": {"farthest": farthest(folder / "whole", folder / "thirds")},
    }
    for name, count, lost in (("undisturbed", "3", False), ("one lost, 2:3", "2:3", True), ("one lost, 3", "3", True)):
        out = folder / name.replace(" ", "-")
        with three_machines(folder) as (machines, network), contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(torchrun(recipe, out, machines, i, count)) for i in range(3)]
            started = time.monotonic()
            at = wait_for_step(out, 1)
            found: dict[str, Any] = {"seconds to the first step": time.monotonic() - started}
            started = time.monotonic()
            if lost:
                found["lost after step"] = at = wait_for_step(out, STEPS // 3)
                machines[2].lose()
                jobs.pop().process.wait()
                started = time.monotonic()
                if ":" in count:
                    wait_for_step(out, at + 2)
                    found["seconds until it went on"] = time.monotonic() - started
            found["exit codes"] = [job.wait() for job in jobs]
            found["seconds until the end"] = time.monotonic() - started
            found["packets"], found["packets lost"] = network.carried, network.lost
            if any(found["exit codes"]):
                found["last words"] = [job.log.read_text().strip().splitlines()[-1] for job in jobs]
            if (out / "toy.safetensors").is_file():
                found["farthest"] = farthest(folder / "whole", out)
        result[name] = found
        print(name, found, file=sys.stderr, flush=True)
    return result


# Restoring


def restore(folder: Path) -> dict[str, Any]:
    """A folder of pictures with a worker on each machine; a machine is lost, then, the next time, Ray's head."""
    source, weights = write_pictures(folder / "in", PICTURES, 96), folder / "small.safetensors"
    save_model(KiT(KiTConfig(width=8, depth=1, n_hashes=1)), weights)
    command = [sys.executable, "-m", "kithkin", "restore", str(source), "--tile", "64", "--device", "cpu"]
    command += ["--model", str(weights), "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    subprocess.run([*command, str(folder / "local")], env=environment, check=True, stdout=subprocess.DEVNULL)
    expected = {path.name: path.read_bytes() for path in (folder / "local").iterdir()}
    result: dict[str, Any] = {"pictures": PICTURES}
    for name, (own, lost) in LOSSES.items():
        out = folder / name.replace(" ", "-")
        with three_machines(folder) as (machines, network):
            head = start_ray(machines, environment)
            there = [*machines[own].inside, "timeout", "600", *command, str(out), "--cluster", head]
            found = lose_while_restoring(there, environment, out, machines[lost], wait=lost != 0)
            found |= {"packets": network.carried, "packets lost": network.lost}
        results = {path.name: path.read_bytes() for path in out.iterdir()}
        found["results with the bytes of local mode"] = sum(
            results.get(path) == data for path, data in expected.items()
        )
        found["other files"] = sorted(results.keys() - expected.keys())
        if MANIFEST in results:
            rows = list(csv.DictReader(results[MANIFEST].decode().splitlines()))
            found["rows of the manifest"] = dict.fromkeys(("written", "skipped", "failed"), 0)
            found["rows of the manifest"] |= Counter(row["status"] for row in rows)
            found["inputs in it"] = len({row["input"] for row in rows})
        result[name] = found
        print(name, found, file=sys.stderr, flush=True)
    return result


def start_ray(machines: list[Machine], environment: dict[str, str]) -> str:
    """Start a cluster with one CPU a machine; its address."""
    head = f"{machines[0].address}:6379"
    for i, machine in enumerate(machines):
        role = ["--head", "--port=6379", "--include-dashboard=false"] if i == 0 else [f"--address={head}"]
        ray = [str(Path(sys.executable).with_name("ray")), "start", *role, f"--node-ip-address={machine.address}"]
        ray += ["--num-cpus=1", f"--object-store-memory={10**8}"]
        subprocess.run([*machine.inside, *ray], env=environment, check=True, stdout=sys.stderr)
    return head


def results(out: Path) -> int:
    """How many there are."""
    return len(list(out.glob("[0-9]*.png")))


def at_work(machine: Machine) -> bool:
    """Whether a worker has a group of pictures there."""
    titles = [Path(f"/proc/{pid}/cmdline") for pid in machine.processes()]
    return any(b"ray::Worker.restore" in title.read_bytes() for title in titles if title.exists())


def lose_while_restoring(
    command: list[str], environment: dict[str, str], out: Path, machine: Machine, *, wait: bool
) -> dict[str, Any]:
    """Lose a machine after a quarter of the results, or once a worker there has pictures; how the command ends."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        while process.poll() is None and (results(out) < PICTURES // 4 or (wait and not at_work(machine))):
            time.sleep(0.05)
        before, busy, lost = results(out), at_work(machine), time.monotonic()
        machine.lose()
        said, errors = process.communicate()
    return {
        "results when it was lost": before,
        "a worker had pictures there": busy,
        "seconds until the end": time.monotonic() - lost,
        "exit code": process.returncode,
        "results named twice": len(said.splitlines()) - len(set(said.splitlines())),
        "last words": errors.replace(f"{out.parent}/", "").splitlines()[-2:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["train", "restore"])
    part = parser.parse_args().part
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        found = {"load average": os.getloadavg(), **(train if part == "train" else restore)(Path(name))}
    path = RESULTS / "three_machines.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    parts = {each: found if each == part else before.get(each) for each in ("train", "restore")}
    keep("three_machines", {"delay in seconds": DELAY, "loss": LOSS, **parts})


if __name__ == "__main__":
    main()
