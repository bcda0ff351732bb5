"""Restore a picture with an exported network, without torch and without kithkin: numpy, Pillow and onnxruntime.

kithkin export denoise --to onnx -o denoise.onnx
python examples/restore_onnx.py denoise.onnx examples/dog-noisy.png dog-restored.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

TILE, OVERLAP = 512, 32


def restore(session: onnxruntime.InferenceSession, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] -> the same, in tiles that are blended where they overlap."""
    height, width = image.shape[:2]
    total, weights = np.zeros_like(image), np.zeros((height, width, 1), np.float32)
    for top in starts(height):
        for left in starts(width):
            tile = image[top : top + TILE, left : left + TILE]
            batch = np.ascontiguousarray(tile.transpose(2, 0, 1)[None])
            restored = session.run(None, {"image": batch})[0][0].transpose(1, 2, 0)
            weight = np.minimum.outer(ramp(tile.shape[0]), ramp(tile.shape[1]))[..., None]
            total[top : top + TILE, left : left + TILE] += weight * restored
            weights[top : top + TILE, left : left + TILE] += weight
    return (total / weights).clip(0, 1)


def starts(length: int) -> list[int]:
    """Where the tiles of an axis begin. Multiples of 16 meet the network's grid as the whole picture does."""
    step = TILE - OVERLAP
    return list(range(0, max(length - OVERLAP, 1), step))


def ramp(length: int) -> np.ndarray:
    """Weights that rise from both ends of a tile over the overlap."""
    place = np.arange(length) + 1
    return np.minimum(np.minimum(place, place[::-1]), OVERLAP).astype(np.float32)


def main(network: str, source: str, target: str) -> None:
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    image = np.asarray(Image.open(source).convert("RGB"), np.float32) / 255
    Image.fromarray((restore(session, image) * 255 + 0.5).astype(np.uint8)).save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
