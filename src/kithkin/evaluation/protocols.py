"""Named protocols: how values are computed, so that they can be compared with published ones."""

from dataclasses import dataclass

import numpy as np

from kithkin.errors import InputError
from kithkin.metrics import align_realblur, masked_psnr, masked_ssim, psnr, ssim

GAUSSIAN_SIGMAS = (15.0, 25.0, 50.0)


@dataclass(frozen=True)
class Protocol:
    """One way to make values.

    Attributes:
        name: what ``evaluate`` takes as its protocol.
        kind: ``"photos"`` are clean pictures that get noise; ``"pairs"`` are input and target;
            ``"inputs"`` have no public target: the restored pictures are handed in elsewhere, nothing is measured.
        psnr: a protocol of ``kithkin.metrics.psnr``; the SSIM is computed on the same signal. ``"realblur"`` rounds
            the output to uint8 and measures it as ``kithkin.metrics.align_realblur`` brings it to the target.
        window: of ``kithkin.metrics.ssim``.
        summary: in words.
    """

    name: str
    kind: str
    psnr: str
    window: str
    summary: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "gaussian",
            "photos",
            "rgb-uint8",
            "wang2d",
            "clean pictures; noise of seed 0 before every picture, not clipped; output rounded to uint8; PSNR on RGB",
        ),
        Protocol(
            "noises",
            "photos",
            "rgb-uint8",
            "wang2d",
            "clean pictures; noise of every kind, by the place of a picture in its set; output uint8; PSNR on RGB",
        ),
        Protocol("rgb", "pairs", "rgb-uint8", "matlab3d", "pairs; output rounded to uint8; PSNR on RGB (GoPro, HIDE)"),
        Protocol("float", "pairs", "rgb", "matlab3d", "pairs; output clamped, not rounded; PSNR on RGB (SIDD)"),
        Protocol("rain", "pairs", "y-matlab", "wang2d", "pairs; MATLAB's Y of uint8, rounded (the Rain13k tests)"),
        Protocol(
            "realblur",
            "pairs",
            "realblur",
            "wang2d",
            "pairs; output rounded to uint8, brought to the target's brightness and place; PSNR on RGB (RealBlur)",
        ),
        Protocol("dnd", "inputs", "rgb", "matlab3d", "no public target; the DND server measures the submission"),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    if name not in PROTOCOLS:
        raise InputError(f"evaluate: no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def scores(protocol: Protocol, output: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM of one picture.

    Args:
        output, target: (H, W, 3), floats in [0, 1] (values outside are clamped) or uint8.
    """
    if protocol.psnr == "realblur":
        rounded = output if output.dtype == np.uint8 else np.rint(np.clip(output, 0, 1) * 255).astype(np.uint8)
        aligned = align_realblur(rounded, target)
        return masked_psnr(aligned), masked_ssim(aligned)
    return (
        psnr(output, target, protocol=protocol.psnr),
        ssim(output, target, window=protocol.window, protocol=protocol.psnr),
    )
