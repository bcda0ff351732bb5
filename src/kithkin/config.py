"""The configuration of a training run: a complete TOML file, loaded strictly."""

import tomllib
from collections.abc import Iterable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from kithkin.degradation_config import AugmentConfig, DegradationConfig, Range, Share, Sigma
from kithkin.errors import InputError
from kithkin.model_config import KiTConfig
from kithkin.names import current_name
from kithkin.ops.dispatch import BACKENDS
from kithkin.packaged import Section, packaged, toml_files

Positive = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=8192)]
Count = Annotated[int, Field(ge=0, le=10**9)]
MOST_PIXELS = 2**33
"""Of a step, over all processes: 100 GB in float32, beyond what is meant."""
Beta = Annotated[float, Field(ge=0, lt=1)]


def _place(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and "://" not in value else value


# A path, or a URL: which no path may become, because it would lose a slash.
Source = Annotated[Path | str, BeforeValidator(_place)]


class DataConfig(Section):
    """What a run trains on.

    Attributes:
        kind: ``"photos"`` are clean photographs, degraded on the fly; ``"pairs"`` holds ``input`` and ``target``
            folders (or ``input_crops``, ``target_crops``) with equal file names.
        folders: one or more folders, searched recursively, or their URLs, or tar shards by path or URL
            (``photos-{000000..000007}.tar``). A recipe leaves them empty: they are given at the start.
        weights: how often crops are cut from each folder, one number a folder, relative to their sum; empty takes every
            picture equally often. An epoch still has as many crops as there are pictures.
        exclude: a text file of ``"photos"`` to leave out: ``FOLDER/FILE``, one a line or in a table's first column.
        crop: side of the random square crops, in pixels.
        augment: what is done to crops before that.
        sigma: of Gaussian noise on the 0-255 scale, uniform in this range for each crop; for ``"photos"`` only.
        degradation: another degradation of ``"photos"`` instead of that noise, or beside it.
        degraded_share: of crops that get ``degradation``, the others Gaussian noise of ``sigma``.
        pairs: folders of real pairs that are mixed in with ``"photos"``, each with ``input`` and ``target``.
        pairs_share: of crops that are cut from them and not degraded any further.
        cache_gb: decoded pictures kept in memory, in GB of uint8; the rest is decoded at each use. Workers share it.
            Where a GPU trains and all pictures fit, they are decoded once into its memory.
        workers: processes that read and decode; 0 does it in two threads beside the training step.
    """

    kind: Literal["photos", "pairs"]
    folders: tuple[Source, ...]
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    exclude: Path | None = None
    crop: Side
    augment: AugmentConfig = AugmentConfig()
    sigma: Range[Sigma] | None = None
    degradation: DegradationConfig | None = None
    degraded_share: Share = 1.0
    pairs: tuple[Source, ...] = ()
    pairs_share: Share = 0.0
    cache_gb: Annotated[float, Field(ge=0)]
    workers: Annotated[int, Field(ge=0, le=1024)] = 0

    @model_validator(mode="after")
    def _pictures_are_drawn(self) -> "DataConfig":
        if self.weights and not sum(self.weights) > 0:
            raise ValueError("weights are all 0; at least one folder needs a weight")
        if self.weights and self.folders and len(self.weights) != len(self.folders):
            raise ValueError(
                f"weights has {len(self.weights)} numbers for {len(self.folders)} folders; give one a folder, in order"
            )
        if self.exclude is not None and self.kind != "photos":
            raise ValueError("exclude goes with kind = 'photos'")
        if self.kind != "photos" and (self.augment.recolors or self.augment.rescaled_share):
            raise ValueError("augment: with kind = 'pairs', crops are flipped and turned alone")
        return self

    @model_validator(mode="after")
    def _degradations_go_with_photos(self) -> "DataConfig":
        if (self.kind == "photos") != (self.sigma is not None or self.degradation is not None):
            raise ValueError("sigma and degradation go with kind = 'photos', and only with it")
        if self.degradation is None and self.degraded_share != 1:
            raise ValueError("degraded_share says how many crops get data.degradation, which is missing")
        if self.degradation is not None and (self.sigma is None) != (self.degraded_share == 1):
            raise ValueError("beside a degradation, sigma goes with a degraded_share below 1, and only with it")
        if self.pairs and self.kind != "photos":
            raise ValueError("pairs are mixed in with kind = 'photos'; with kind = 'pairs', give them as folders")
        if bool(self.pairs) != (self.pairs_share > 0):
            raise ValueError("pairs and pairs_share go together: which pairs, and how many crops are cut from them")
        return self


class ValidationConfig(Section):
    """How a run watches itself. The folder is of the same kind as the training data.

    Attributes:
        folder: or what else ``DataConfig`` takes; None (in TOML: leave it out) runs no validation.
        sigmas: levels of Gaussian noise on the 0-255 scale, each validated; for ``"photos"`` only. What
            ``data.degradation`` names is validated as well; of ``kind = "noise"`` each of
            ``kithkin.data.degrade.NOISES``.
        crop: side of the central crop of each picture, in pixels.
        every: steps between validations.
    """

    folder: Source | None = None
    sigmas: tuple[Sigma, ...] = ()
    crop: Side
    every: Positive


class ScheduleConfig(Section):
    """How long, and at which learning rate: a linear warm-up, then a cosine to ``final_lr``.

    Attributes:
        batch_size: crops a step, over all processes and all parts.
        accumulate: parts in which a process works through its share of them, one after the other, to need less memory.
        steps, epochs: the length of the run; exactly one is above 0. An epoch is a crop of every picture.
        warmup: steps (epochs where the run is counted in epochs) of warm-up.
        lr, final_lr: learning rate after the warm-up and at the end.
        checkpoint_seconds: between two checkpoints; one is written at the end and at a stop in any case.
    """

    batch_size: Annotated[int, Field(ge=1, le=2**16)]
    accumulate: Annotated[int, Field(ge=1, le=2**16)] = 1
    steps: Count
    epochs: Count
    warmup: Count
    lr: Annotated[float, Field(gt=0)]
    final_lr: Annotated[float, Field(ge=0)]
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="after")
    def _one_length(self) -> "ScheduleConfig":
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"exactly one of steps and epochs is above 0, got {self.steps} and {self.epochs}")
        return self

    def in_steps(self, n_items: int) -> tuple[int, int]:
        """(steps of the run, steps of warm-up) for a data set of ``n_items`` pictures."""
        per_epoch = max(1, n_items // self.batch_size)
        scale = per_epoch if self.epochs else 1
        return (self.epochs or self.steps) * scale, self.warmup * scale


class OptimizerConfig(Section):
    """AdamW, the paper's, or Muon for the weights between features and AdamW for the others (decision D18).

    Attributes:
        kind: ``"adamw"`` or ``"muon"``.
        betas, weight_decay: of AdamW; the decay is Muon's as well.
        momentum, update_rms: of Muon, see ``kithkin.training.muon.Muon``; None takes its defaults.
            AdamW has no use for them.
        grad_clip: largest norm of the gradient; 0 does not clip.
        ema_decay: decay a step of the averaged weights that are validated and exported; 0 keeps no average.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    betas: tuple[Beta, Beta]
    weight_decay: Annotated[float, Field(ge=0)]
    momentum: Beta | None = None
    update_rms: Annotated[float, Field(gt=0, le=10)] | None = None
    grad_clip: Annotated[float, Field(ge=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]


class LossConfig(Section):
    """Eq. 11: ``edge_weight`` is λ, ``epsilon`` is ε."""

    edge_weight: Annotated[float, Field(ge=0)]
    epsilon: Annotated[float, Field(gt=0)]


class DistributedConfig(Section):
    """How the processes that torchrun started train one network. A process on its own has no use for it.

    Attributes:
        kind: ``"ddp"`` keeps the whole network and its optimiser on every process; ``"fsdp"`` a part of each, for
            networks that are large beside the memory of a GPU.
        timeout: seconds that a process waits for the others before it gives up. Above what rank 0 needs for a
            checkpoint and any of them for its share of the validation.
    """

    kind: Literal["ddp", "fsdp"] = "ddp"
    timeout: Annotated[float, Field(gt=0, le=10**7)] = 600.0


class RunConfig(Section):
    """A complete training run.

    Attributes:
        name: of the model that comes out.
        task: what it is for: denoise, denoise-gaussian, derain or deblur.
        seed: every random choice of the run follows from it and the step.
        precision: ``"bfloat16"`` runs the network under autocast, and Muon's iteration in it; ``"auto"`` takes it where
            the device multiplies it, and ``"float32"`` elsewhere. A resumed run keeps the one that it was begun in.
        backend: of the operator, a name from ``kithkin.available_backends``; ``"auto"`` takes the first that can serve.
        model: the keyword arguments of ``kithkin.model_config.KiTConfig``.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    task: Literal["denoise", "denoise-gaussian", "derain", "deblur"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    precision: Literal["auto", "float32", "bfloat16"]
    backend: str = "auto"
    model: dict[str, Any]
    data: DataConfig
    validation: ValidationConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    distributed: DistributedConfig = DistributedConfig()
    loss: LossConfig

    @model_validator(mode="after")
    def _model_is_sound(self) -> "RunConfig":
        KiTConfig.from_dict(self.model)
        if (pixels := self.schedule.batch_size * self.data.crop**2) > MOST_PIXELS:
            raise ValueError(
                f"schedule.batch_size crops of data.crop² are {pixels:.2g} pixels a step, at most {MOST_PIXELS:.2g} "
                "are taken; lower one of them"
            )
        if self.backend not in ("auto", *BACKENDS):
            raise ValueError(f"no backend is called {self.backend!r}; there are auto, {', '.join(BACKENDS)}")
        if self.data.kind == "pairs" and self.validation.sigmas:
            raise ValueError("validation.sigmas go with data.kind = 'photos', and only with it")
        watched = self.validation.sigmas or self.data.degradation
        if self.data.kind == "photos" and self.validation.folder and not watched:
            raise ValueError("validation.sigmas names no noise level; give some, or leave validation.folder out")
        return self

    @property
    def network(self) -> KiTConfig:
        """The network's configuration."""
        return KiTConfig.from_dict(self.model)


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name -> file."""
    return toml_files(packaged("recipes"))


def load_config(source: str | Path, changes: dict[str, Any] | None = None) -> RunConfig:
    """Load a recipe by name, or a TOML file by path.

    Args:
        source: a name from ``list_recipes``, or a path.
        changes: dotted key -> value, laid over the file (``{"schedule.steps": 100}``).

    Raises:
        InputError: no such recipe, not TOML, an unknown key (with the nearest name) or a value out of range.
    """
    path = list_recipes().get(current_name(str(source)), Path(source))
    if not path.is_file():
        raise InputError(f"{source} is neither a file nor a recipe; the recipes are {', '.join(list_recipes())}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, of its encoding, a number too long, too deeply nested
        raise InputError(f"{path} is not a TOML file: {error}") from error
    return parse_config(values, changes, source=str(path))


def parse_config(values: dict[str, Any], changes: dict[str, Any] | None = None, *, source: str) -> RunConfig:
    """Check plain values and build the configuration; arguments and errors as in ``load_config``."""
    values = deepcopy(values)
    for dotted, value in (changes or {}).items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"{source}: {dotted} leads nowhere: {section} is no section")
        place[key] = deepcopy(value)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _explain(error: Any) -> str:
    *sections, last = [str(part) for part in error["loc"]] or [""]
    keys, models = _follow(sections)
    where = ".".join([*keys, last])
    if error["type"] != "extra_forbidden":
        return f"{where or 'the run'}: {error['msg'].removeprefix('Value error, ')}"
    known = [name for model in models for name in model.model_fields]
    near = get_close_matches(last, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {where}; {hint}"


def _follow(path: list[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """(the keys of a path as a file has them, the sections it leads to): the kind of a degradation is no key."""
    keys: list[str] = []
    models: list[type[BaseModel]] = [RunConfig]
    for part in path:
        of_kind = [model for model in models if part in _kinds(model)] if len(models) > 1 else []
        inside = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if of_kind:  # which also comes before a key of that name
            models = of_kind
            continue
        keys.append(part)
        models = list(_sections(inside))
    return keys, models


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _sections(annotations: Iterable[Any]) -> Iterator[type[Section]]:
    """The sections in annotations such as ``A | B | None``."""
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield annotation
        else:
            yield from _sections(get_args(annotation))
