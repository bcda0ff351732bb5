"""WebDataset's tar shards, read by the place of every picture in them.

A shard set is looked through once for the offsets of its members; from then on any picture can be read alone, so
that shards are drawn from exactly as a folder is. An index beside a shard (``photos-000000.idx``, the format of DALI's
wds2idx, version 1.2: a line a sample, an ending, offset, size and name for each of its members) spares the looking.
"""

import itertools
import math
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from kithkin.data.members import Member, in_parallel, is_picture
from kithkin.data.pairing import INPUT_NAMES, TARGET_NAMES
from kithkin.errors import InputError
from kithkin.storage import explained, file_size, name_of, open_file, read_text, write_text

INPUT_KEYS, TARGET_KEYS = ("input", "lq"), ("target", "gt")
_SIDES = re.compile(rf"(.+)\.({'|'.join(INPUT_KEYS + TARGET_KEYS)})")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_SHARDS = 2**20
INDEX_VERSION = "v1.2"
_CONVENTION = (
    "a pair lies in one shard as KEY.input.png and KEY.target.png (or .lq and .gt), or as input/KEY.png and "
    "target/KEY.png; endings may differ"
)


def is_shards(source: Path | str) -> bool:
    """Whether this names tar shards.

    Raises:
        InputError: they are compressed.
    """
    name = name_of(source)
    if name.endswith(_COMPRESSED):
        raise InputError(f"{source} is a compressed tar file, and single pictures are read from it; unpack it to .tar")
    return name.endswith(".tar")


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` -> ``a-00.tar``, ``a-01.tar``, ``a-02.tar``; ``{x,y}`` likewise, also several braces."""
    pieces = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    if (count := math.prod(len(several) for several in choices)) > MOST_SHARDS:
        raise InputError(
            f"{pattern} names {count} shards, at most {MOST_SHARDS} are taken; check the numbers in braces"
        )
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def index_shards(pattern: Path | str) -> list[Member]:
    """The pictures of all shards, sorted by name as a folder's are, whatever shard they are in.

    Args:
        pattern: path or URL of a shard, or of several with braces: ``photos-{000000..000007}.tar``.

    Raises:
        InputError: a shard is missing, cut off, damaged or no tar file, or none holds a picture.
    """
    shards = expand_braces(str(pattern))
    pictures = [member for members in in_parallel(_find, shards) for member in members]
    if not pictures:
        raise InputError(
            f"{pattern} holds no picture; shards hold members such as KEY.jpg or KEY.png (no arrays, no pickles)"
        )
    return sorted(pictures, key=lambda member: member.name.split("/"))


def write_indexes(pattern: Path | str, report: Callable[[str, int], None]) -> None:
    """Look through shards and write an index beside each, so that no run has to look again.

    Args:
        pattern: as in ``index_shards``.
        report: called with every index and the number of its pictures.

    Raises:
        InputError: as ``index_shards``, or an index can't be written, or a name holds a blank.
    """
    if not is_shards(pattern):
        raise InputError(
            f"index: {pattern} is no tar shard; give a path or URL such as 'photos-{{000000..000007}}.tar'"
        )

    def write(shard: str) -> tuple[str, int]:
        with explained(shard):
            members = list(_members(shard))
        with explained(_index_of(shard)):
            write_text(_index_of(shard), _as_index(members))
        return _index_of(shard), len(members)

    for index, count in in_parallel(write, expand_braces(str(pattern))):
        report(index, count)


def pair_members(members: Sequence[Member], source: Path | str) -> tuple[list[str], list[tuple[Member, Member]]]:
    """(names, (input, target)) of pictures in shards or below a URL, sorted by name.

    Raises:
        InputError: a picture has no partner, or two partners.
    """
    pairs: dict[tuple[str, str], list[Member | None]] = {}
    alone = []
    for member in members:
        side, key = _side_and_key(member.name)
        if side is None:
            alone.append(member)
            continue
        pair = pairs.setdefault((key, member.file if member.offset else ""), [None, None])
        if pair[side] is not None:
            raise InputError(f"{source}: {member} and {pair[side]} are the same side of one pair; keep one of them")
        pair[side] = member
    alone += [side for pair in pairs.values() if None in pair for side in pair if side is not None]
    if alone:
        listed = ", ".join(member.name for member in alone[:3]) + ("…" if len(alone) > 3 else "")
        raise InputError(f"{source}: {len(alone)} pictures have no partner: {listed}; {_CONVENTION}")
    names, both = [], []
    for (key, _), (degraded, target) in sorted(pairs.items(), key=lambda item: item[0][0].split("/")):
        assert degraded is not None
        assert target is not None
        names.append(key + PurePosixPath(degraded.name).suffix)
        both.append((degraded, target))
    return names, both


def _side_and_key(name: str) -> tuple[int | None, str]:
    first, _, rest = name.partition("/")
    for side, names in enumerate((INPUT_NAMES, TARGET_NAMES)):
        if rest and first in names:
            return side, str(PurePosixPath(rest).with_suffix(""))
    match = _SIDES.fullmatch(str(PurePosixPath(name).with_suffix("")))
    return (None, name) if match is None else (int(match[2] in TARGET_KEYS), match[1])


def _choices(inside: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    first, last = inside.split("..")
    if int(first) > int(last):
        raise InputError(f"{{{inside}}} runs from low to high; the shards of a set are {{{last}..{first}}}")
    width = len(first) if first.startswith("0") else 0
    if int(last) - int(first) >= MOST_SHARDS:
        raise InputError(f"{{{inside}}} names more than {MOST_SHARDS} shards; check the numbers")
    return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]


def _find(shard: str) -> list[Member]:
    with explained(shard):
        text = read_text(_index_of(shard))
        return list(_members(shard)) if text is None else _from_index(text, shard)


def _index_of(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.idx"


def _as_index(members: Iterable[Member]) -> str:
    samples: dict[str, list[str]] = {}
    for member in members:
        folder, slash, file = member.name.rpartition("/")
        key, _, ending = file.partition(".")
        if any(character.isspace() for character in member.name):
            raise InputError(
                f"{member}: an index can't hold a name with a blank; train without it, or rename the member"
            )
        samples.setdefault(f"{folder}{slash}{key}", []).append(f"{ending} {member.offset} {member.size} {member.name}")
    return "".join(f"{line}\n" for line in (f"{INDEX_VERSION} {len(samples)}", *map(" ".join, samples.values())))


def _from_index(text: str, shard: str) -> list[Member]:
    head, *lines = text.splitlines() or [""]
    words = [word for line in lines for word in line.split()]
    try:
        if head.split() != [INDEX_VERSION, str(len(lines))]:
            raise ValueError(f"it does not begin with {INDEX_VERSION} {len(lines)}")
        members = [
            Member(shard, str(PurePosixPath(name)), int(offset), int(size))
            for _, offset, size, name in zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True)
        ]
        if (size := file_size(shard)) < max((member.offset + member.size for member in members), default=0):
            raise ValueError(f"the shard ends at byte {size:,}, before the last member")
    except ValueError as error:
        raise InputError(
            f"{_index_of(shard)} does not fit its shard ({error}); remove it, or write it with `kithkin data index`"
        ) from error
    return [member for member in members if is_picture(member.name)]


def _members(shard: str) -> Iterator[Member]:
    with open_file(shard) as file:
        try:
            tar = tarfile.TarFile(fileobj=file)
            while info := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # all of a big shard would be kept
                name = str(PurePosixPath(info.name))
                if info.isreg() and is_picture(name):
                    yield Member(shard, name, info.offset_data, info.size)
        except (tarfile.TarError, EOFError) as error:
            raise InputError(
                f"{shard} is damaged, cut off or no tar file ({error}); copy it again from where it came from, or "
                "write it anew"
            ) from error
        # tarfile takes whatever it can't read for the end, so what stands there is looked at.
        file.seek(tar.offset)
        if (end := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            damage = "is damaged" if len(end) == tarfile.BLOCKSIZE else "is cut off"
            raise InputError(
                f"{shard} {damage} at byte {tar.offset:,}, where a member or the end of the tar file is expected; copy "
                "it again from where it came from, or write it anew"
            )
