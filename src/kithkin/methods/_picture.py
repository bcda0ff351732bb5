"""What the methods share."""

import numpy as np

from kithkin.errors import KithkinError


def on_one_line(error: BaseException) -> str:
    """An exception's text on one line, the middle of a long one left out: TorchScript says the reason at the end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"


def missing(who: str, package: str, error: ImportError, *, extra: str = "eval") -> KithkinError:
    return KithkinError(
        f"{who} needs the package {package}, which can't be imported ({on_one_line(error)}); "
        f'pip install "kithkin[{extra}]"'
    )


def reflected(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Extend below and to the right by reflection, as often as it takes."""
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="reflect")
