"""Pictures that readers send, good and bad."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gpt2_jax import InputError
from gpt2_jax.page.images import LARGEST_FILE, read_image


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_is_read(picture, kind):
    found = read_image(uri(file_of(picture, kind, lossless=True), kind.lower()))
    assert found.mode == "RGB" and np.array_equal(found, picture)


def test_jpeg_and_gif_and_grey_are_read_as_rgb(picture):
    for kind in ("JPEG", "GIF"):
        assert read_image(uri(file_of(picture, kind))).size == (12, 9)
    assert read_image(uri(file_of(picture.convert("L"), "PNG"))).mode == "RGB"


def test_a_picture_is_turned_upright(picture):
    turned = Image.Exif()
    turned[0x0112] = 6
    assert read_image(uri(file_of(picture, "JPEG", exif=turned), "jpeg")).size == (9, 12)


DAMAGED = "the picture cannot be read: it is damaged, or not a PNG, JPEG, WebP or GIF picture"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "there is no picture; give a PNG"),
        ("", "there is no picture"),
        ("/etc/passwd", "the picture is no data URI of a file"),
        ({"path": "/etc/passwd"}, "the picture is no data URI"),
        ("data:text/html;base64,AAAA", "the picture is no data URI"),
        ("data:image/png;base64,A*A", "the picture did not arrive whole; send it again"),
        (uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml"), DAMAGED),
        (uri(b"GIF89a"), DAMAGED),
        (uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), DAMAGED),
        (uri(b"BM" + bytes(80)), DAMAGED),
        (uri(bytes(1000)), DAMAGED),
        (uri(b"x" * (LARGEST_FILE + 9)), "the picture is 'too large'; it must be at most 8 MiB"),
        (uri(png(60_000, 60_000, b"")), "the picture is '60000 x 60000 pixels'|the picture cannot be read"),
        (uri(png(6_000, 6_000, bytes(751 * 6_000))), "the picture is '6000 x 6000 pixels'; it must be at most 25,"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        read_image(given)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures_that_are_cut_off_or_changed_are_refused_or_read(picture, kind):
    """Nothing but an `InputError` comes of any of them."""
    whole = file_of(picture, kind)
    draws = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole[: draws.integers(1, len(whole) + 1)])
        data[draws.integers(len(data))] = draws.integers(256)
        try:
            read_image(uri(bytes(data)))
        except InputError:
            refused += 1
    assert refused
