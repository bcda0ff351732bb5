"""The part of a recipe that says how photographs are degraded while training."""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from kithkin.packaged import Section

Sigma = Annotated[float, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
Grain = Annotated[float, Field(ge=0, le=2)]
Span = Annotated[float, Field(ge=0, le=60)]
Quality = Annotated[float, Field(ge=1, le=100)]
Scale = Annotated[float, Field(ge=0.25, le=4)]
Smaller = Annotated[float, Field(ge=0.25, le=1)]
Saturation = Annotated[float, Field(ge=0, le=4)]


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"runs from low to high, got {list(bounds)}")
    return bounds


Bound = TypeVar("Bound")
Range = Annotated[tuple[Bound, Bound], AfterValidator(_rising)]


class AugmentConfig(Section):
    """How crops are changed before they are degraded, so that few photographs look like many. Those of pairs are
    flipped and turned alone.

    Attributes:
        flips, turns: whether half of the crops are mirrored, and whether they are turned by quarters.
        permuted_share: of crops whose red, green and blue are exchanged at random.
        exposure: largest change to either side in stops of light, as of a curve of gamma 2.2; what gets brighter than
            white is clipped.
        saturation: range of the factor by which colours are drawn away from gray; 0 is gray.
        rescaled_share: of crops that are made smaller, so that detail becomes finer; smaller photographs less so.
        rescale: range of their scale.
    """

    flips: bool = True
    turns: bool = True
    permuted_share: Share = 0.0
    exposure: Annotated[float, Field(ge=0, le=4)] = 0.0
    saturation: Range[Saturation] = (1.0, 1.0)
    rescaled_share: Share = 0.0
    rescale: Range[Smaller] = (0.5, 1.0)

    @property
    def recolors(self) -> bool:
        """Whether any crop gets other colours."""
        return self.permuted_share > 0 or self.exposure > 0 or self.saturation != (1, 1)


class CorrelatedConfig(Section):
    """Gaussian noise that is alike in neighbouring pixels and channels.

    Attributes:
        sigma: range of the noise level on the 0-255 scale.
        grain: range of the standard deviation of the kernel that white noise went through, in pixels.
        chroma: range of the share of the variance that every channel has for itself; 0 is gray noise.
    """

    kind: Literal["correlated"]
    sigma: Range[Sigma] = (0.0, 50.0)
    grain: Range[Grain] = (0.0, 1.2)
    chroma: Range[Share] = (0.0, 1.0)


class CameraConfig(Section):
    """Noise of a camera's sensor, developed, denoised a little and compressed.

    Attributes:
        phone_share: of pictures with the sensor noise of phones (SIDD); the others have that of cameras (DND).
        noise_left: range of the share of its amplitude that the camera's noise reduction leaves.
        luma_grain, chroma_grain: ranges of the kernels by which the camera smooths noise, in pixels; the first is also
            that of correlated noise.
        correlated_share: of pictures with correlated noise instead of a sensor's.
        correlated_sigma: range of its level on the 0-255 scale.
        jpeg_share: of pictures that are compressed; all are rounded to 8 bits.
        jpeg_quality: range, on libjpeg's scale.
    """

    kind: Literal["camera"]
    phone_share: Share = 0.3
    noise_left: Range[Share] = (0.05, 0.7)
    luma_grain: Range[Grain] = (0.0, 0.8)
    chroma_grain: Range[Grain] = (0.0, 1.6)
    correlated_share: Share = 0.2
    correlated_sigma: Range[Sigma] = (2.0, 20.0)
    jpeg_share: Share = 0.9
    jpeg_quality: Range[Quality] = (75.0, 100.0)


class NoiseConfig(Section):
    """Noise of every kind, see ``kithkin.data.degrade.mixed_noise`` for what each is and where it is taken from.

    Attributes:
        sigma: range of the level of all noise but a camera's, on the 0-255 scale: of film grain in a middle gray, of
            noise that is resized before it is.
        white, luminance, film, camera: relative shares of white noise, of white noise that is the same in red, green
            and blue, of film grain, and of what ``CameraConfig`` does by its defaults.
        gray_share: of pictures that are turned to gray, and whose noise is gray; whatever the kind, this share and the
            others below hold.
        grain, chroma: of film, ranges of the deviation of the kernels in pixels, drawn for the gray and for the
            colours, and of the share of the variance that every channel has for itself.
        varying_share: of pictures whose level goes from one to another, smoothly or at a line; not of cameras.
        resized_share: of pictures whose noise went through a resize; not of cameras.
        resize: range of the scale; below 1 the picture became smaller.
        stored_share: of pictures that are clipped and rounded to 8 bits, as files are; cameras' all are.
        jpeg_share: of pictures that are compressed after all that; cameras' mostly for the second time.
        jpeg_quality: range, on libjpeg's scale.
    """

    kind: Literal["noise"]
    sigma: Range[Sigma] = (0.0, 55.0)
    white: Share = 0.4
    luminance: Share = 0.1
    film: Share = 0.25
    camera: Share = 0.25
    gray_share: Share = 0.2
    grain: Range[Grain] = (0.3, 1.2)
    chroma: Range[Share] = (0.0, 0.6)
    varying_share: Share = 0.15
    resized_share: Share = 0.15
    resize: Range[Scale] = (0.6, 1.6)
    stored_share: Share = 0.5
    jpeg_share: Share = 0.2
    jpeg_quality: Range[Quality] = (50.0, 100.0)

    @model_validator(mode="after")
    def _there_is_noise(self) -> "NoiseConfig":
        if not self.white + self.luminance + self.film + self.camera > 0:
            raise ValueError("white, luminance, film and camera are all 0; at least one kind needs a share")
        return self


class RainConfig(Section):
    """Rain of three looks, see ``kithkin.data.degrade.rain.LOOKS``.

    Attributes:
        light, medium, heavy: relative shares of the looks.
        dry_share: of pictures that get no rain, so that the network learns to leave those alone.
    """

    kind: Literal["rain"]
    light: Share = 0.5
    medium: Share = 0.25
    heavy: Share = 0.25
    dry_share: Share = 0.1

    @model_validator(mode="after")
    def _it_rains(self) -> "RainConfig":
        if not self.light + self.medium + self.heavy > 0:
            raise ValueError("light, medium and heavy are all 0; at least one look needs a share")
        return self


class BlurConfig(Section):
    """Camera shake, straight motion, moving parts and defocus, see ``kithkin.data.degrade.blur.BlurSettings``.

    Attributes:
        length: of the path of a full exposure, in pixels; not of splines.
        exposure: range of the fraction of the path that is seen; splines are seen whole.
        shake, spline, straight, still: relative shares of a shaking hand, a spline through random points, a straight
            motion and no path; whatever the path, the shares below hold.
        span: range of the side of the square in which the points of a spline lie, in pixels.
        framed_share, varying_share, foreground_share, defocused_share: of pictures that are averages of frames, whose
            kernel changes over the picture, a part of which moves on a path of its own, that are out of focus.
        linear_share: of pictures that are blurred as stored, without a curve between stored values and light.
        read: range of the standard deviation of the noise of black, where white is 1.
        margin: pixels on every side of a crop that are blurred into it; paths that reach farther than this less 2 and
            less the disc out of focus are made smaller.
        sharp_share: of pictures that are given as they are, sharp and without noise; ``still`` ones have it.
    """

    kind: Literal["blur"]
    length: Annotated[float, Field(gt=0, le=60)] = 60.0
    exposure: Range[Share] = (0.01, 1.0)
    shake: Share = 0.6
    spline: Share = 0.0
    span: Range[Span] = (3.0, 24.0)
    straight: Share = 0.3
    still: Share = 0.1
    framed_share: Share = 0.15
    varying_share: Share = 0.5
    foreground_share: Share = 0.25
    defocused_share: Share = 0.2
    linear_share: Share = 0.3
    read: Range[Share] = (0.0, 0.002)
    margin: Annotated[int, Field(ge=6, le=128)] = 32
    sharp_share: Share = 0.1

    @model_validator(mode="after")
    def _something_happens(self) -> "BlurConfig":
        if not self.shake + self.spline + self.straight + self.still > 0:
            raise ValueError("shake, spline, straight and still are all 0; at least one motion needs a share")
        return self


# What can be done to photographs beside plain noise. Each kind has its function in kithkin.data.degrade.DEGRADATIONS.
DegradationConfig = Annotated[
    CorrelatedConfig | CameraConfig | NoiseConfig | RainConfig | BlurConfig, Field(discriminator="kind")
]
