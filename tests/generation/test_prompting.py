import jax
import numpy as np
import pytest
from absl import logging

import gpt2_jax
from gpt2_jax import FewShot, InputError, LanguageModel
from gpt2_jax.generation.prompting import FilledPrompt
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_bpe

COUNTRIES = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid")]
CAPITALS = FewShot(instruction="Name the capital.", examples=COUNTRIES)


LOG_PROBABILITIES = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_bpe(["Q: France\nA: Paris\n\nAnswer: Rome. Name the capital. " * 9], 290)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


def test_a_prompt_has_instruction_examples_and_query(lm):
    prompt = FewShot(instruction="Name the capital.", examples=COUNTRIES[:1]).build(lm, "Italy", max_new_tokens=4)
    assert prompt.text == "Name the capital.\n\nQ: France\nA: Paris\n\nQ: Italy\nA:"
    assert prompt == FilledPrompt(prompt.text, " ", 4, ("\n\n",), 0)
    own = FewShot(
        examples=[("1+1", "2")], input_prefix="", output_prefix="= ", separator="\n##\n", stop_strings=["\n", "##"]
    )
    assert own.build(lm, "2+2", max_new_tokens=2).text == "1+1\n= 2\n##\n2+2\n="
    generation = lm.generate(prompt.text, **prompt.options, temperature=0)
    assert len(generation.tokens) <= len(lm.tokenizer.encode(prompt.text)) + 4 and "\n\n" not in generation.completion


def test_the_oldest_examples_make_room_and_a_warning_says_so(lm, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))
    whole = len(lm.tokenizer.encode(CAPITALS.build(lm, "Peru", max_new_tokens=1).text))
    assert not told
    seen = set()
    for new in range(1, 64 - whole + 30):
        prompt = CAPITALS.build(lm, "Peru", max_new_tokens=new)
        length = len(lm.tokenizer.encode(prompt.text))
        assert length + new <= 64
        kept = COUNTRIES[prompt.dropped :]
        assert [f"Q: {i}\nA: {o}\n\n" in prompt.text for i, o in COUNTRIES] == [pair in kept for pair in COUNTRIES]
        if prompt.dropped:  # one more would not fit
            more = CAPITALS._text(COUNTRIES[prompt.dropped - 1 :], "Peru")
            assert len(lm.tokenizer.encode(more)) + new > 64
            assert told[-1].startswith(f"the oldest {prompt.dropped} of 3 examples are left out: the context has room")
        seen.add(prompt.dropped)
    assert {0, 1} <= seen


def test_room_is_kept_for_the_longest_answer(lm):
    answers = ["Lima", "Rome and Paris"]
    prompt = CAPITALS.build(lm, "Peru", answers=answers)
    assert prompt.max_new_tokens == len(lm.tokenizer.encode(" Rome and Paris"))


def logprob(lm, before, after):
    """The log-probability of `after`, computed from the logits of the whole text."""
    ids = lm.tokenizer.encode(before) or [lm.tokenizer.end_of_text]
    ids, start = ids + lm.tokenizer.encode(after), len(ids)
    log_p = np.asarray(LOG_PROBABILITIES(lm.model, np.array([ids + [0] * (64 - len(ids))])))[0]
    return sum(float(log_p[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_scores_are_those_of_the_model(lm):
    answers = ["Rome", "Paris and Rome", "capital"]
    prompt = FewShot(examples=COUNTRIES[:1]).build(lm, "Italy", answers=answers)
    totals = np.array([logprob(lm, prompt.text, f" {answer}") for answer in answers])
    lengths = np.array([len(lm.tokenizer.encode(f" {answer}")) for answer in answers])
    nothing = np.array([logprob(lm, "Answer:", f" {answer}") for answer in answers])
    empty = np.array([logprob(lm, "", f" {answer}") for answer in answers])
    for options, want in (
        ({"normalise": "sum"}, totals),
        ({}, totals / lengths),
        ({"normalise": "unconditional"}, totals - nothing),
        ({"normalise": "unconditional", "unconditional": ""}, totals - empty),
    ):
        choice = lm.choose(prompt, answers, **options)
        np.testing.assert_allclose(choice.scores, want, atol=1e-4)
        np.testing.assert_allclose(choice.logprobs, totals, atol=1e-4)
        assert choice.lengths.tolist() == lengths.tolist()
        assert choice.index == int(np.argmax(want)) and str(choice) == choice.answer == answers[choice.index]


def test_several_prompts_and_plain_text(lm):
    answers = ["Rome", "Paris"]
    prompts = ["Q: Italy\nA: ", "Q: France\nA:"]
    both = lm.choose(prompts, answers)
    assert [c.scores.tolist() for c in both] == [
        pytest.approx(lm.choose(prompt, answers).scores.tolist(), abs=1e-5) for prompt in prompts
    ]
    np.testing.assert_allclose(both[0].logprobs[0], logprob(lm, "Q: Italy\nA:", " Rome"), atol=1e-4)  # with its space
    np.testing.assert_allclose(both[1].logprobs[0], logprob(lm, "Q: France\nA:", "Rome"), atol=1e-4)
    each = lm.choose(prompts, [answers, ["Lima"]], normalise="sum")
    assert [len(c.scores) for c in each] == [2, 1] and each[1].answer == "Lima"


@pytest.mark.parametrize(
    ("prompt", "answers", "options", "message"),
    [
        ("x", [], {}, r"answers are \[\]; they must be a list of at least one text"),
        ("x", "yes", {}, "answers are 'yes'; they must be a list of at least one text"),
        ("x", ["a", " "], {}, "the answer ' ' is no text; give some, or leave it out"),
        ("x", ["a", "a"], {}, "the answer 'a' is there twice; remove one"),
        ("x", ["a"], {"normalise": "mean"}, "normalise is 'mean'; it must be one of 'sum', 'token', 'unconditional'"),
        (
            "x",
            ["a"],
            {"unconditional": ""},
            "unconditional is '', without effect where normalise is 'token'; remove it",
        ),
        ("zq" * 33, ["a"], {}, "the prompt has 66 tokens and the answer 'a' 1; the model's context is 64: shorten"),
        (["x", "y"], [["a"]], {}, "there are 2 prompts and 1 lists of answers; give one a prompt"),
        ("x", ["a"], {"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
    ],
)
def test_wrong_choices(lm, prompt, answers, options, message):
    with pytest.raises(InputError, match=message):
        lm.choose(prompt, answers, **options)


def test_wrong_prompts(lm):
    with pytest.raises(InputError, match=r"example 1 is 'ab'; it must be a pair of texts, \(input, output\)"):
        FewShot(examples=[("a", "b"), "ab"])
    with pytest.raises(InputError, match="separator is '' and stop_strings None; give texts that end an answer"):
        FewShot(separator="")
    with pytest.raises(InputError, match=r"separator is '\\n\\n' and stop_strings \[\]; give texts that end an answer"):
        FewShot(stop_strings=[])
    with pytest.raises(InputError, match="max_new_tokens is 0; it must be at least 1"):
        CAPITALS.build(lm, "x", max_new_tokens=0)
    with pytest.raises(
        InputError, match=r"tokens without any example, and the model's context of 64 has room for 4 beside"
    ):
        CAPITALS.build(lm, "Peru", max_new_tokens=60)
    assert gpt2_jax.FewShot is FewShot
