"""What a run trains and validates on, whichever road the tokens come by."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt2_jax.config import Config
from gpt2_jax.data import dataset
from gpt2_jax.data.filling import open_fillers
from gpt2_jax.data.layout import Progress
from gpt2_jax.data.prepare import encoding_of, named_tokenizer, with_control_codes
from gpt2_jax.data.prepared import Prepared
from gpt2_jax.data.rows import Rows
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.stream import HeldOut, Stream
from gpt2_jax.data.together import prepare_together
from gpt2_jax.errors import InputError, shown
from gpt2_jax.tokenizer import Tokenizer


class Batches(Protocol):
    """Training batches of this process's rows, without end.

    Attributes:
      position: where the next batch comes from, see `Stream.position`; None where the step says it all.
      counts: documents read for them by this process, "kept" and left out for each reason; none of prepared tokens.
    """

    position: np.ndarray | None
    counts: Mapping[str, int]

    def __next__(self) -> dataset.Batch: ...

    def remaining(self, ahead: int) -> int | None:
        """How many batches are left where fewer than `ahead` are; else None."""

    def close(self) -> None:
        """Ends the reading; what it holds is freed."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens to train and to validate on.

    Attributes:
      tokenizer: of all sources.
      held_out: the validation text of each source.
      batches: `batches(start_step, saved)` are the training batches from there on; `saved` is what `saved` gave when
        the run was there, or None.
      fingerprints: of each source that is streamed, `Source.fingerprint`.
    """

    tokenizer: Tokenizer
    held_out: Mapping[str, Prepared | HeldOut]
    batches: Callable[[int, dict[str, Any] | None], Batches]
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def saved(self, batches: Batches) -> dict[str, Any] | None:
        """What a checkpoint needs to know of the data, for JSON; None where the step says it all.

        Every process calls it, and gets the positions of all.
        """
        if (position := batches.position) is None:
            return None
        if jax.process_count() > 1:
            position = multihost_utils.process_allgather(position).max(0)  # what is not a process's is 0 there
        return {"position": position.tolist(), "fingerprints": dict(self.fingerprints)}


def open_corpus(
    config: Config,
    folder: Path,
    rows: Rows,
    say: Progress,
    start: Tokenizer | None = None,
    batch_size: int | None = None,
) -> Corpus:
    """Prepares the tokens, or gets ready to stream them, as `config.data.road` says.

    Args:
      config: of the run; the model's vocabulary may be unknown yet.
      folder: of prepared tokens; streamed ones are kept there if `config.data.fill_prepared`.
      rows: of every batch, those of this process.
      say: is told in one line what happens.
      start: the tokenizer of the model that the run starts from.
      batch_size: rows of a batch that are text; None is all of them.

    Raises:
      InputError: bad data options, or a corpus that cannot be read as they say.
    """
    options = {
        "sequence_length": config.sequence_length,
        "rows": rows,
        "mask_documents": config.data.mask_documents,
        "restart_positions": config.data.restart_positions,
        "batch_size": config.training.batch_size if batch_size is None else batch_size,
        "seed": config.training.seed,
    }
    if config.data.road == "stream":
        return _streamed(config, folder, options, say, start)
    process = jax.process_index(), jax.process_count()
    prepared = prepare_together(config.data, folder, *process, start=start, progress=say)
    tokenizer = next(iter(prepared.values())).tokenizer

    def batches(start_step: int, _: Any) -> Batches:
        of = dataset.train_batches(prepared, start_step=start_step, reweighing=config.data.reweighing, **options)
        return Numbered(of)

    return Corpus(tokenizer, prepared, batches)


@dataclasses.dataclass
class Numbered:
    """Batches that their step alone decides."""

    of: Iterator[dataset.Batch]
    position: None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __next__(self) -> dataset.Batch:
        return next(self.of)

    def remaining(self, ahead: int) -> None:
        """There is no end."""

    def close(self) -> None:
        """Ends the batches."""
        self.of = iter(())


def _streamed(config: Config, folder: Path, options: dict[str, Any], say: Progress, start: Tokenizer | None) -> Corpus:
    data, windows = config.data, config.evaluation.windows
    if windows < 1:
        raise InputError(
            "evaluation.windows is 0, the whole split, which data.road=stream never sees; set how many windows of "
            "documents to hold out (--config.evaluation.windows=64)"
        )
    tokenizer = with_control_codes(data, named_tokenizer(data, start))
    sources, encodings, held_out = {}, {}, {}
    for name in data.weights:
        source = sources[name] = open_source(data, name)
        say(f"streaming {source.describe()}")
        encodings[name] = encoding_of(data, name, tokenizer)
        held_out[name] = HeldOut.collect(
            source, encodings[name], tokenizer,
            fraction=data.validation_fraction, tokens=windows * config.sequence_length + 1,
        )  # fmt: skip

    fingerprints = {name: source.fingerprint() for name, source in sources.items()}

    def batches(start_step: int, saved: dict[str, Any] | None) -> Batches:
        if saved is not None and not data.accept_changes:
            _check_unchanged(saved.get("fingerprints"), fingerprints)
        fillers = open_fillers(data, folder, sources, tokenizer, say) if data.fill_prepared else {}
        stream = Stream(
            sources,
            encodings,
            data.reweighing,
            validation_fraction=data.validation_fraction,
            readers=data.readers,
            shuffle_windows=data.shuffle_windows,
            start_step=start_step,
            position=None if saved is None else _position(saved),
            fillers=fillers,
            **options,
        )
        return dataset.StreamedBatches(stream)

    return Corpus(tokenizer, held_out, batches, fingerprints)


def _position(saved: Mapping[str, Any]) -> np.ndarray:
    """The position of a stream, int64 [readers, sources, 6], from what `Corpus.saved` gave.

    Raises:
      InputError: it is not so.
    """
    try:
        position = np.array(saved.get("position"))
    except ValueError:  # lists of different lengths
        position = np.array(None)
    right = position.dtype == np.int64 and position.ndim == 3
    if not right or (position < 0).any() or (position >= 2**62).any():  # they will grow
        raise InputError(
            f"the checkpoint has the position {shown(saved.get('position'))}, which is none in a stream; use another "
            "checkpoint, or start anew in another --workdir"
        )
    return position


def _check_unchanged(saved: Any, now: Mapping[str, str]) -> None:
    """Raises `InputError` in all processes if a source is not as the first of them saved it."""
    saved = saved if isinstance(saved, Mapping) else {}
    changed = np.array([saved.get(name) != fingerprint for name, fingerprint in now.items()])
    if jax.process_count() > 1:  # others may have copies of the files, written at another time
        changed = multihost_utils.broadcast_one_to_all(changed)
    if changed.any():
        names = ", ".join(itertools.compress(now, changed))
        raise InputError(
            f"files of {names} were added, removed or written to since the checkpoint was saved, so that its position "
            "in them may be in another text; put them back, start anew in another --workdir, or go on from there all "
            "the same with --config.data.accept_changes=True"
        )
