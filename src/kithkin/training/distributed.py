"""The processes that train one network together: a single one, or those that torchrun started.

For a single process every method of ``Ranks`` hands its argument back, so the loop reads the same for one and for
many.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import signature
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from kithkin.config import DistributedConfig
from kithkin.errors import InputError, KithkinError
from kithkin.layers import BLOCKS
from kithkin.model import KiT

T = TypeVar("T")

# What torchrun tells every process that it starts.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """One process of a run, and what it does together with the others.

    Attributes:
        device: of this process.
        rank: its number; 0 alone writes and reports.
        world_size: how many there are.
        kind: how they share the network, see ``kithkin.config.DistributedConfig``; None for a process on its own.
    """

    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    kind: Literal["ddp", "fsdp"] | None = None
    wrappers: list[DistributedDataParallel] = field(default_factory=list, repr=False, compare=False)

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags are up on any process. The votes stay on the CPU, so that no GPU is waited for."""
        if self.kind is None:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor on the CPU."""
        if self.kind is None:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order of rank."""
        if self.kind is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def first(self, act: Callable[[], T]) -> T:
        """Let rank 0 act, and give every process what came of it: the result, or the KithkinError raised there."""
        if self.kind is None:
            return act()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = act()
            except KithkinError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def shard(self, model: KiT) -> None:
        """With FSDP, leave a part of every parameter on each process; before an optimiser takes them."""
        if self.kind != "fsdp":
            return
        kind = torch.device(self.device).type
        mesh = init_device_mesh(kind, (self.world_size,))
        blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
        for module in (*blocks, model):
            sharded = fully_shard(module, mesh=mesh)
            sharded.set_force_sum_reduction_for_comms(kind == "cpu")  # gloo takes no means

    def network(self, model: KiT) -> nn.Module:
        """What a training step calls instead of the model: its gradients are the mean over the processes."""
        if self.kind != "ddp":
            return model
        # The only buffers are rotations, which every process draws for itself from the same generator.
        renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        self.wrappers.append(DistributedDataParallel(model, gradient_as_bucket_view=True, **options))
        return self.wrappers[-1]

    def summing(self, network: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one part of a step: only the last meets the other processes."""
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(last)
        elif isinstance(network, DistributedDataParallel) and not last:
            return network.no_sync()
        return nullcontext()

    def whole(self, model: KiT) -> KiT:
        """The model with all its parameters; a copy where they are spread over the processes."""
        if self.kind != "fsdp":
            return model
        tensors = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        with torch.random.fork_rng(devices=[]):
            copied = KiT(model.config).to(self.device)
        copied.load_state_dict(tensors)
        return copied


def launched_rank() -> int:
    """The number of this process among those that torchrun started; 0 where it didn't."""
    return int(os.environ["RANK"]) if _launched() else 0


@contextmanager
def joined(device: str, config: DistributedConfig) -> Iterator[Ranks]:
    """Meet the other processes that torchrun started, and part at the end; a process on its own meets nobody.

    Args:
        device: ``"cuda"`` becomes the GPU of this process.

    Raises:
        InputError: the device does not serve several processes, or torchrun could not start them again.
    """
    if not _launched():
        yield Ranks(device)
        return
    device = _own_device(device)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=config.timeout)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"start-{_fresh_start()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    ranks = Ranks(device, dist.get_rank(), dist.get_world_size(), config.kind)
    try:
        yield ranks
    except KithkinError:
        _part(ranks)
        raise
    # After any other error a process may be lost: parting would wait for it.
    _part(ranks)


def _part(ranks: Ranks) -> None:
    """Leave the other processes, so that this one can end.

    What DDP made in C++ goes first, while the group lives on in Python. If it went last, it would take the group down
    with the interpreter's lock held, and wait for Gloo's thread, which may want that lock to free the last reduction
    (seen in torch 2.13); freed from Python, the group gives the lock away.
    """
    for wrapper in ranks.wrappers:
        wrapper.logger = None
        wrapper.reducer = None
    ranks.wrappers.clear()
    gc.collect()  # the state of the run refers to itself in places
    dist.destroy_process_group()


def _launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED)


def _fresh_start() -> str:
    """What tells this start of the processes from those before.

    torchrun keeps one store for all starts. Without a name of its own, a process that was started again finds the
    addresses of dead ones there and waits for them; and on several nodes a torchrun that joins later is told none.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    nodes, restarts = (int(os.environ.get(name, 0)) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if shared and nodes > 1 and restarts > 0:
        raise InputError(
            "train: on several nodes a job can only be started again where torchrun makes a new store each time; "
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, on every node"
        )
    # Counted by each torchrun for itself, so it means nothing where several share no store.
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if shared else "0"


def _own_device(device: str) -> str:
    if device == "cpu":
        return device
    if torch.device(device).type != "cuda":
        raise InputError(f"train: several processes train on cpu or cuda, not on {device!r}; give another `device`")
    local, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= n_gpus:
        raise InputError(
            f"train: process {local} of this machine has no GPU of its own, there are {n_gpus}; "
            f"start torchrun with --nproc-per-node {n_gpus}, or train with `device` cpu"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"
