"""Experimental. Blur that is the same all over a picture: its kernel, found from the picture alone, and undone.

A camera that shook blurs a whole picture with about one kernel. A network sees a part of the picture at a time, and
knows such a kernel only roughly; the picture as a whole determines it well. Nothing here is learnt, and nothing is from
the paper of KiT. What it gains: ``docs/explanation/rain-and-blur.md``.

Sources: the kernel is found from coarse to fine, in turns with a picture of few edges (Xu, Zheng and Jia, "Unnatural L0
sparse representation for natural image deblurring", CVPR 2013; in the form of Pan, Hu, Su and Yang, "Deblurring text
images via L0-regularized intensity and gradient prior", CVPR 2014, without its term for intensities); the noise level
after Immerkær, "Fast noise variance estimation", 1996; borders that nobody saw are filled in by the blurred estimate
(as in Almeida and Figueiredo, "Deconvolving images with unknown boundaries using the alternating direction method of
multipliers", 2013).
"""

from kithkin.deconvolution.constants import CURVES as CURVES, QUIETEST as QUIETEST, SIZE as SIZE
from kithkin.deconvolution.inverse import (
    deconvolve as deconvolve,
    noise_level as noise_level,
    unexplained as unexplained,
)
from kithkin.deconvolution.kernel import estimate_kernel as estimate_kernel
from kithkin.deconvolution.removal import (
    CLEANER as CLEANER,
    UniformDeblur as UniformDeblur,
    load_cleaner as load_cleaner,
    remove_uniform_blur as remove_uniform_blur,
)
