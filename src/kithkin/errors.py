"""The errors that kithkin raises on purpose.

Every message says who refuses, what was expected, what came, and what to do. Anything else that
escapes from the package is a bug.
"""


class KithkinError(Exception):
    """Base of all errors that a caller of kithkin may want to catch."""


class InputError(KithkinError, ValueError):
    """An argument, a tensor's shape or dtype, or a configuration value is not usable."""


class ImageError(KithkinError):
    """A picture can't be read, decoded, represented or written."""


class CheckpointError(KithkinError):
    """A checkpoint or a shipped weight file is missing, damaged or of another make."""


class BackendError(KithkinError):
    """A backend of the operator was asked for by name and can't serve this call."""
