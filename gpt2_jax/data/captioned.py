"""Images with captions to batches, alone or beside windows of text.

A batch is that of dataset.py with `images`: a row with one begins with the ids of its image (multimodal.py), then come
its caption and end-of-text, of which the loss is; end-of-text that does not count fills the rest. Rows of text come
first, and their images are empty. Which images a batch has, and how they are moved, is a function of (seed, step).
"""

import collections
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from gpt2_jax import json_files, whole_files
from gpt2_jax.config import Config
from gpt2_jax.data.captions import Captioned, open_captions
from gpt2_jax.data.corpus import Batches, Corpus
from gpt2_jax.data.layout import Progress
from gpt2_jax.data.prepare import named_tokenizer
from gpt2_jax.data.rows import ALL, Rows
from gpt2_jax.errors import InputError, check
from gpt2_jax.image_language_model import ImageLanguageModel
from gpt2_jax.multimodal import FIRST_ID
from gpt2_jax.tokenizer import Tokenizer
from gpt2_jax.tokenizer_training import train_bpe, train_characters

Batch = dict[str, np.ndarray]
KEY = "captions"  # what is held out of them is called so in metrics
RECORD = "images.json"  # in the workdir: what the images were
AHEAD = 2  # batches that are made while a step runs
SHOWN = 4  # held-out images of which samples tell
ORDER, PLACES = 0, 1  # what is drawn


@dataclasses.dataclass(frozen=True)
class Captions:
    """Pairs of an image and a caption as rows of T + 1 tokens.

    Attributes:
      images: where they come from.
      pairs: of each, the number of the image and the caption's ids.
      T: tokens predicted in a row.
      end_of_text: the token.
    """

    images: Captioned
    pairs: Sequence[tuple[int, list[int]]]
    T: int
    end_of_text: int

    @classmethod
    def of(cls, images: Captioned, numbers: Sequence[int], tokenizer: Tokenizer, T: int) -> "Captions":
        """All captions of the images of some numbers."""
        texts = [(number, text) for number in numbers for text in images.captions[number]]
        ids = tokenizer.encode_batch([text for _, text in texts])
        pairs = [(number, own) for (number, _), own in zip(texts, ids)]
        return cls(images, pairs, T, tokenizer.end_of_text)

    @property
    def room(self) -> int:
        """Tokens of a caption that have room in a row, end-of-text not counted."""
        return self.T - self.images.options.tokens

    @property
    def cut(self) -> int:
        """Captions that are longer; they are cut."""
        return sum(len(ids) > self.room for _, ids in self.pairs)

    def row(self, pair: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens int32 [T + 1], mask bool [T] and what is read of the image."""
        number, ids = self.pairs[pair]
        K, ids = self.images.options.tokens, ids[: self.room]
        tokens, mask = np.full(self.T + 1, self.end_of_text, np.int32), np.zeros(self.T, bool)
        tokens[:K] = FIRST_ID + np.arange(K)
        tokens[K : K + len(ids)] = ids
        mask[K - 1 : K + len(ids)] = True
        return tokens, mask, self.images.pixels(number)


@dataclasses.dataclass(frozen=True)
class HeldOutCaptions:
    """What validates: of images that no step sees."""

    captions: Captions
    tokenizer: Tokenizer

    def bytes_per_token(self, _: str) -> float:
        """As `Prepared.bytes_per_token`, the end-of-text of each among the tokens."""
        ids = [ids[: self.captions.room] for _, ids in self.captions.pairs]
        size = sum(len(self.tokenizer.decode(own).encode()) for own in ids)
        return size / sum(len(own) + 1 for own in ids)

    def shown(self, lm: ImageLanguageModel) -> str:
        """What a model says of a few of the images, a line each, with what is to be said after it."""
        images = self.captions.images
        numbers = list(dict.fromkeys(number for number, _ in self.captions.pairs))[:SHOWN]
        found = lm.caption([images.image(number) for number in numbers], temperature=0)
        return "\n".join(f"{text} ({images.captions[number][0]})" for text, number in zip(found, numbers))


def evaluation_batches(
    held_out: HeldOutCaptions,
    *,
    batch_size: int,
    windows: int = 0,
    rows: Rows = ALL,
    **_: int | bool,
) -> Iterator[Batch]:
    """All held-out pairs in order, or `windows` of them, evenly spread; arguments as of `dataset.evaluation_batches`.

    The last batch is filled with the first pair, which does not count there.
    """
    total, own = len(held_out.captions.pairs), rows.of(batch_size)
    chosen = np.linspace(0, total - 1, windows).round().astype(int) if 0 < windows < total else np.arange(total)
    for first in range(0, len(chosen), batch_size):
        there = own < len(chosen) - first
        of_rows = [held_out.captions.row(int(chosen[first + row]) if row < len(chosen) - first else 0) for row in own]
        tokens, mask, images = map(np.stack, zip(*of_rows))
        yield {"tokens": tokens, "mask": mask & there[:, None], "images": images}


class CaptionBatches:
    """Training batches without end; see `corpus.Batches`.

    Args:
      make: the rows with images of a step.
      step: the first.
      text: batches of the other rows, or None.
    """

    def __init__(self, make: Callable[[int], Batch], step: int, text: Batches | None):
        self._make, self._step, self._text = make, step, text
        self._pool = ThreadPoolExecutor(1, "images")
        self._made: collections.deque[Future] = collections.deque()
        self._fill(AHEAD)

    @property
    def position(self) -> np.ndarray | None:
        """Where the text comes from, see `corpus.Batches`."""
        return None if self._text is None else self._text.position

    @property
    def counts(self) -> Mapping[str, int]:
        """Documents of the text, see `corpus.Batches`."""
        return {} if self._text is None else self._text.counts

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          InputError: an image that cannot be read.
        """
        batch = self._made[0].result()
        self._made.popleft()
        self._fill(AHEAD)
        return batch if self._text is None else _joined(next(self._text), batch)

    def remaining(self, ahead: int) -> int | None:
        """How many batches are left where fewer than `ahead` are, because an image cannot be read; else None."""
        self._fill(ahead)
        good = itertools.takewhile(lambda made: made.exception() is None, itertools.islice(self._made, ahead))
        found = [sum(1 for _ in good)]
        if self._text is not None and (of_text := self._text.remaining(ahead)) is not None:
            found.append(of_text)
        return min(found) if min(found) < ahead else None

    def close(self) -> None:
        """Ends the reading of the text."""
        self._pool.shutdown(cancel_futures=True)
        if self._text is not None:
            self._text.close()

    def _fill(self, ahead: int) -> None:
        while len(self._made) < ahead:
            self._made.append(self._pool.submit(self._make, self._step))
            self._step += 1


def rows_of_images(config: Config, rows: Rows) -> int:
    """How many rows of a batch are images.

    Raises:
      InputError: none of a kind that there is to be, or a number that processes cannot share.
    """
    image, size = config.image, config.training.batch_size
    count = round(image.share * size)
    text = size - count
    right = count > 0 and (text > 0 or image.share == 1) and not count % rows.parts and not text % rows.parts
    check(
        right,
        "image.share",
        image.share,
        f"such that of training.batch_size ({size}) rows at least one is of each kind, and a multiple of {rows.parts}",
    )
    return count


def open_captioned(
    config: Config, workdir: Path, rows: Rows, say: Progress, start: Tokenizer | None, text: Corpus | None
) -> Corpus:
    """The images of a run, beside its text if there is some.

    Args:
      config: of the run; the model's vocabulary may be unknown yet.
      workdir: where a record of the images is kept.
      rows: of every batch, those of this process.
      say: is told in one line what happens.
      start: the tokenizer of the model that the run starts from.
      text: of the other rows.

    Raises:
      InputError: the images cannot be read as `config.image` says, or are others than those that the run began with.
    """
    images = open_captions(config.image)
    train, held_out = images.split()
    _check_same(images, workdir / RECORD)
    tokenizer = _tokenizer(config, images, train, start) if text is None else text.tokenizer
    captions = Captions.of(images, train, tokenizer, config.sequence_length)
    held = HeldOutCaptions(Captions.of(images, held_out, tokenizer, config.sequence_length), tokenizer)
    there = f"{len(train):,} images with {len(captions.pairs):,} captions"
    say(f"{config.image.source}: {there}, and {len(held_out):,} images held out")
    if cut := captions.cut + held.captions.cut:
        say(f"{cut:,} captions are longer than {captions.room} tokens, and are cut: raise training.sequence_length")
    count = rows_of_images(config, rows)
    examples = functools.partial(train_rows, captions, count, rows.of(count), config.training.seed)

    def batches(step: int, saved: dict | None) -> CaptionBatches:
        return CaptionBatches(examples, step, None if text is None else text.batches(step, saved))

    if text is None:
        return Corpus(tokenizer, {KEY: held}, batches)
    return dataclasses.replace(text, held_out={**text.held_out, KEY: held}, batches=batches)


def train_rows(captions: Captions, count: int, own: np.ndarray, seed: int, step: int) -> Batch:
    """The rows `own` of the `count` images of a step: each epoch sees every pair once, in another order."""
    rows = [_example(captions, seed, int(example)) for example in step * count + own]
    tokens, mask, images = map(np.stack, zip(*rows))
    return {"tokens": tokens, "mask": mask, "images": images}


def _example(captions: Captions, seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    epoch, place = divmod(number, len(captions.pairs))
    tokens, mask, image = captions.row(int(_order(len(captions.pairs), seed, epoch)[place]))
    most = captions.images.options.shift
    return tokens, mask, _moved(image, most, *_raw(2, seed, PLACES, number)) if most else image


@functools.lru_cache(maxsize=4)
def _order(pairs: int, seed: int, epoch: int) -> np.ndarray:
    return np.argsort(_raw(pairs, seed, ORDER, epoch), kind="stable")


def _raw(count: int, *seed: int) -> np.ndarray:
    """The raw bits: numpy promises that they stay the same in its later versions."""
    return np.random.PCG64(seed).random_raw(count)


def _moved(image: np.ndarray, most: int, down: int, right: int) -> np.ndarray:
    """An image [S, S, I] moved by up to `most` pixels each way; what comes into view is as its edge."""
    S, padded = len(image), np.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
    top, left = int(down) % (2 * most + 1), int(right) % (2 * most + 1)
    return padded[top : top + S, left : left + S]


def _joined(text: Batch, images: Batch) -> Batch:
    """Rows of text, whose images are empty, then those with images, each one document from position 0 on."""
    B, T = images["mask"].shape
    own = images | {
        "segments": np.zeros((B, T), np.int32),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
    }
    empty = np.zeros((len(text["mask"]), *images["images"].shape[1:]), images["images"].dtype)
    return {name: np.concatenate([rows, own[name]]) for name, rows in (text | {"images": empty}).items()}


def _tokenizer(config: Config, images: Captioned, train: Sequence[int], start: Tokenizer | None) -> Tokenizer:
    """Of a run without text: trained on the captions, or what `data.tokenizer` names."""
    data = config.data
    check(not data.control_codes, "data.control_codes", data.control_codes, "False where all rows are images")
    texts = [text for number in train for text in images.captions[number]]
    if data.tokenizer == "bpe":
        return train_bpe(texts, data.vocab_size)
    return train_characters(texts) if data.tokenizer == "characters" else named_tokenizer(data, start)


def _check_same(images: Captioned, record: Path) -> None:
    """Keeps what the images were, and raises `InputError` where they are others now."""
    now = {"images": len(images), "fingerprint": images.fingerprint()}
    if not record.exists():
        if jax.process_index() == 0:
            whole_files.write(record, json.dumps(now, indent=2).encode() + b"\n")
        return
    saved = json_files.read(record, "cannot be read", "remove it, if the images are those that the run began with")
    if saved != now:
        raise InputError(
            f"the images, {now['images']:,} now and {saved.get('images')} when this run began, or their captions have "
            f"changed; put them back, or start anew in another --workdir"
        )
