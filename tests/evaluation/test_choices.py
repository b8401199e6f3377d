import numpy as np
import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation import choices
from gpt2_jax.evaluation.outcome import Settings

SETTINGS = Settings(batch_size=4)
CBT = [
    {
        "sentences": ["the fox jumps .", "it rains ,"],
        "question": "then the lazy XXXXX is n't in spain .",
        "answer": "dog",
        "options": ["fox", "dog", "rains"],
    },
    {"sentences": ["over the dog"], "question": "XXXXX it rains", "answer": "and", "options": ["and", "then"]},
    {"sentences": ["again"], "question": "`` XXXXX ! ''", "answer": "fox", "options": ["dog", "fox", "the fox"]},
]
HELLASWAG = [
    {
        "activity_label": "Dogs", "ctx_a": "the fox jumps. [header] the dog", "ctx_b": "it", "ctx": "the fox it",
        "endings": ["rains in spain.", "jumps over  [step] the dog.", "and then", "is lazy"], "label": "1",
    },
    {
        "activity_label": "Foxes", "ctx_a": "the quick", "ctx_b": "", "ctx": "the quick", "label": 0,
        "endings": ["brown fox", "lazy dog jumps [title] again"],
    },
]  # fmt: skip


def examples(records):
    return [(f"row {i}", record) for i, record in enumerate(records)]


def total(lm, naive, context, whole):
    """The log-probability of what `whole` adds to `context`, by its definition, within the model's context."""
    before, ids = lm.tokenizer.encode(context), lm.tokenizer.encode(whole)
    rest = ids[len(before) :]
    window = before[-(lm.config.n_positions + 1 - len(rest)) :]
    table = naive([*window, *rest][:-1])[len(window) - 1 :]
    return table[np.arange(len(rest)), rest].sum()


def test_a_word_with_the_rest_of_its_sentence(lm, naive):
    outcome = choices.childrens_books(lm, examples(CBT), SETTINGS)
    written = [
        (
            "the fox jumps. it rains, then the lazy",
            [" fox isn't in spain.", " dog isn't in spain.", " rains isn't in spain."],
        ),
        ("over the dog", [" and it rains", " then it rains"]),
        ("again", [' "dog!"', ' "fox!"', ' "the fox!"']),
    ]
    answers = [np.argmax([total(lm, naive, context, context + rest) for rest in rests]) for context, rests in written]
    assert outcome.figures["accuracy"].value == pytest.approx(np.mean(np.array(answers) == [1, 0, 1]))
    assert outcome.counts == {"questions": 3}


def test_the_text_is_cut_before_the_option():
    assert choices.cloze("A b .", "c XXXXX d n't .", "x", True) == ("A b. c", " x dn't.")
    assert choices.cloze("A b .", "c XXXXX d n't .", "x", False) == ("A b . c", " x d n't .")
    assert choices.cloze("A b .", "`` XXXXX ! ''", "x", True)[1].endswith('x!"')


def test_a_file_of_the_childrens_book_test():
    file = "1 With almost everything .\n2 Yes , said he .\n21 The XXXXX ran .\tdog\t\tcat|dog\n\n"
    file += "1 Next .\n21 A XXXXX .\tb\t\tb|c\n"
    first, second = choices.cbt_file(file)
    assert first == {
        "sentences": ["With almost everything .", "Yes , said he ."], "question": "The XXXXX ran .", "answer": "dog",
        "options": ["cat", "dog"],
    }  # fmt: skip
    assert second["sentences"] == ["Next ."]
    for line in ("21 The XXXXX ran .", "The fox ran ."):
        with pytest.raises(InputError, match="is none of the Children's Book Test; fetch the file again"):
            list(choices.cbt_file(line))


def test_hellaswag_as_lm_evaluation_harness_has_it(lm, naive):
    outcome = choices.hellaswag(lm, examples(HELLASWAG), SETTINGS)
    contexts = ["Dogs: the fox jumps. the dog It", "Foxes: the quick"]
    endings = [
        ["rains in spain.", "jumps over  the dog.", "and then", "is lazy"],
        ["brown fox", "lazy dog jumps. again"],
    ]
    acc, acc_norm = [], []
    for context, of_context, right in zip(contexts, endings, (1, 0)):
        totals = np.array([total(lm, naive, context, f"{context} {ending}") for ending in of_context])
        acc.append(totals.argmax() == right)
        acc_norm.append((totals / [len(ending) for ending in of_context]).argmax() == right)
    assert outcome.figures["acc"].value == np.mean(acc) and outcome.figures["acc_norm"].value == np.mean(acc_norm)


def test_hellaswag_as_llmc_has_it(lm, naive):
    outcome = choices.hellaswag_llmc(lm, examples(HELLASWAG), SETTINGS)
    acc, acc_norm = [], []
    for record in HELLASWAG:
        context, totals, means = lm.tokenizer.encode(record["ctx"]), [], []
        for ending in record["endings"]:
            ids = lm.tokenizer.encode(f" {ending}")
            table = naive([*context, *ids][:-1])[len(context) - 1 :]
            totals.append(table[np.arange(len(ids)), ids].sum())
            means.append(totals[-1] / len(ids))
        acc.append(np.argmax(totals) == int(record["label"]))
        acc_norm.append(np.argmax(means) == int(record["label"]))
    assert outcome.figures["acc"].value == np.mean(acc) and outcome.figures["acc_norm"].value == np.mean(acc_norm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "no blank"}, "row 0: 'question' is 'no blank'; it must have the word XXXXX once"),
        ({"answer": "cat"}, "row 0: 'answer' is 'cat'; it must be one of the options, fox, dog, rains"),
        ({"options": "dog"}, "row 0: 'options' is 'dog'; it must be a list of texts"),
    ],
)
def test_questions_that_are_none(lm, changes, message):
    with pytest.raises(InputError) as caught:
        choices.childrens_books(lm, examples([CBT[0] | changes]), SETTINGS)
    assert str(caught.value) == message


@pytest.mark.parametrize("label", ["", "4", -1, None])
def test_a_label_that_is_no_ending(lm, label):
    with pytest.raises(
        InputError, match=r"row 0: 'label' is .*; it must be the number of an ending, 0 to 3 \(the test"
    ):
        choices.hellaswag(lm, examples([HELLASWAG[0] | {"label": label}]), SETTINGS)
    with pytest.raises(InputError, match="there are no questions to evaluate; check the file and --limit"):
        choices.hellaswag(lm, [], SETTINGS)
