"""Training: one loop, its state on disk, its schedule."""

from kithkin.training.loop import train

__all__ = ["train"]
