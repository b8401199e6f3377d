"""Images with captions: scikit-learn's digits, a folder of one's own, datasets of the hub; and which are held out."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax import json_files
from gpt2_jax.data.opening import explained, some
from gpt2_jax.errors import InputError, one_line, suggest
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.pixels import Image, pixels_of
from gpt2_jax.tokenizer_files import HUB_ID

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".npy")
TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
KEYS = {"image": ("image", "file_name"), "caption": ("caption", "text")}  # tried in this order
PIXELS = 16  # the largest value of a digit's pixels


@dataclasses.dataclass(frozen=True)
class Entry:
    """A dataset of the hub by its name here: its id, and the columns of captions and of names, as its card says."""

    hub: str
    captions: str
    name: str = ""


REGISTRY: dict[str, Entry | None] = {
    "digits": None,
    "folder": None,
    "flickr8k": Entry("jxie/flickr8k", "caption_0, caption_1, caption_2, caption_3, caption_4"),
    "coco": Entry("jxie/coco_captions", "caption", "cocoid"),
}


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Images with captions, in a fixed order.

    Attributes:
      options: how they are read.
      names: of the images, by which they are held out; the same for what is the same image.
      captions: of each, one or more.
      image: what is read of the image of a number.
    """

    options: ImageConfig
    names: Sequence[str]
    captions: Sequence[tuple[str, ...]]
    image: Callable[[int], Image]

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, number: int) -> np.ndarray:
        """As `pixels_of`, of the image of a number."""
        return pixels_of(self.image(number), self.options, self.names[number])

    def split(self) -> tuple[list[int], list[int]]:
        """The numbers of images to train on and of those held out: each by the hash of its name alone.

        Raises:
          InputError: none are left of one of them.
        """
        train, held_out = [], []
        for number, name in enumerate(self.names):
            hashed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
            (held_out if hashed < self.options.validation_fraction * 2**64 else train).append(number)
        if not train or not held_out:
            raise InputError(
                f"of {len(self)} images {len(held_out)} are held out with image.validation_fraction "
                f"{self.options.validation_fraction}; some must be, and some not: use another fraction, or more images"
            )
        return train, held_out

    def fingerprint(self) -> str:
        """Changes with the images' names and captions, and their order; reads no image."""
        digest = hashlib.sha256()
        for name, captions in zip(self.names, self.captions):
            digest.update(json.dumps([name, captions]).encode())
        return digest.hexdigest()


def open_captions(options: ImageConfig) -> Captioned:
    """The images of `options.source`.

    Raises:
      InputError: an unknown source, a folder or dataset that cannot be read, or captions that are no text.
    """
    match options.source:
        case "digits":
            return _digits(options)
        case "folder":
            return _folder(options, Path(options.paths).expanduser())
    entry = REGISTRY.get(options.source)
    if entry is None:
        if "/" not in options.source or not HUB_ID.fullmatch(options.source):
            raise InputError(
                f"image.source is {options.source!r}, which is no source and no hub id such as owner/name; "
                f"{suggest(options.source, list(REGISTRY))}"
            )
        entry = Entry(options.source, "")
    keys = {"caption_key": options.caption_key or entry.captions, "name_key": options.name_key or entry.name}
    return _hub(dataclasses.replace(options, **keys), entry.hub)


def _digits(options: ImageConfig) -> Captioned:
    """1,797 images of 8 x 8 pixels (Alpaydin & Kaynak, 1998)."""
    try:
        from sklearn import datasets
    except ImportError:
        raise InputError("the digits come with scikit-learn; pip install 'gpt2_jax[image]'") from None
    images, targets = datasets.load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8) * (255 / PIXELS)).astype(np.uint8)
    captions = [(f"a handwritten {DIGITS[target]}",) for target in targets]
    return Captioned(options, [f"digits/{i}" for i in range(len(images))], captions, lambda i: images[i])


def _folder(options: ImageConfig, folder: Path) -> Captioned:
    if not folder.is_dir():
        raise InputError(f"image.paths is {options.paths!r}, which is no folder; give one with images and captions")
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    records = _beside(folder) if table is None else _listed(options, table)
    found: dict[str, list[str]] = {}
    for where, name, captions in records:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{where} names the image {name!r}; it must be a file below {folder} that ends in {' '.join(SUFFIXES)}"
            )
        if not (folder / path).is_file():
            raise InputError(f"{where} names the image {name!r}, which is not there; add it, or take the line out")
        found.setdefault(path.as_posix(), []).extend(captions)
    if not found:
        raise InputError(
            f"{folder} has no captions: put captions.jsonl there, an object a line with an 'image' and a 'caption', or "
            "beside each image a .txt of the same name"
        )
    names = list(found)
    return Captioned(options, names, [tuple(found[name]) for name in names], lambda i: folder / names[i])


def _beside(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Of every image with a .txt of its name: (where, name, captions, one a line)."""
    for path in sorted(folder.rglob("*")):
        text = path.with_suffix(".txt")
        if path.suffix.lower() in SUFFIXES and text.is_file():
            with explained(text):
                try:
                    lines = json_files.read_bytes(text).decode().splitlines()
                except UnicodeDecodeError as error:
                    raise InputError(f"{text} is not UTF-8 ({one_line(error)}); convert it") from None
            name = path.relative_to(folder).as_posix()
            yield str(text), name, _texts([line.strip() for line in lines if line.strip()], str(text))


def _listed(options: ImageConfig, table: Path) -> Iterator[tuple[str, str, list[str]]]:
    with explained(table):
        if table.suffix == ".jsonl":
            records = [(f"{table}:{i}", record) for i, record in enumerate(_json_lines(table), 1)]
        else:
            with table.open(encoding="utf-8-sig", newline="") as file:
                records = [(f"{table}:{i}", record) for i, record in enumerate(csv.DictReader(file), 2)]
    for where, record in records:
        image_key, *caption_keys = _keys(options, list(record), where)
        name = record[image_key]
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has the {image_key} {name!r:.60}; it must be the name of a file")
        yield where, name, _captions(record, caption_keys, where)


def _json_lines(table: Path) -> Iterator[dict[str, Any]]:
    with table.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json_files.parse(line)
                except ValueError as error:
                    raise InputError(f"{table}:{number} is not one JSON object ({one_line(error)})") from None


def _keys(options: ImageConfig, there: list[str], where: str) -> list[str]:
    """The column of images, then those of captions."""
    found = []
    for kind, known in KEYS.items():
        given = getattr(options, f"{kind}_key")
        wanted = [key.strip() for key in given.split(",")] if given else [key for key in known if key in there][:1]
        if not wanted or any(key not in there for key in wanted):
            raise InputError(
                f"{where} has no {given or ' or '.join(known)!r}, only {some(there)}; set --config.image.{kind}_key"
            )
        found += wanted
    return found


def _captions(record: dict[str, Any], keys: list[str], where: str) -> list[str]:
    found = []
    for key in keys:
        value = record[key]
        found += value if isinstance(value, list) else [value]
    return _texts(found, where)


def _texts(captions: list[Any], where: str) -> list[str]:
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise InputError(f"{where} has the captions {captions!r:.100}; they must be texts, one or more, and not empty")
    return [text.strip() for text in captions]


def _hub(options: ImageConfig, hub: str) -> Captioned:
    """A dataset of the hub, or a folder that holds a copy of it; its files are fetched once, then from the cache."""
    path = str(Path(options.paths).expanduser()) if options.paths else hub
    if options.paths and not Path(path).is_dir():
        raise InputError(
            f"image.paths is {options.paths!r}, which is no folder; with image.source={options.source} it must be a "
            "folder that holds a copy of the dataset, or empty to read it from the hub"
        )
    try:
        import datasets
    except ImportError:
        raise InputError(f"reading {hub} needs datasets; pip install 'gpt2_jax[image]'") from None
    try:
        opened = datasets.load_dataset(
            path, options.subset or None, split=options.split, revision=options.revision or None
        )
    except Exception as error:  # of datasets, fsspec, pyarrow: no narrower class is common to them
        raise InputError(
            f"{path}, split {options.split!r}, cannot be opened ({type(error).__name__}: {one_line(error)}); check the "
            "id, subset and split, or give a folder with a copy of it (--config.image.paths)"
        ) from None
    image_key, *caption_keys = _keys(options, opened.column_names, path)
    for name, feature in opened.features.items():
        if isinstance(feature, datasets.Image):
            opened = opened.cast_column(name, datasets.Image(decode=False))  # bytes, decoded here within bounds
    if options.name_key and options.name_key not in opened.column_names:
        raise InputError(
            f"{path} has no {options.name_key!r}, only {some(opened.column_names)}; set --config.image.name_key"
        )
    texts = opened.select_columns(caption_keys)
    numbers = opened.select_columns([options.name_key]) if options.name_key else range(len(opened))
    names = [f"{hub}/{options.split}/{i if isinstance(i, int) else i[options.name_key]}" for i in numbers]
    captions = [tuple(_captions(record, caption_keys, where)) for where, record in zip(names, texts)]

    def image(number: int) -> Image:
        value = opened[number][image_key]
        if isinstance(value, dict):
            if value.get("bytes") is None and not options.paths:
                raise InputError(f"{names[number]} holds no image, only {value!r:.60}; use a dataset that has them")
            return value["path"] if value.get("bytes") is None else value["bytes"]
        return value

    return Captioned(options, names, captions, image)
