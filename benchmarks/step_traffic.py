"""What a training step's operations read and write, each for itself, and how many there are: counted, not measured.

    python benchmarks/step_traffic.py [RECIPE]

Divided by a memory's rate it bounds the step where nothing is fused. Crops of 128² in bfloat16; views count nothing,
and the operator of attention counts as one operation.
"""

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kithkin.config import load_config
from kithkin.data.sampling import Batch
from kithkin.training.step import TrainingStep

CROP, CROPS = 128, 2


class Traffic(TorchDispatchMode):
    """Counts the operations that run under it, and the bytes of their operands and results."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if made and not view:
            places = {x.data_ptr() for x in given}
            self.bytes += sum(x.nbytes for x in given) + sum(x.nbytes for x in made if x.data_ptr() not in places)
            self.operations += 1
        return result


def main(recipe: str = "denoise-gaussian-small") -> None:
    changes = {"precision": "bfloat16", "data.crop": CROP, "schedule.batch_size": CROPS}
    step = TrainingStep(load_config(recipe, changes))
    batch = Batch(*torch.rand(2, CROPS, 3, CROP, CROP))
    step.run([batch])
    with Traffic() as traffic:
        step.run([batch])
    print(f"{recipe}: {traffic.bytes / CROPS / 1e6:.0f} MB a crop, {traffic.operations:,} operations a step")


if __name__ == "__main__":
    main(*sys.argv[1:])
