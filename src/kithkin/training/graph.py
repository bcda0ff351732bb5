"""A training step as one CUDA graph: the host launches one graph instead of some hundred kernels.

What a graph holds reads and writes the memory that was there at its capture, and knows no number that Python computes:
inputs are copied into buffers of its own, and what changes from step to step (learning rate, share of the average) lies
in tensors.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from kithkin.data.sampling import Batch

WARM_UP = 3
"""Steps before the capture, in which kernels are compiled and libraries take their work space."""

Move = Callable[[Sequence[Batch]], Tensor]


class Recorder(Protocol):
    """What can capture a function and replay it."""

    def warm_up(self, function: Callable[[], Tensor]) -> Tensor:
        """Run it where it will be captured."""

    def capture(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """(what replays it, the tensor that its result is found in). Nothing is computed before it is replayed."""


class CudaRecorder:
    """``torch.cuda.graph`` on a stream of its own. Autograd and the libraries remember the stream of the warm-up, so
    the capture takes the same, which can't be the default one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Tensor]) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads read ahead meanwhile, and may allocate.
        recorded = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), recorded:
            result = function()
        return graph.replay, result


class GraphedStep:
    """A step that is captured after its warm-up and replayed from then on; captured anew for parts of another shape.

    Args:
        move: the step: the parts of a batch -> the loss. It must not wait for the device.
        recorder: captures and replays it.
        note: called with a sentence where the capture fails; steps then run one kernel at a time.
    """

    def __init__(self, move: Move, recorder: Recorder, note: Callable[[str], None]) -> None:
        self._move, self._recorder, self._note = move, recorder, note
        self._shapes: list[tuple[int, ...]] = []
        self._warm = 0
        self._replay: Callable[[], None] | None = None
        self._inputs: list[Batch] = []
        self._loss: Tensor | None = None
        self.failed = False

    def __call__(self, parts: Sequence[Batch]) -> Tensor:
        """One step; the loss on the device, in memory of its own."""
        if self.failed:
            return self._move(parts)
        shapes = [tuple(x.shape) for part in parts for x in part]
        if shapes != self._shapes:
            self._shapes, self._warm, self._replay = shapes, 0, None
        if self._warm < WARM_UP:
            self._warm += 1
            return self._recorder.warm_up(lambda: self._move(parts))
        if self._replay is None and not self._captured(parts):
            return self._move(parts)
        for buffers, part in zip(self._inputs, parts, strict=True):
            for buffer, given in zip(buffers, part, strict=True):
                buffer.copy_(given, non_blocking=True)
        assert self._replay is not None
        assert self._loss is not None
        self._replay()
        return self._loss.clone()

    def _captured(self, parts: Sequence[Batch]) -> bool:
        self._inputs = [Batch(*(torch.empty_like(x) for x in part)) for part in parts]
        try:
            self._replay, self._loss = self._recorder.capture(lambda: self._move(self._inputs))
        except RuntimeError as error:
            self.failed, self._inputs = True, []
            first = str(error).strip().partition("\n")[0]
            self._note(f"the step can't be captured as a CUDA graph ({first}); its kernels are started one by one")
        return not self.failed
