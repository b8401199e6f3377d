"""What a caller asks for: prompts and options checked against a model and a tokenizer, texts turned into ids."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation.lines import line_table
from gpt2_jax.generation.options import Options
from gpt2_jax.generation.sampling import SCALARS, Sampling
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer import Tokenizer

Prompt = str | Sequence[int] | np.ndarray
DEFAULT_NEW_TOKENS = 128
HEAD = 2  # tokens before a prompt with a control code: end-of-text and the code


@dataclasses.dataclass(frozen=True)
class Request:
    """All that is needed to run.

    Attributes:
      options: as given.
      prompts: token ids, at least one each; with a control code, end-of-text and the code before them, as in training.
      heads: how many tokens of each prompt are these two, or a prefix, or 0.
      negative: what each is guided away from; empty without guidance.
      negative_heads: as `heads`.
      seeds: one a prompt.
      end_tokens: int32 [E], padded with -1 to a power of two.
      max_new_tokens: how many tokens are added at most.
      sampling: how a token is drawn.
    """

    options: Options
    prompts: list[list[int]]
    heads: list[int]
    negative: list[list[int]]
    negative_heads: list[int]
    seeds: list[int]
    end_tokens: np.ndarray
    max_new_tokens: int
    sampling: Sampling


def make_request(
    prompts: Sequence[Prompt],
    options: Options,
    tokenizer: Tokenizer,
    config: GPT2Config,
    *,
    prefixes: Sequence[Sequence[int]] = (),
) -> Request:
    """Checks everything.

    Args:
      prompts: texts or ids.
      options: as given.
      tokenizer: of the model.
      config: its sizes.
      prefixes: ids of no tokens, before each prompt, which may then be empty; they stay when the context slides.

    Raises:
      InputError: no prompts, ids outside the vocabulary, an unknown control code, or what does not fit the context.
    """
    if not len(prompts):
        raise InputError("there are no prompts in the list; give at least one")
    encode = lambda prompt, what: _encode(prompt, what, tokenizer, config.vocab_size)
    plain = [encode(prompt, "the prompt") for prompt in prompts]
    end, codes = tokenizer.end_of_text, _codes("control", options.control, len(plain), tokenizer)
    rows = [_begin(ids, code, end) for ids, code in zip(plain, codes)]
    away = _codes("negative_control", options.negative_control, len(plain), tokenizer)
    heads = [HEAD * (code is not None) for code in codes]
    if prefixes:
        rows = [[*prefix, *_body(ids, end)] for prefix, ids in zip(prefixes, rows)]
        heads = [len(prefix) for prefix in prefixes]
    negative = []
    if options.negative_prompt is not None or (options.guidance_scale != 1 and codes == away == [None] * len(plain)):
        negative = [encode(options.negative_prompt or "", "negative_prompt")] * len(plain)
    elif options.guidance_scale != 1:
        _check_unlike(options, codes, away)
        negative = [[end, *_body(ids, end)] for ids in plain]
    negative = [_begin(ids, code, end) for ids, code in zip(negative, away)]
    if options.logprobs is not None and options.logprobs > config.vocab_size:
        raise InputError(f"logprobs is {options.logprobs}; it must be at most the vocabulary's {config.vocab_size}")
    end_tokens = _end_tokens(options, tokenizer, config.vocab_size)
    return Request(
        options=options,
        prompts=rows,
        heads=heads,
        negative=negative,
        negative_heads=[HEAD * (code is not None) for code in away] if negative else [],
        seeds=_seeds(options.seed, len(rows)),
        end_tokens=end_tokens,
        max_new_tokens=_new_tokens(max(map(len, rows + negative)), options, config.n_positions),
        sampling=_sampling(options, tokenizer, config),
    )


def _encode(prompt: Prompt, what: str, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt) or [tokenizer.end_of_text]
    ids = np.asarray(prompt)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{what} is {ids.dtype}{list(ids.shape)}; it must be text or a list of integer token ids")
    _check_ids(ids, what, vocab_size)
    return ids.tolist()


def _codes(name: str, wanted: str | Sequence[str] | None, prompts: int, tokenizer: Tokenizer) -> list[int | None]:
    """The control code of each prompt, an id or None."""
    if wanted is None:
        return [None] * prompts
    names, known = [wanted] * prompts if isinstance(wanted, str) else list(wanted), tokenizer.control_codes
    if len(names) != prompts:
        raise InputError(f"{name} has {len(names)} codes for {prompts} prompts; give one, or one a prompt")
    for code in names:
        if code not in known:
            there = f"has {', '.join(known)}" if known else "has none: train with --config.data.control_codes=True"
            raise InputError(f"{name} is {code!r}, which is no control code of this model; its tokenizer {there}")
    return [known[code] for code in names]


def _check_unlike(options: Options, codes: list[int | None], away: list[int | None]) -> None:
    """Raises `InputError` where a prompt would be guided away from itself."""
    if any(code == other for code, other in zip(codes, away)):
        raise InputError(
            f"negative_control is {options.negative_control!r} and control {options.control!r}: guidance away from the "
            "same text has no effect; give another code, or a negative_prompt"
        )


def _begin(ids: list[int], code: int | None, end_of_text: int) -> list[int]:
    """A prompt after its control code, which stands after end-of-text: so does every document's in training."""
    return ids if code is None else [end_of_text, code, *_body(ids, end_of_text)]


def _body(ids: list[int], end_of_text: int) -> list[int]:
    """A prompt without an end-of-text that begins it."""
    return ids[1:] if ids[0] == end_of_text else ids


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


def _sampling(options: Options, tokenizer: Tokenizer, config: GPT2Config) -> Sampling:
    """The settings of a draw, phrases as ids; ids that the model has and the tokenizer has not never come."""
    ids = lambda phrase: tuple(tokenizer.encode(phrase) if isinstance(phrase, str) else phrase)
    others = ("begin_suppress_tokens", "exponential_decay_length_penalty", "line_length")
    plain = (*SCALARS.keys() - {"temperature"}, *others)
    vocab_size = config.vocab_size
    return Sampling.of(
        vocab_size,
        temperature=options.drawing_temperature,
        bad_words_ids=[ids(phrase) for phrase in options.bad_words_ids],
        line_table=None if options.line_length is None else line_table(tokenizer, config.padded_vocab_size),
        sequence_bias={ids(phrase): bias for phrase, bias in (options.sequence_bias or {}).items()},
        suppress_tokens=[*options.suppress_tokens, *range(len(tokenizer), vocab_size)],
        **{name: getattr(options, name) for name in plain},
    )
