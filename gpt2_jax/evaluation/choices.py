"""Tasks with answers to choose from: the one under which the text is most probable is the model's answer."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.detokenizers import Detokenizer
from gpt2_jax.evaluation.examples import Examples, text_of, texts_of
from gpt2_jax.evaluation.outcome import Outcome, Settings, share
from gpt2_jax.evaluation.scoring import Pair, encode_pair, score
from gpt2_jax.language_model import LanguageModel

BLANK = "XXXXX"


class Question(NamedTuple):
    """What is scored for each answer, how long the answer is, and which is right."""

    pairs: list[Pair]
    lengths: list[int]
    right: int


def childrens_books(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """Children's Book Test (Hill et al., 2016), as the GPT-2 paper has it: a sentence with a word left out.

    What is scored is the word and the rest of its sentence, after the twenty sentences before.
    """
    questions = []
    for where, example in examples:
        sentences, question = texts_of(where, example, "sentences"), text_of(where, example, "question")
        answer, options = text_of(where, example, "answer"), texts_of(where, example, "options")
        if question.split().count(BLANK) != 1:
            raise InputError(f"{where}: 'question' is {question!r:.60}; it must have the word {BLANK} once")
        if answer not in options:
            raise InputError(f"{where}: 'answer' is {answer!r}; it must be one of the options, {', '.join(options)}")
        pairs = []
        for option in options:
            context, rest = cloze(" ".join(sentences), question, option, settings.detokenize is not False)
            pairs.append(encode_pair(lm.tokenizer, context, rest))
        questions.append(Question(pairs, [1] * len(pairs), options.index(answer)))
    hits, _ = _answer(lm, questions, settings)
    return Outcome({"accuracy": share(hits)}, {"questions": len(questions)})


def cloze(before: str, question: str, option: str, detokenize: bool) -> tuple[str, str]:
    """The text up to the blank, and the option with the rest of the question."""
    head, _, tail = f" {question} ".partition(f" {BLANK} ")
    start = f"{before} {head.strip()}".strip()
    text = f"{start} {option} {tail.strip()}".strip()
    if detokenize:
        # The beginning is written alike in both: a word is written by those before it.
        books = Detokenizer.of("cbt", text)
        start, text = books.detokenize(start), books.detokenize(text)
    shared = next((i for i, (a, b) in enumerate(zip(start, text)) if a != b), min(len(start), len(text)))
    return text[:shared], text[shared:]


def cbt_file(text: str) -> Iterator[dict[str, Any]]:
    """The examples of a file as published: 20 numbered sentences, and a 21st with answer and options after tabs."""
    sentences: list[str] = []
    for line in text.split("\n"):
        number, _, rest = line.strip().partition(" ")
        parts = re.split(r"\t+", rest)
        if number and (not number.isdecimal() or (number == "21" and len(parts) != 3)):
            raise InputError(f"the line {line!r:.60} is none of the Children's Book Test; fetch the file again")
        if not number:
            sentences = []
        elif number == "21":
            question, answer, options = parts
            yield {"sentences": sentences, "question": question, "answer": answer, "options": options.split("|")}
        else:
            sentences.append(rest)


def hellaswag(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """HellaSwag (Zellers et al., 2019) as lm-evaluation-harness has it; `acc_norm` divides by characters."""

    def question(where: str, example: dict[str, Any]) -> tuple[str, list[str]]:
        label = text_of(where, example, "activity_label")
        a, b = text_of(where, example, "ctx_a"), text_of(where, example, "ctx_b")
        endings = [_clean(ending) for ending in texts_of(where, example, "endings")]
        return _clean(f"{label}: {a} {b.capitalize()}"), endings

    def pair(context: str, ending: str) -> Pair:
        return encode_pair(lm.tokenizer, context, f" {ending}")

    return _hellaswag(lm, examples, settings, question, pair, lambda ending, _: len(ending))


def hellaswag_llmc(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """HellaSwag as llm.c has it: the context as it is, endings encoded alone; `acc_norm` divides by their tokens."""

    def question(where: str, example: dict[str, Any]) -> tuple[str, list[str]]:
        return text_of(where, example, "ctx"), texts_of(where, example, "endings")

    def pair(context: str, ending: str) -> Pair:
        return lm.tokenizer.encode(context), lm.tokenizer.encode(f" {ending}")

    return _hellaswag(lm, examples, settings, question, pair, lambda _, ids: len(ids))


def _hellaswag(lm, examples, settings, question, pair, length) -> Outcome:
    questions = []
    for where, example in examples:
        context, endings = question(where, example)
        right = str(example["label"])
        if not right.isdecimal() or int(right) >= len(endings):
            raise InputError(
                f"{where}: 'label' is {example['label']!r}; it must be the number of an ending, 0 to {len(endings) - 1}"
                " (the test split has none: use the validation split)"
            )
        pairs = [pair(context, ending) for ending in endings]
        lengths = [length(ending, ids) for ending, (_, ids) in zip(endings, pairs)]
        questions.append(Question(pairs, lengths, int(right)))
    hits, normalised = _answer(lm, questions, settings)
    return Outcome({"acc": share(hits), "acc_norm": share(normalised)}, {"questions": len(questions)})


def _clean(text: str) -> str:
    """Without the marks of WikiHow, from which half of the questions are."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _answer(lm: LanguageModel, questions: list[Question], settings: Settings) -> tuple[list[bool], list[bool]]:
    """Whether each is right by the log-probability of an answer, and by that over its length."""
    if not questions:
        raise InputError("there are no questions to evaluate; check the file and --limit")
    pairs = [pair for question in questions for pair in question.pairs]
    progress = settings.progress and (lambda done: settings.progress(done, len(pairs), "answers"))
    scored = iter(score(lm, pairs, batch_size=settings.batch_size, progress=progress))
    hits, normalised = [], []
    for question in questions:
        totals = np.array([next(scored).total for _ in question.pairs])
        hits.append(int(totals.argmax()) == question.right)
        normalised.append(int((totals / question.lengths).argmax()) == question.right)
    return hits, normalised
