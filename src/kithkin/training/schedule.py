"""The learning rate over the run."""

import math


def learning_rate(step: int, *, steps: int, warmup: int, lr: float, final_lr: float) -> float:
    """Linear warm-up to ``lr`` over ``warmup`` steps, then half a cosine to ``final_lr`` at the last step (Sec. 4.1).

    Args:
        step: from 0 to ``steps`` - 1.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return final_lr + (lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2
