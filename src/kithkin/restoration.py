"""Restore a picture, in memory or in a file."""

import os
from dataclasses import replace
from typing import Any, Unpack

from kithkin.containers import Restorable
from kithkin.errors import InputError
from kithkin.model import KiT
from kithkin.ops.native import remark
from kithkin.restore_files import restore_file
from kithkin.restore_inputs import beside
from kithkin.restore_options import Options, RestoreOptions
from kithkin.restorers import Note, Progress, Restorer, restore_image, silent, warn


def restore(
    model: KiT | Restorer,
    image: Restorable,
    *,
    options: RestoreOptions | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
    **changes: Unpack[Options],
) -> Restorable:
    """Return the picture as the model restores it: same type, layout, size, dtype and range,
    clamped to [0, 1].

    The model runs in evaluation mode and is left as it was; the global random state is not touched,
    and an autocast around the call changes nothing.

    Args:
        model: the network, on the device where it shall run, or any other
            ``kithkin.restorers.Restorer``.
        image: one of
            torch (H, W), (C, H, W) or (B, C, H, W), floating in [0, 1], uint8 or uint16, with 1
            (gray) to 4 channels;
            numpy (H, W) or (H, W, C), floating in [0, 1], uint8 or uint16, with 1 to 4 channels;
            a PIL image (a palette and CMYK come back as RGB, a bitmap as L, transparency as an
            alpha channel);
            a Picture;
            the path of a picture file: the result is written beside it, photo.jpg as
            photo-restored.jpg, and its path comes back.
            Alpha (the second of two channels, the fourth of four) is kept as it is; a gray picture
            stays gray, as the mean of the restored channels, and so does one in RGB whose channels
            are exactly equal.
        options: how; None takes the defaults.
        changes: fields of ``kithkin.RestoreOptions`` in place of those of ``options``, such as
            ``tile=512``, ``strength=0.5`` or ``ensemble=4``.
        progress: called with the finished fraction in [0, 1] after each tile; it falls when a
            picture is started again. What it raises (but for MemoryError and RuntimeError) ends the
            work there.
        note: called with a sentence for the user when values lie beyond [0, 1] (they may, from -4
            to 5, as noise carries them), when CMYK becomes RGB, when the memory made the tiles
            smaller, when no uniform blur was found, or when the device has no instructions for
            bfloat16 that was asked for; None makes it a warning.

    Raises:
        InputError: the model, the image or an option is not one of the above, or the image holds
            NaN or infinite values.
        ImageError: a file can't be read, or its result exists already or can't be written.
        KithkinError: the memory does not suffice (for tiles of 64 pixels, or for one pass with
            ``"off"``), or the model gives NaN or infinite values.
    """
    if not callable(model):
        raise InputError(
            f"restore: the first argument is a model, such as load_model('denoise'), got {type(model).__name__}"
        )
    options = replace(options or RestoreOptions(), **changes)
    note = note or warn
    if isinstance(model, KiT) and (slow := remark(next(model.parameters()).device.type)):
        warn(slow)  # which Python's filters show once
    if not isinstance(image, str | os.PathLike):
        restored: Any = restore_image(options.compose(model, note=note), image, progress=progress or silent, note=note)
        return restored
    if os.path.isdir(image):
        raise InputError(f"restore: {os.fspath(image)} is a folder; `kithkin restore` and restore_files take folders")
    target = beside(image)
    for sentence in restore_file(model, image, target, options=options, progress=progress):
        note(sentence)
    return str(target) if isinstance(image, str) else target  # type: ignore[return-value]
