"""What is trained on and validated with: folders of pictures, degradations, sampling."""

from kithkin.data.degrade import benchmark_noise, gaussian_noise
from kithkin.data.folders import Pairs, Photos, open_folders
from kithkin.data.samples import Sample, Samples, open_samples
from kithkin.data.sampling import Batch, Crops, degrade_crops, draw_crops, sample_batch

__all__ = [
    "Batch",
    "Crops",
    "Pairs",
    "Photos",
    "Sample",
    "Samples",
    "benchmark_noise",
    "degrade_crops",
    "draw_crops",
    "gaussian_noise",
    "open_folders",
    "open_samples",
    "sample_batch",
]
