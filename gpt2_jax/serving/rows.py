"""What each row of a batch obeys and has written; one program draws a token for all, each by its own settings.

Axes as in logits.py; R rows at most, of which the first B are in the batch; E end tokens, N tokens of a context.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.generation.chain import pick
from gpt2_jax.generation.logits import History
from gpt2_jax.generation.request import Request
from gpt2_jax.generation.sampler import row_keys
from gpt2_jax.generation.sampling import SCALARS, Sampling
from gpt2_jax.model import GPT2

# What a row has room for: longer lists are other programs.
PHRASES, WORDS, END_TOKENS, ALTERNATIVES = 512, 8, 16, 20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one row; of all rows each array has a leading axis R."""

    sampling: Sampling
    line_length: tuple[jax.Array, jax.Array]  # float32 [], float32 []: characters, nats a character (0 is off)
    end_tokens: jax.Array  # int32 [E], -1 is none
    limit: jax.Array  # int32 []
    seed: jax.Array  # uint32 [2]: as `row_keys` takes it
    scored: jax.Array  # bool []: log-probabilities are wanted

    @classmethod
    def of(cls, request: Request, number: int, suppressed: int) -> "Settings | None":
        """Those of text `number` of the request's prompt; None where a list is longer than a row has room for.

        `suppressed` is the room for `suppress_tokens`.
        """
        s, options = request.sampling, request.options
        biased, bias = s.sequence_bias or (None, None)
        tables = {
            "bad_words_ids": _padded(s.bad_words_ids, PHRASES, WORDS),
            "suppress_tokens": _padded(s.suppress_tokens, suppressed),
            "begin_suppress_tokens": _padded(s.begin_suppress_tokens, PHRASES),
        }
        biased, end_tokens = _padded(biased, PHRASES, WORDS), _padded(request.end_tokens, END_TOKENS)
        too_long = any(table is None for table in (*tables.values(), biased, end_tokens))
        if too_long or (options.logprobs or 0) > ALTERNATIVES:
            return None
        biases = np.zeros(PHRASES, np.float32)
        if bias is not None:
            biases[: len(bias)] = bias
        numbers = {float: np.float32, int: np.int32}
        start, factor = s.exponential_decay_length_penalty or (0, 1.0)
        characters, strength, _ = s.line_length or (1.0, 0.0, None)
        sampling = Sampling(
            **{name: numbers[kind](getattr(s, name)) for name, (kind, *_) in SCALARS.items()},
            **tables,
            sequence_bias=(biased, biases),
            exponential_decay_length_penalty=(np.int32(start), np.float32(factor)),
        )
        return cls(
            sampling=sampling,
            line_length=(np.float32(characters), np.float32(strength)),
            end_tokens=end_tokens,
            limit=np.int32(request.max_new_tokens),
            seed=np.array([request.seeds[0] % 2**32, number], np.uint32),
            scored=np.bool_(options.logprobs is not None),
        )


def _padded(ids: np.ndarray | None, *shape: int) -> np.ndarray | None:
    """The table with -1 before its columns and after its rows (or entries); None where it is larger than `shape`."""
    if ids is None:
        return np.full(shape, -1, np.int32)
    used = np.flatnonzero((ids.reshape(len(ids), -1) >= 0).any(1))  # it may be padded already, and farther
    ids = ids[: used.max(initial=-1) + 1]
    if any(have > room for have, room in zip(ids.shape, shape)):
        return None
    after = [(0, shape[0] - len(ids))]
    return np.pad(ids, after + [(room - have, 0) for have, room in zip(ids.shape[1:], shape[1:])], constant_values=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """All R rows: their texts, and what each obeys."""

    history: History  # tokens [R, N]
    settings: Settings

    @classmethod
    def of(cls, settings: Settings, rows: int, context: int) -> "Rows":
        """Rows of one token, all with the same settings."""
        ones = np.ones(rows, np.int32)
        history = History(tokens=np.zeros((rows, context), np.int32), lengths=ones, prompt_lengths=ones.copy())
        return cls(history, jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], rows, axis=0), settings))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """A token for each of B rows, int32 [B]; where a row wants them its log-probability and the most probable ones'."""

    token: jax.Array
    logprob: jax.Array  # float32 [B]
    top: jax.Array  # float32 [B, ALTERNATIVES]
    top_tokens: jax.Array  # int32 [B, ALTERNATIVES]


@functools.partial(jax.jit, donate_argnames="rows")
def put(rows: Rows, row: jax.Array, settings: Settings, tokens: jax.Array, length: jax.Array) -> Rows:
    """The rows with another text in `row`, int32 [N] of which `length` count, and its settings."""
    new = Rows(History(tokens=tokens, lengths=length, prompt_lengths=length), settings)
    return jax.tree.map(lambda x, own: x.at[row].set(own), rows, new)


@functools.partial(jax.jit, donate_argnames="rows")
def take(rows: Rows, order: jax.Array) -> Rows:
    """The rows in another order, int32 [R]."""
    return jax.tree.map(lambda x: x[order], rows)


@functools.partial(jax.jit, donate_argnames="history")
def draw(
    model: GPT2, history: History, settings: Settings, line_table: jax.Array | None, states: jax.Array
) -> tuple[History, Drawn]:
    """Adds the next token to each of the first B rows.

    Args:
      model: whose `head` makes logits of states.
      history: of R rows.
      settings: of R rows.
      line_table: of `lines.line_table`; None where the tokenizer has no line break.
      states: [B, C], of the newest tokens.
    """
    B, R = len(states), len(history.lengths)
    texts, own = jax.tree.map(lambda x: x[:B], (history, settings))
    sampling = own.sampling
    if line_table is not None:
        sampling = dataclasses.replace(sampling, line_length=(*own.line_length, line_table))
    logits = model.head(states)
    keys = jax.vmap(jax.random.fold_in)(row_keys(own.seed), texts.lengths)
    token = pick(logits, sampling, texts, keys, end_tokens=own.end_tokens, limit=own.limit)

    N = history.tokens.shape[1]
    place = jnp.minimum(texts.lengths, N)  # past the end, of rows not in use: dropped
    history = dataclasses.replace(
        history,
        tokens=history.tokens.at[jnp.arange(B), place].set(token, mode="drop"),
        lengths=jnp.minimum(history.lengths + (jnp.arange(R) < B), N),
    )
    scores = jax.lax.cond(own.scored.any(), _scores, _no_scores, logits, token)
    return history, Drawn(token, *scores)


def _scores(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    total = jax.nn.logsumexp(logits, axis=-1)
    top, top_tokens = jax.lax.top_k(logits, min(ALTERNATIVES, logits.shape[1]))
    return jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - total, top - total[:, None], top_tokens


def _no_scores(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jax.tree.map(jnp.zeros_like, _scores(logits, token))
