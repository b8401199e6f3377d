"""The perplexity of long texts, by a window that strides over each, as Hugging Face's guide has it; it can go on.

Each document begins with end-of-text, which is not counted. A window holds `context` tokens and predicts the one after
each; the next begins `stride` tokens later, and of its predictions those count that no window before it made. So each
token counts once, with at least `context - stride` tokens before it in its window (unless its document has no more).
That is Hugging Face's loop with `max_length = context + 1`: the last token of a window is only predicted and needs no
place in the context. With a stride as long as the context, windows do not overlap, as in lm-evaluation-harness.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt2_jax import json_files, whole_files
from gpt2_jax.errors import InputError, check, shown
from gpt2_jax.evaluation.logprobs import in_batches
from gpt2_jax.fingerprint import fingerprint
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.tokenizer import Tokenizer, pieces

FORMAT = 1  # of the file of partial sums
SAVED_EVERY = 10.0  # seconds


@dataclasses.dataclass(frozen=True)
class Text:
    """A document.

    Attributes:
      encoded: what the model reads.
      original: what words, characters and bytes are counted in, where it is another form of the same text; None: the
        same.
    """

    encoded: str
    original: str | None = None


@dataclasses.dataclass
class Sums:
    """Over the windows that are done; those of products are for the standard error."""

    batches: int = 0
    windows: int = 0
    tokens: int = 0
    nats: float = 0.0
    nats_squared: float = 0.0
    nats_tokens: float = 0.0
    tokens_squared: int = 0

    def add(self, logprobs: np.ndarray) -> None:
        """A window's."""
        nats, tokens = -float(logprobs.sum(dtype=np.float64)), len(logprobs)
        self.windows += 1
        self.tokens += tokens
        self.nats += nats
        self.nats_squared += nats * nats
        self.nats_tokens += nats * tokens
        self.tokens_squared += tokens * tokens


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """What a model makes of texts: `nats`, the negative log-probability of all, over what is counted.

    Attributes:
      nats: of all tokens.
      nats_error: its standard error, windows taken for independent draws (the ratio estimator, linearised).
      documents, windows: how many there were.
      tokens: of the model's tokenizer; end-of-text before the documents is not among them.
      words: separated by white space, in the original.
      line_ends: in the original; what benchmarks of words count as one more word, `<eos>`.
      characters, bytes: of the original, in UTF-8.
    """

    nats: float
    nats_error: float
    documents: int
    windows: int
    tokens: int
    words: int
    line_ends: int
    characters: int
    bytes: int

    def per(self, count: int) -> tuple[float, float]:
        """(perplexity, its standard error) of each of `count` units; infinite where a float64 cannot hold it."""
        mean = self.nats / count
        value = math.exp(mean) if mean < 700 else math.inf
        return value, value * self.nats_error / count

    def bits_per(self, count: int) -> tuple[float, float]:
        """(bits, their standard error) of each of `count` units."""
        return self.nats / count / math.log(2), self.nats_error / count / math.log(2)


def perplexity(
    lm: LanguageModel,
    documents: Sequence[Text | str],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    partial: Path | None = None,
    progress: Callable[[Sums, int], None] | None = None,
) -> Perplexity:
    """The perplexity of texts, each alone.

    Args:
      lm: the model; of `logprobs.spread`, devices share each batch.
      documents: at least one token in all.
      context: tokens in a window; None is the model's context.
      stride: between windows, 1 to `context`; None is `context`. Half of it takes twice as long.
      batch_size: windows that run together.
      partial: a file to which sums are written while this runs, and from which it goes on, to the same numbers; it is
        removed at the end.
      progress: told after each batch the sums so far, and the tokens in all.

    Raises:
      InputError: no text, an option out of range, or a `partial` of another model, text or options.
    """
    context = lm.config.n_positions if context is None else context
    check(1 <= context <= lm.config.n_positions, "context", context, f"from 1 to the model's {lm.config.n_positions}")
    stride = context if stride is None else stride
    check(1 <= stride <= context, "stride", stride, f"from 1 to the context, {context}")
    texts = [Text(text) if isinstance(text, str) else text for text in documents]
    sequences, starts = [], []
    for ids in encode(lm.tokenizer, [text.encoded for text in texts]):
        for begin, start, end in windows(len(ids), context, stride):
            sequences.append(ids[begin:end])
            starts.append(start)
    if not sequences:
        raise InputError(f"the text is empty: {len(texts)} documents hold no token; give a text with some")
    total = sum(len(sequence) - start for sequence, start in zip(sequences, starts))
    saved = None if partial is None else _Partial(partial, _identity(lm, sequences, starts, batch_size))
    sums = Sums() if saved is None else saved.read()
    for batch in in_batches(lm.model, sequences, starts, batch_size, skip=sums.batches):
        for _, logprobs, _ in batch:
            sums.add(logprobs)
        sums.batches += 1
        if saved is not None:
            saved.write(sums)
        if progress is not None:
            progress(sums, total)
    if saved is not None:
        partial.unlink(missing_ok=True)
    return _result(sums, texts)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Int32 [n + 1] each: end-of-text and the tokens of a text."""
    cut = [list(pieces(text)) for text in texts]
    encoded = iter(tokenizer.encode_batch([piece for of_text in cut for piece in of_text]))
    first = [np.array([tokenizer.end_of_text], np.int32)]
    return [np.concatenate(first + [np.array(next(encoded), np.int32) for _ in of_text]) for of_text in cut]


def windows(length: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first token that counts, from begin on; end) of each window on `length` tokens, of which 0 never does."""
    found, end = [], 1
    while end < length:
        begin = len(found) * stride
        start, end = end - begin, min(length, begin + context + 1)
        found.append((begin, start, end))
    return found


def _result(sums: Sums, texts: Sequence[Text]) -> Perplexity:
    originals = [text.encoded if text.original is None else text.original for text in texts]
    mean, n = sums.nats / sums.tokens, sums.windows
    squares = sums.nats_squared - 2 * mean * sums.nats_tokens + mean * mean * sums.tokens_squared
    return Perplexity(
        nats=sums.nats,
        nats_error=math.sqrt(max(0.0, squares) * n / (n - 1)) if n > 1 else math.nan,
        documents=len(texts),
        windows=n,
        tokens=sums.tokens,
        words=sum(len(text.split()) for text in originals),
        line_ends=sum(text.count("\n") for text in originals),
        characters=sum(map(len, originals)),
        bytes=sum(len(text.encode()) for text in originals),
    )


class _Partial:
    """The file of partial sums, and what they are of."""

    def __init__(self, file: Path, identity: dict[str, Any]):
        self.file = file
        self.identity = identity
        self.written = time.monotonic()

    def read(self) -> Sums:
        """What is in the file; nothing where there is none."""
        if not self.file.exists():
            return Sums()
        advice = "delete it to begin anew"
        found = json_files.read(self.file, "holds no partial sums", advice)
        for what, value in self.identity.items():
            if found.get(what) != value:
                raise InputError(
                    f"{self.file} holds partial sums of another {what} ({shown(found.get(what))}, not {value!r}); "
                    f"{advice}, or give the same {what}"
                )
        fields = {field.name: type(field.default) for field in dataclasses.fields(Sums)}
        sums = found.get("sums")
        if not isinstance(sums, dict) or {name: type(value) for name, value in sums.items()} != fields:
            raise InputError(f"{self.file} holds no partial sums ({shown(sums)}); {advice}")
        return Sums(**sums)

    def write(self, sums: Sums) -> None:
        """Replaces the file's, from time to time."""
        if time.monotonic() - self.written < SAVED_EVERY:
            return
        # Python writes the shortest decimals that read as the same float64.
        content = json.dumps({**self.identity, "sums": dataclasses.asdict(sums)}, indent=1)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            whole_files.write(self.file, content.encode())
        except OSError as error:
            raise InputError(
                f"{self.file} cannot be written ({error.strerror}); give a file in a folder with room"
            ) from None
        self.written = time.monotonic()


def _identity(lm: LanguageModel, sequences: Sequence[np.ndarray], starts: Sequence[int], batch_size: int) -> dict:
    """What must be the same for sums to go on; each by its name in errors."""
    text = hashlib.sha256()
    for sequence, start in zip(sequences, starts):
        text.update(np.array([len(sequence), start], np.int32))
        text.update(np.ascontiguousarray(sequence))
    devices = len(jax.tree.leaves(lm.model)[0].sharding.device_set)
    return {
        "format": FORMAT,
        "model": fingerprint(lm.model) + hashlib.sha256(repr(lm.config).encode()).hexdigest()[:32],
        "text, tokenizer, context or stride": text.hexdigest(),
        "batch_size": batch_size,
        "number of devices": devices,
    }
