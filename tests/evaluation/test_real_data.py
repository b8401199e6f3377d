"""The published test sets with GPT-2's own tokens: what is reported is what plain loops find, one window at a time."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from gpt2_jax import LanguageModel, tokenizer_files
from gpt2_jax.evaluation.outcome import Settings
from gpt2_jax.evaluation.tasks import find
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config

DATA = Path(__file__).parents[2] / "../shared/data"
LAMBADA, WIKITEXT, VOCABULARY = DATA / "eval/lambada_test.jsonl", DATA / "eval/wikitext2_test.txt", DATA / "gpt2_vocab"
CONTEXT = 64
pytestmark = pytest.mark.skipif(
    not all(path.exists() for path in (LAMBADA, WIKITEXT, VOCABULARY)),
    reason=f"needs LAMBADA's and WikiText-2's test sets and GPT-2's vocabulary in {DATA}",
)


@pytest.fixture(scope="module")
def lm():
    config = GPT2Config(n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
    model = jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0))
    return LanguageModel(model, tokenizer_files.load(VOCABULARY))


@pytest.fixture(scope="module")
def nats_of(lm):
    """`nats_of(ids, n)`: the nats of the last n of `ids`, and whether each was the most probable."""
    call = jax.jit(lambda model, tokens: model(tokens))

    def nats(ids, n):
        tokens = np.zeros((1, CONTEXT), np.int32)
        tokens[0, : len(ids) - 1] = ids[:-1]
        logits = np.asarray(call(lm.model, tokens)[0, len(ids) - 1 - n : len(ids) - 1], np.float64)
        logits -= np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) + logits.max()
        return -logits[np.arange(n), ids[-n:]].sum(), bool((logits.argmax(-1) == ids[-n:]).all())

    return nats


def test_lambada(lm, nats_of):
    found = []
    for line in LAMBADA.read_text(encoding="utf-8").splitlines()[:20]:
        text = json.loads(line)["text"]
        ids, n = lm.tokenizer.encode(text), len(lm.tokenizer.encode(text[text.rindex(" ") :]))
        found.append(nats_of(ids[-CONTEXT - 1 :], n))
    outcome = find("lambada_openai").run(lm, str(LAMBADA), Settings(limit=20))
    assert outcome.figures["perplexity"].value == pytest.approx(
        math.exp(np.mean([nats for nats, _ in found])), rel=1e-4
    )
    assert outcome.figures["accuracy"].value == np.mean([greedy for _, greedy in found])
    assert outcome.counts["passages"] == 20


@pytest.mark.parametrize("stride", [64, 40])
def test_wikitext(lm, nats_of, tmp_path, stride):
    text = WIKITEXT.read_text(encoding="utf-8").split("\n = ")[1]
    file = tmp_path / "article.txt"
    file.write_text(f"\n = {text[:3000]}\n", encoding="utf-8")
    outcome = find("wikitext2").run(lm, str(file), Settings(stride=stride))

    rows = [line if line.strip() else "" for line in file.read_text(encoding="utf-8").splitlines(keepends=True)]
    ids = [lm.tokenizer.end_of_text, *lm.tokenizer.encode("\n\n".join(rows))]
    total, counted = 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + CONTEXT + 1, len(ids))
        total += nats_of(ids[begin:end], end - counted)[0]
        counted = end
        if end == len(ids):
            break
    assert outcome.counts["tokens"] == len(ids) - 1
    words = len(file.read_text(encoding="utf-8").split())
    assert outcome.figures["token_perplexity"].value == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-5)
    assert outcome.figures["word_perplexity"].value == pytest.approx(math.exp(total / words), rel=1e-4)
