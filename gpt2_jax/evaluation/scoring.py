"""How probable a model finds given continuations of given contexts: what tasks with answers to choose from ask for."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.logprobs import in_batches
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.tokenizer import Tokenizer

Pair = tuple[Sequence[int], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A continuation under the model.

    Attributes:
      logprobs: float32 [n], of each of its tokens after the context and those before it, in nats.
      greedy: whether each of them was the most probable one.
    """

    logprobs: np.ndarray
    greedy: bool

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation, in nats."""
        return float(self.logprobs.sum(dtype=np.float64))


def score(
    lm: LanguageModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Scored]:
    """The log-probabilities of continuations; the same, within rounding, whatever other pairs there are.

    They run as `logprobs.in_batches` says: with a model of `logprobs.spread` devices share each batch.

    Args:
      lm: the model.
      pairs: (context ids, continuation ids). An empty context is end-of-text; of one that does not fit the model's
        context together with the continuation, the left is left out.
      batch_size: pairs that run together.
      progress: told after each batch how many pairs are done.

    Returns:
      A `Scored` for each pair, in their order.

    Raises:
      InputError: a continuation that is empty or longer than the context, ids outside the vocabulary, or a batch size
        below 1.
    """
    context, end_of_text = lm.config.n_positions, lm.tokenizer.end_of_text
    sequences, starts = [], []
    for number, pair in enumerate(pairs):
        before, after = _ids(pair, number, lm.config.vocab_size)
        if len(after) > context:
            raise InputError(
                f"pair {number} has a continuation of {len(after)} tokens, and the model's context is {context}; score "
                "a long text with gpt2_jax.evaluation.perplexity"
            )
        before = before if len(before) else np.array([end_of_text])
        before = before[-(context + 1 - len(after)) :]
        sequences.append(np.concatenate([before, after]))
        starts.append(len(before))
    results: list[Scored] = [None] * len(sequences)
    done = 0
    for batch in in_batches(lm.model, sequences, starts, batch_size):
        for i, logprobs, greedy in batch:
            results[i] = Scored(logprobs, bool(greedy.all()))
        done += len(batch)
        if progress is not None:
            progress(done)
    return results


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """The ids of a text, cut where its continuation begins, as lm-evaluation-harness cuts it.

    White space at the end of the context goes to the continuation, where GPT-2's tokens have it. Both are encoded
    together, so that a token is what it would be in running text.
    """
    start = context.rstrip()
    continuation = context[len(start) :] + continuation
    before, whole = tokenizer.encode_batch([start, start + continuation])
    return np.array(before, np.int32), np.array(whole[len(before) :], np.int32)


def _ids(pair: Pair, number: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        before, after = pair
    except (TypeError, ValueError):
        raise InputError(f"pair {number} is {pair!r:.60}; it must be (context ids, continuation ids)") from None
    parts = []
    for what, ids in (("context", before), ("continuation", after)):
        ids = np.zeros(0, np.int32) if not isinstance(ids, str) and len(ids) == 0 else np.asarray(ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"pair {number} has a {what} that is {ids.dtype}{list(ids.shape)}; it must be token ids")
        wrong = ids[(ids < 0) | (ids >= vocab_size)]
        if wrong.size:
            raise InputError(
                f"pair {number} has token id {wrong[0]} in its {what}; ids must be from 0 to {vocab_size - 1}: encode "
                "the text with lm.tokenizer"
            )
        parts.append(ids)
    if not parts[1].size:
        raise InputError(f"pair {number} has an empty continuation; there is nothing to score in it")
    return parts[0], parts[1]
