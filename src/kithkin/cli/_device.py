"""The device that a verb runs on."""

from kithkin.cli._command import say


def choose_device(name: str | None) -> str:
    """Return the device by this name, checked; None takes the GPU where there is one. Say so where it is a slow CPU.

    Raises:
        InputError: no such device here.
    """
    import torch

    from kithkin.ops.native import remark

    found = _checked(name) if name is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if sentence := remark(torch.device(found).type):
        say(sentence)
    return found


def _checked(name: str) -> str:
    import torch

    from kithkin.errors import InputError

    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("pictures can't be restored there")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the device {name!r} can't be used ({reason}); leave --device out, or take cpu") from error
    return name
