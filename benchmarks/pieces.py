"""A run's last checkpoint in files of a bounded size, and back: for machines whose results travel in small files.

The newest complete ``step-…`` folder of a run becomes one tar archive, cut into ``checkpoint-0.bin``, ``-1.bin``, …;
``checkpoint.json`` comes last and holds their digests, so that pieces of two checkpoints are never joined.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "checkpoint.json"
# What is left out first where a checkpoint is too large; without these a run can't be resumed, but another can begin
# from its average. Last of all the average itself is halved to float16.
_LEAST_NEEDED = ("exp_avg_sq.safetensors", "exp_avg.safetensors", "model.safetensors")


class PiecesError(Exception):
    """Pieces that can't be joined, or a checkpoint that doesn't fit."""


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder; None where there is none yet."""
    found = sorted(path for path in run.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
    return found[-1] if found else None


def split(checkpoint: Path, out: Path, *, size: int, most: int) -> dict[str, object]:
    """Write a checkpoint into a folder in pieces; those of an earlier one are replaced.

    Args:
        checkpoint: a run's ``step-…`` folder.
        out: where the pieces go.
        size: largest piece, in bytes.
        most: how many pieces at most.

    Returns:
        The manifest: ``step``, ``pieces`` (name, bytes, sha256) and ``left_out``, files that didn't fit.

    Raises:
        PiecesError: even the averaged weights in float16 don't fit.
    """
    left_out, data = _fitting(checkpoint, size * most)
    cuts = [data[start : start + size] for start in range(0, len(data), size)]
    pieces = []
    (out / MANIFEST).unlink(missing_ok=True)  # what is there until the new one is complete can't be mistaken for it
    for i, piece in enumerate(cuts):
        _replace(out / f"checkpoint-{i}.bin", piece)
        pieces.append({"name": f"checkpoint-{i}.bin", "bytes": len(piece), "sha256": _digest(piece)})
    for path in out.glob("checkpoint-*.bin"):
        if int(path.stem.rpartition("-")[2]) >= len(cuts):
            path.unlink()
    manifest: dict[str, object] = {"step": int(checkpoint.name[5:]), "pieces": pieces, "left_out": left_out}
    _replace(out / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def join(source: Path, run: Path) -> tuple[Path, bool]:
    """Put a checkpoint that ``split`` wrote back together below a folder.

    Returns:
        Its ``step-…`` folder, and whether a run can be resumed from it; otherwise its ``average.safetensors`` are
        weights to begin from.

    Raises:
        PiecesError: a piece is missing, or belongs to another checkpoint.
    """
    try:
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        pieces = [(source / piece["name"]).read_bytes() for piece in manifest["pieces"]]
    except (OSError, ValueError, KeyError) as error:
        raise PiecesError(f"{source} holds no whole checkpoint ({error})") from error
    if any(_digest(data) != piece["sha256"] for data, piece in zip(pieces, manifest["pieces"], strict=True)):
        raise PiecesError(f"{source} holds pieces of another checkpoint than its {MANIFEST}")
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        tar.extractall(run, filter="data")
    return run / f"step-{manifest['step']:08d}", not manifest["left_out"]


def _fitting(checkpoint: Path, budget: int) -> tuple[list[str], bytes]:
    """(files left out, archive) of as much of a checkpoint as fits in so many bytes."""
    files = {path.name: path.read_bytes() for path in sorted(checkpoint.iterdir())}
    left_out: list[str] = []
    while len(data := _packed(checkpoint.name, files)) > budget:
        dropped = next((name for name in _LEAST_NEEDED if name in files), None)
        if dropped is not None:
            del files[dropped]
            left_out.append(dropped)
        elif len(data := _packed(checkpoint.name, files | _halved(files))) <= budget:
            break
        else:
            raise PiecesError(f"{checkpoint}: its weights take {len(data):,} bytes in float16, and {budget:,} fit")
    return left_out, data


def _packed(folder: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _halved(files: dict[str, bytes]) -> dict[str, bytes]:
    """The averaged weights in float16, with their header's metadata."""
    from safetensors.numpy import load, save

    weights = files["average.safetensors"]
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    halves = {name: array.astype("float16") for name, array in load(weights).items()}
    return {"average.safetensors": save(halves, header.get("__metadata__"))}


def copy_whole(source: Path, target: Path) -> None:
    """Copy a small file so that the copy is complete at any moment."""
    _replace(target, source.read_bytes())


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rows(log: Path) -> Iterator[dict[str, object]]:
    """The rows of a run's log; a last line that is still being written is left out."""
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
