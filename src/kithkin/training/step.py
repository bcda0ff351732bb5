"""One step of training: loss, gradients, optimisers, average. It needs no data set and writes no file."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kithkin.config import RunConfig
from kithkin.data import Batch
from kithkin.losses import restoration_loss
from kithkin.training.distributed import Ranks
from kithkin.training.schedule import learning_rate
from kithkin.training.state import TrainState


class TrainingStep:
    """The step of a run, with the state that it changes.

        step = TrainingStep(config, "cuda")
        step.run([batch])

    Nothing in ``run`` waits for the device: losses stay there, in ``state.losses``, until someone reads them.

    Args:
        config: the run.
        device: of the network; left out where ``state`` is given.
        state: what to go on from; None begins anew.

    Attributes:
        state: the network, its average, the optimisers, how many steps were done.
        steps: of the whole run.
        lr: learning rate of the last step.
    """

    def __init__(self, config: RunConfig, device: str = "cpu", *, state: TrainState | None = None) -> None:
        self.config = config
        self.state = state or TrainState.create(config, Ranks(device))
        self.device = torch.device(self.state.ranks.device)
        self.steps, self.warmup = config.schedule.in_steps(self.state.items)
        self.network = self.state.ranks.network(self.state.model)
        self.lr = 0.0

    def run(self, parts: Sequence[Batch]) -> None:
        """One step of the optimisers on the parts of a batch, all of one size, on the device of the network."""
        state, schedule = self.state, self.config.schedule
        self.lr = learning_rate(
            state.step, steps=self.steps, warmup=self.warmup, lr=schedule.lr, final_lr=schedule.final_lr
        )
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr
        rotations = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + state.step + 1)
        state.model.train()
        state.model.redraw_rotations(rotations)
        loss = self._move(parts)
        state.step += 1
        state.update_average(self.config.optimizer.ema_decay)
        state.losses.append(loss)

    def _move(self, parts: Sequence[Batch]) -> Tensor:
        """Move the weights by the gradients of the parts; the loss over all of them."""
        model, ranks = self.state.model, self.state.ranks
        model.zero_grad()
        losses = []
        for i, part in enumerate(parts, start=1):
            with ranks.summing(self.network, last=i == len(parts)):
                loss = self._loss(part) / len(parts)
                loss.backward()
            losses.append(loss.detach())
        if self.config.optimizer.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.optimizer.grad_clip)
        for optimizer in self.state.optimizers:
            optimizer.step()
        return torch.stack(losses).sum()

    def _loss(self, batch: Batch) -> Tensor:
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            restored = self.network(batch.degraded)
        loss = self.config.loss
        return restoration_loss(restored.float(), batch.target, edge_weight=loss.edge_weight, epsilon=loss.epsilon)
