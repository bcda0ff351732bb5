"""Which device a verb runs on."""


def choose_device(name: str | None) -> str:
    """The device by this name, checked; None takes the GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    import torch

    from kithkin.errors import InputError

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("pictures can't be restored there")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the device {name!r} can't be used ({reason}); leave --device out, or take cpu") from error
    return name
