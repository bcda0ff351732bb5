"""What ``gpu.py`` measures, each in a process of its own: a kernel that fails can spoil a process's GPU for good.

python benchmarks/gpu_phases.py PHASE RESULT.json '{"device": "cuda", …}'
"""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


class Result:
    """A phase's findings, on disk after each: what was measured survives what comes next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}

    def add(self, **values: Any) -> None:
        self.values |= values
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values), encoding="utf-8")
        part.replace(self.path)


def machine(device: str) -> dict[str, Any]:
    """The device and the versions that a number belongs to."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
        }
    return found


def operator(result: Result, options: dict[str, Any]) -> None:
    """Parity and gradients of every backend, then their speed."""
    import operator_gpu

    device = options["device"]
    result.add(machine=machine(device))
    result.add(**operator_gpu.measure(device, options["seconds"], result.add))


def compile_kernels(result: Result, options: dict[str, Any]) -> None:
    """Compile the kernels that a network takes, a process for each kind of layer: they wait for the compiler, which
    takes one core for each. Later processes find the results in Triton's cache."""
    result.add(machine=machine(options["device"]))
    layers = _layers(options)
    started = time.perf_counter()
    command = [sys.executable, __file__, "layer"]
    running = [
        subprocess.Popen([*command, f"{result.path}.{i}", json.dumps({**options, "layer": name, "shape": shape})])
        for i, (name, shape) in enumerate(layers)
    ]
    codes = [process.wait() for process in running]
    seconds = round(time.perf_counter() - started, 2)
    rows = [{"layer": name, "shape": shape, "code": code} for (name, shape), code in zip(layers, codes, strict=True)]
    result.add(seconds=seconds, layers=rows)
    if any(codes):
        raise SystemExit(f"{sum(map(bool, codes))} of {len(codes)} layers failed")


def _layers(options: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """(name, shape of its input) of an attention layer of each kind: found by running the network on the CPU."""
    from kithkin.config import load_config
    from kithkin.layers import KNNLocalAttention
    from kithkin.model import KiT

    config = load_config(options["recipe"], options["changes"])
    model = KiT(config.network).eval()
    found: dict[Any, tuple[str, list[int]]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            found.setdefault((inputs[0].shape, layer.k), (name, list(inputs[0].shape[1:])))

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, KNNLocalAttention):
            layer.register_forward_pre_hook(look(name))
    with torch.no_grad():
        model(torch.rand(1, 3, config.data.crop, config.data.crop))
    return list(found.values())


def layer(result: Result, options: dict[str, Any]) -> None:
    """One attention layer of a network, forward and backward, as the training step runs it."""
    from kithkin.config import load_config
    from kithkin.model import KiT

    device = options["device"]
    config = load_config(options["recipe"], options["changes"])
    module = KiT(config.network).set_backend(options["backend"]).get_submodule(options["layer"]).to(device)
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(options["batches"][0], *options["shape"], device=device, requires_grad=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            module(x).float().square().sum().backward()
    result.add(finite=bool(x.grad is not None and x.grad.isfinite().all()))


def throughput(result: Result, options: dict[str, Any]) -> None:
    """Crops a second of the data alone, of the step alone and of both, for one backend and several batches."""
    from kithkin.config import load_config
    from kithkin.training.batches import open_batches

    device, changes = options["device"], options["changes"]
    config = load_config(options["recipe"], changes)
    result.add(machine=machine(device))
    started = time.perf_counter()
    dataset, where = open_batches(config.data, device)
    result.add(store={"pictures": len(dataset), "seconds": round(time.perf_counter() - started, 2), "where": where})
    share = options["seconds"] / len(options["batches"])
    rows: list[dict[str, Any]] = []
    for size in options["batches"]:
        sized = load_config(options["recipe"], changes | {"schedule.batch_size": size})
        try:
            rows.append({"batch": size, **_rates(sized, dataset, device, options["backend"], share)})
        except torch.OutOfMemoryError as error:
            rows.append({"batch": size, "failed": str(error).splitlines()[0]})
            torch.cuda.empty_cache()
        result.add(rows=rows)


def _rates(config: Any, dataset: Any, device: str, backend: str | None, seconds: float) -> dict[str, Any]:
    """Crops a second; ``first_step_s`` is what compiling and capturing take."""
    from kithkin.training.batches import prefetched
    from kithkin.training.step import TrainingStep

    step = TrainingStep(config, device)
    step.state.model.set_backend(backend)
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    size = config.schedule.batch_size
    steps = 10**6
    with prefetched(dataset, config, 0, steps, step.state.ranks) as batches:
        parts = next(batches)
        started = time.perf_counter()
        step.run(parts)
        wait()
        first = time.perf_counter() - started
        for _ in range(4):  # whatever is captured, is captured by now
            step.run(parts)
        found = {"first_step_s": round(first, 2)}
        for name, act in _work(step, parts, batches):
            found[name] = round(size * _per_second(act, wait, seconds / 4), 1)
        if torch.device(device).type == "cuda":
            found |= _waits_and_launches(lambda: step.run(next(batches)))
    if torch.device(device).type == "cuda":
        found["memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    found["loss"] = round(float(step.state.losses[-1]), 5)
    return found


def _work(step: Any, parts: Any, batches: Iterator[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "step_crops_per_s", lambda: step.run(parts)
    yield "data_crops_per_s", lambda: next(batches)
    yield "both_crops_per_s", lambda: step.run(next(batches))


def _waits_and_launches(act: Callable[[], Any]) -> dict[str, Any]:
    """In one step with its data: how often the host waits for the GPU, and what it asks of it, by kind of call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            act()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        act()
        torch.cuda.synchronize()
    calls = {event.key: event.count for event in profile.key_averages() if event.key.startswith("cuda")}
    return {"waits": len(waits), "first_wait": waits[:1], "calls": calls}


def _per_second(act: Callable[[], Any], wait: Callable[[], Any], seconds: float) -> float:
    """Calls a second, the device's work included."""
    act()
    wait()
    count, started = 0, time.perf_counter()
    while (now := time.perf_counter()) - started < seconds or count < 2:
        act()
        count += 1
        if count % 8 == 0:
            wait()  # else the host runs ahead of the clock
    wait()
    now = time.perf_counter()
    return count / (now - started)


if __name__ == "__main__":
    phase, path, given = sys.argv[1:]
    phases = {"operator": operator, "compile": compile_kernels, "layer": layer, "throughput": throughput}
    phases[phase](Result(Path(path)), json.loads(given))
