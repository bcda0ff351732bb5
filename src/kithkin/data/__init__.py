"""What is trained on and validated with: folders of pictures, degradations, sampling."""

from kithkin.data.degrade import (
    DEGRADATIONS,
    Degradation,
    benchmark_noise,
    camera_noise,
    degrade_photos,
    gaussian_noise,
    margin,
)
from kithkin.data.folders import Pairs, Photos, open_folders
from kithkin.data.samples import Sample, Samples, open_samples
from kithkin.data.sampling import Batch, Crops, degrade_crops, draw_crops, sample_batch

__all__ = [
    "DEGRADATIONS",
    "Batch",
    "Crops",
    "Degradation",
    "Pairs",
    "Photos",
    "Sample",
    "Samples",
    "benchmark_noise",
    "camera_noise",
    "degrade_crops",
    "degrade_photos",
    "draw_crops",
    "gaussian_noise",
    "margin",
    "open_folders",
    "open_samples",
    "sample_batch",
]
