"""Beam search, beam sampling and diverse beam groups: K texts a prompt go on side by side, the best are kept.

Token for token the search of FlaxGPT2 (`FlaxGenerationMixin._beam_search`, transformers 4.57): a text that ends among
the candidates of its step is kept by its score whatever its rank, where PyTorch's asks for one of the first K ranks.
Two things are better defined: each prompt of a batch stops by itself, so that it gives what it gives alone, and when
fewer texts have ended than are asked for, the best of those still running follow. Diverse groups (Vijayakumar et al.,
2018) search one after the other, each marked down for the tokens that those before it have just taken.

Axes as in decoding.py; B prompts, G groups of k beams, K = G k beams a prompt, N room for new tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation.decoding import Decoding, last_state, prefill, step
from gpt2_jax.generation.logits import LOWEST, History
from gpt2_jax.generation.sampler import bucket, start_state
from gpt2_jax.generation.sampling import Sampling, process, warp
from gpt2_jax.model import GPT2

NOTHING = -1.0e7  # the score of a beam that does not exist, below that of any text
EARLY = {False: 0, True: 1, "never": 2}


@dataclasses.dataclass(frozen=True)
class Beam:
    """A text found: its new tokens, int32 [n] with the end token; its score; whether it came to an end."""

    tokens: np.ndarray
    score: float
    finished: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """What the search obeys, all traced."""

    sampling: Sampling
    end_tokens: jax.Array  # int32 [E], -1 is none
    limit: jax.Array  # int32 []: most new tokens
    length_penalty: jax.Array  # float32 []
    diversity_penalty: jax.Array  # float32 []
    early_stopping: jax.Array  # int32 []: a value of EARLY


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the loop carries."""

    count: jax.Array  # int32 []: new tokens of the running texts
    running: History  # of B * K rows
    scores: jax.Array  # float32 [B, G, k]: log-probabilities of the running texts, in falling order
    origin: jax.Array  # int32 [B * K]: the rows of the memory that the running texts go on from
    ended: jax.Array  # int32 [B, G, k, N]: new tokens of the texts that came to an end
    lengths: jax.Array  # int32 [B, G, k]: how many
    ended_scores: jax.Array  # float32 [B, G, k], in falling order; NOTHING where there is none
    done: jax.Array  # bool [B, G]: the group's search is over
    keys: jax.Array  # [B]


def search(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_beams: int,
    sampling: Sampling,
    end_tokens: np.ndarray,
    seeds: Sequence[int],
    num_beam_groups: int = 1,
    diversity_penalty: float = 0.0,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    num_return_sequences: int = 1,
) -> list[list[Beam]]:
    """The texts of the highest log-probability / length ** length_penalty, best first.

    Args:
      model: an unstacked model (`gpt2_jax.model.unstack`).
      prompts: token ids; each and `max_new_tokens` together must fit `n_positions`.
      max_new_tokens: where the search ends at the latest.
      num_beams: K.
      sampling: controls of every token; with a temperature above 0, the candidates of which the best go on are drawn
        without replacement from all continuations of all beams, after the filters, as in transformers.
      end_tokens: int32 [E], the ids that end a text; -1 is none.
      seeds: of the draws, one a prompt.
      num_beam_groups: G, which divides K.
      diversity_penalty: taken from a token's log-probability for each beam of an earlier group that has just taken it.
      length_penalty: the exponent; above 0 favours long texts.
      early_stopping: True stops at K ended texts; False when no running text has a better score at its present length
        than the worst of them; "never" when none can ever have.
      num_return_sequences: texts a prompt, at most K.

    Returns:
      For each prompt `num_return_sequences` beams: those that came to an end, then those still running.

    Raises:
      InputError: numbers that do not fit each other.
    """
    _check(num_beams, num_beam_groups, diversity_penalty, num_return_sequences, early_stopping, length_penalty, model)
    start = start_state(prompts, [(seed, 0) for seed in seeds], max_new_tokens)
    rules = Rules(
        sampling=sampling,
        end_tokens=np.asarray(end_tokens, np.int32),
        limit=np.int32(max_new_tokens),
        length_penalty=np.float32(length_penalty),
        diversity_penalty=np.float32(diversity_penalty),
        early_stopping=np.int32(EARLY[early_stopping]),
    )
    slots = bucket(int(start.history.lengths.max()), model.config.n_positions)
    state = _search(
        model, start.history, start.keys, rules, slots=slots, capacity=bucket(max_new_tokens),
        num_beams=num_beams, groups=num_beam_groups, ends=int((rules.end_tokens >= 0).sum()),
    )  # fmt: skip
    return _best(jax.tree.map(np.asarray, dataclasses.replace(state, keys=None)), length_penalty, num_return_sequences)


def _check(num_beams, groups, diversity_penalty, wanted, early_stopping, length_penalty, model) -> None:
    if num_beams < 1 or 2 * num_beams > model.config.vocab_size:
        raise InputError(
            f"num_beams is {num_beams}; it must be from 1 to {model.config.vocab_size // 2}, half the vocabulary"
        )
    if wanted > num_beams:
        raise InputError(f"num_return_sequences is {wanted}; it must be at most num_beams ({num_beams})")
    if groups < 1 or num_beams % groups:
        raise InputError(f"num_beam_groups is {groups}; it must divide num_beams ({num_beams})")
    if diversity_penalty < 0 or (diversity_penalty > 0) != (groups > 1):
        raise InputError(
            f"diversity_penalty is {diversity_penalty} with num_beam_groups {groups}; several groups need one above 0, "
            "and a single group has none"
        )
    if early_stopping not in EARLY:
        raise InputError(f"early_stopping is {early_stopping!r}; it must be True, False or 'never'")
    if not np.isfinite(length_penalty):
        raise InputError(f"length_penalty is {length_penalty}; it must be a finite number")


@functools.partial(jax.jit, static_argnames=("slots", "capacity", "num_beams", "groups", "ends"))
def _search(
    model: GPT2, prompts: History, keys: jax.Array, rules: Rules,
    *, slots: int, capacity: int, num_beams: int, groups: int, ends: int,
) -> State:  # fmt: skip
    B, K, k = len(keys), num_beams, num_beams // groups
    x, decoding = prefill(model, prompts.tokens[:, :slots], prompts.lengths, capacity)
    rows = jnp.repeat(jnp.arange(B), K)
    shape = (B, groups, k)
    state = State(
        count=jnp.zeros((), jnp.int32),
        running=jax.tree.map(lambda x: x[rows], prompts),
        scores=jnp.full(shape, NOTHING).at[:, :, 0].set(0.0),  # beams that are equal at first would all stay equal
        origin=rows,
        ended=jnp.zeros((*shape, capacity), jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        ended_scores=jnp.full(shape, NOTHING),
        done=jnp.zeros((B, groups), bool),
        keys=keys,
    )
    candidates = max(2, 1 + ends) * k  # so many that k of them do not end, even if every beam ends in every way
    state = _extend(state, model.head(last_state(x, prompts.lengths))[rows], rules, candidates)

    def unfinished(carry: tuple[State, Decoding]) -> jax.Array:
        return (carry[0].count < rules.limit) & ~carry[0].done.all()

    def turn(carry: tuple[State, Decoding]) -> tuple[State, Decoding]:
        state, decoding = carry
        x, decoding = step(model, state.running.last(1), decoding)
        state = _extend(state, model.head(x), rules, candidates)
        return state, decoding.select(state.origin)

    return jax.lax.while_loop(unfinished, turn, (state, decoding.select(rows)))[0]


def _extend(state: State, logits: jax.Array, rules: Rules, candidates: int) -> State:
    """Every running text goes on with every token, logits [B * K, V]; the best go on running or have ended."""
    B, G, k = state.scores.shape
    log_p = jax.nn.log_softmax(logits)
    log_p = process(log_p, rules.sampling, state.running, end_tokens=rules.end_tokens, limit=rules.limit)
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.running.lengths[:: G * k])
    log_p = log_p.reshape(B, G, k, -1)
    groups, taken = [], jnp.zeros((B, log_p.shape[-1]))
    for g in range(G):
        penalised = log_p[:, g] - rules.diversity_penalty * taken[:, None] if g else log_p[:, g]
        group = _extend_group(state, penalised, g, jax.vmap(lambda key, g=g: jax.random.fold_in(key, g))(keys),
                              rules, candidates)  # fmt: skip
        groups.append(group)
        taken = taken.at[jnp.arange(B)[:, None], group["token"]].add(1.0)
    merged = {name: jnp.stack([group[name] for group in groups], axis=1) for name in groups[0]}

    origin = (jnp.arange(B)[:, None, None] * G + jnp.arange(G)[:, None]) * k + merged.pop("beam")
    origin, token = origin.reshape(-1), merged.pop("token").reshape(-1)
    history = jax.tree.map(lambda x: x[origin], state.running)
    tokens = history.tokens.at[jnp.arange(len(token)), history.lengths].set(token, mode="drop")
    running = dataclasses.replace(history, tokens=tokens, lengths=history.lengths + 1)
    kept = {  # a search that is over keeps what it has found
        name: jnp.where(state.done.reshape(B, G, *[1] * (new.ndim - 2)), getattr(state, name), new)
        for name, new in merged.items() if name != "scores"
    }  # fmt: skip
    state = dataclasses.replace(
        state, count=state.count + 1, running=running, origin=origin, scores=merged["scores"], **kept
    )
    return dataclasses.replace(state, done=state.done | ~_can_improve(state, rules))


def _extend_group(state: State, log_p: jax.Array, g: int, keys: jax.Array, rules: Rules, candidates: int) -> dict:
    """One group of each prompt: log-probabilities [B, k, V] of the next token -> the new fields [B, k, ...]."""
    B, k, V = log_p.shape
    if_drawn = lambda: warp(log_p.reshape(B * k, V), rules.sampling, at_least=candidates // k).reshape(B, k, V)
    drawn = jnp.asarray(rules.sampling.temperature) > 0
    total = jax.lax.cond(drawn, if_drawn, lambda: log_p) + state.scores[:, g, :, None]
    total = jnp.maximum(total, LOWEST).reshape(B, -1)
    # The largest after Gumbel noise are a draw without replacement (Kool et al., 2019).
    noisy = lambda: total + jax.vmap(lambda key: jax.random.gumbel(key, (k * V,)))(keys)
    best = jax.lax.top_k(jax.lax.cond(drawn, noisy, lambda: total), candidates)[1]  # [B, candidates]
    score, beam, token = jnp.take_along_axis(total, best, axis=1), best // V, best % V
    ends = (token[..., None] == rules.end_tokens).any(-1)

    scores, going = jax.lax.top_k(score + ends * NOTHING, k)
    take = lambda values, rows: jnp.take_along_axis(values, rows, axis=1)
    full = (state.ended_scores[:, g] > NOTHING).all(1, keepdims=True) & (rules.early_stopping == EARLY[True])
    ended_score = score / (state.count + 1.0) ** rules.length_penalty + (~ends | full) * NOTHING
    ended_scores, best = jax.lax.top_k(jnp.concatenate([state.ended_scores[:, g], ended_score], 1), k)

    # New tokens of the candidates: those of their beam, then their own.
    rows = jnp.arange(B)[:, None] * (len(state.running.lengths) // B) + g * k + beam
    N = state.ended.shape[-1]
    place = state.running.prompt_lengths[rows][..., None] + jnp.arange(N)
    texts = jnp.take_along_axis(state.running.tokens[rows], jnp.minimum(place, state.running.tokens.shape[1] - 1), -1)
    texts = jnp.where(jnp.arange(N) == state.count, token[..., None], texts)
    return {
        "scores": scores,
        "beam": take(beam, going),
        "token": take(token, going),
        "ended": take(jnp.concatenate([state.ended[:, g], texts], 1), best[..., None]),
        "lengths": take(jnp.concatenate([state.lengths[:, g], jnp.full_like(token, state.count + 1)], 1), best),
        "ended_scores": ended_scores,
    }


def _can_improve(state: State, rules: Rules) -> jax.Array:
    """bool [B, G]: whether a group may still find something better than the worst that it has."""
    farthest = (rules.early_stopping == EARLY["never"]) & (rules.length_penalty > 0)
    length = jnp.where(farthest, rules.limit, state.count).astype(jnp.float32)
    best_running = state.scores[:, :, 0] / length**rules.length_penalty
    worst, full = state.ended_scores.min(-1), (state.ended_scores > NOTHING).all(-1)
    return jnp.where(full, (best_running > worst) & (rules.early_stopping != EARLY[True]), True)


def _best(state: State, length_penalty: float, wanted: int) -> list[list[Beam]]:
    found = []
    count, K = int(state.count), state.scores[0].size
    for b in range(len(state.done)):
        ended = [
            Beam(state.ended[b, g, i, : state.lengths[b, g, i]], float(score), True)
            for (g, i), score in np.ndenumerate(state.ended_scores[b]) if score > NOTHING
        ]  # fmt: skip
        starts, rows = state.running.prompt_lengths, range(b * K, (b + 1) * K)
        running = [
            Beam(
                state.running.tokens[row, starts[row] : starts[row] + count],
                float(score) / count**length_penalty,
                False,
            )
            for row, score in zip(rows, state.scores[b].reshape(-1))
        ]
        by_score = lambda beam: -beam.score
        found.append([*sorted(ended, key=by_score), *sorted(running, key=by_score)][:wanted])
    return found
