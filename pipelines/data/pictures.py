"""One picture file to pixels, whatever a camera, a scanner or a program wrote: uint8, one channel or RGB, upright, opaque."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.data.findings import Findings

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

__all__ = ["SUFFIXES", "as_rgb", "decoded"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".tga")
GREY = ("1", "L", "LA", "La")
DEEP = ("I", "F")  # and I;16 in its byte orders: more than 8 bits a pixel, always grey
SEVERAL = ("GIF", "TIFF", "WEBP", "PNG", "AVIF")  # formats of several frames; an MPO's other frames are a phone's depth
ORIENTATION = 274  # the EXIF tag


def decoded(content: bytes | None, what: str, findings: Findings) -> np.ndarray:
    """Encoded picture -> uint8 (C, H, W): grey stays one channel, everything else becomes RGB.

    Upright by its EXIF orientation, transparency on white, 16 bits as 8, the first frame of several. Raises InputError,
    naming ``what`` it is, for anything that cannot be read as a picture.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if not content:
        raise InputError(f"{what} is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format in SEVERAL and getattr(image, "n_frames", 1) > 1:
                findings.changed["of several frames, of which the first is taken"] += 1
            deep = any("16" in str(part) for tile in image.tile for part in tile[3:])
            if deep or image.mode.startswith("I;16"):
                findings.changed["of 16 bits, read as 8"] += 1
            if image.getexif().get(ORIENTATION, 1) not in (0, 1):
                findings.changed["turned upright, as their EXIF data say"] += 1
            array = np.asarray(_plain(_in_srgb(ImageOps.exif_transpose(image), findings), what, findings))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of foreign bytes Pillow's decoders raise nearly anything
        raise InputError(f"{what} cannot be read as an image ({type(error).__name__})") from error
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _in_srgb(image: Image, findings: Findings) -> Image:
    """The colours of a phone's or camera's wider gamut (Display P3, Adobe RGB) as sRGB, which models are made of."""
    from PIL import ImageCms

    content = image.info.get("icc_profile")
    if not content or image.mode not in ("RGB", "RGBA") or "transparency" in image.info:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if profile.profile.xcolor_space.strip() != "RGB" or "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        found = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=image.mode)
    except (ImageCms.PyCMSError, OSError):
        return image  # of a broken profile every program shows the numbers as they are
    findings.changed["of another colour profile, turned into sRGB"] += 1
    return image if found is None else found


def _plain(image: Image, what: str, findings: Findings) -> Image:
    """The image in mode L or RGB."""
    from PIL import Image as pillow

    grey = image.mode in GREY
    if image.mode in DEEP or image.mode.startswith("I;16"):
        return pillow.fromarray(_eight_bits(image, what, findings))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            findings.changed["with transparency, laid on white"] += 1
            image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _eight_bits(image: Image, what: str, findings: Findings) -> np.ndarray:
    """Grey values of more than 8 bits as 0 to 255: of 65,535 for whole numbers, of 1 or of 255 for fractions."""
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    least, most = float(values.min()), float(values.max())
    if image.mode == "F":
        tops: tuple[float, ...] = (1.0, 255.0)
    else:
        tops = (255.0, 65535.0) if image.mode == "I" else (65535.0,)
    top = next((top for top in tops if most <= top), None)
    if top is None or not least >= 0:
        raise InputError(f"{what} has values from {least:g} to {most:g}, which is no known scale: convert it to 8 bits first")
    if top == 65535.0 and 255 < most < 4096:
        findings.changed["nearly black, as values of a 12-bit camera are in 16 (if so, multiply them by 16 first)"] += 1
    return (values * (255 / top)).round().astype(np.uint8)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(3, H, W) of a picture of one channel, or of three."""
    import numpy as np

    return image if len(image) == 3 else np.repeat(image, 3, axis=0)
