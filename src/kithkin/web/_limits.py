"""The limits of what the server accepts."""

from dataclasses import dataclass, fields

from kithkin.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Bounds on one picture and on all together, which keep the server's memory and its queue
    bounded.

    Attributes:
        megabytes: of one upload, in 10⁶ bytes.
        megapixels: of one picture, in 10⁶ pixels.
        queue: pictures that wait, the one at work not counted.
        held_megabytes: of all uploads that wait and all results that were not fetched yet, in 10⁶
            bytes.
        header_seconds: until the head of a request must be complete.
        upload_seconds: until an upload must be complete.
        work_seconds: for one picture; looked at between its tiles.
        keep_seconds: after which a result that nobody fetched is dropped.
        absent_seconds: after which a job whose state nobody asked for is given up.
        again_megabytes: of restorations that stay for another strength or format, in 10⁶ bytes.
        again_seconds: after which such a one is dropped, since it was last used.
        tile: the largest side of a tile that a request may ask for, in pixels.
        neighbors_side: of the part of a picture whose neighbours are looked for, in pixels.

    Raises:
        InputError: a limit is not positive.
    """

    megabytes: float = 64
    megapixels: float = 32
    queue: int = 32
    held_megabytes: float = 512
    header_seconds: float = 10
    upload_seconds: float = 120
    work_seconds: float = 900
    keep_seconds: float = 300
    absent_seconds: float = 180
    again_megabytes: float = 512
    again_seconds: float = 900
    tile: int = 1024
    neighbors_side: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InputError(f"serve: the limit {field.name} must be more than 0, got {value!r}")

    @property
    def requests(self) -> int:
        """Uploads at a time: more than may wait, so that the queue can refuse with a sentence."""
        return 4 * self.queue + 32

    @property
    def connections(self) -> int:
        """At a time: beside those uploads, the page asks for states, and a browser opens some
        ahead."""
        return self.requests + 256
