"""The Triton kernels are taken unasked only where they were seen to be right: the check, and what follows from it. It
runs on the CPU here, in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from kithkin.ops import available_backends, dispatch, triton_backend, trusted
from kithkin.ops.backend import Problem

pytest.importorskip("triton", reason='triton is not installed; pip install "kithkin[triton]"')
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton compiles for the GPU: there is no interpreter"
)

CPU, BF16 = torch.device("cpu"), torch.bfloat16
USUAL = Problem(pixels=16, channels=32, n_heads=1, k=4, candidates=8, exact=False)


@pytest.fixture
def unchecked(monkeypatch):
    """As on a GPU that was not used yet: nothing is known of the kernels, and `native` is not there."""
    monkeypatch.setattr(triton_backend, "_verdicts", {})
    monkeypatch.setattr(triton_backend, "_checked_on", lambda device: True)
    absent = replace(dispatch.BACKENDS["native"], why_not=lambda *_: "native is for CPUs")
    monkeypatch.setitem(dispatch.BACKENDS, "native", absent)


def chosen(name=None):
    return dispatch._choose(name, CPU, BF16, USUAL)


def test_kernels_that_agree_are_taken_and_checked_once(unchecked, monkeypatch):
    assert chosen() == "triton"
    monkeypatch.setattr(triton_backend, "_verdict", lambda *_: pytest.fail("checked again"))
    assert chosen() == "triton"
    assert trusted("cpu", BF16)
    assert available_backends("cpu", BF16)["triton"] is None


@pytest.mark.parametrize("which", ["output", "query", "key", "value"])
def test_wrong_kernels_are_not_taken_and_the_reason_is_told(unchecked, monkeypatch, which):
    place = ["output", "query", "key", "value"].index(which)
    right = triton_backend._solved

    def solved(*args):
        found = right(*args)
        if args[0] is triton_backend.forward:
            found[place][0, 3] *= 1.5
        return found

    monkeypatch.setattr(triton_backend, "forward", triton_backend.blocked.forward)  # quick, and right
    monkeypatch.setattr(triton_backend, "backward", triton_backend.blocked.backward)
    assert triton_backend._disagreement(CPU, BF16) is None
    monkeypatch.setattr(triton_backend, "forward", lambda *args: triton_backend.blocked.forward(*args))
    monkeypatch.setattr(triton_backend, "_solved", solved)
    with pytest.warns(UserWarning, match=f"{which} differs from blocked's.*blocked serves"):
        assert chosen() == "blocked"
    assert chosen() == "blocked"  # told once
    assert "differs from blocked's" in available_backends("cpu", BF16)["triton"]
    assert chosen("triton") == "triton"  # who asks for it gets it


def test_kernels_that_do_not_run_are_not_taken(unchecked, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of registers\nand more")

    monkeypatch.setattr(triton_backend, "forward", broken)
    with pytest.warns(UserWarning, match="RuntimeError: out of registers; blocked serves"):
        assert not trusted("cpu", BF16)


def test_the_check_is_left_alone_by_what_surrounds_the_call(unchecked):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16), FakeTensorMode():
        assert trusted("cpu", BF16)


def test_nothing_is_checked_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(triton_backend, "_verdicts", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(triton_backend, "_verdict", lambda *_: pytest.fail("checked"))
    with pytest.warns(UserWarning, match=r"before kithkin.ops.trusted\(\) was called; blocked serves"):
        assert dispatch._choose(None, torch.device("cuda"), BF16, USUAL) == "blocked"
    assert triton_backend._verdicts == {}


def test_tf32_and_float32_are_checked_apart(unchecked, monkeypatch):
    checked = []
    monkeypatch.setattr(triton_backend, "_verdict", lambda *_: checked.append(triton_backend._name_of(torch.float32)))
    trusted("cpu")
    try:
        torch.set_float32_matmul_precision("high")
        trusted("cpu")
        trusted("cpu")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert checked == ["float32", "tf32"]


def test_no_cpu_takes_the_interpreter_unasked(monkeypatch):
    absent = replace(dispatch.BACKENDS["native"], why_not=lambda *_: "native was not compiled")
    monkeypatch.setitem(dispatch.BACKENDS, "native", absent)
    assert available_backends("cpu", BF16)["triton"] is None
    assert chosen() == "blocked"
    assert not trusted("cpu", BF16)


@pytest.mark.parametrize(("right", "said"), [(True, "triton, its"), (False, "FAILED: blocked, for it errs")])
def test_the_doctor_tells_what_a_gpu_computes_attention_by(monkeypatch, right, said):
    from kithkin.cli.doctor import _choice

    assert _choice() == {}
    reason = None if right else "it errs"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("kithkin.ops.available_backends", lambda *more: {"triton": reason if more[1:] else None})
    monkeypatch.setattr("kithkin.ops.trusted", lambda *_: right)
    assert [value.startswith(said) for value in _choice().values()] == [True, True]
