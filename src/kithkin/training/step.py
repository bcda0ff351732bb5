"""One step of training: loss, gradients, optimisers, average. It needs no data set and writes no file."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kithkin.config import RunConfig
from kithkin.data.sampling import Batch
from kithkin.losses import restoration_loss
from kithkin.training.distributed import Ranks
from kithkin.training.graph import CudaRecorder, GraphedStep, Recorder
from kithkin.training.precision import settled, tf32
from kithkin.training.schedule import learning_rate
from kithkin.training.state import TrainState


class TrainingStep:
    """The step of a run, with the state that it changes.

        step = TrainingStep(config, "cuda")
        step.run([batch])

    Nothing in ``run`` waits for the device: losses stay there, in ``state.losses``, until someone reads them. On CUDA a
    process on its own captures the step as a graph after three steps and replays it from then on; several processes
    don't, for what they send each other is not captured. Float32 is multiplied in TF32 there.

    Args:
        config: the run.
        device: of the network; left out where ``state`` is given.
        state: what to go on from; None begins anew.
        note: called with a sentence where the step runs otherwise than that; None warns.
        recorder: captures the step and replays it; None takes CUDA's graphs on CUDA, and none elsewhere.

    Attributes:
        state: the network, its average, the optimisers, how many steps were done.
        steps: of the whole run.
        lr: learning rate of the last step.
    """

    def __init__(
        self,
        config: RunConfig,
        device: str = "cpu",
        *,
        state: TrainState | None = None,
        note: Callable[[str], None] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.state = state or TrainState.create(config, Ranks(device))
        self.device = torch.device(self.state.ranks.device)
        self.config = settled(config, self.device)
        self.steps, self.warmup = config.schedule.in_steps(self.state.items)
        self.network = self.state.ranks.network(self.state.model)
        self.lr = 0.0
        note = note or (lambda text: warnings.warn(text, stacklevel=4))
        if recorder is None and self.device.type == "cuda":
            if self.state.ranks.kind is None:
                recorder = CudaRecorder(self.device)
            else:
                note("several processes train together, so the step is not captured as a CUDA graph")
        self._step: Callable[[Sequence[Batch]], Tensor] = self._move
        # What changes from step to step: a graph reads it from memory.
        self._rate: Tensor | None = None
        self._share: Tensor | None = None
        if recorder is not None:
            self._rate, self._share = torch.zeros(2, device=self.device).unbind()
            self._step = GraphedStep(self._move, recorder, note)

    def run(self, parts: Sequence[Batch]) -> None:
        """One step of the optimisers on the parts of a batch, all of one size, on the device of the network."""
        state, schedule = self.state, self.config.schedule
        self.lr = learning_rate(
            state.step, steps=self.steps, warmup=self.warmup, lr=schedule.lr, final_lr=schedule.final_lr
        )
        state.step += 1
        if self._rate is not None and self._share is not None:
            self._rate.fill_(self.lr)
            self._share.fill_(state.share_of_average(self.config.optimizer.ema_decay))
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr if self._rate is None else self._rate
                if "capturable" in group:
                    group["capturable"] = self._rate is not None and self.device.type == "cuda"
        rotations = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + state.step)
        state.model.train()
        state.model.redraw_rotations(rotations)
        with tf32(self.device):
            state.losses.append(self._step(parts))

    def _move(self, parts: Sequence[Batch]) -> Tensor:
        """Move the weights by the gradients of the parts, and the average with them; the loss over all of them."""
        state, config = self.state, self.config.optimizer
        state.model.zero_grad()
        losses = []
        for i, part in enumerate(parts, start=1):
            with state.ranks.summing(self.network, last=i == len(parts)):
                loss = self._loss(part) / len(parts)
                loss.backward()
            losses.append(loss.detach())
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
        for optimizer in state.optimizers:
            optimizer.step()
        state.update_average(state.share_of_average(config.ema_decay) if self._share is None else self._share)
        return torch.stack(losses).sum()

    def _loss(self, batch: Batch) -> Tensor:
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            restored = self.network(batch.degraded)
        loss = self.config.loss
        return restoration_loss(restored.float(), batch.target, edge_weight=loss.edge_weight, epsilon=loss.epsilon)
