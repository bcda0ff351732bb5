"""What is trained on and validated with: folders of pictures, degradations, sampling."""

from kithkin.data.degrade import benchmark_noise, gaussian_noise
from kithkin.data.folders import Pairs, Photos, open_folders
from kithkin.data.sampling import Batch, Crops, degrade_crops, draw_crops, sample_batch

__all__ = [
    "Batch",
    "Crops",
    "Pairs",
    "Photos",
    "benchmark_noise",
    "degrade_crops",
    "draw_crops",
    "gaussian_noise",
    "open_folders",
    "sample_batch",
]
