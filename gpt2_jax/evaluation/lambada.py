"""LAMBADA (Paperno et al., 2016): the last word of a passage, by three protocols, whose figures differ by 13 points.

All read OpenAI's file, whose text is written as people write it, and are given the passage without its last word, with
no end-of-text before it.
"""

import re

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.examples import Examples, text_of
from gpt2_jax.evaluation.outcome import Outcome, Settings, perplexity_of, share
from gpt2_jax.evaluation.scoring import Scored, encode_pair, score
from gpt2_jax.generation import batches
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.tokenizer import Tokenizer

WORD_TOKENS = 8  # that a word may have
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# The paper filters stop words and does not say which; these are the usual ones of information retrieval.
_STOP_WORDS = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those am is are was were be been
    being have has had having do does did doing a an the and but if or because as until while of at by for with about
    against between into through during before after above below to from up down in out on off over under again further
    then once here there when where why how all any both each few more most other some such no nor not only own same so
    than too very s t can will just don should now"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def stop_word_filter(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """The paper's: the most probable word that is no stop word must be the last one.

    That word begins with the most probable token that begins a word and is none of `STOP_WORDS`, and goes on with the
    most probable tokens as long as they are of a word. The perplexity is that of `last_word`.
    """
    passages = _passages(examples)
    banned = _no_first_tokens(lm.tokenizer)
    room = lm.config.n_positions - WORD_TOKENS
    if room < 1:
        raise InputError(
            f"the model's context is {lm.config.n_positions}; a word of {WORD_TOKENS} tokens after a passage needs more"
        )
    prompts = [lm.tokenizer.encode(context)[-room:] for context, _ in passages]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    hits = [False] * len(prompts)
    options = {"max_new_tokens": WORD_TOKENS, "temperature": 0.0, "begin_suppress_tokens": banned}
    words = batches.generate(lm, [(prompts[i], 0) for i in order], settings.batch_size, **options)
    for done, (i, result) in enumerate(zip(order, words), 1):
        hits[i] = _word(result.completion) == _word(passages[i][1])
        if settings.progress is not None:
            settings.progress(done, len(order), "words")
    scored = _score_last_words(lm, passages, settings)
    nats = [-one.total for one in scored]
    return Outcome({"accuracy": share(hits), "perplexity": perplexity_of(nats)}, {"passages": len(passages)})


def last_word(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """lm-evaluation-harness's `lambada_openai`: each token of the last word must be the most probable one."""
    passages = _passages(examples)
    scored = _score_last_words(lm, passages, settings)
    return _outcome(scored, len(passages))


def last_token(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """OpenAI's: the last token must be the most probable one after all others, those of the last word included."""
    pairs = []
    for where, example in examples:
        ids = np.array(lm.tokenizer.encode(text_of(where, example, "text")), np.int32)
        if len(ids) < 2:
            raise InputError(f"{where} has {len(ids)} tokens; a passage has a last token and others before it")
        pairs.append((ids[:-1], ids[-1:]))
    return _outcome(_score(lm, pairs, settings), len(pairs))


def _passages(examples: Examples) -> list[tuple[str, str]]:
    """(the passage without it, the last word) of each."""
    passages = []
    for where, example in examples:
        text = text_of(where, example, "text")
        context, _, word = text.rpartition(" ")
        if not context.strip() or not word:
            raise InputError(f"{where} is {text!r:.60}; a passage has a last word, with no space after it")
        passages.append((context, word))
    return passages


def _score_last_words(lm: LanguageModel, passages: list[tuple[str, str]], settings: Settings) -> list[Scored]:
    return _score(lm, [encode_pair(lm.tokenizer, context, f" {word}") for context, word in passages], settings)


def _score(lm: LanguageModel, pairs: list, settings: Settings) -> list[Scored]:
    if not pairs:
        raise InputError("there are no passages to evaluate; check the file and --limit")
    progress = settings.progress and (lambda done: settings.progress(done, len(pairs), "passages"))
    return score(lm, pairs, batch_size=settings.batch_size, progress=progress)


def _outcome(scored: list[Scored], passages: int) -> Outcome:
    figures = {
        "accuracy": share([one.greedy for one in scored]),
        "perplexity": perplexity_of([-one.total for one in scored]),
    }
    return Outcome(figures, {"passages": passages, "tokens": sum(len(one.logprobs) for one in scored)})


def _no_first_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens that begin no word, and those that are a stop word."""
    banned = []
    for token in range(len(tokenizer)):
        spelling = tokenizer.spelling(token).decode(errors="replace")
        if not re.match(r" \w", spelling) or spelling[1:].lower() in STOP_WORDS:
            banned.append(token)
    if len(banned) == len(tokenizer):
        raise InputError(
            "no token of this model's tokenizer is a space and the beginning of a word, so stop words cannot be "
            "filtered; use --task=lambada_openai"
        )
    return banned


def _word(text: str) -> str:
    match = _WORD.search(text)
    return match[0] if match else text
