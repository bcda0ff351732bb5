"""The operator as PyTorch sees it: compilers, export, autocast, checkpoints, several backward passes, processes."""

import os
import socket
import time
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kithkin.layers import KNNLocalAttention, KNNTransformerBlock
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.ops import available_backends, group_patches, knn_local_attention

import forked

BACKENDS = [name for name in ("native", "blocked") if available_backends()[name] is None]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def problem(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 21, 4, 6, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    return qkv, group_patches(qkv[2].float(), k=4, n_hashes=2)


def block(backend=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = KNNTransformerBlock(16, n_hashes=2)
    made.attention.backend = backend
    return made, torch.randn(1, 24, 28, 16, generator=torch.Generator().manual_seed(1))


def gradients(run, module, x):
    x = x.clone().requires_grad_()
    out = run(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]


@each_backend
@pytest.mark.parametrize("weighting", ["softmax", "paper"])
def test_the_operators_are_sound_to_torch(backend, weighting):
    """Schema, fake tensors, autograd registration, and the compiler's view with symbolic sizes."""
    qkv, groups = problem()
    rest = (groups.order, None, groups.k, groups.look_back, weighting == "paper", 2, backend)
    # Second-order gradients are not registered, so the compiler's check goes through the first-order ones alone.
    torch.library.opcheck(torch.ops.kithkin.knn_attention, (*qkv, *rest))
    out, norm = torch.ops.kithkin.knn_attention(*qkv, *rest)
    detached = [x.detach() for x in (out, *qkv, out, norm)]
    torch.library.opcheck(torch.ops.kithkin.knn_attention_backward, (*detached, *rest))


@each_backend
def test_a_compiled_block_is_one_graph_with_the_same_values_and_gradients(backend):
    module, x = block(backend)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(gradients(compiled, module, x), gradients(module, module, x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_exported_network_gives_the_same_picture():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KiT(KiTConfig(width=8, n_stages=1, depth=1, n_hashes=2)).eval()
    nn.init.normal_(model.head.conv3.weight, std=0.1)  # or it would return its input
    image, other = torch.rand(2, 1, 3, 96, 136, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(model, (image,))
    assert not torch.equal(model(other), other)
    torch.testing.assert_close(exported.module()(other), model(other))
    assert "kithkin.knn_attention" in str(exported.graph)


@each_backend
def test_activation_checkpoints_give_the_same_gradients(backend):
    module, x = block(backend)
    again = gradients(lambda x: checkpoint(module, x, use_reentrant=False), module, x)
    for found, wanted in zip(again, gradients(module, module, x), strict=True):
        assert torch.equal(found, wanted)


@each_backend
def test_under_autocast_a_block_runs_in_bfloat16_and_keeps_float32_gradients(backend):
    module, x = block(backend)
    with torch.autocast("cpu", torch.bfloat16):
        attended = module.attention(x)
        half = gradients(module, module, x)
    assert attended.dtype == torch.float32  # what goes to the residual stream
    assert half[0].dtype == torch.float32
    assert not torch.equal(half[0], module(x))
    full = gradients(module, module, x)
    largest = max(x.norm() for x in full[2:])  # a key's offset has no influence: all rounding
    for found, wanted in zip(half, full, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() <= 0.05 * max(wanted.norm(), largest)


@each_backend
def test_a_second_backward_pass_gives_the_same_gradients(backend):
    qkv, groups = problem()
    loss = knn_local_attention(*qkv, groups, backend=backend).square().sum()
    first, second = torch.autograd.grad(loss, qkv, retain_graph=True), torch.autograd.grad(loss, qkv)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_of_gradients_are_refused_but_by_the_reference():
    qkv, groups = problem(torch.float64)
    for backend in ("blocked", "reference"):
        loss = knn_local_attention(*qkv, groups, backend=backend).square().sum()
        first = torch.autograd.grad(loss, qkv, create_graph=True)
        if backend == "reference":
            assert torch.autograd.grad(first[0].square().sum(), qkv)[0].abs().sum() > 0
        else:
            with pytest.raises(RuntimeError, match="knn_attention_backward"):
                torch.autograd.grad(first[0].square().sum(), qkv)


def _rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(minutes=10))
    module, _ = block()
    wrapped = nn.parallel.DistributedDataParallel(module)
    x = torch.randn(2, 24, 28, 16, generator=torch.Generator().manual_seed(1))[rank : rank + 1]
    checkpoint(wrapped, x, use_reentrant=False).square().sum().backward()
    torch.save([p.grad for p in module.parameters()], folder / f"{rank}.pt")
    while not (folder / f"{1 - rank}.pt").exists():
        time.sleep(0.05)
    # Taking the wrapper down can wait forever: it holds the interpreter's lock while it joins Gloo's thread, which
    # wants that lock to free the last reduction (seen in torch 2.13).
    os._exit(0)


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [forked.context().Process(target=_rank, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    module, _ = block()
    x = torch.randn(2, 24, 28, 16, generator=torch.Generator().manual_seed(1))
    (module(x).square().sum() / 2).backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for one, other, parameter in zip(*found, module.parameters(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-4)


def test_a_layer_of_its_own_compiles():
    layer = KNNLocalAttention(8, n_hashes=1)
    x = torch.randn(1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), layer(x))
