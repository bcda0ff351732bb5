"""What holds for the C++ kernel alone; its numbers are tested with those of the other backends."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import kithkin
from kithkin.cli import app
from kithkin.errors import BackendError
from kithkin.ops import available_backends, exact_groups, group_patches, knn_local_attention, native
from kithkin.ops.backend import pitched
from kithkin.ops.kernels import build
from kithkin.zoo import load_model

COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
compiled = pytest.mark.skipif(available_backends()["native"] is not None, reason=str(available_backends()["native"]))


def problem(dtype=torch.float32, patches=61):
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, patches, 16, 24, generator=generator).to(dtype) for _ in range(3)]
    groups = group_patches(qkv[2], k=4, n_hashes=3, generator=torch.Generator().manual_seed(1))
    return qkv, groups


def both(qkv, groups, threads, weighting="softmax"):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        qkv = [x.clone().requires_grad_() for x in qkv]
        out = knn_local_attention(*qkv, groups, weighting=weighting, backend="native")
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), qkv)]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")
def test_where_there_is_a_compiler_the_kernel_was_built_and_is_the_first_choice():
    assert next(iter(available_backends().items())) == ("native", None)


@compiled
def test_the_result_does_not_depend_on_the_threads():
    qkv, groups = problem()
    for one, many in zip(both(qkv, groups, 1), both(qkv, groups, 3), strict=True):
        assert torch.equal(one, many)


@compiled
def test_without_the_openmp_runtime_it_starts_threads_of_its_own(monkeypatch):
    qkv, groups = problem()
    expected = both(qkv, groups, 2)
    monkeypatch.setattr(native, "_team", lambda: None)
    for found, wanted in zip(both(qkv, groups, 2), expected, strict=True):
        assert torch.equal(found, wanted)


@compiled
@pytest.mark.parametrize("name", build.INSTRUCTION_SETS)
def test_every_instruction_set_that_runs_here_agrees_with_the_reference(name, monkeypatch):
    if not build.library(name).is_file() or list(build.INSTRUCTION_SETS).index(name) > build.level():
        pytest.skip(f"{name} does not run here")
    kernel = ctypes.CDLL(str(build.library(name)))
    monkeypatch.setattr(native, "_kernel", lambda: kernel)
    qkv, groups = problem()
    qkv[0][1, 7, 3, 0] = torch.nan  # spoils what that patch gets and nothing else
    qkv[1][0, 9] *= 1e3  # logits far apart
    expected = knn_local_attention(*(x.double() for x in qkv), groups, backend="reference")
    found = knn_local_attention(*qkv, groups, backend="native")
    assert expected.isnan().any(dim=(-1, -2)).sum() == 1
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@compiled
def test_slices_of_one_wider_tensor_are_read_where_they_lie():
    qkv, groups = problem()
    wide = torch.cat(qkv, dim=-1)
    laid = pitched(*wide.chunk(3, dim=-1))
    assert laid[0] == 72
    assert all(x.data_ptr() == y.data_ptr() for x, y in zip(laid[1], wide.chunk(3, dim=-1), strict=True))
    for found, wanted in zip(both(wide.chunk(3, dim=-1), groups, 2), both(qkv, groups, 2), strict=True):
        assert torch.equal(found, wanted)


@compiled
def test_inputs_may_lie_in_memory_in_any_order():
    qkv, groups = problem()
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in qkv]
    assert torch.equal(
        knn_local_attention(*turned, groups, backend="native"), knn_local_attention(*qkv, groups, backend="native")
    )


def test_what_it_does_not_take_is_refused_with_the_reason_and_served_by_another():
    qkv, groups = problem()
    for inputs, near, reason in (
        ([x.double() for x in qkv], groups, "float64"),
        ([x.half() for x in qkv], exact_groups(qkv[2], k=4), "float16"),
    ):
        with pytest.raises(BackendError, match=reason):
            knn_local_attention(*inputs, near, backend="native")
        assert knn_local_attention(*inputs, near).isfinite().all()
    assert "cuda" in native.why_not("cuda", torch.float32, None)


def test_without_its_library_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(native, "_kernel", lambda: None)
    qkv, groups = problem()
    with pytest.raises(BackendError, match=r"python -m kithkin\.ops\.kernels"):
        knn_local_attention(*qkv, groups, backend="native")
    assert knn_local_attention(*qkv, groups).isfinite().all()


def test_a_build_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        build.build()
    monkeypatch.undo()
    monkeypatch.setenv("CXX", sys.executable)
    broken = subprocess.CompletedProcess([], 1, "", "x.cpp:1: error: no such thing\n")
    monkeypatch.setattr(build.subprocess, "run", lambda *args, **options: broken)
    with pytest.raises(RuntimeError, match="error: no such thing"):
        build.build()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that makes empty files and knows no AVX-512 with bfloat16, for a processor that has it."""
    commands = []

    def compile_or_fail(command, **options):
        commands.append(command)
        failed = "-mavx512bf16" in command
        if not failed:
            Path(command[-1]).touch()
        return subprocess.CompletedProcess(command, int(failed), "", "error: unrecognized option")

    monkeypatch.setattr(build.subprocess, "run", compile_or_fail)
    monkeypatch.setattr(build.shutil, "which", lambda name: name)
    monkeypatch.setattr(build.sysconfig, "get_platform", lambda: "linux-x86_64")
    monkeypatch.setattr(build, "level", lambda: 3)
    for name in ("CXX", "KITHKIN_KERNELS", "KITHKIN_TARGET"):
        monkeypatch.delenv(name, raising=False)
    return commands


def made_in(folder):
    """The instruction sets, in the order in which they were made; nothing else is left in the folder."""
    made = [path.stem.rsplit("-", 1)[1] for path in build.build(folder)]
    assert sorted(made) == sorted(path.stem.rsplit("-", 1)[1] for path in folder.iterdir())
    return made


def test_it_builds_the_richest_instruction_set_that_this_processor_and_the_compiler_know(compiler, tmp_path):
    assert made_in(tmp_path) == ["level", "avx512"]


@pytest.mark.parametrize(("level", "name"), [(0, "default"), (1, "avx2"), (2, "avx512")])
def test_it_builds_nothing_that_this_processor_does_not_run(compiler, tmp_path, monkeypatch, level, name):
    monkeypatch.setattr(build, "level", lambda: level)
    assert made_in(tmp_path) == ["level", name]


def test_for_a_release_it_builds_every_instruction_set_whatever_this_processor_runs(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("KITHKIN_KERNELS", "all")
    monkeypatch.setattr(build, "level", lambda: 1)
    assert made_in(tmp_path) == ["level", "avx512", "avx2", "default"]


def test_a_processor_of_another_family_has_one_library(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(build.sysconfig, "get_platform", lambda: "macosx-11.0-arm64")
    monkeypatch.setenv("KITHKIN_KERNELS", "all")
    assert made_in(tmp_path) == ["level", "default"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".dylib"}
    assert not [command for command in compiler if any(word.startswith("-mavx") for word in command)]


@pytest.mark.parametrize(
    ("tag", "suffix"),
    [
        ("manylinux_2_28_x86_64", ".so"),
        ("manylinux_2_28_aarch64", ".so"),
        ("macosx_11_0_arm64", ".dylib"),
        ("win_amd64", ".dll"),
    ],
)
def test_for_another_platform_zig_builds_every_instruction_set(compiler, tmp_path, monkeypatch, tag, suffix):
    monkeypatch.setenv("KITHKIN_TARGET", tag)
    monkeypatch.setattr(build, "find_spec", lambda name: name == "ziglang")
    monkeypatch.setattr(build, "level", lambda: pytest.fail("its libraries don't run here"))
    x86 = tag.endswith("64") and not tag.endswith(("aarch64", "arm64"))
    assert made_in(tmp_path) == ["level", *(["avx512", "avx2"] if x86 else []), "default"]
    assert {path.suffix for path in tmp_path.iterdir()} == {suffix}
    assert all(command[2:6] == ["ziglang", "c++", "-s", "-target"] for command in compiler)
    assert ("-fPIC" in compiler[0]) == (tag != "win_amd64")
    monkeypatch.setenv("KITHKIN_TARGET", "win32")
    with pytest.raises(RuntimeError, match="there are manylinux_2_28_x86_64, "):
        build.build(tmp_path)


def test_without_another_compiler_zig_serves_this_machine(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: name == "ziglang")
    monkeypatch.setattr(build.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(build.sysconfig, "get_platform", lambda: "win-amd64")
    assert build._compiler()[2:] == ["ziglang", "c++", "-s", "-target", "x86_64-windows-gnu"]


@compiled
def test_the_processor_has_what_the_system_says_it_has():
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        pytest.skip("the system says nothing")
    wanted = ({"avx2", "fma"}, {"avx512f", "avx512dq", "avx512bw", "avx512vl"}, {"avx512_bf16"})
    expected = 0
    while expected < 3 and wanted[expected] <= set(flags):
        expected += 1
    assert build.level() == expected


def test_where_networks_are_slow_for_want_of_a_compiler_the_command_says_so_once(monkeypatch, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr(native, "_kernel", lambda: None)
    arguments = ["restore", str(tmp_path / "a.png"), "-m", "denoise-tiny", "--device", "cpu"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0
    assert found.stderr.count("python -m kithkin.ops.kernels") == 1
    with pytest.warns(UserWarning, match=r"python -m kithkin\.ops\.kernels"):
        kithkin.restore(load_model("denoise-tiny"), torch.rand(3, 32, 32))


@compiled
def test_where_they_are_not_nothing_is_said(recwarn):
    kithkin.restore(load_model("denoise-tiny"), torch.rand(3, 32, 32))
    assert not [str(warning.message) for warning in recwarn if "compiled CPU kernels" in str(warning.message)]
