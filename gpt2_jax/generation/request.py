"""What a caller asks for: prompts and options checked against a model and a tokenizer, texts turned into ids."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation.options import Options
from gpt2_jax.generation.sampling import SCALARS, Sampling
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer import Tokenizer

Prompt = str | Sequence[int] | np.ndarray
DEFAULT_NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Request:
    """All that is needed to run.

    Attributes:
      options: as given.
      prompts: token ids, at least one each.
      negative: those of the negative prompt, alone in the list; empty without guidance.
      seeds: one a prompt.
      end_tokens: int32 [E], padded with -1 to a power of two.
      max_new_tokens: how many tokens are added at most.
      sampling: how a token is drawn.
    """

    options: Options
    prompts: list[list[int]]
    negative: list[list[int]]
    seeds: list[int]
    end_tokens: np.ndarray
    max_new_tokens: int
    sampling: Sampling


def make_request(prompts: Sequence[Prompt], options: Options, tokenizer: Tokenizer, config: GPT2Config) -> Request:
    """Checks everything.

    Raises:
      InputError: no prompts, ids outside the vocabulary, or what does not fit the context.
    """
    if not len(prompts):
        raise InputError("there are no prompts in the list; give at least one")
    encode = lambda prompt, what: _encode(prompt, what, tokenizer, config.vocab_size)
    rows = [encode(prompt, "the prompt") for prompt in prompts]
    negative = [encode(options.negative_prompt or "", "negative_prompt")] if options.guidance_scale != 1 else []
    if options.logprobs is not None and options.logprobs > config.vocab_size:
        raise InputError(f"logprobs is {options.logprobs}; it must be at most the vocabulary's {config.vocab_size}")
    end_tokens = _end_tokens(options, tokenizer, config.vocab_size)
    return Request(
        options=options,
        prompts=rows,
        negative=negative,
        seeds=_seeds(options.seed, len(rows)),
        end_tokens=end_tokens,
        max_new_tokens=_new_tokens(max(map(len, rows + negative)), options, config.n_positions),
        sampling=_sampling(options, tokenizer, config.vocab_size),
    )


def _encode(prompt: Prompt, what: str, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt) or [tokenizer.end_of_text]
    ids = np.asarray(prompt)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{what} is {ids.dtype}{list(ids.shape)}; it must be text or a list of integer token ids")
    _check_ids(ids, what, vocab_size)
    return ids.tolist()


def _check_ids(ids: np.ndarray, what: str, vocab_size: int) -> None:
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if bad.size:
        raise InputError(
            f"{what} has token id {bad[0]}; ids must be from 0 to {vocab_size - 1}: encode the text with lm.tokenizer"
        )


def _end_tokens(options: Options, tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    ids = tokenizer.end_of_text if options.eos_token_id is None else options.eos_token_id
    ids = np.atleast_1d(np.asarray(ids, np.int32))
    _check_ids(ids, "eos_token_id", vocab_size)
    return np.pad(ids, (0, max(4, 1 << (len(ids) - 1).bit_length()) - len(ids)), constant_values=-1)


def _seeds(seed: int | Sequence[int], prompts: int) -> list[int]:
    seeds = [seed] * prompts if isinstance(seed, (int, np.integer)) else list(seed)
    if len(seeds) != prompts:
        raise InputError(f"seed has {len(seeds)} numbers for {prompts} prompts; give one, or one a prompt")
    return seeds


def _new_tokens(longest: int, options: Options, context: int) -> int:
    """How many tokens are to be added after a prompt of `longest` tokens."""
    wanted = options.max_new_tokens
    if options.beyond_context == "slide":
        return wanted or DEFAULT_NEW_TOKENS
    room = context - longest
    if room < 1:
        raise InputError(
            f"the prompt has {longest} tokens and the model's context is {context}; at most {context - 1} leave room "
            "for a new one: shorten the prompt, or let the context slide (beyond_context='slide')"
        )
    if wanted is not None and wanted > room:
        raise InputError(
            f"max_new_tokens is {wanted}; after a prompt of {longest} tokens it must be from 1 to {room}, for the "
            f"model's context is {context}: ask for fewer, or let it slide (beyond_context='slide')"
        )
    return min(DEFAULT_NEW_TOKENS, room) if wanted is None else wanted


def _sampling(options: Options, tokenizer: Tokenizer, vocab_size: int) -> Sampling:
    """The settings of a draw, phrases as ids; ids that the model has and the tokenizer has not never come."""
    ids = lambda phrase: tuple(tokenizer.encode(phrase) if isinstance(phrase, str) else phrase)
    plain = (*SCALARS.keys() - {"temperature"}, "begin_suppress_tokens")
    return Sampling.of(
        vocab_size,
        temperature=options.drawing_temperature,
        bad_words_ids=[ids(phrase) for phrase in options.bad_words_ids],
        sequence_bias={ids(phrase): bias for phrase, bias in (options.sequence_bias or {}).items()},
        suppress_tokens=[*options.suppress_tokens, *range(len(tokenizer), vocab_size)],
        **{name: getattr(options, name) for name in plain},
    )
