"""Images that others made, decoded within bounds and made as large as a model wants them."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.errors import InputError, one_line, shown
from gpt2_jax.image_options import ImageConfig

MOST_PIXELS = 50_000_000  # of an image: 150 MB when decoded
LARGEST_FILE = 100_000_000  # bytes
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # that Pillow decodes by itself
Image = Any  # a path, the bytes of a file, a PIL image, uint8 [H, W] or [H, W, 1, 3 or 4]; or features


def pixels_of(image: Image, options: ImageConfig, name: str = "the image") -> np.ndarray:
    """What a model reads of an image: uint8 [S, S, channels], or float32 features [D].

    Its shorter side becomes S pixels long; of the longer one what is beyond is cut off on both sides. What is
    transparent is white.

    Args:
      image: a path, bytes, a PIL image or an array; of features, a path of .npy or a vector.
      options: of the model.
      name: for errors.

    Raises:
      InputError: it cannot be read, is damaged, too large, or of another kind.
    """
    if options.features:
        return _features(image, options.features, name)
    if isinstance(image, np.ndarray):
        _check_array(image, name)
        if image.shape[:2] == (options.size, options.size) and image[..., None].shape[2] == options.channels:
            return image.reshape(options.shape)
    from PIL import Image as pil
    from PIL import ImageOps

    opened = _opened(image, name)
    plain = _without_alpha(opened, name).convert("L" if options.channels == 1 else "RGB")
    fitted = ImageOps.fit(plain, (options.size, options.size), pil.Resampling.BICUBIC)
    return np.asarray(fitted, np.uint8).reshape(options.shape)


def _check_array(image: np.ndarray, name: str) -> None:
    right = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not right or 0 in image.shape:
        raise InputError(
            f"{name} is {image.dtype}{list(image.shape)}; an array must be uint8 [height, width], or [height, width, "
            "channels] of 1, 3 or 4 channels, from 0 to 255"
        )


def _opened(image: Image, name: str) -> Any:
    """The decoded PIL image, upright."""
    from PIL import Image as pil
    from PIL import ImageOps

    if isinstance(image, np.ndarray):
        return pil.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    try:
        if isinstance(image, str | Path):
            name = str(image)
            if (size := Path(image).stat().st_size) > LARGEST_FILE:
                raise InputError(f"{name} has {size:,} bytes; an image may have {LARGEST_FILE:,} at most")
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            image = pil.open(io.BytesIO(image), formats=FORMATS)
        if not isinstance(image, pil.Image):
            raise InputError(
                f"{name} is {shown(image)}; it must be a path, a PIL image, or an array uint8 [height, width] or "
                "[height, width, channels]"
            )
        if (count := image.width * image.height) > MOST_PIXELS:
            raise InputError(f"{name} has {count:,} pixels; it may have {MOST_PIXELS:,} at most: make it smaller")
        image.load()
        return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except pil.UnidentifiedImageError:
        raise InputError(f"{name} is no image of {', '.join(FORMATS)}; convert it to one of these") from None
    except (pil.DecompressionBombError, pil.DecompressionBombWarning):
        raise InputError(f"{name} has more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # of decoders in C, which have no common class, on damaged files
        raise InputError(f"{name} cannot be read ({type(error).__name__}: {one_line(error)}); copy it again") from None


def _without_alpha(image: Any, name: str) -> Any:
    from PIL import Image as pil

    if image.mode[0] in "IF":
        raise InputError(f"{name} has the mode {image.mode}; it must have 8 bits a channel: convert it first")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    white = pil.new("RGBA", image.size, "white")
    return pil.alpha_composite(white, image)


def _features(image: Image, width: int, name: str) -> np.ndarray:
    if isinstance(image, str | Path):
        name = str(image)
        try:
            image = np.load(image, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{name} is no .npy file of a vector ({one_line(error)}); write it with np.save") from None
    array = np.asarray(image) if isinstance(image, np.ndarray | list | tuple) else None
    right = array is not None and array.shape == (width,) and array.dtype.kind in "fiu"
    if not right or not np.isfinite(array := array.astype(np.float32)).all():
        what = shown(image) if array is None else f"{array.dtype}{list(array.shape)}"
        raise InputError(f"{name} is {what}; the model reads {width} finite numbers of each image (image.features)")
    return array
