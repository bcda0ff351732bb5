"""That the GPU kernels compile for GPUs, which needs none."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason='triton is not installed; pip install "kithkin[triton]"')


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_within_their_bounds(monkeypatch):
    """Spilled registers, shared memory, time, and that tensor cores are used: for a few of all widths and dtypes."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = [sys.executable, str(Path(__file__).parent.parent / "benchmarks" / "compile_gpu.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sm_80" in done.stdout
    assert "sm_90" in done.stdout
    assert "spilled" in done.stdout


def test_a_kernel_that_breaks_a_bound_is_named(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import compile_gpu

    sound = {"kernel": "attend", "capability": 90, "dtype": "bfloat16", "precision": "ieee", "pixels": 16}
    sound |= {"spilled": 256, "shared": 99 << 10, "seconds": 3.0, "mma": 8}
    assert compile_gpu.broken(sound) == []
    for change, said in (
        ({"spilled": 257}, "257 bytes spilled"),
        ({"shared": (99 << 10) + 1}, "shared memory"),
        ({"seconds": 31.0}, "31 CPU-seconds"),
        ({"mma": 0}, "no tensor core"),
    ):
        (fault,) = compile_gpu.broken({**sound, **change})
        assert said in fault
