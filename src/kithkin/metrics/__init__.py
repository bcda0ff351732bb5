"""How close two pictures are: PSNR and SSIM by named protocol, and RealBlur's, which aligns them first.

``kithkin.evaluation.protocols.scores`` calls these for the rows of an evaluation.
"""

from kithkin.metrics._measures import PSNR_PROTOCOLS, SSIM_WINDOWS, ImageArray, psnr, ssim
from kithkin.metrics._realblur import Aligned, align_realblur, masked_psnr, masked_ssim

__all__ = [
    "PSNR_PROTOCOLS",
    "SSIM_WINDOWS",
    "Aligned",
    "ImageArray",
    "align_realblur",
    "masked_psnr",
    "masked_ssim",
    "psnr",
    "ssim",
]
