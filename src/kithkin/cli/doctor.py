"""``kithkin doctor``."""

import typer


def doctor(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Check the installation: versions, devices, backends and why not, picture formats, weights; a short test.

    The exit code is 1 where something that should work does not.
    """
    import json
    import sys

    findings = {**_versions(), **_machine(), **_backends(), **_choice(), **_formats(), **_weights(), **_test()}
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


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    import torch

    from kithkin import __version__

    names = ("numpy", "pillow", "tifffile", "safetensors", "pydantic", "typer", "rich")
    found = {"kithkin": __version__, "Python": platform.python_version(), "torch": str(torch.__version__)}
    return found | {name: version(name) for name in names}


def _machine() -> dict[str, str]:
    import platform

    import torch

    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return {
        "system": platform.platform(),
        "CPU": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "GPU": gpus or "none that torch can use",
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
        near = PatchGroups(groups.order.to(device), groups.k, groups.look_back)
        for name, reason in available_backends(device).items():
            says = f"not available: {reason}"
            if reason is None:
                found = knn_local_attention(q.to(device), k.to(device), v.to(device), near, backend=name).cpu()
                right = torch.allclose(found, expected, rtol=1e-2, atol=1e-2)  # GPUs may round products to TF32
                says = "ready" if right else "FAILED: its result is not the reference's"
            findings[f"backend {name} ({device})"] = says
    return findings


def _choice() -> dict[str, str]:
    """Whether a GPU computes attention by its own kernels where no backend is named: only if they agree with others."""
    import torch

    from kithkin.ops import available_backends, trusted

    if not torch.cuda.is_available() or available_backends("cuda")["triton"] is not None:
        return {}
    findings = {}
    for dtype in (torch.float32, torch.bfloat16):
        says = "triton, its results agree with blocked's"
        if not trusted("cuda", dtype):
            says = f"FAILED: blocked, for {available_backends('cuda', dtype)['triton']}"
        findings[f"attention on the GPU ({str(dtype).removeprefix('torch.')})"] = says
    return findings


def _formats() -> dict[str, str]:
    from importlib.util import find_spec

    from kithkin.images import SUFFIXES

    deep = find_spec("imagecodecs") is not None
    plots = find_spec("matplotlib") is not None
    return {
        "pictures": " ".join(SUFFIXES),
        "16-bit colour PNG": "ready" if deep else 'not available: pip install "kithkin[codecs]"',
        "training curves": "ready" if plots else 'not available: pip install "kithkin[plot]"',
    }


def _weights() -> dict[str, str]:
    from kithkin.errors import KithkinError
    from kithkin.zoo import list_models, load_model

    found = {}
    for name in list_models():
        try:
            load_model(name)
            found[f"model {name}"] = "ready, sha256 right"
        except KithkinError as error:
            found[f"model {name}"] = f"FAILED: {error}"
    return found


def _test() -> dict[str, str]:
    """How long a picture takes."""
    import time

    import torch

    from kithkin.model import KiT, KiTConfig

    picture = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    model = KiT(KiTConfig.named("tiny")).eval()
    with torch.inference_mode():
        model(picture)
        started = time.perf_counter()
        model(picture)
    return {"a 256×256 picture (tiny, CPU)": f"{time.perf_counter() - started:.2f} s"}
