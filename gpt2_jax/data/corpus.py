"""What a run trains and validates on, whichever road the tokens come by."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from gpt2_jax.config import Config
from gpt2_jax.data import dataset
from gpt2_jax.data.layout import Progress
from gpt2_jax.data.prepare import encoding_of, with_control_codes
from gpt2_jax.data.prepared import Prepared
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.stream import HeldOut, Stream
from gpt2_jax.data.together import prepare_together
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer, load


class Batches(Protocol):
    """Training batches of this process's rows, without end.

    Attributes:
      position: where the next batch comes from, int64 [own readers, sources, 6]; None where the step says it all.
    """

    position: np.ndarray | None

    def __next__(self) -> dataset.Batch: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens to train and to validate on.

    Attributes:
      tokenizer: of all sources.
      held_out: the validation text of each source.
      batches: `batches(start_step, position)` are the training batches from there on.
    """

    tokenizer: Tokenizer
    held_out: Mapping[str, Prepared | HeldOut]
    batches: Callable[[int, Any], Batches]


def open_corpus(config: Config, folder: Path, say: Progress) -> Corpus:
    """Prepares the tokens, or gets ready to stream them, as `config.data.road` says.

    Args:
      config: of the run; the model's vocabulary may be unknown yet.
      folder: of prepared tokens.
      say: is told in one line what happens.

    Raises:
      InputError: bad data options, or a corpus that cannot be read as they say.
    """
    options = {
        "sequence_length": config.sequence_length,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "mask_documents": config.data.mask_documents,
        "restart_positions": config.data.restart_positions,
        "batch_size": config.training.batch_size,
        "seed": config.training.seed,
    }
    if config.data.road == "stream":
        return _streamed(config, options, say)
    prepared = prepare_together(config.data, folder, jax.process_index(), jax.process_count(), progress=say)
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

    def __next__(self) -> dataset.Batch:
        return next(self.of)

    def close(self) -> None:
        self.of = iter(())


def _streamed(config: Config, options: dict[str, Any], say: Progress) -> Corpus:
    data, windows = config.data, config.evaluation.windows
    if windows < 1:
        raise InputError(
            "evaluation.windows is 0, the whole split, which data.road=stream never sees; set how many windows of "
            "documents to hold out (--config.evaluation.windows=64)"
        )
    tokenizer = with_control_codes(data, load(data.tokenizer))
    sources, encodings, held_out = {}, {}, {}
    for name in data.weights:
        source = sources[name] = open_source(data, name)
        say(f"streaming {source.describe()}")
        encodings[name] = encoding_of(data, name, tokenizer)
        held_out[name] = HeldOut.collect(
            source, encodings[name], tokenizer,
            fraction=data.validation_fraction, tokens=windows * config.sequence_length + 1,
        )  # fmt: skip

    def batches(start_step: int, position: Any) -> Batches:
        stream = Stream(
            sources,
            encodings,
            data.reweighing,
            validation_fraction=data.validation_fraction,
            readers=data.readers,
            shuffle_windows=data.shuffle_windows,
            start_step=start_step,
            position=position,
            **options,
        )
        return dataset.StreamedBatches(stream)

    return Corpus(tokenizer, held_out, batches)
