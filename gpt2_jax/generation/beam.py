"""Beam search, beam sampling and diverse beam groups: K texts a prompt go on side by side, the best are kept.

One group is token for token the search of FlaxGPT2 (`FlaxGenerationMixin._beam_search`, transformers 4.57): a text that
ends among the candidates of its step is kept by its score whatever its rank, and texts cut off by the limit come after
all that have ended. Diverse groups (Vijayakumar et al., 2018), which FlaxGPT2 has not, follow PyTorch's
(`_group_beam_search`, transformers 4.50): texts that end must be among the first k candidates, and those cut off are
compared with them by score; a text that has just ended counts, too, in whether to go on. Groups search one after the
other, each marked down for the tokens that those before it have just taken.

Three things are better defined: each prompt of a batch stops by itself, so that it gives what it gives alone; a group
whose search is over takes no more tokens, where PyTorch's takes the padding; and a beam for which there is no text yet,
as at the start, neither ends nor is returned, but the best texts still running are where too few have ended.

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
from gpt2_jax.generation import chain
from gpt2_jax.generation.decoding import Decoding, last_state, prefill, step
from gpt2_jax.generation.logits import LOWEST, History
from gpt2_jax.generation.pausing import Pausing
from gpt2_jax.generation.sampler import bucket, start_state
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import GPT2

NOTHING = -1.0e20  # below the log-probability of any text: a beam at or under it does not exist, or is banned
LARGEST_LENGTH_PENALTY = 8  # lengths to this power, and scores over them, are far from both ends of float32
LARGEST_DIVERSITY_PENALTY = 1e9  # sums of it over a long text are still above NOTHING
EARLY = {False: 0, True: 1, "never": 2}


@dataclasses.dataclass(frozen=True)
class Beam:
    """A text found: its new tokens, int32 [n] with the end token; its score; whether it came to an end."""

    tokens: np.ndarray
    score: float
    finished: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules(chain.Rules):
    """What the search obeys."""

    length_penalty: jax.Array  # float32 []
    diversity_penalty: jax.Array  # float32 []
    early_stopping: jax.Array  # int32 []: a value of EARLY


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the loop carries."""

    count: jax.Array  # int32 []: new tokens of the running texts
    running: History  # of B * K rows
    scores: jax.Array  # float32 [B, G, k]: log-probabilities of the running texts, in falling order; LOWEST is no text
    origin: jax.Array  # int32 [B * K]: the rows of the memory that the running texts go on from
    ended: jax.Array  # int32 [B, G, k, N]: new tokens of the texts that came to an end
    lengths: jax.Array  # int32 [B, G, k]: how many; 0 where there is no text
    ended_scores: jax.Array  # float32 [B, G, k], in falling order
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
    chunk: int | None = None,
) -> Pausing[list[list[Beam]]]:
    """The texts of the highest log-probability / length ** length_penalty, best first.

    Args:
      model: an unstacked model (`gpt2_jax.model.unstack`).
      prompts: token ids; each and `max_new_tokens` together must fit `n_positions`.
      max_new_tokens: where the search ends at the latest.
      num_beams: K; another number compiles anew, as do other groups and another number of end tokens above 1.
      sampling: controls of every token; with a temperature above 0, the candidates of which the best go on are drawn
        without replacement from all continuations of all beams, after the filters, as in transformers.
      end_tokens: int32 [E], the ids that end a text; -1 is none.
      seeds: of the draws, one a prompt.
      num_beam_groups: G, which divides K.
      diversity_penalty: taken from a token's log-probability for each beam of an earlier group that has just taken it.
      length_penalty: the exponent, from -8 to 8; above 0 favours long texts.
      early_stopping: True stops at K ended texts; False when no running text has a better score at its present length
        than the worst of them; "never" when none can ever have.
      num_return_sequences: texts a prompt, at most K.
      chunk: pause after so many tokens; None does not.

    Returns:
      For each prompt `num_return_sequences` beams: those that came to an end, then those still running; of several
      groups, those of the highest score.

    Raises:
      InputError: numbers that do not fit each other, or more texts asked for than the controls leave possible.
    """
    _check(num_beams, num_beam_groups, diversity_penalty, num_return_sequences, early_stopping, length_penalty)
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
    # So many a beam that, even if every one of them ends in every way, as many do not.
    candidates = min(max(2, 1 + np.unique(rules.end_tokens[rules.end_tokens >= 0]).size), model.config.vocab_size)
    state, decoding = _fill(
        model, start.history, start.keys, rules, slots=slots, capacity=bucket(max_new_tokens),
        num_beams=num_beams, groups=num_beam_groups, candidates=candidates,
    )  # fmt: skip
    while (count := int(state.count)) < max_new_tokens and not np.all(state.done):
        until = np.int32(min(max_new_tokens, count + chunk) if chunk else max_new_tokens)
        state, decoding = _advance(model, state, decoding, rules, until, candidates=candidates)
        yield
    return _best(jax.tree.map(np.asarray, dataclasses.replace(state, keys=None)), length_penalty, num_return_sequences)


def _check(num_beams, groups, diversity_penalty, wanted, early_stopping, length_penalty) -> None:
    if num_beams < 1:
        raise InputError(f"num_beams is {num_beams}; it must be at least 1")
    if not 1 <= wanted <= num_beams:
        raise InputError(f"num_return_sequences is {wanted}; it must be from 1 to num_beams ({num_beams})")
    if groups < 1 or num_beams % groups:
        raise InputError(f"num_beam_groups is {groups}; it must divide num_beams ({num_beams})")
    if not 0 <= diversity_penalty <= LARGEST_DIVERSITY_PENALTY or (diversity_penalty > 0) != (groups > 1):
        raise InputError(
            f"diversity_penalty is {diversity_penalty} with num_beam_groups {groups}; several groups need one above 0 "
            f"(up to {LARGEST_DIVERSITY_PENALTY:g}), and a single group has none"
        )
    if early_stopping not in list(EARLY):
        raise InputError(f"early_stopping is {early_stopping!r}; it must be True, False or 'never'")
    if not abs(length_penalty) <= LARGEST_LENGTH_PENALTY:
        raise InputError(
            f"length_penalty is {length_penalty}; it must be from -{LARGEST_LENGTH_PENALTY} to {LARGEST_LENGTH_PENALTY}"
        )


@functools.partial(jax.jit, static_argnames=("slots", "capacity", "num_beams", "groups", "candidates"))
def _fill(
    model: GPT2, prompts: History, keys: jax.Array, rules: Rules,
    *, slots: int, capacity: int, num_beams: int, groups: int, candidates: int,
) -> tuple[State, Decoding]:  # fmt: skip
    """Reads the prompts, and takes the first step."""
    B, K, k = len(keys), num_beams, num_beams // groups
    x, decoding = prefill(model, prompts.tokens[:, :slots], prompts.lengths, capacity)
    rows = jnp.repeat(jnp.arange(B), K)
    shape = (B, groups, k)
    state = State(
        count=jnp.zeros((), jnp.int32),
        running=jax.tree.map(lambda x: x[rows], prompts),
        scores=jnp.full(shape, LOWEST).at[:, :, 0].set(0.0),  # beams that are equal at first would all stay equal
        origin=rows,
        ended=jnp.zeros((*shape, capacity), jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        ended_scores=jnp.full(shape, LOWEST),
        done=jnp.zeros((B, groups), bool),
        keys=keys,
    )
    return _extend(state, model.head(last_state(x, prompts.lengths))[rows], rules, candidates), decoding.select(rows)


@functools.partial(jax.jit, static_argnames="candidates", donate_argnames="decoding")
def _advance(
    model: GPT2, state: State, decoding: Decoding, rules: Rules, until: jax.Array, *, candidates: int
) -> tuple[State, Decoding]:
    """Takes steps until the running texts have `until` new tokens, or every search is over."""

    def unfinished(carry: tuple[State, Decoding]) -> jax.Array:
        return (carry[0].count < until) & ~carry[0].done.all()

    def turn(carry: tuple[State, Decoding]) -> tuple[State, Decoding]:
        state, decoding = carry
        # Moved before the step writes into it: afterwards, XLA on CPU would copy the whole cache.
        x, decoding = step(model, state.running.last(1), decoding.reorder(state.origin))
        return _extend(state, model.head(x), rules, candidates), decoding

    return jax.lax.while_loop(unfinished, turn, (state, decoding))


def _extend(state: State, logits: jax.Array, rules: Rules, candidates: int) -> State:
    """Every running text goes on with every token, logits [B * K, V]; the best go on running or have ended."""
    B, G, k = state.scores.shape
    log_p = jax.nn.log_softmax(logits)
    log_p = chain.process(log_p, rules.sampling, state.running, end_tokens=rules.end_tokens, limit=rules.limit)
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.running.lengths[:: G * k])
    log_p = log_p.reshape(B, G, k, -1)

    def extend_group(taken: jax.Array, g: jax.Array) -> tuple[jax.Array, dict]:
        penalised = log_p[:, g] - rules.diversity_penalty * taken[:, None]
        group_keys = jax.vmap(lambda key: jax.random.fold_in(key, g))(keys)
        group = _extend_group(state, penalised, g, group_keys, rules, candidates)
        counts = (group["scores"] > NOTHING) & ~state.done[:, g, None]
        return taken.at[jnp.arange(B)[:, None], group["token"]].add(counts.astype(jnp.float32)), group

    groups = jax.lax.scan(extend_group, jnp.zeros((B, log_p.shape[-1])), jnp.arange(G))[1]
    merged = {name: jnp.moveaxis(of_groups, 0, 1) for name, of_groups in groups.items()}  # [B, G, k, ...]
    origin = (jnp.arange(B)[:, None, None] * G + jnp.arange(G)[:, None]) * k + merged.pop("beam")
    origin, token, hope = origin.reshape(-1), merged.pop("token").reshape(-1), merged.pop("hope")
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
    return dataclasses.replace(state, done=state.done | ~_can_improve(state, hope, rules))


def _extend_group(
    state: State, log_p: jax.Array, g: jax.Array, keys: jax.Array, rules: Rules, candidates: int
) -> dict[str, jax.Array]:
    """One group of each prompt: log-probabilities [B, k, V] of the next token -> the new fields [B, k, ...]."""
    B, k, V = log_p.shape
    if_drawn = lambda: chain.warp(log_p.reshape(B * k, V), rules.sampling, at_least=candidates).reshape(B, k, V)
    drawn = jnp.asarray(rules.sampling.temperature) > 0
    total = jax.lax.cond(drawn, if_drawn, lambda: log_p) + state.scores[:, g, :, None]
    total = jnp.maximum(total, LOWEST).reshape(B, -1)
    # The largest after Gumbel noise are a draw without replacement (Kool et al., 2019).
    noisy = lambda: total + jax.vmap(lambda key: jax.random.gumbel(key, (k * V,)))(keys)
    best = jax.lax.top_k(jax.lax.cond(drawn, noisy, lambda: total), candidates * k)[1]  # [B, c k]
    score, beam, token = jnp.take_along_axis(total, best, axis=1), best // V, best % V
    ends, length = (token[..., None] == rules.end_tokens).any(-1), state.count + 1

    scores, going = jax.lax.top_k(jnp.where(ends, LOWEST, score), k)
    take = lambda values, rows: jnp.take_along_axis(values, rows, axis=1)
    has_ended, hope = ends & (score > NOTHING), scores[:, 0]
    if state.scores.shape[1] > 1:
        has_ended, hope = has_ended & (jnp.arange(candidates * k) < k), score[:, 0]
    ended_score = jnp.where(has_ended, score / length.astype(jnp.float32) ** rules.length_penalty, LOWEST)
    ended_scores, best = jax.lax.top_k(jnp.concatenate([state.ended_scores[:, g], ended_score], 1), k)

    # New tokens of the candidates: those of their beam, then their own.
    rows = jnp.arange(B)[:, None] * (len(state.running.lengths) // B) + g * k + beam
    N = state.ended.shape[-1]
    place = state.running.prompt_lengths[rows][..., None] + jnp.arange(N)
    texts = jnp.take_along_axis(state.running.tokens[rows], jnp.minimum(place, state.running.tokens.shape[1] - 1), -1)
    texts = jnp.where(jnp.arange(N) == state.count, token[..., None], texts)
    return {
        "hope": hope,  # log-probability of the text that decides whether to go on
        "scores": scores,
        "beam": take(beam, going),
        "token": take(token, going),
        "ended": take(jnp.concatenate([state.ended[:, g], texts], 1), best[..., None]),
        "lengths": take(jnp.concatenate([state.lengths[:, g], jnp.where(has_ended, length, 0)], 1), best),
        "ended_scores": ended_scores,
    }


def _can_improve(state: State, hope: jax.Array, rules: Rules) -> jax.Array:
    """bool [B, G]: whether a group may still find something better than the worst that it has; by `hope` [B, G]."""
    farthest = (rules.early_stopping == EARLY["never"]) & (rules.length_penalty > 0)
    length = jnp.where(farthest, rules.limit, state.count).astype(jnp.float32)
    better = hope / length**rules.length_penalty > state.ended_scores[:, :, -1]
    better &= rules.early_stopping != EARLY[True]
    return (hope > NOTHING) & (better | (state.lengths == 0).any(-1))


def _best(state: State, length_penalty: float, wanted: int) -> list[list[Beam]]:
    B, G, k = state.scores.shape
    by_score = lambda beam: -beam.score
    ended_first = lambda beam: (not beam.finished, -beam.score)
    order = by_score if G > 1 else ended_first
    found = []
    for b in range(B):
        beams = [beam for g in range(G) for beam in sorted(_texts(state, b, g, length_penalty), key=order)[:k]]
        found.append(sorted(beams, key=order)[:wanted])
    fewest = min(map(len, found))
    if fewest < wanted:
        raise InputError(
            f"num_return_sequences is {wanted}; the controls and max_new_tokens leave only {fewest} possible: ask for "
            "fewer, or loosen the controls"
        )
    return found


def _texts(state: State, b: int, g: int, length_penalty: float) -> list[Beam]:
    """What a group of a prompt has found, and what it would have gone on with."""
    _, G, k = state.scores.shape
    ended = zip(state.ended[b, g], state.lengths[b, g], state.ended_scores[b, g])
    beams = [Beam(tokens[:length], float(score), True) for tokens, length, score in ended if length]
    if not state.done[b, g]:
        count, first = int(state.count), (b * G + g) * k
        for row, score in enumerate(state.scores[b, g], start=first):
            tokens = state.running.tokens[row, state.running.prompt_lengths[row] :][:count]
            if score > NOTHING:
                beams.append(Beam(tokens, float(score) / count**length_penalty, False))
    return beams
