"""Pictures to train on as lists of uint8 arrays: folders, and what is stored elsewhere."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kithkin.data.catalog import Card
from kithkin.data.left_out import full_name, read_names
from kithkin.data.members import Member, Place, find_members, read_members
from kithkin.data.pairing import Pairing, guess_original, pair_originals, pair_sides, pictures, sides
from kithkin.data.shards import index_shards, is_shards, pair_members
from kithkin.errors import InputError
from kithkin.images import decode_picture, read_picture
from kithkin.storage import is_url, name_of

if TYPE_CHECKING:
    from kithkin.config import DataConfig


class Photos:
    """Clean photographs.

    Args:
        folders: searched recursively; or URLs of folders, or paths or URLs of tar shards with braces.
        cache_gb: decoded pictures kept, in GB of uint8.
        exclude: a text file of photographs to leave out: ``FOLDER/FILE``, one a line, or what comes after a folder
            that is given. None leaves out none.

    Attributes:
        counts: how many pictures each folder has.
        excluded: how many were left out.

    Raises:
        InputError: a folder is missing or holds no picture, or none that is not left out; the list can't be read, or
            names no picture of these folders.
    """

    def __init__(self, folders: Sequence[Path | str], *, cache_gb: float = 0, exclude: Path | None = None) -> None:
        listed = [_photos(folder) for folder in folders]
        kept = listed if exclude is None else _without(exclude, folders, listed)
        self.counts = tuple(map(len, kept))
        self.excluded = sum(map(len, listed)) - sum(self.counts)
        self.paths = [path for photos in kept for path, _ in photos]
        self.names = [name for photos in kept for _, name in photos]
        self._pixels = _Cache(cache_gb)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """(clean,), uint8 (H, W, 3)."""
        return next(self.read([index]))

    def read(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, ...]]:
        """Several items, one after the other; what has to be fetched over a network is fetched at the same time."""
        data = self._pixels.fetch(self.paths[index] for index in indices)
        for index in indices:
            yield (self._pixels.read(self.paths[index], data),)


class Pairs:
    """Degraded pictures and what they should be, matched by file name.

    Args:
        folders: each holds ``input`` and ``target`` (or ``input_crops`` and ``target_crops``; endings may differ), or
            a data set as its authors give it out, such as SIDD's scene folders; or URLs of folders of the first kind,
            or paths or URLs of tar shards with braces.
        cache_gb: decoded pictures kept, in GB of uint8.
        card: the data set that all folders are of; None recognises it by its names.
        part: of a data set whose authors give lists of its parts.

    Attributes:
        counts: how many pairs each folder has.

    Raises:
        InputError: a folder has not these two, or a picture has no partner.
    """

    def __init__(
        self, folders: Sequence[Path | str], *, cache_gb: float = 0, card: Card | None = None, part: str | None = None
    ) -> None:
        listed = [_named_pairs(folder, card, part) for folder in folders]
        self.counts = tuple(len(pairs) for _, pairs in listed)
        self.paths = [pair for _, pairs in listed for pair in pairs]
        self.names = [name for names, _ in listed for name in names]
        self._pixels = _Cache(cache_gb)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """(input, target), uint8 (H, W, 3) of one size."""
        return next(self.read([index]))

    def read(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, ...]]:
        """Several items, one after the other; what has to be fetched over a network is fetched at the same time."""
        data = self._pixels.fetch(place for index in indices for place in self.paths[index])
        for source, target in (self.paths[index] for index in indices):
            pair = self._pixels.read(source, data), self._pixels.read(target, data)
            if pair[0].shape != pair[1].shape:
                raise InputError(f"{source} is {_size(pair[0])} but its target {target} is {_size(pair[1])}")
            yield pair


class Mixed:
    """Clean photographs with pairs mixed in. An epoch goes by the photographs; the pairs' numbers follow on theirs.

    Args:
        photos, pairs: what is mixed.
    """

    def __init__(self, photos: Photos | Pairs, pairs: Photos | Pairs) -> None:
        self.photos, self.pairs, self.counts = photos, pairs, photos.counts
        self.paths: list[Place | tuple[Place, Place]] = [*photos.paths, *pairs.paths]

    def __len__(self) -> int:
        """Photographs, without the pairs."""
        return len(self.photos)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, ...]]:
        """(input, target) of each, uint8 (H, W, 3); of a photograph both are the photograph."""
        count = len(self.photos)
        photos = self.photos.read([index for index in indices if index < count])
        pairs = self.pairs.read([index - count for index in indices if index >= count])
        for index in indices:
            yield next(photos) * 2 if index < count else next(pairs)


def open_folders(config: "DataConfig") -> Photos | Pairs:
    """The pictures in the folders of a run, without the pairs that it mixes in."""
    if not config.folders:
        raise InputError("the run names no training data; give it a folder")
    cache_gb = config.cache_gb / max(1, config.workers)
    if config.kind == "photos":
        return Photos(config.folders, cache_gb=cache_gb, exclude=config.exclude)
    return Pairs(config.folders, cache_gb=cache_gb)


def open_training_data(config: "DataConfig") -> Photos | Pairs | Mixed:
    """All that a run trains on."""
    if not config.pairs:
        return open_folders(config)
    half = config.model_copy(update={"cache_gb": config.cache_gb / 2})
    others = half.model_copy(update={"kind": "pairs", "folders": config.pairs, "exclude": None})
    return Mixed(open_folders(half), open_folders(others))


class _Cache:
    """Decoded pictures, kept until the budget is full. Safe under threads; another process begins with an empty one.

    Nothing is dropped for what came later: within an epoch every picture is used once, so the one that was used longest
    ago is the next one.
    """

    def __init__(self, gigabytes: float) -> None:
        self._gigabytes, self._left = gigabytes, int(gigabytes * 1e9)
        self._kept: dict[Place, np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cache, (self._gigabytes,)

    def fetch(self, places: Iterable[Place]) -> dict[Member, bytes]:
        """The bytes of those pictures that are no files of their own, and not kept."""
        return read_members(place for place in places if isinstance(place, Member) and place not in self._kept)

    def read(self, place: Place, data: Mapping[Member, bytes]) -> np.ndarray:
        if place in self._kept:
            return self._kept[place]
        picture = decode_picture(data[place], str(place)) if isinstance(place, Member) else read_picture(place)
        pixels = picture.pixels
        np.rint(np.multiply(pixels, 255, out=pixels), out=pixels)  # in place: fresh memory takes as long as the sums
        pixels = pixels.astype(np.uint8)
        with self._lock:
            if place not in self._kept and pixels.nbytes <= self._left:
                self._kept[place] = pixels
                self._left -= pixels.nbytes
        return pixels


def _stored(source: Path | str) -> list[Member] | None:
    """The pictures of shards or of a URL; None where the source is a folder of this machine."""
    if is_shards(source):
        return index_shards(source)
    return find_members(str(source)) if is_url(source) else None


def _photos(source: Path | str) -> list[tuple[Place, str]]:
    members = _stored(source)
    if members is not None:
        return [(member, member.name) for member in members]
    folder = Path(source)
    return [(path, path.relative_to(folder).as_posix()) for path in pictures(folder)]


def _without(
    exclude: Path, folders: Sequence[Path | str], listed: list[list[tuple[Place, str]]]
) -> list[list[tuple[Place, str]]]:
    """The pictures of each folder that a list doesn't name."""
    names = read_names(exclude)
    kept = []
    for folder, photos in zip(folders, listed, strict=True):
        folder_name = name_of(folder) if is_url(folder) or is_shards(folder) else Path(folder).resolve().name
        kept.append(
            [x for x in photos if full_name("", x[1]) not in names and full_name(folder_name, x[1]) not in names]
        )
        if not kept[-1]:
            raise InputError(f"{exclude} leaves no picture of {folder}; take it from the folders, or shorten the list")
    if listed and kept == listed:
        raise InputError(
            f"{exclude} names no picture of {', '.join(map(str, folders))}, so it would leave out none; its lines are "
            f"FOLDER/FILE, such as {full_name(folder_name, photos[0][1])}"
        )
    return kept


def _named_pairs(
    source: Path | str, card: Card | None, part: str | None
) -> tuple[Sequence[str], Sequence[tuple[Place, Place]]]:
    members = _stored(source)
    if members is not None:
        return pair_members(members, source)
    pairing = _pairs(Path(source), card, part).checked(Path(source))
    return pairing.names, pairing.pairs


def _pairs(folder: Path, card: Card | None, part: str | None) -> Pairing:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if folders := sides(folder):
        return pair_sides(*folders)
    original = card.original if card and card.original else guess_original(folder)
    if original is None and any(folder.glob("*.lmdb")):
        raise InputError(
            f"{folder} holds LMDB databases, and training reads folders; make them with "
            f"`kithkin data prepare pairs {folder} --out FOLDER`"
        )
    if original is None:
        raise InputError(f"{folder} has no folder input or input_crops; a folder of pairs holds input and target")
    return pair_originals(folder, original, part)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]}"
