"""The errors that kithkin raises on purpose.

Every message says who refuses, what was expected, what came instead, and what to do. Anything else that
escapes from the package is a bug. Messages know nothing of the command line: they name arguments,
as in "restore: tile must be ..." or "choose another `out`", and the command puts its option there
(``kithkin.cli._command.in_options``).
"""


class KithkinError(Exception):
    """Base of all errors that a caller of kithkin may want to catch."""


class InputError(KithkinError, ValueError):
    """An argument, a tensor's shape or dtype, or a configuration value is not usable."""


class ImageError(KithkinError):
    """A picture can't be read, decoded, represented or written."""


class CheckpointError(KithkinError):
    """A checkpoint or a shipped weight file is missing, damaged or not from kithkin."""


class BackendError(KithkinError):
    """A backend of the operator was asked for by name and can't serve this call."""
