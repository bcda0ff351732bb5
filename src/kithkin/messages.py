"""Parts of messages: paths, reasons and exceptions, each on one line."""

import errno
import os


def one_line(text: object) -> str:
    """Return text on one printable line of at most 200 characters, for use within a message."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line[:197] + "..." if len(line) > 200 else line or type(text).__name__


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path or URL for a message: as it is, or quoted and escaped where it would break the
    line."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def os_reason(error: OSError) -> str:
    """Return what the operating system said, with what to do about the common cases."""
    advice = {
        "PermissionError": "; check the permissions",
        "FileNotFoundError": "; check the path",
    }.get(type(error).__name__, "")
    if error.errno == errno.ENOSPC:
        advice = "; free some space or choose another disk"
    return one_line(error.strerror or error) + advice


def missing_extra(what: str, package: str, extra: str) -> str:
    """Return the message for a package that is not installed: what needs it, and the line that
    installs it."""
    return f'{what} needs {package}; install it with: pip install "kithkin[{extra}]"'


def both_ends(error: BaseException) -> str:
    """Return an exception's text on one line, the middle of a long one left out: TorchScript says
    the reason at the end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
