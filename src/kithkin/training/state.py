"""Everything a run must remember, and how it is saved and loaded.

A checkpoint is a folder ``step-00001000`` of small safetensors files. ``model`` and ``average`` are ordinary
checkpoints of a network; a folder that carries its final name is complete. It is the same whatever the number of
processes and however they share the network: rank 0 writes whole tensors, and hands them out again.
"""

import copy
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from kithkin.checkpoint import model_header, outline, read_tensors, weights_of, write_tensors
from kithkin.config import RunConfig
from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.files import sync_folder, write_whole
from kithkin.growth import grow
from kithkin.model import KiT
from kithkin.training.distributed import Ranks
from kithkin.training.muon import Muon, hidden_weights
from kithkin.training.precision import settled

KEPT = 2
"""Checkpoints of a run that stay: the last, and the one before in case a disk damages it."""
MOMENTS = ("exp_avg", "exp_avg_sq")  # Muon keeps the first alone

# Which patches meet, and how many: no parameter depends on these, so weights carry over. Sizes may grow.
_GROUPING = ("k", "n_hashes", "n_buckets", "hash_input", "hash_features", "rotation_seed")
_SIZES = ("width", "full_width", "ffn_ratio", "depth", "blocks")


@dataclass
class TrainState:
    """A run between two steps.

    Attributes:
        model: what is trained.
        average: its exponential moving average; the model itself where none is kept.
        optimizers: AdamW, or Muon and AdamW, each with its parameters.
        ranks: this process and the others.
        step: steps done.
        seconds: spent on them.
        losses: of the steps since the last row of the log, over the crops of this process, on its device.
        items: pictures that the run sees; 0 is unknown.
    """

    model: KiT
    average: KiT
    optimizers: tuple[torch.optim.Optimizer, ...]
    ranks: Ranks
    step: int = 0
    seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
    items: int = 0

    @classmethod
    def create(cls, config: RunConfig, ranks: Ranks, items: int = 0) -> "TrainState":
        """The state before the first step; the initial weights follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed every GPU as well
            model = KiT(config.network).to(ranks.device).train()
        model.set_backend(None if config.backend == "auto" else config.backend)
        average = copy.deepcopy(model).eval() if config.optimizer.ema_decay else model
        for network in {id(model): model, id(average): average}.values():
            ranks.shard(network)
        return cls(model, average, _optimizers(model, config), ranks, items=items)

    def start_from(self, model: KiT) -> None:
        """Take over the weights of a network that differs in its grouping at most, or is smaller
        (``kithkin.growth.grow``); raises InputError for another."""
        other, own = model.config.to_dict(), self.model.config.to_dict()
        changed = [key for key in own if other[key] != own[key] and key not in (*_GROUPING, *_SIZES)]
        if changed:
            differ = ", ".join(f"{key} = {other[key]}, not {own[key]}" for key in changed)
            raise InputError(f"train: the weights to start from are of another network: {differ}")
        grown = self.ranks.whole(self.model)
        grow(model, grown)
        for network in (self.model, self.average):
            set_model_state_dict(network, grown.state_dict(), options=StateDictOptions(full_state_dict=True))

    @torch.no_grad()
    def update_average(self, share: float | Tensor) -> None:
        """Move the average this share of the way to the model."""
        if self.average is not self.model:
            average: list[Tensor] = list(self.average.parameters())
            model: list[Tensor] = list(self.model.parameters())
            if isinstance(share, Tensor):
                torch._foreach_lerp_(average, model, [share] * len(model))
            else:
                torch._foreach_lerp_(average, model, share)

    def share_of_average(self, decay: float) -> float:
        """How far the average moves at this step; farther in the first ones, when the model is far from its end."""
        return 1 - min(decay, (1 + self.step) / (10 + self.step))

    def mean_losses(self) -> Tensor:
        """The losses since the last row of the log, over the crops of all processes; waits for the device."""
        return self.ranks.mean(torch.stack(self.losses).cpu() if self.losses else torch.empty(0))

    def finite_losses(self) -> Tensor:
        """``mean_losses``, or KithkinError where training has come apart: nothing is replaced by what is left of it."""
        losses = self.mean_losses()
        finite = losses.isfinite()
        if not finite.all():
            step = self.step - len(finite) + 1 + int(finite.long().argmin())
            raise KithkinError(
                f"train: the loss of step {step} isn't finite, and nothing was saved since; lower schedule.lr, and go "
                "on from the weights of the last checkpoint with `init` and another `out`, or start anew"
            )
        return losses

    def save(self, folder: Path, config: RunConfig) -> None:
        """Write a checkpoint below ``folder`` and remove all but the one before it; a run that is killed here, or a
        machine that loses its power, loses nothing."""
        losses = self.finite_losses().tolist()
        tensors = self._whole_tensors()
        run = {"step": self.step, "seconds": self.seconds, "losses": losses, "items": self.items}
        run["config"] = config.model_dump(mode="json")
        self.ranks.first(lambda: self._write(folder, tensors, run))

    def _whole_tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, file by file: whole and on the CPU on rank 0, nothing on the others."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors: dict[str, Any] = {"model": get_model_state_dict(self.model, options=whole)}
        if self.average is not self.model:
            tensors["average"] = get_model_state_dict(self.average, options=whole)
        kept: Any = get_optimizer_state_dict(self.model, self.optimizers, options=whole).get("state", {})
        return tensors | {
            moment: {name: state[moment] for name, state in kept.items() if moment in state} for moment in MOMENTS
        }

    def _write(self, folder: Path, tensors: dict[str, dict[str, Tensor]], run: dict[str, Any]) -> None:
        final = folder / f"step-{self.step:08d}"
        part = folder / f"{final.name}.part"
        for unfinished in folder.glob("step-*.part"):
            shutil.rmtree(unfinished, ignore_errors=True)
        for name, content in tensors.items():
            header = {} if name in MOMENTS else model_header(self.model.config)
            write_tensors({key: x.clone() for key, x in content.items()}, part / f"{name}.safetensors", header)
        try:
            write_whole(part / "run.json", json.dumps(run, indent=1))
            if final.exists():
                final.rename(folder / f"{final.name}.old.part")
            part.rename(final)
            sync_folder(folder)  # before what is older goes
            for old in (*checkpoints(folder)[:-KEPT], *folder.glob("step-*.old.part")):
                shutil.rmtree(old)
        except OSError as error:
            raise CheckpointError(f"{final} can't be written ({error.strerror or error})") from error

    def load(self, folder: Path) -> None:
        """Take over a checkpoint that ``save`` wrote, bit for bit. Rank 0 reads it."""
        run = self.ranks.first(lambda: read_run(folder))
        self.step, self.seconds, self.items = run["step"], run["seconds"], run["items"]
        self.losses = list(torch.tensor(run["losses"], device=self.ranks.device))
        read: dict[str, dict[str, Any]] = {"model": {}, "average": {}, "optimizer": {}}
        self.ranks.first(lambda: read.update(self._read(folder)))
        handed_out = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.ranks.kind is not None)
        set_model_state_dict(self.model, read["model"], options=handed_out)
        if self.average is not self.model:
            set_model_state_dict(self.average, read["average"], options=handed_out)
        # The groups and their settings stay those of the run as it is now.
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizer: dict[str, Any] = get_optimizer_state_dict(self.model, self.optimizers, options=whole)
        set_optimizer_state_dict(self.model, self.optimizers, optimizer | read["optimizer"], options=handed_out)

    def _read(self, folder: Path) -> dict[str, dict[str, Any]]:
        networks = ("model",) if self.average is self.model else ("model", "average")
        try:
            files = {
                name: weights_of(read_tensors(folder / f"{name}.safetensors")[0]) for name in (*networks, *MOMENTS)
            }
            for name in networks:
                outline(self.model.config, {key: x.shape for key, x in files[name].items()})
        except (CheckpointError, InputError) as error:
            raise CheckpointError(f"{folder}: {error}; {_remedy(folder)}") from error
        state = {}
        orthogonalised = {
            id(p) for o in self.optimizers if isinstance(o, Muon) for g in o.param_groups for p in g["params"]
        }
        for name, parameter in self.model.named_parameters():
            kept = MOMENTS[:1] if id(parameter) in orthogonalised else MOMENTS
            if any(name not in files[moment] or files[moment][name].shape != parameter.shape for moment in kept):
                raise CheckpointError(f"{folder} has no optimiser state for {name} that fits")
            moments = {moment: files[moment][name] for moment in kept}
            state[name] = {"step": torch.tensor(float(self.step)), **moments}
        return files | {"optimizer": {"state": state}}


def _optimizers(model: KiT, run: RunConfig) -> tuple[torch.optim.Optimizer, ...]:
    """Those of a run; the learning rate is set step by step. Only weights decay, no offsets or scales."""
    config = run.optimizer
    hidden = hidden_weights(model) if config.kind == "muon" else []
    taken = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    if not hidden:
        return (adamw,)
    given = {"momentum": config.momentum, "update_rms": config.update_rms}
    chosen = {name: value for name, value in given.items() if value is not None}
    dtype = getattr(torch, settled(run, hidden[0].device).precision)
    return Muon(hidden, lr=0.0, weight_decay=config.weight_decay, dtype=dtype, **chosen), adamw


class _Written(BaseModel):
    """What ``TrainState.save`` writes of a run beside the tensors."""

    step: Annotated[int, Field(ge=0, lt=10**9)]
    seconds: float
    losses: list[float | list[float]]
    config: dict[str, Any]
    items: int = 0


def read_run(folder: Path) -> dict[str, Any]:
    """What a checkpoint knows of its run beside the tensors; raises CheckpointError where it is damaged."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return _Written.model_validate(run, strict=True).model_dump()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}); {_remedy(folder)}") from error


def _remedy(folder: Path) -> str:
    """What to do about a damaged checkpoint."""
    older = [other for other in checkpoints(folder.parent) if other < folder]
    if older:
        return f"remove it, and the run goes on from {older[-1].name}"
    return "start anew, from its weights with `init`"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below a run's folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))
