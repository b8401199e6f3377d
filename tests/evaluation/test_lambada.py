import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.evaluation import lambada
from gpt2_jax.evaluation.lambada import STOP_WORDS, WORD_TOKENS
from gpt2_jax.evaluation.outcome import Settings
from gpt2_jax.evaluation.scoring import encode_pair
from gpt2_jax.tokenizer_training import train_characters

REAL = Path(__file__).parents[2] / "../shared/data/eval/lambada_test.jsonl"
TEXTS = [
    "the quick brown fox jumps over the dog",
    "and then it rains in spain",
    "over the lazy lazy fox",
    "the fox, and then again",
    'jumps the "brown',
]
SETTINGS = Settings(batch_size=2)


def examples(texts):
    return [(f"row {i}", {"text": text}) for i, text in enumerate(texts)]


def chain(naive, ids, continuation):
    """(log-probability, whether greedy) of a continuation, token by token."""
    total, greedy = 0.0, True
    for token in continuation:
        row = naive(ids)[-1]
        total += row[token]
        greedy &= int(row.argmax()) == token
        ids = [*ids, token]
    return total, greedy


def naive_last_words(lm, naive, texts):
    found = []
    for text in texts:
        context, word = text[: text.rindex(" ")], text[text.rindex(" ") :]
        ids = lm.tokenizer.encode(context)
        found.append(chain(naive, ids, lm.tokenizer.encode(context + word)[len(ids) :]))
    return found


def naive_word(lm, naive, context):
    """The word that begins with the most probable token that may begin one, and goes on greedily."""
    ids, new = lm.tokenizer.encode(context), []
    spelling = [lm.tokenizer.spelling(token).decode(errors="replace") for token in range(lm.config.vocab_size)]
    may_begin = [bool(re.match(r" \w", s)) and s.strip().lower() not in STOP_WORDS for s in spelling]
    for _ in range(WORD_TOKENS):
        row = naive([*ids, *new])[-1]
        token = int((row if new else np.where(may_begin, row, -np.inf)).argmax())
        if token == lm.tokenizer.end_of_text:
            break
        new.append(token)
    return re.search(r"\w+(?:['\u2019-]\w+)*", lm.tokenizer.decode(new))[0]


def test_the_last_word_as_lm_evaluation_harness_counts(lm, naive):
    outcome = lambada.last_word(lm, examples(TEXTS), SETTINGS)
    wanted = naive_last_words(lm, naive, TEXTS)
    nats = -np.array([total for total, _ in wanted])
    assert outcome.figures["accuracy"].value == np.mean([greedy for _, greedy in wanted])
    assert outcome.figures["perplexity"].value == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert outcome.figures["perplexity"].error == pytest.approx(
        math.exp(nats.mean()) * nats.std(ddof=1) / 5**0.5, rel=1e-4
    )
    assert outcome.counts["passages"] == 5


def test_the_last_token_as_openai_counts(lm, naive):
    outcome = lambada.last_token(lm, examples(TEXTS), SETTINGS)
    rows = [lm.tokenizer.encode(text) for text in TEXTS]
    wanted = [chain(naive, ids[:-1], ids[-1:]) for ids in rows]
    assert outcome.figures["accuracy"].value == np.mean([greedy for _, greedy in wanted])
    assert outcome.figures["perplexity"].value == pytest.approx(
        math.exp(-np.mean([total for total, _ in wanted])), rel=1e-5
    )
    assert outcome.counts == {"passages": 5, "tokens": 5}


def test_the_word_that_is_no_stop_word(lm, naive):
    said = [naive_word(lm, naive, text.rpartition(" ")[0]) for text in TEXTS]
    texts = [text.rpartition(" ")[0] + f" {word}" for text, word in zip(TEXTS[:3], said)] + TEXTS[3:]
    outcome = lambada.stop_word_filter(lm, examples(texts), SETTINGS)
    hits = [word == text.rpartition(" ")[2].strip('"') for text, word in zip(texts, said)]
    assert outcome.figures["accuracy"].value == np.mean(hits) >= 0.6
    assert not set(said) & STOP_WORDS
    nats = [-total for total, _ in naive_last_words(lm, naive, texts)]
    assert outcome.figures["perplexity"].value == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)


def test_progress_tells_of_words_and_passages(lm):
    told = []
    lambada.last_word(lm, examples(TEXTS), Settings(batch_size=4, progress=lambda *told_of: told.append(told_of)))
    assert told == [(4, 5, "passages"), (5, 5, "passages")]


def test_a_pair_is_cut_where_running_text_is(lm):
    before, after = encode_pair(lm.tokenizer, "the quick ", "brown")
    assert lm.tokenizer.decode(before) == "the quick" and lm.tokenizer.decode(after) == " brown"
    assert [*before, *after] == lm.tokenizer.encode("the quick brown")


@pytest.mark.parametrize("protocol", [lambada.last_word, lambada.stop_word_filter])
@pytest.mark.parametrize("text", ["word", "a passage ", " word"])
def test_a_passage_without_a_last_word(lm, protocol, text):
    with pytest.raises(InputError, match=f"row 0 is {text!r}; a passage has a last word, with no space after it"):
        protocol(lm, examples([text]), SETTINGS)


def test_what_cannot_be_evaluated(lm):
    with pytest.raises(InputError, match="row 0 has 1 tokens; a passage has a last token and others before it"):
        lambada.last_token(lm, examples(["a"]), SETTINGS)
    for protocol in (lambada.last_token, lambada.last_word):
        with pytest.raises(InputError, match="there are no passages to evaluate; check the file and --limit"):
            protocol(lm, [], SETTINGS)
    characters = LanguageModel(lm.model, train_characters(["the fox"]))
    with pytest.raises(InputError, match="stop words cannot be filtered; use --task=lambada_openai"):
        lambada.stop_word_filter(characters, examples(["the fox"]), SETTINGS)


@pytest.mark.skipif(not REAL.exists(), reason=f"needs {REAL}, OpenAI's LAMBADA test set")
def test_real_passages(lm, naive):
    texts = [json.loads(line)["text"] for line in REAL.read_text(encoding="utf-8").splitlines()[:200]]
    texts = [text for text in texts if len(lm.tokenizer.encode(text)) <= lm.config.n_positions][:6] or [
        text[-30:].lstrip() for text in texts[:6]
    ]
    nats = [-total for total, _ in naive_last_words(lm, naive, texts)]
    outcome = lambada.last_word(lm, examples(texts), SETTINGS)
    assert outcome.figures["perplexity"].value == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
