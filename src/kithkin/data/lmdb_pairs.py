"""Pairs in two LMDB databases, as NAFNet and BasicSR make them: key -> the bytes of a picture file."""

import threading
from pathlib import Path

import numpy as np

from kithkin.data.samples import PAIRS, Sample, need, source_of
from kithkin.errors import InputError
from kithkin.images import decode_picture

NAMES = (("input.lmdb", "input_crops.lmdb"), ("target.lmdb", "target_crops.lmdb", "gt.lmdb", "gt_crops.lmdb"))
META = "meta_info.txt"
# LMDB refuses to open a database that its process has open already, so each read opens and closes it (0.1 ms).
_LOCK = threading.Lock()


class LmdbPairs:
    """Pairs of the databases ``input_crops.lmdb`` and ``gt_crops.lmdb`` (or without ``_crops``, or ``target``).

    Args:
        folder: holds both.

    Raises:
        InputError: lmdb is not installed, or a database is missing, damaged, or has other keys than its partner.
    """

    def __init__(self, folder: Path) -> None:
        self.title, self.kind, self.source = folder.absolute().name, PAIRS, source_of(folder)
        self._sides = find_databases(folder)
        inputs, targets = (set(list_keys(side)) for side in self._sides)
        if alone := sorted(inputs ^ targets):
            listed = ", ".join(alone[:3]) + ("…" if len(alone) > 3 else "")
            raise InputError(f"{folder}: {len(alone)} keys are in one database alone: {listed}; make both again")
        self.names = sorted(inputs)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """A pair: input and target uint8 (H, W, 3)."""
        name = self.names[index]
        pair = [read_entry(side, name) for side in self._sides]
        if pair[0].shape != pair[1].shape:
            raise InputError(
                f"{self._sides[0]}: {name} is {pair[0].shape}, its partner is {pair[1].shape}; make both again"
            )
        return Sample(name, *pair)


def has_databases(folder: Path) -> bool:
    """Whether at least one of the two databases is there."""
    return any((folder / name).is_dir() for names in NAMES for name in names)


def find_databases(folder: Path) -> tuple[Path, Path]:
    """(inputs, targets); raises InputError where one is missing."""
    databases = []
    for names in NAMES:
        side = next((folder / name for name in names if (folder / name / "data.mdb").is_file()), None)
        if side is None:
            raise InputError(f"{folder} has no {' or '.join(names)} with a data.mdb in it; a pair needs both databases")
        databases.append(side)
    return databases[0], databases[1]


def list_keys(database: Path) -> list[str]:
    """The keys of a database, sorted."""
    lmdb = need("lmdb", database.name)
    with _LOCK:
        try:
            with lmdb.open(str(database), readonly=True, lock=False) as env, env.begin() as transaction:
                return [bytes(key).decode() for key in transaction.cursor().iternext(keys=True, values=False)]
        except (lmdb.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"{database} is damaged or no LMDB database: {error}; make it or download it again"
            ) from error


def read_entry(database: Path, key: str) -> np.ndarray:
    """The picture of a key, uint8 (H, W, 3)."""
    lmdb = need("lmdb", database.name)
    with _LOCK:
        try:
            with lmdb.open(str(database), readonly=True, lock=False) as env, env.begin() as transaction:
                data = transaction.get(key.encode())
        except lmdb.Error as error:
            raise InputError(f"{database} is damaged: {error}; make it or download it again") from error
    if data is None:
        raise InputError(f"{database} has no key {key}; make it or download it again")
    return np.rint(decode_picture(data, database / key).pixels * 255).astype(np.uint8)


def listed_keys(database: Path) -> list[str] | None:
    """The keys that ``meta_info.txt`` names (in lines such as ``0001.png (512,512,3) 1``); None without that file."""
    path = database / META
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return sorted(line.split(" ")[0].rpartition(".")[0] for line in lines if line.strip())
