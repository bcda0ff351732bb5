"""Everything a run must remember, and its way to disk and back.

A checkpoint is a folder ``step-00001000`` of small safetensors files. ``model`` and ``average`` are ordinary
checkpoints of a network; a folder that carries its final name is complete.
"""

import copy
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kithkin.checkpoint import read_tensors, save_model, weights_of, write_tensors
from kithkin.config import RunConfig
from kithkin.errors import CheckpointError, InputError
from kithkin.model import KiT

MOMENTS = ("exp_avg", "exp_avg_sq")

# Which patches meet, and how many: no parameter depends on these, so weights carry over.
_GROUPING = ("k", "n_hashes", "n_buckets", "hash_input", "hash_features", "n_pairs", "rotation_seed")


@dataclass
class TrainState:
    """A run between two steps.

    Attributes:
        model: what is trained.
        average: its exponential moving average; the model itself where none is kept.
        optimizer: AdamW.
        step: steps done.
        seconds: spent on them.
        losses: of the steps since the last row of the log.
    """

    model: KiT
    average: KiT
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)

    @classmethod
    def create(cls, config: RunConfig, device: str) -> "TrainState":
        """The state before the first step; the initial weights follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed every GPU as well
            model = KiT(config.network).to(device).train()
        average = copy.deepcopy(model).eval() if config.optimizer.ema_decay else model
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.optimizer.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return cls(model, average, torch.optim.AdamW(groups, lr=0.0, betas=config.optimizer.betas, fused=True))

    def start_from(self, model: KiT) -> None:
        """Take over the weights of a network that differs in its grouping at most; raises InputError for another."""
        other, own = model.config.to_dict(), self.model.config.to_dict()
        changed = [key for key in own if other[key] != own[key] and key not in _GROUPING]
        if changed:
            differ = ", ".join(f"{key} = {other[key]}, not {own[key]}" for key in changed)
            raise InputError(f"train: the weights to start from are of another network: {differ}")
        self.model.load_state_dict(model.state_dict())
        self.average.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the model; quicker in the first steps, when the model is far from its end."""
        if self.average is not self.model:
            share = 1 - min(decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), share)

    def save(self, folder: Path, config: RunConfig) -> Path:
        """Write a checkpoint below ``folder`` and remove the older ones; a run that is killed here loses nothing."""
        final = folder / f"step-{self.step:08d}"
        part = folder / f"{final.name}.part"
        for unfinished in folder.glob("step-*.part"):
            shutil.rmtree(unfinished, ignore_errors=True)
        save_model(self.model, part / "model.safetensors")
        if self.average is not self.model:
            save_model(self.average, part / "average.safetensors")
        for moment, tensors in self._moments().items():
            write_tensors(tensors, part / f"{moment}.safetensors", {})
        losses = [loss.item() for loss in self.losses]
        run = {"step": self.step, "seconds": self.seconds, "losses": losses, "config": config.model_dump(mode="json")}
        (part / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        for old in checkpoints(folder)[:-1]:
            shutil.rmtree(old)
        return final

    def load(self, folder: Path) -> None:
        """Take over a checkpoint that :meth:`save` wrote, bit for bit."""
        run = read_run(folder)
        self.step, self.seconds = run["step"], run["seconds"]
        self.losses = [torch.tensor(loss) for loss in run["losses"]]
        self.model.load_state_dict(weights_of(read_tensors(folder / "model.safetensors")[0]))
        if self.average is not self.model:
            self.average.load_state_dict(weights_of(read_tensors(folder / "average.safetensors")[0]))
        moments = {moment: read_tensors(folder / f"{moment}.safetensors")[0] for moment in MOMENTS}
        for name, parameter in self.model.named_parameters():
            if name not in moments[MOMENTS[0]]:
                raise CheckpointError(f"{folder} has no optimiser state for {name}")
            state = {moment: moments[moment][name].to(parameter.device) for moment in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **state}

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        named = dict(self.model.named_parameters())
        return {m: {n: self.optimizer.state[p][m].cpu() for n, p in named.items()} for m in MOMENTS}


def read_run(folder: Path) -> dict[str, Any]:
    """What a checkpoint knows of its run beside the tensors; raises CheckpointError where it is damaged."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return {key: run[key] for key in ("step", "seconds", "losses", "config")}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}); remove it and resume from an older one") from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below a run's folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))
