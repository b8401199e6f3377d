"""Pictures that readers send: bounded before they are decoded, and of four formats alone."""

import base64
import binascii
import io
import warnings
from typing import Any

from PIL import Image, ImageOps

from gpt2_jax.errors import InputError, check

LARGEST_FILE, MOST_PIXELS = 8 * 2**20, 25_000_000  # bytes, and width x height
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
ALLOWED = "a PNG, JPEG, WebP or GIF picture"


def read_image(given: Any) -> Image.Image:
    """The RGB picture of a data URI, its first frame, the right way up.

    Raises:
      InputError: it is no picture of these formats, too large in bytes or pixels, or damaged.
    """
    if given is None or given == "":
        raise InputError(f"there is no picture; give {ALLOWED}")
    head, comma, body = given.partition(",") if isinstance(given, str) else ("", "", "")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise InputError(f"the picture is no data URI of a file; it must be {ALLOWED}")
    check(len(body) <= LARGEST_FILE * 4 / 3 + 4, "the picture", "too large", f"at most {LARGEST_FILE >> 20} MiB")
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error:
        raise InputError("the picture did not arrive whole; send it again") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about odd metadata; pixels are counted here
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                small = width * height <= MOST_PIXELS
                picture = ImageOps.exif_transpose(image).convert("RGB") if small else None
        except Exception:  # a reader of damaged files may raise anything
            raise InputError(f"the picture cannot be read: it is damaged, or not {ALLOWED}") from None
    check(small, "the picture", f"{width} x {height} pixels", f"at most {MOST_PIXELS:,} pixels: make it smaller")
    return picture
