"""Pictures in files, as RGB: upright, without transparency, 8 bits a channel.

Owns what is read and what is refused by name, and that the size in a header is judged before
anything is decoded. Pillow decodes, and does nothing else. Refuses to be clever with what is
damaged: half a picture is none.
"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from awq_edge.errors import (
    AwqEdgeError,
    FileUnreadableError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.vision.arrays import bytes_of

if TYPE_CHECKING:
    from PIL import Image

# What a user may hand in: a file's path, its bytes, a picture of Pillow's, an array.
Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, "Image.Image", Any]

MAX_SIDE = 16384
MAX_PIXELS = 64_000_000  # 192 MB of RGB; a phone's largest photographs have fewer
MAX_RATIO = 200  # of the longer to the shorter side
MAX_FILE_BYTES = 128 << 20

# Readers of Pillow's that may be tried; the others are for formats that nobody photographs in.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ANIMATED = ("GIF", "PNG", "WEBP")
_INSTEAD = "convert it to JPEG or PNG"
# The word behind "ftyp" that begins a file.
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_ORIENTATION = 0x0112  # the tag of Exif


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        rgb: uint8 [H, W, 3].
        notices: What a user should know, each a sentence.
    """

    rgb: npt.NDArray[np.uint8]
    notices: tuple[str, ...] = ()


def read_picture(
    source: Source,
    *,
    channels: str | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    most_pixels: int = MAX_PIXELS,
) -> Picture:
    """Reads a picture.

    Args:
        source: A path, the bytes of a file, a picture of Pillow's, or an array (``arrays.py``).
        channels: Of an array, "first" or "last", where its shape does not tell.
        background: What shows through where the picture is transparent, RGB.
        most_pixels: A larger picture is refused; at most MAX_PIXELS.

    Raises:
        FileUnreadableError: There is no such file, or it cannot be read.
        UnsupportedError: It is a format that is not read, or Pillow is not installed.
        InvalidArgumentError: It is no picture, is damaged, or is too large.
    """
    if isinstance(source, np.ndarray):
        _check_size("The array", *_size_of(source, channels), most_pixels)
        pixels = bytes_of(source, channels)
        return Picture(_rgb_of(pixels, background))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(bytes(source), "The image", background, most_pixels)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _decoded(file_bytes(path), str(path), background, most_pixels)
    if hasattr(source, "getexif") and hasattr(source, "mode"):
        return _of_pillow(source, "The image", background, most_pixels)
    raise InvalidArgumentError(
        f"A {type(source).__name__} is no picture: give a path, the bytes of a file, a picture of "
        "Pillow's or a numpy array."
    )


def _size_of(array: npt.NDArray[np.generic], channels: str | None) -> tuple[int, int]:
    """Width and height of an array, as far as they can be told; what is no picture passes."""
    if array.ndim not in (2, 3):
        return 1, 1
    first = array.ndim == 3 and (channels == "first" or array.shape[2] not in (1, 3, 4))
    height, width = array.shape[1:] if first else array.shape[:2]
    return int(width), int(height)


def file_bytes(path: Path) -> bytes:
    """What a picture's file holds.

    Raises:
        FileUnreadableError: There is no such file, or it cannot be read.
        InvalidArgumentError: It is no regular file, or too large.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # a NUL in the path
        raise FileUnreadableError(f"{str(path)!r} is no path.") from error
    except OSError as error:
        raise FileUnreadableError(f"{path}: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise FileUnreadableError(f"{path} is a directory.")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArgumentError(f"{path} is no regular file.")
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidArgumentError(
                f"{path} has {status.st_size >> 20} MB; pictures of up to "
                f"{MAX_FILE_BYTES >> 20} MB are read."
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES + 1)
    except AwqEdgeError:
        raise  # from above; some of them are OSErrors
    except OSError as error:
        raise FileUnreadableError(f"{path}: {error.strerror}.") from error
    finally:
        os.close(descriptor)


def _decoded(
    content: bytes, where: str, background: tuple[int, int, int], most_pixels: int
) -> Picture:
    _refuse_by_name(content, where)
    if len(content) > MAX_FILE_BYTES:
        raise InvalidArgumentError(
            f"{where} has {len(content) >> 20} MB; pictures of up to {MAX_FILE_BYTES >> 20} MB are "
            "read."
        )
    pillow = _pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged Exif data, and of sizes that are judged here
        try:
            image = pillow.open(io.BytesIO(content), formats=_FORMATS)
        except pillow.DecompressionBombError as error:
            raise InvalidArgumentError(
                f"{where} has more than {most_pixels // 10**6} million pixels: scale it down."
            ) from error
        except Exception as error:  # whatever a reader of Pillow's makes of damaged bytes
            raise InvalidArgumentError(
                f"{where} is no readable image of the formats {', '.join(_FORMATS)}."
            ) from error
        with image:
            return _of_pillow(image, where, background, most_pixels)


def _of_pillow(
    image: Any, where: str, background: tuple[int, int, int], most_pixels: int
) -> Picture:
    width, height = image.size
    _check_size(where, width, height, most_pixels)
    notices = []
    try:
        image.load()
        turned = image.getexif().get(_ORIENTATION, 1)
        if image.format in _ANIMATED and getattr(image, "is_animated", False):
            image.seek(0)
            notices.append(f"{where} moves: its first frame alone is looked at.")
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise InvalidArgumentError(f"{where} is no readable image: {_reason(error)}.") from error
    try:
        rgb = _rgb(image, where, background)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{where} is no readable image: {_reason(error)}.") from error
    return Picture(np.ascontiguousarray(upright(rgb, turned)), tuple(notices))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError(
            "Pictures in files are decoded by Pillow, which is not installed: "
            "pip install 'awq-edge[vision]'."
        ) from error
    return Image


def _refuse_by_name(content: bytes, where: str) -> None:
    """Refuses what people have instead of JPEG and PNG, and says what it is."""
    begin = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    word = content[8:12] if content[4:8] == b"ftyp" else b""
    name = ""
    if word in _HEIF:
        name = "HEIC"
    elif word in _AVIF:
        name = "AVIF"
    elif begin.startswith(b"<svg") or (begin.startswith((b"<?xml", b"<!--")) and b"<svg" in begin):
        name = "SVG"
    if name:
        raise UnsupportedError(f"{where} is a picture of the format {name}: {_INSTEAD}.")
    if content.startswith(b"%PDF-"):
        raise UnsupportedError(f"{where} is a PDF document: convert its pages to JPEG or PNG.")
    riff = content[:4] == b"RIFF" and content[8:12] == b"AVI "
    if word or riff or content.startswith((b"\x1a\x45\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba")):
        raise UnsupportedError(f"{where} is a video: give frames of it as pictures.")
    if not content:
        raise InvalidArgumentError(f"{where} is empty.")


def _check_size(where: str, width: int, height: int, most_pixels: int) -> None:
    """Refuses sizes before anything of them is allocated."""
    if width < 1 or height < 1:
        raise InvalidArgumentError(f"{where} has {width}x{height} pixels, which is none.")
    if max(width, height) > MAX_SIDE or width * height > most_pixels:
        raise InvalidArgumentError(
            f"{where} has {width}x{height} pixels; at most {MAX_SIDE} on a side and "
            f"{most_pixels // 10**6} million in all are read: scale it down."
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InvalidArgumentError(
            f"{where} has {width}x{height} pixels: a side may be at most {MAX_RATIO} times as long "
            "as the other."
        )


def _rgb(image: Any, where: str, background: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """A loaded picture's colours, uint8 [H, W, 3]."""
    mode = image.mode
    if mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        return _of_16_bits(image, where, background)
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or (
        mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    ):
        return _rgb_of(np.asarray(image.convert("RGBA")), background)
    if mode in ("1", "L", "P", "RGB", "RGBX", "CMYK"):
        return np.array(image.convert("RGB"))
    raise UnsupportedError(
        f"{where} holds its pixels as {mode}; RGB, grey, palettes and CMYK are read: {_INSTEAD}."
    )


def _of_16_bits(image: Any, where: str, background: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The high byte of each grey value; Pillow would cut at 255 and show a white picture."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnsupportedError(f"{where} holds integers of more than 16 bits: {_INSTEAD}.")
    grey = (values >> 8).astype(np.uint8)
    hidden = image.info.get("transparency")
    alpha = np.full_like(grey, 255) if hidden is None else np.where(values == hidden, 0, 255)
    return _rgb_of(np.stack([grey, grey, grey, alpha.astype(np.uint8)], axis=2), background)


def _rgb_of(
    pixels: npt.NDArray[np.uint8], background: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Grey, RGB or RGBA, uint8 [H, W, 1, 3 or 4], as RGB."""
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[:, :, 3:].astype(np.uint32)
    behind = np.array(background, dtype=np.uint32) * (255 - alpha)
    mixed = (pixels[:, :, :3] * alpha + behind + 127) // 255
    return np.asarray(mixed, dtype=np.uint8)


def upright(rgb: npt.NDArray[np.uint8], orientation: object) -> npt.NDArray[np.uint8]:
    """A picture as it was seen, for what Exif says of the camera; an unknown word says nothing.

    Args:
        rgb: uint8 [H, W, 3].
        orientation: 1 to 8.
    """
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb
