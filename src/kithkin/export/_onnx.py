"""The operators of ``kithkin.ops`` in those of ONNX, as the table that ``torch.onnx.export`` takes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
import onnxscript.evaluator
import torch
from onnxscript import opset20
from onnxscript.optimizer import fold_constants_ir

op: Any = opset20  # whose own types leave out that it takes lists and numbers

BLOCK_ELEMENTS = 1 << 19
"""Logits of a block of chunks: 2 MiB."""


def gated_block(x: Any, parameters: Sequence[Any], epsilon: float) -> Any:
    """``kithkin.ops.gated_block``. The halves that gate each other have products and a convolution of their own, so
    that nothing is cut."""
    norm1, bias1, *first = parameters[:8]
    norm2, bias2, *second = parameters[8:]
    rows, lay = _rows(x)
    normed = _norm(rows, norm1, bias1, epsilon)
    halves = zip(*map(_halves, first[:4]), strict=True)
    left, right = (_depthwise(_linear(normed, w, b), c, d, lay, x.shape[3]) for w, b, c, d in halves)
    rows = op.Add(rows, _linear(op.Mul(left, right), *first[4:]))
    normed = _norm(rows, norm2, bias2, epsilon)
    left, right = (_linear(normed, *half) for half in zip(*map(_halves, second[:2]), strict=True))
    return lay(op.Add(rows, _linear(op.Mul(left, right), *second[2:])))


def feed_forward(x: Any, parameters: Sequence[Any], epsilon: float) -> tuple[Any, Any]:
    """``kithkin.ops.feed_forward``, and the widened map, which nothing reads."""
    norm, bias, *widen, stencils, stencil_bias, narrow, narrow_bias = parameters
    rows, lay = _rows(x)
    hidden = _linear(_norm(rows, norm, bias, epsilon), *widen)
    inner = op.Gelu(_depthwise(op.Gelu(hidden), stencils, stencil_bias, lay, stencils.shape[0]))
    return lay(op.Add(_linear(inner, narrow, narrow_bias), rows)), lay(hidden)


def _rows(x: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A map (B, H, W, C) as rows (B·H·W, C), and what lays such rows out as a map."""
    # Its own shape, again: onnxruntime would take the shape before a transposition, and keep a second copy for that.
    shape = op.Shape(op.Reshape(x, [0, 0, 0, -1]), start=0, end=3)
    return op.Reshape(x, [-1, x.shape[3]]), lambda rows: op.Reshape(
        rows, op.Concat(shape, op.Constant(value_ints=[-1]), axis=0)
    )


def _norm(rows: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    return op.LayerNormalization(rows, weight, bias, axis=-1, epsilon=epsilon)[0]


def _halves(x: Any) -> Any:
    return op.Split(x, axis=0, num_outputs=2)


def _linear(rows: Any, weight: Any, bias: Any) -> Any:
    return op.Gemm(rows, weight, bias, transB=1)


def _depthwise(rows: Any, weight: Any, bias: Any, lay: Callable[[Any], Any], channels: int) -> Any:
    planes = op.Transpose(lay(rows), perm=[0, 3, 1, 2])
    planes = op.Conv(planes, weight, bias, pads=[1, 1, 1, 1], group=channels)
    return op.Reshape(op.Transpose(planes, perm=[0, 2, 3, 1]), [-1, channels])


def knn_attention(
    query: Any,
    key: Any,
    value: Any,
    order: Any,
    neighbors: Any,
    k: int,
    look_back: bool,
    paper: bool,
    n_heads: int,
    *rest: Any,
) -> tuple[Any, Any]:
    """``kithkin.ops.knn_local_attention`` of one picture: a loop over blocks of chunks, for each round in turn.

    The loop of a later round joins its result with that of the rounds before, as ``kithkin.ops.blocked`` does.
    """
    pixels, channels = query.shape[2:]
    width, scale = channels // n_heads, math.sqrt(n_heads / channels)
    seen = k * (1 + look_back)
    step = max(1, BLOCK_ELEMENTS // (k * seen * pixels**2 * n_heads))
    rows = [op.Reshape(x, [-1, pixels * channels]) for x in (op.Mul(query, scale), key, value)]

    def heads(x: Any, index: Any, size: int) -> Any:
        """Patches of each chunk, (step, size), as (step·heads, size·P, width)."""
        found = op.Gather(x, index, axis=0)
        if n_heads > 1:
            found = op.Transpose(op.Reshape(found, [step, size * pixels, n_heads, width]), perm=[0, 2, 1, 3])
        return op.Reshape(found, [step * n_heads, size * pixels, width])

    def attend(own: Any, others: Any, place: Any, *before: Any) -> list[Any]:
        q, k_, v = heads(rows[0], own, k), heads(rows[1], others, seen), heads(rows[2], others, seen)
        logits = op.MatMul(q, op.Transpose(k_, perm=[0, 2, 1]))
        attention = op.Softmax(op.Reshape(logits, [-1, k, pixels, seen, pixels]), axis=-1)
        flat = [op.Reshape(x, [-1, size, pixels * width]) for x, size in ((q, k), (k_, seen))]
        traces = op.MatMul(flat[0], op.Transpose(flat[1], perm=[0, 2, 1]))
        traces = op.Reshape(traces, [step, n_heads, k, seen])
        valid = op.Less(op.Reshape(place, [step, 1, 1, seen]), count)
        if paper:
            weights, top = op.Where(valid, traces, 0.0), []
        else:
            traces = op.Where(valid, op.Mul(traces, 1 / pixels), torch.finfo(torch.float32).min)
            top = [op.ReduceMax(traces, [-1])]
            weights = op.Exp(op.Sub(traces, top[0]))
        weighted = op.Mul(attention, op.Reshape(weights, [-1, k, 1, seen, 1]))
        out = op.MatMul(op.Reshape(weighted, [-1, k * pixels, seen * pixels]), v)
        found = [op.Reshape(out, [step, n_heads, k, pixels * width]), op.ReduceSum(weights, [-1]), *top]
        found = [op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [step * k, n_heads, -1]) for x in found]
        if before:
            old = [op.Gather(x, before[0], axis=0) for x in results]
            if not paper:  # both are multiples of exp(-top) of their own
                highest = op.Max(found[2], old[2])
                for part in (found, old):
                    share = op.Exp(op.Sub(part[2], highest))
                    part[:] = op.Mul(part[0], share), op.Mul(part[1], share)
            found = [op.Add(x, y) for x, y in zip(found, old, strict=True)] + ([] if paper else [highest])
        return [op.Div(found[0], found[1])] if is_last else found

    count = op.Shape(order, start=2, end=3)
    zero, end = op.Constant(value_int=0), op.Mul(_ceil(count, step * k), step * k)
    places = op.Range(zero, op.Squeeze(end), op.Constant(value_int=1))
    around = op.Mul(_ceil(count, k), k)
    chunks = [op.Reshape(x, [-1, step, k]) for x in (places, op.Mod(op.Add(places, op.Sub(around, k)), around))]
    sides = op.Concat(*chunks[: 1 + look_back], axis=2)
    last = op.Sub(count, 1)
    results: Sequence[Any] = ()
    inverse: Any = None
    for j in range(order.shape[1]):
        sorted_ = op.Reshape(op.Gather(order, [j], axis=1), [-1])
        own, others = (op.Gather(sorted_, op.Min(x, last), axis=0) for x in (chunks[0], sides))
        before = [op.Reshape(op.Gather(inverse, own, axis=0), [-1, step * k])] if results else []
        is_last = j == order.shape[1] - 1
        lengths = (pixels * width, 1, 1)  # of the result, of the sum of weights, of what was taken out of them
        found = zip(_scan(attend, own, others, sides, *before), lengths, strict=False)
        results = [op.Reshape(x, [-1, n_heads, length]) for x, length in found]
        numbers = op.Range(zero, op.Squeeze(count), op.Constant(value_int=1))
        inverse = op.ScatterElements(numbers, sorted_, numbers, axis=0)
    out = op.Reshape(op.Gather(results[0], inverse, axis=0), [-1, n_heads, pixels, width])
    sums = op.ReduceSum(out, [2, 3], keepdims=0)  # nothing reads them: the operator's second result is for gradients
    return op.Reshape(op.Transpose(out, perm=[0, 2, 1, 3]), [1, -1, pixels, channels]), sums


def _ceil(count: Any, size: int) -> Any:
    return op.Div(op.Add(count, size - 1), size)


def _scan(body: Callable[..., list[Any]], *inputs: Any) -> Sequence[Any]:
    """ONNX's Scan: ``body`` of each slice along the first dimension of inputs of integers, its results stacked."""
    recorder: Any = onnxscript.evaluator.default()
    inner = type(recorder)(recorder.opset, recorder.constant_farm)
    slices = [type(x)(recorder.opset, name=f"slice_{i}_{id(inner)}") for i, x in enumerate(inputs)]
    for piece in slices:
        piece.dtype = onnx_ir.DataType.INT64
    with onnxscript.evaluator.default_as(inner):
        outputs = body(*slices)
    graph = onnx_ir.Graph(slices, outputs, nodes=inner.nodes, name="block")
    node = onnx_ir.node("Scan", inputs, {"body": graph, "num_scan_inputs": len(inputs)}, num_outputs=len(outputs))
    recorder.nodes.append(node)
    return node.outputs


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.kithkin.gated_block.default: gated_block,
    torch.ops.kithkin.feed_forward.default: feed_forward,
    torch.ops.kithkin.knn_attention.default: knn_attention,
    # The table of torch.onnx has these under the names that decomposing gives them.
    torch.ops.aten.item.default: lambda x: op.Identity(x),
    torch.ops.aten.relu_.default: lambda x: op.Relu(x),
    torch.ops.aten.to.dtype: lambda x, dtype, *_: op.Cast(x, to=dtype),
}


def tidy(model: onnx_ir.Model) -> None:
    """What a file needs beside the translation: no arithmetic on constants alone, nothing twice, names that are
    unique, and none of the exporter's own remarks, which name the paths of this machine."""
    fold_constants_ir(model)
    for step in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.NameFixPass(),
    ):
        step(model)
