"""Operators and constants that the compiler knows, made without importing it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from kithkin.ops.library import constant_when_compiled, operator


def test_a_picture_is_restored_without_the_compiler():
    """Importing it takes as long as all else that a command does before its first picture."""
    code = "import sys, numpy, kithkin\n"
    code += "kithkin.restore(kithkin.load_model('denoise-gaussian'), numpy.zeros((96, 96, 3), numpy.uint8))\n"
    code += "print([name for name in ('torch._dynamo', 'sympy', 'torch._inductor') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


def test_constants_are_marked_as_pytorch_marks_them():
    def ours(): ...

    def theirs(): ...

    assert vars(constant_when_compiled(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}


@operator("test_doubled", gradient=True)
def doubled(x: torch.Tensor, times: int) -> torch.Tensor:
    seen.append(torch.compiler.is_compiling())
    return torch.from_numpy(x.detach().numpy() * np.float32(2**times))


@torch.library.register_fake("kithkin::test_doubled")
def _(x: torch.Tensor, times: int) -> torch.Tensor:
    return torch.empty_like(x)


torch.library.register_autograd(
    "kithkin::test_doubled",
    lambda ctx, gradient: (doubled(gradient, ctx.times), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "times", inputs[1]),
)


@operator("test_plain", gradient=False)
def plain(x: torch.Tensor) -> torch.Tensor:
    return x.exp()


seen = []


def test_an_operator_is_one_node_of_a_compiled_graph_and_has_a_gradient():
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    x = torch.arange(3.0, requires_grad=True)
    compiled = torch.compile(lambda x: doubled(x, 3), fullgraph=True, backend=backend)
    for run in (lambda x: doubled(x, 3), compiled):
        (gradient,) = torch.autograd.grad(run(x).sum(), x)
        assert run(x).tolist() == [0, 8, 16]
        assert gradient.tolist() == [8, 8, 8]
    assert graphs == [[torch.ops.kithkin.test_doubled.default]]
    assert not any(seen)
    torch.library.opcheck(doubled, (x, 3))


def test_an_operator_without_a_gradient_says_so():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="kithkin::test_plain has no gradient"):
        plain(x).sum().backward()
