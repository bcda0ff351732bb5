"""Photographs set aside from the training photographs to compare networks on, by kind: mixed, fine repeated structures
(facades, fabrics, tiles) and soft pictures. ``validation_sets.tsv`` lists them, and under ``left-out`` the other crops
of the same originals, which are neither trained on nor validated on.

    python benchmarks/validation_sets.py PHOTOGRAPHS

lists every remaining training picture that looks like one of them, and exits with 1 where there is one. PHOTOGRAPHS is
the folder that the names in the list start from; all folders below it are looked through, both sides of pairs as well.
A crop looks like another picture than the whole: so other crops of an original are told by the list.
"""

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kithkin.errors import InputError
from kithkin.images import find_pictures, read_picture

LIST = Path(__file__).with_suffix(".tsv")
LEFT_OUT = "left-out"
PAIRED = "rain-pairs"  # degraded pictures and their targets, no photographs to add noise to


@dataclass(frozen=True)
class Split:
    """What to train on, and what to validate on by kind.

    Attributes:
        train: files of photographs, sorted.
        kinds: files of each kind, in the order of the list.
        paired: both sides of the pairs that may be mixed in with the photographs, sorted.
    """

    train: list[Path]
    kinds: dict[str, list[Path]]
    paired: list[Path]


def read_list(path: Path = LIST) -> dict[str, str]:
    """The kind of every photograph of a list, by its name.

    Raises:
        InputError: a name comes twice, or the photographs of one original are of different sets.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    kinds: dict[str, str] = {}
    originals: dict[tuple[str, str], str] = {}
    for row in rows:
        name, kind, original = row["file"], row["kind"], (row["source"], row["original"])
        if name in kinds:
            raise InputError(f"{path.name}: {name} is listed twice")
        if kind != LEFT_OUT and original in originals:
            raise InputError(f"{path.name}: {name} and {originals[original]} are cut from one original; leave one out")
        kinds[name] = kind
        if kind != LEFT_OUT:
            originals[original] = name
    return kinds


def split(photographs: Path, path: Path = LIST) -> Split:
    """Divide a folder of photographs by a list.

    Args:
        photographs: the folder that the names in the list start from.
        path: the list.

    Raises:
        InputError: a photograph of the list is not in the folder, or the list is not in order.
    """
    kinds = read_list(path)
    everything = {file.relative_to(photographs).as_posix(): file for file in find_pictures(photographs)}
    paired = sorted(name for name in everything if PAIRED in name.split("/"))
    found = {name: file for name, file in everything.items() if name not in paired}
    if missing := sorted(set(kinds) - set(found)):
        raise InputError(f"{path.name}: {missing[0]} is not in {photographs}; missing in all: {len(missing)}")
    named = {kind: [found[name] for name, its in kinds.items() if its == kind] for kind in kinds.values()}
    named.pop(LEFT_OUT, None)
    train = sorted(file for name, file in found.items() if name not in kinds)
    return Split(train=train, kinds=named, paired=[everything[name] for name in paired])


def find_copies(parts: Split) -> list[tuple[Path, Path, float]]:
    """Training pictures that look like one to validate on: (training, validation, correlation)."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from leaks import find_leaks, thumbnail

    def thumbnails(files: Iterable[Path]) -> list:
        return [thumbnail(read_picture(file).pixels) for file in files]

    held, train = [file for files in parts.kinds.values() for file in files], [*parts.train, *parts.paired]
    return [(train[i], held[j], c) for i, j, c in find_leaks(thumbnails(train), thumbnails(held))]


def main(arguments: list[str]) -> int:
    """The command; returns the exit status."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    parts = split(Path(arguments[0]))
    copies = find_copies(parts)
    for train, held, correlation in copies:
        print(f"{correlation:.4f}  {train}  {held}")
    counts = ", ".join(f"{len(files)} {kind}" for kind, files in parts.kinds.items())
    print(f"{len(parts.train)} to train on and {len(parts.paired)} of pairs; {counts}: {len(copies)} alike")
    return 1 if copies else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
