"""Training: one loop, its state on disk, its schedule."""

from kithkin.train.loop import train

__all__ = ["train"]
