"""Restore a picture with an exported network, without torch and without kithkin: numpy, Pillow and onnxruntime.

kithkin export denoise --to onnx -o denoise.onnx
python examples/restore_onnx.py denoise.onnx examples/dog-noisy.png dog-restored.png

Gray stays gray, 16 bits of gray stay 16, and transparency, colour profile and EXIF are kept where the format of the
result holds them. What is lost is said.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

TILE, OVERLAP = 512, 32
USAGE = "usage: python restore_onnx.py NETWORK.onnx IN OUT"


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


def restore_picture(session: onnxruntime.InferenceSession, picture: Image.Image) -> Image.Image:
    """A picture of any mode -> the restored one, of mode L, LA, RGB, RGBA or I;16."""
    if picture.mode.startswith("I;16"):
        gray = np.asarray(picture).astype(np.float32) / 65535
        return Image.fromarray(samples(restore(session, np.dstack([gray] * 3)).mean(2), 65535, np.uint16))
    gray = picture.mode in ("1", "L", "LA", "La")
    picture = picture.convert(("LA" if gray else "RGBA") if picture.has_transparency_data else ("L" if gray else "RGB"))
    planes = np.atleast_3d(np.asarray(picture)).astype(np.float32) / 255
    alpha = planes[..., -1:] if picture.mode.endswith("A") else None
    colour = planes if alpha is None else planes[..., :-1]
    restored = restore(session, np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3))))
    restored = restored.mean(2, keepdims=True) if gray else restored
    result = restored if alpha is None else np.dstack([restored, alpha])
    return Image.fromarray(samples(result, 255, np.uint8).squeeze(2) if result.shape[2] == 1 else samples(result, 255))


def samples(values: np.ndarray, most: int, dtype: type = np.uint8) -> np.ndarray:
    return (values * most + 0.5).astype(dtype)


def losses(source: str, picture: Image.Image, target: str) -> list[str]:
    """Sentences on what the result lacks."""
    found = []
    with open(source, "rb") as file:
        head = file.read(26)
    if head.startswith(b"\x89PNG") and head[24] == 16 and not picture.mode.startswith("I"):
        found.append("Pillow reads colour of 16 bits as 8 bits, so the result has 8; kithkin itself keeps 16")
    if target.lower().endswith((".jpg", ".jpeg", ".bmp")) and picture.has_transparency_data:
        found.append("the format of the result holds no transparency here, so white is laid under it")
    if picture.mode.startswith("I;16") and not target.lower().endswith((".png", ".tif", ".tiff")):
        found.append("the format of the result holds 8 bits, so 16 are reduced to 8")
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        found.append(f"{picture.mode} is converted to RGB without its colour profile")
    return found


def main(network: str, source: str, target: str) -> None:
    with Image.open(source) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in ("I", "F"):
            sys.exit(f"{source}: pixels of the kind {picture.mode} have no known range; save 8 or 16 bits first")
        for sentence in losses(source, picture, target):
            print(f"{source}: {sentence}", file=sys.stderr)
        session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
        result = restore_picture(session, picture)
    if target.lower().endswith((".jpg", ".jpeg", ".bmp")) and result.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", result.size, "white")
        result = Image.alpha_composite(white, result.convert("RGBA")).convert("L" if result.mode == "LA" else "RGB")
    if result.mode == "I;16" and not target.lower().endswith((".png", ".tif", ".tiff")):
        result = Image.fromarray(samples(np.asarray(result) / np.float32(65535), 255))
    kept = {"exif": picture.getexif().tobytes() if picture.getexif() else None}
    kept["icc_profile"] = None if picture.mode == "CMYK" else picture.info.get("icc_profile")
    result.save(target, **{name: value for name, value in kept.items() if value})


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"{__doc__.splitlines()[0]}\n{USAGE}")
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError) as error:  # a file that is missing, no picture, or of an unknown ending
        sys.exit(f"restore_onnx.py: {error}")
