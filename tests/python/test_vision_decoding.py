"""Pictures in files and arrays: what becomes RGB, and what is refused in a sentence."""

import io
import os
import random
import resource
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from awq_edge.errors import (
    AwqEdgeError,
    FileUnreadableError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.vision.decoding import MAX_PIXELS, read_picture


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""
    body = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    chunk = b"IHDR" + body
    sum_of = zlib.crc32(chunk).to_bytes(4, "big")
    begin = b"\x89PNG\r\n\x1a\n" + len(body).to_bytes(4, "big") + chunk + sum_of
    return begin + (1000).to_bytes(4, "big") + b"IDAT"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_formats_without_loss_keep_every_byte(kind, tmp_path):
    pixels = noise(9, 7)
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(pixels), kind, **settings)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, bytearray(data), path, str(path), Image.open(io.BytesIO(data)), pixels):
        np.testing.assert_array_equal(read_picture(source).rgb, pixels)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("as_image", [False, True])
def test_a_picture_is_upright_as_its_camera_says(turned, as_image):
    from PIL import ImageOps

    image = Image.fromarray(noise(5, 8))
    exif = Image.Exif()
    exif[0x0112] = turned
    data = encoded(image, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    given = Image.open(io.BytesIO(data)) if as_image else data
    np.testing.assert_array_equal(read_picture(given).rgb, expected)


def composited(rgb, alpha):
    """By the rule, in floats."""
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def test_what_is_transparent_shows_white():
    pixels = noise(6, 6, 4)
    found = read_picture(encoded(Image.fromarray(pixels))).rgb
    expected = composited(pixels[..., :3].astype(float), pixels[..., 3].astype(float))
    assert np.abs(found - expected).max() <= 0.5
    hidden = np.zeros((6, 6, 4), dtype=np.uint8)
    assert (read_picture(hidden).rgb == 255).all()
    assert (read_picture(hidden, background=(10, 20, 30)).rgb == (10, 20, 30)).all()


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "L", "RGB", "1"])
def test_transparency_of_every_kind_shows_white(mode):
    image = Image.fromarray(noise(8, 8)).convert("L" if mode == "LA" else "RGB")
    if mode == "LA":
        image.putalpha(0)
        data = encoded(image)
    elif mode == "PA":
        image = image.convert("P").convert("PA")
        image.putalpha(0)
        np.testing.assert_array_equal(read_picture(image).rgb, 255)
        return
    else:
        flat = Image.new(mode, (8, 8), 0)
        data = encoded(flat, transparency=(0, 0, 0) if mode == "RGB" else 0)
    np.testing.assert_array_equal(read_picture(data).rgb, 255)


def test_of_sixteen_bits_the_high_byte_counts():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    found = read_picture(encoded(Image.fromarray(values))).rgb
    np.testing.assert_array_equal(found, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_palettes_and_single_bits_are_colours():
    image = Image.fromarray(noise(12, 12)).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_picture(encoded(image)).rgb, expected)
    bits = Image.fromarray(noise(12, 12, 1)[..., 0] > 128)
    found = read_picture(encoded(bits)).rgb
    np.testing.assert_array_equal(found[..., 0], np.where(np.asarray(bits), 255, 0))


def test_inks_become_light():
    image = Image.fromarray(noise(8, 8, 4), "CMYK")
    c, m, y, k = (np.asarray(image)[..., n].astype(float) for n in range(4))
    light = 255 - k
    expected = np.stack([light - ink * light / 255 for ink in (c, m, y)], axis=2)
    assert np.abs(read_picture(encoded(image, "TIFF")).rgb - expected).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_what_moves_the_first_frame_is_taken_and_that_is_said(kind):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings)
    found = read_picture(data)
    np.testing.assert_array_equal(found.rgb, np.asarray(frames[0]))
    assert len(found.notices) == 1
    assert "first frame" in found.notices[0]


@pytest.mark.parametrize(
    ("begin", "name"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00avifmif1", "AVIF"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00isommp42", "video"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "video"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"%PDF-1.7 ...", "PDF"),
    ],
)
def test_what_people_have_instead_is_refused_by_its_name(begin, name):
    with pytest.raises(UnsupportedError, match=name):
        read_picture(begin)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((20000, 20000), "20000x20000|million"),
        ((16385, 100), "16385x100"),
        ((9000, 8000), "9000x8000"),
        ((16000, 60), "16000x60.*200 times"),
    ],
)
def test_a_size_is_judged_by_the_header_before_anything_is_decoded(size, words):
    with pytest.raises(InvalidArgumentError, match=words):
        read_picture(png_header(*size) + bytes(50))


def test_the_limits_hold_for_arrays_too():
    with pytest.raises(InvalidArgumentError, match="200 times"):
        read_picture(np.zeros((1, 300, 3), dtype=np.uint8))
    thin = np.broadcast_to(np.uint8(0), (20000, 5, 3))
    with pytest.raises(InvalidArgumentError, match="5x20000"):
        read_picture(thin)


@pytest.mark.parametrize("size", [(1, 1), (23, 237), (26, 28)])
def test_no_picture_is_too_small(size):
    assert read_picture(encoded(Image.fromarray(noise(*size)))).rgb.shape == (*size, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_half_a_picture_is_none(kind):
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(InvalidArgumentError, match="no readable image") as caught:
        read_picture(data[: len(data) // 2])
    assert "\n" not in str(caught.value)


def test_damaged_and_random_bytes_are_refused_in_one_sentence():
    drawn = random.Random(1)
    whole = [
        encoded(Image.fromarray(noise(24, 24)), kind)
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(5000):
        data = bytearray(whole[number % len(whole)])
        for _ in range(drawn.randint(1, 12)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        if number % 5 == 0:
            data = bytearray(drawn.randbytes(drawn.randint(0, 300)))
        try:
            assert read_picture(bytes(data)).rgb.dtype == np.uint8
        except AwqEdgeError as error:
            assert str(error).endswith(".")
            assert "\n" not in str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < 3 * MAX_PIXELS  # of the largest picture there is, as RGB


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((6, 5), 7, np.uint8), 7),
        (np.full((6, 5, 3), 7, np.int64), 7),
        (np.full((3, 6, 5), 7, np.uint8), 7),
        (np.full((6, 5, 1), 7, np.uint8), 7),
        (np.full((6, 5, 3), 0.5, np.float32), 128),
        (np.full((6, 5, 3), 7.0, np.float64), 7),
        (np.zeros((6, 5, 3), np.uint8), 0),
        (np.ones((6, 5), bool), 255),
    ],
)
def test_arrays_of_every_usual_kind_are_read(array, expected):
    found = read_picture(array).rgb
    assert found.shape == (6, 5, 3)
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 5, 3), np.uint8), "channels="),
        (np.zeros((2, 4, 5, 3), np.uint8), "one picture at a time"),
        (np.zeros((6, 5, 2), np.uint8), "no axis"),
        (np.full((6, 5, 3), 300), "300"),
        (np.full((6, 5, 3), -0.5), "-0.5"),
        (np.full((6, 5, 3), 1.5), "1.5"),
        (np.full((6, 5, 3), np.nan), "not finite"),
        (np.zeros((6, 5, 3), complex), "complex"),
        (np.zeros((0, 5, 3), np.uint8), "none"),
    ],
)
def test_arrays_that_could_be_anything_are_refused(array, words):
    with pytest.raises(InvalidArgumentError, match=words):
        read_picture(array)


def test_whoever_says_where_the_channels_are_is_believed():
    array = noise(3, 5, 3)
    np.testing.assert_array_equal(read_picture(array, channels="last").rgb, array)
    first = read_picture(array, channels="first").rgb
    np.testing.assert_array_equal(first, array.transpose(1, 2, 0))


@pytest.mark.parametrize("source", [None, 7, ["a"], object()])
def test_what_is_no_picture_at_all_is_refused(source):
    with pytest.raises(InvalidArgumentError, match="is no picture"):
        read_picture(source)


def test_paths_that_lead_to_no_file_are_refused(tmp_path):
    with pytest.raises(FileUnreadableError):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(FileUnreadableError, match="is a directory"):
        read_picture(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InvalidArgumentError, match="is no regular file"):
            read_picture(place)
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.truncate(300 << 20)
    with pytest.raises(InvalidArgumentError, match="has 300 MB"):
        read_picture(tmp_path / "huge.png")
    with pytest.raises(FileUnreadableError, match="is no path"):
        read_picture("a\0b.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InvalidArgumentError, match="is empty"):
        read_picture(tmp_path / "empty.png")


def test_modes_that_nobody_shows_are_refused_by_their_name():
    with pytest.raises(UnsupportedError, match="as F;"):
        read_picture(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_without_pillow_arrays_are_read_and_files_refused_in_a_sentence():
    program = (
        "import sys; sys.modules['PIL'] = None\n"
        "import numpy as np\n"
        "from awq_edge.vision.decoding import read_picture\n"
        "print(read_picture(np.zeros((2, 2, 3), np.uint8)).rgb.shape)\n"
        "try: read_picture(b'anything')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.splitlines() == [
        "(2, 2, 3)",
        "UnsupportedError Pictures in files are decoded by Pillow, which is not installed: "
        "pip install 'awq-edge[vision]'.",
    ]
