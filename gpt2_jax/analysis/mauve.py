"""MAUVE (Pillutla et al., 2021; JMLR 2023): how far the texts of a model are from those of people, by their features.

Both sets become histograms over the clusters of all their features; the score is the area under the curve of the two
divergences from their mixtures. From 0 to 1, where 1 is alike. Its worth depends on the model that makes the features
(the paper: GPT-2 large) and on the number of texts (the paper: 5,000 of each): compare numbers made alike only.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster import vq

from gpt2_jax.errors import InputError, check
from gpt2_jax.generation.decoding import last_state
from gpt2_jax.generation.sampler import bucket
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2

MIXTURES = 25  # points of the curve
SCALE = 5.0  # the paper's c
EXPLAINED = 0.9  # variance kept before clustering
ATTEMPTS = 5  # of k-means, of which the best is kept


@dataclasses.dataclass(frozen=True)
class Mauve:
    """What the comparison of two sets of texts found.

    Attributes:
      score: area under `curve`, 0 to 1: 1 is alike.
      frontier_integral: 0 to 1, where 0 is alike: the same without a constant to choose.
      curve: float64 [points, 2], from (1, 0) to (0, 1): see `divergence_curve`.
      buckets: clusters.
    """

    score: float
    frontier_integral: float
    curve: np.ndarray
    buckets: int


def features(lm: LanguageModel, texts: Sequence[str], batch_size: int = 16) -> np.ndarray:
    """The last state of each text, float32 [texts, C], after its last token; of longer ones, the first context of it.

    Raises:
      InputError: no texts, or an empty one.
    """
    check(len(texts) >= 1, "the number of texts", len(texts), "at least 1")
    rows = [ids[: lm.config.n_positions] for ids in lm.tokenizer.encode_batch(texts)]
    if empty := [i for i, ids in enumerate(rows) if not ids]:
        raise InputError(f"text {empty[0]} is empty and has no features; leave it out")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # alike lengths together: little padding
    found = np.empty((len(rows), lm.config.n_embd), np.float32)
    for start in range(0, len(order), batch_size):
        those = order[start : start + batch_size]
        lengths = np.array([len(rows[i]) for i in those] + [1] * (batch_size - len(those)), np.int32)
        tokens = np.zeros((batch_size, bucket(int(lengths.max()), lm.config.n_positions)), np.int32)
        for row, i in zip(tokens, those):
            row[: len(rows[i])] = rows[i]
        found[those] = np.asarray(_last_states(lm.model, tokens, lengths))[: len(those)]
    return found


@jax.jit
def _last_states(model: GPT2, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    x, _ = model.prefill(tokens, tokens.shape[1])
    return last_state(x, lengths).astype(jnp.float32)


def mauve(p: np.ndarray, q: np.ndarray, *, buckets: int | None = None, seed: int = 0) -> Mauve:
    """Compares two sets of texts by their `features`, float [texts, C].

    Args:
      p, q: of the model and of people; the score treats both alike.
      buckets: clusters; by default a tenth of the smaller set, at least 2.
      seed: of k-means.

    Raises:
      InputError: sets of other shapes, not finite, of fewer than two texts, or more clusters than texts.
    """
    p, q = np.asarray(p), np.asarray(q)
    for name, rows in (("p", p), ("q", q)):
        if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != p.shape[-1] or not np.isfinite(rows).all():
            raise InputError(
                f"{name} has the shape {rows.shape}; it must be finite features [texts, {p.shape[-1]}] of at least 2 "
                "texts, both sets from one model"
            )
    total = len(p) + len(q)
    buckets = max(2, round(min(len(p), len(q)) / 10)) if buckets is None else buckets
    check(2 <= buckets <= total, "buckets", buckets, f"from 2 to the number of all texts, {total}")
    labels = _clusters(np.concatenate([p, q]), buckets, seed)
    count = functools.partial(np.bincount, minlength=buckets)
    p_shares, q_shares = count(labels[: len(p)]) / len(p), count(labels[len(p) :]) / len(q)
    curve = divergence_curve(p_shares, q_shares)
    return Mauve(_area(curve), frontier_integral(p_shares, q_shares), curve, buckets)


def divergence_curve(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """[MIXTURES + 2, 2]: exp(-c KL(p | r)) and exp(-c KL(q | r)) of the mixtures r = w p + (1 - w) q, from w = 1 to 0.

    Args:
      p, q: float [buckets], which sum to 1.
    """
    points = [(1.0, 0.0)]
    for w in np.linspace(1 - 1e-6, 1e-6, MIXTURES):
        r = w * p + (1 - w) * q
        points.append((np.exp(-SCALE * _divergence(p, r)), np.exp(-SCALE * _divergence(q, r))))
    return np.array([*points, (0.0, 1.0)])


def frontier_integral(p: np.ndarray, q: np.ndarray) -> float:
    """The mean over all mixtures of the divergences of both from them (Liu et al., 2021), scaled so that 1 is apart."""
    mean = (p + q) / 2
    both = (p > 0) & (q > 0) & (np.abs(p - q) > 1e-8)
    p_, q_ = np.where(both, p, 2.0), np.where(both, q, 1.0)
    logarithmic = p_ * q_ * np.log(p_ / q_) / (p_ - q_)
    alike = np.abs(p - q) <= 1e-8
    return float(np.sum(np.where(alike, 0.0, mean - np.where(both, logarithmic, 0.0))))


def _divergence(p: np.ndarray, r: np.ndarray) -> float:
    """KL(p | r) in nats; r is positive where p is."""
    there = p > 0
    return float(np.sum(p[there] * np.log(p[there] / r[there])))


def _area(curve: np.ndarray) -> float:
    """Under the curve, as the mean over both axes."""
    x, y = curve.T
    along = lambda a, b: np.lexsort((-b, a))  # of points above each other the highest first: it ends what is before it
    areas = [np.trapezoid(b[along(a, b)], a[along(a, b)]) for a, b in ((x, y), (y, x))]
    return float(np.mean(areas))


def _clusters(rows: np.ndarray, buckets: int, seed: int) -> np.ndarray:
    """int [N]: k-means on rows [N, C] of length 1, in the first directions that explain their variance."""
    rows = rows.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    rows -= rows.mean(axis=0)
    _, scales, directions = np.linalg.svd(rows, full_matrices=False)
    explained = np.cumsum(scales**2) / max(np.sum(scales**2), np.finfo(np.float64).tiny)
    kept = int(np.argmax(explained >= EXPLAINED)) + 1
    rows = rows @ directions[:kept].T
    centres, _ = vq.kmeans(rows, buckets, iter=ATTEMPTS, thresh=1e-7, rng=np.random.default_rng(seed))
    labels, _ = vq.vq(rows, centres)
    return labels
