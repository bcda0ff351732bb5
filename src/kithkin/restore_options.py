"""The options for restoring pictures, checked without PyTorch, and the restorer that they build.

To add an option, add a field and its check to ``RestoreOptions``, use it in ``compose`` and add a line to ``Options``.
If the command takes it, add a line to ``kithkin.cli.restore``.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from kithkin.errors import InputError
from kithkin.tiles import CPU_TILE, CUDA_TILE, OVERLAP, SMALLEST_TILE

if TYPE_CHECKING:
    import torch

    from kithkin.model import KiT
    from kithkin.restorers import Note, Restorer

PASSES = (1, 2, 4, 8)
"""Sizes of an ensemble."""
PRECISIONS = ("auto", "float32", "bfloat16")
"""What a network may compute in: see ``kithkin.precision``."""
CURVES = ("stored", "light")
"""What a uniform blur may be of: see ``kithkin.deconvolution``."""
PRESETS = {"strong": (1.0, 1.0, 0.0), "natural": (0.85, 1.0, 0.5), "keep-grain": (0.5, 1.0, 0.0)}
"""``luma``, ``chroma`` and ``detail`` by name. Chosen by looking at photographs: natural keeps short fur from looking
like plastic."""


class Options(TypedDict, total=False):
    """The fields of ``RestoreOptions``, as keyword arguments."""

    tile: str | int
    overlap: int
    strength: float
    preset: str | None
    luma: float | None
    chroma: float | None
    detail: float | None
    ensemble: int
    uniform_blur: str | None
    precision: str
    quality: int | None
    overwrite: bool


class Amounts(NamedTuple):
    """Shares of the change in luminance and in colour that are applied, and of detail to bring back, each 0 to 1."""

    luma: float
    chroma: float
    detail: float


@dataclass(frozen=True)
class RestoreOptions:
    """How pictures are restored, and files written.

    Attributes:
        tile: ``"auto"`` (768 on the CPU, 1024 on a GPU), the largest side of a tile in pixels (at least 64 and
            twice the overlap), or ``"off"`` for one pass whatever the size. A picture no larger than one tile is
            restored in one pass, so the result is the model's output. A larger one is cut into tiles of one size, a
            multiple of the model's stride, and blended linearly where they overlap.
        overlap: pixels that neighbouring tiles share at least; rounded up to the model's stride.
        strength: 0 returns the input, 1 the restored picture, anything between a mixture.
        preset: ``"strong"``, ``"natural"`` or ``"keep-grain"``: ``luma``, ``chroma`` and ``detail`` where they are
            None, see ``PRESETS``. None is ``"natural"`` for a model of the task ``denoise``, and else ``"strong"``;
            a restorer that is passed itself has no task.
        luma: how much of the noise in luminance (grain) to remove, 0 to 1.
        chroma: how much of the noise in colour (speckle) to remove, 0 to 1.
        detail: how much to bring back, 0 to 1, of what was removed although it is fine texture rather than noise
            (``kithkin.blending.structure``). For models that remove noise.
        ensemble: passes over turned and mirrored copies, whose mean is taken: 1, 2, 4 or 8. Better, and as many times
            slower (``kithkin.restorers.Ensemble``).
        precision: ``"float32"``, ``"bfloat16"`` for the products inside the network, or ``"auto"``: bfloat16 where the
            device has instructions for it and the network is of the kind that loses nothing visible by it (it has
            ``config.blocks``). The result is float32 before it is stored. Other restorers ignore it.
        uniform_blur: experimental, for a model that deblurs: ``"light"`` if the whole picture is blurred in the same
            way, as by a shaking hand, or ``"stored"`` if stored values were blurred, as in most test sets. The kernel
            is estimated and undone, and the model ``denoise-small`` cleans what is left. A picture that one kernel
            doesn't explain is restored by the model alone (``kithkin.deconvolution``).
        quality: 1 to 100, of JPEG, HEIC and AVIF files, 95 where it is None, and of WebP files, which it makes lossy.
        overwrite: replace results that exist already.

    Raises:
        InputError: a value is out of range.
    """

    tile: str | int = "auto"
    overlap: int = OVERLAP
    strength: float = 1.0
    preset: str | None = None
    luma: float | None = None
    chroma: float | None = None
    detail: float | None = None
    ensemble: int = 1
    uniform_blur: str | None = None
    precision: str = "auto"
    quality: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        self._check_tiles()
        if not _is(self.strength, int | float) or not 0 <= self.strength <= 1:
            raise InputError(
                f"restore: strength must be a number from 0 (the input) to 1 (restored), got {self.strength!r}"
            )
        self._check_amounts()
        if isinstance(self.ensemble, bool) or self.ensemble not in PASSES:
            raise InputError(
                f"restore: ensemble must be one of {', '.join(map(str, PASSES))} passes, got {self.ensemble!r}"
            )
        if self.uniform_blur is not None and self.uniform_blur not in CURVES:
            raise InputError(
                f"restore: uniform_blur must be {' or '.join(CURVES)}, got {self.uniform_blur!r}; "
                "a camera's blur is of light"
            )
        if self.precision not in PRECISIONS:
            raise InputError(f"restore: precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.quality is not None and not (_is(self.quality, int) and 1 <= self.quality <= 100):
            raise InputError(f"restore: quality must be a whole number from 1 to 100, got {self.quality!r}")

    def _check_amounts(self) -> None:
        if self.preset not in (None, *PRESETS):
            raise InputError(f"restore: preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name in ("luma", "chroma", "detail"):
            value = getattr(self, name)
            if value is not None and not (_is(value, int | float) and 0 <= value <= 1):
                raise InputError(f"restore: {name} must be a number from 0 to 1, got {value!r}")
        if self.detail and self.uniform_blur is not None:
            raise InputError(
                "restore: `detail` is told from noise, not from blur; leave out `detail` or `uniform_blur`"
            )

    def _check_tiles(self) -> None:
        tile, overlap = self.tile, self.overlap
        if not _is(overlap, int) or overlap < 0:
            raise InputError(f"restore: overlap must be a whole number of pixels from 0, got {overlap!r}")
        if tile == "off":
            return
        if tile != "auto" and not (_is(tile, int) and int(tile) >= SMALLEST_TILE):
            raise InputError(f"restore: tile must be 'auto', 'off' or at least {SMALLEST_TILE} pixels, got {tile!r}")
        side = CPU_TILE if isinstance(tile, str) else tile
        if 2 * overlap > side:
            raise InputError(
                f"restore: an overlap of {overlap} needs tiles of at least {2 * overlap} pixels, got {tile!r}; "
                f"take an overlap of at most {side // 2}, or a larger tile"
            )

    def compose(self, model: "KiT | Restorer", *, note: "Note | None" = None) -> "Restorer":
        """What restores a picture as these options say.

        Args:
            model: a network, or any other restorer.
            note: called with a sentence for the user; None makes it a warning.

        Raises:
            InputError: the network's weights are not of the precision that was asked for.
        """
        from kithkin.precision import settled_precision, slowness
        from kithkin.restorers import Blend, Tiled, Unchanged, warn

        luma, chroma, detail = self.amounts
        if luma == chroma == 0:
            return Unchanged()
        note = note or warn
        precision = settled_precision(self.precision, model)
        restorer = self.passes(model, precision)
        if slow := slowness(precision, restorer.device):
            note(slow)
        side = self.side(restorer.device)
        composed: Restorer = Tiled(restorer, side, self.overlap, note=note)
        if self.uniform_blur is not None:
            from kithkin.deconvolution import UniformDeblur, load_cleaner

            cleaning = self.passes(load_cleaner(model), precision)
            composed = UniformDeblur(composed, Tiled(cleaning, side, self.overlap, note=note), self.uniform_blur, note)
        return composed if self.amounts == (1, 1, 0) else Blend(composed, luma, chroma, detail)

    def passes(self, model: "KiT | Restorer", precision: str) -> "Restorer":
        """What a tile goes through: the network in a settled precision, or another restorer, once or several times."""
        from torch import nn

        from kithkin.restorers import Ensemble, Network

        restorer = Network(model, precision) if isinstance(model, nn.Module) else model
        return restorer if self.ensemble == 1 else Ensemble(restorer, self.ensemble)

    def side(self, device: "torch.device") -> int | None:
        """The largest side of a tile on a device, in pixels; None for one pass whatever the size."""
        if isinstance(self.tile, int):
            return self.tile
        if self.tile == "off":
            return None
        return CUDA_TILE if device.type == "cuda" else CPU_TILE

    def room_for(self, height: int, width: int, most: int) -> int:
        """How many pictures of this size may go through the network at once: at most ``most``, together no more pixels
        than one tile, each in one tile; one where a picture is looked at as a whole."""
        side = self.tile if isinstance(self.tile, int) else CPU_TILE
        together = self.uniform_blur is None and max(height, width) <= side
        return max(1, min(most, side**2 // (height * width))) if together else 1

    @property
    def amounts(self) -> Amounts:
        """What ``kithkin.blending.blended`` takes. The preset fills in what is None; ``strength`` scales."""
        given = zip((self.luma, self.chroma, self.detail), PRESETS[self.preset or "strong"], strict=True)
        luma, chroma, detail = (default if value is None else value for value, default in given)
        return Amounts(self.strength * luma, self.strength * chroma, 0.0 if self.uniform_blur else detail)

    def for_model(self, name: str, task: str) -> "RestoreOptions":
        """These options with the preset of a model's task, where none was chosen.

        Raises:
            InputError: a uniform blur is to be undone by a model that doesn't deblur, or detail is asked of one that
                removes other things than noise.
        """
        if self.task not in (None, task):
            raise InputError(
                f"restore: `uniform_blur` is for models that {self.task}, {name} is for {task}; take the model "
                f"{self.task}, or leave it out"
            )
        options = self if self.preset else replace(self, preset=default_preset(task))
        if options.amounts.detail and task in ("derain", "deblur"):
            raise InputError(
                f"restore: {name} is for {task}, and detail can be told from noise alone; set `detail` to 0"
            )
        return options

    @property
    def task(self) -> str | None:
        """What a model must be for; None for anything."""
        return None if self.uniform_blur is None else "deblur"

    @property
    def cost(self) -> int:
        """How many times as long as one pass it takes, about."""
        return self.ensemble

    @property
    def suffix(self) -> str:
        """What follows a model's name in tables of measurements: see ``split_suffix``."""
        return (f"+{self.uniform_blur}" if self.uniform_blur else "") + (f"+{self.ensemble}" if self.cost > 1 else "")

    def identity(self, precision: str) -> list[Any]:
        """What a result depends on beside the model, which computes in a settled precision."""
        parts: list[Any] = [self.tile, self.ensemble]
        if self.uniform_blur is not None:
            from kithkin.deconvolution import CLEANER, CURVES
            from kithkin.zoo import find_model

            cleaner = find_model(CLEANER)
            parts += [self.uniform_blur, *CURVES[self.uniform_blur], cleaner.sha256 if cleaner else ""]
        if precision != "float32":
            parts.append(precision)
        if self.overlap != OVERLAP or self.amounts != (1, 1, 0):
            parts += [self.overlap, *self.amounts]
        return parts


def default_preset(task: str) -> str:
    """The preset of models for a task: a photograph keeps a little texture, and what is compared is restored fully."""
    return "natural" if task == "denoise" else "strong"


def split_suffix(spec: str) -> tuple[str, Options]:
    """Split a model's spec into the model and the options that follow it: ``"deblur+light+4"`` is
    ``("deblur", {"uniform_blur": "light", "ensemble": 4})``. A file of the whole name is itself."""
    asked: dict[str, Any] = {}
    for name, values in (("ensemble", PASSES), ("uniform_blur", CURVES)):
        model, _, given = spec.rpartition("+")
        known = {str(value): value for value in values}
        if model and given in known and not Path(spec).is_file():
            spec, asked[name] = model, known[given]
    return spec, Options(**asked)  # type: ignore[typeddict-item]


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of this kind of number; a bool never is."""
    return isinstance(value, kind) and not isinstance(value, bool)
