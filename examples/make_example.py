"""How `dog-noisy.png` was made: a clean photograph, with Gaussian noise of sigma 25 added, clipped, rounded to 8 bits.

python examples/make_example.py CLEAN.jpg examples/dog-noisy.png
"""

import sys

import numpy as np

from kithkin.data.degrade import benchmark_noise
from kithkin.images import read_picture, write_picture

picture = read_picture(sys.argv[1])
noisy = picture.with_pixels(np.clip(benchmark_noise(picture.pixels, 25), 0, 1))
write_picture(noisy, sys.argv[2], overwrite=True)
