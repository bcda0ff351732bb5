"""What the tasks are for, and names that changed."""

import warnings

TASKS = {
    "denoise": "camera noise and film grain",
    "derain": "rain",
    "deblur": "blur",
    "denoise-gaussian": "white noise (for benchmarks)",
}
"""Task -> the problem, as a photographer calls it; the most usual first."""

RENAMED = {
    "denoise-any": "denoise-small",
    "denoise-fast": "denoise-tiny",
    "denoise-real": "denoise",
    "denoise-real-small": "denoise-small",
}
"""Old name of a model, recipe or task -> the name since 0.1. The old ones answer until 0.2."""


class RenamedWarning(FutureWarning):
    """An old name was used."""


def current_name(name: str) -> str:
    """The name that a model, recipe or task has now; an old one gives a warning."""
    if name not in RENAMED:
        return name
    said = f"{name} is {RENAMED[name]} now; the old name stops working in kithkin 0.2"
    warnings.warn(said, RenamedWarning, stacklevel=2)
    return RENAMED[name]
