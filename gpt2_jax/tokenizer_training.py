"""Tokenizers of one's own, made from texts: a byte-level BPE, or the characters that occur."""

from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import END_OF_TEXT, Tokenizer, pieces


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with GPT-2's pre-tokenizer, trained on `texts`: 256 bytes, then merges, then end-of-text.

    A small corpus may run out of pairs to merge, and the vocabulary stays smaller than `vocab_size`. The same texts
    give the same tokenizer.

    Raises:
      InputError: no text, or a `vocab_size` that cannot hold the bytes and end-of-text.
    """
    if vocab_size < 257:
        raise InputError(f"vocab_size is {vocab_size}; it must be at least 257 (the 256 bytes and end-of-text)")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((piece for text in _not_empty(texts) for piece in pieces(text)), trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return Tokenizer(tokenizer)


def train_characters(texts: Iterable[str]) -> Tokenizer:
    """The vocabulary of all characters of `texts`, sorted, ids from 0, then end-of-text.

    Raises:
      InputError: no text.
    """
    characters = sorted(set().union(*_not_empty(texts)))
    tokenizer = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(characters)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return Tokenizer(tokenizer)


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        if text:
            empty = False
            yield text
    if empty:
        raise InputError("there is no text to train a tokenizer on: every document is empty; give some text")
