"""``kithkin doctor``."""

import typer

from kithkin.cli._options import AS_JSON


def doctor(as_json: bool = AS_JSON) -> None:
    """Check the installation: versions, devices, backends, picture formats and weights, with a short test.

    The exit code is 1 if something that should work does not.
    """
    import json
    import sys

    findings = {
        **about(),
        **_versions(),
        **_bfloat16(),
        **_backends(),
        **_choice(),
        **_formats(),
        **_weights(),
        **_test(),
    }
    if as_json:
        typer.echo(json.dumps(findings, indent=1))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for name, value in findings.items():
            table.add_row(name, value)
        Console(markup=False).print(table)
    if any(value.startswith("FAILED") for value in findings.values()):
        sys.exit(1)


def about() -> dict[str, str]:
    """What a report of an error should say about the machine and the installation."""
    import platform

    import torch

    from kithkin import __version__
    from kithkin.ops import native

    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return {
        "kithkin": __version__,
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "system": platform.platform(),
        "CPU": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "CPU kernels": native.instruction_set() or "not compiled",
        "GPU": gpus or "none that torch can use",
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "pillow", "tifffile", "safetensors", "pydantic", "typer", "rich")}


def _bfloat16() -> dict[str, str]:
    import torch

    from kithkin.ops import multiplies_bfloat16

    return {
        f"bfloat16 ({device})": "multiplied" if multiplies_bfloat16(device) else "no instructions for it: float32"
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
    }


def _backends() -> dict[str, str]:
    """Whether each backend can serve on each device, and computes there what the reference does on the CPU."""
    import torch

    from kithkin.ops import PatchGroups, available_backends, group_patches, knn_local_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 40, 16, 16, generator=generator) for _ in range(3))
    groups = group_patches(v, generator=generator)
    expected = knn_local_attention(q, k, v, groups, backend="reference")
    findings = {}
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        moved = PatchGroups(groups.order.to(device), groups.k, groups.look_back)
        for name, reason in available_backends(device).items():
            status = f"not available: {reason}"
            if reason is None:
                result = knn_local_attention(q.to(device), k.to(device), v.to(device), moved, backend=name).cpu()
                agrees = torch.allclose(result, expected, rtol=1e-2, atol=1e-2)  # GPUs may round products to TF32
                status = "ready" if agrees else "FAILED: its result is not the reference's"
            findings[f"backend {name} ({device})"] = status
    return findings


def _choice() -> dict[str, str]:
    """Whether a GPU computes attention by its own kernels where no backend is named: only if they agree with others."""
    import torch

    from kithkin.ops import available_backends, trusted

    if not torch.cuda.is_available() or available_backends("cuda")["triton"] is not None:
        return {}
    findings = {}
    for dtype in (torch.float32, torch.bfloat16):
        status = "triton, its results agree with blocked's"
        if not trusted("cuda", dtype):
            status = f"FAILED: blocked, for {available_backends('cuda', dtype)['triton']}"
        findings[f"attention on the GPU ({str(dtype).removeprefix('torch.')})"] = status
    return findings


def _formats() -> dict[str, str]:
    from importlib.util import find_spec

    from kithkin.images import readable

    found = readable()
    photo = {"HEIC", "AVIF", "raw"} <= set(found)
    deep = find_spec("imagecodecs") is not None
    plots = find_spec("matplotlib") is not None
    return {
        "pictures": " ".join(suffix for kind, suffixes in found.items() if kind != "raw" for suffix in suffixes),
        "HEIC, AVIF, camera raw": "ready" if photo else 'not available: pip install "kithkin[photo]"',
        "16-bit colour PNG": "ready" if deep else 'not available: pip install "kithkin[codecs]"',
        "training curves": "ready" if plots else 'not available: pip install "kithkin[plot]"',
    }


def _weights() -> dict[str, str]:
    from kithkin.errors import KithkinError
    from kithkin.zoo import list_models, load_model

    findings = {}
    for name in list_models():
        try:
            load_model(name)
            findings[f"model {name}"] = "ready, sha256 right"
        except KithkinError as error:
            findings[f"model {name}"] = f"FAILED: {error}"
    return findings


def _test() -> dict[str, str]:
    """How long a picture takes."""
    import time

    import torch

    from kithkin.model import KiT
    from kithkin.model_config import KiTConfig

    picture = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    model = KiT(KiTConfig.named("tiny")).eval()
    with torch.inference_mode():
        model(picture)
        started = time.perf_counter()
        model(picture)
    return {"a 256×256 picture (tiny, CPU)": f"{time.perf_counter() - started:.2f} s"}
