"""Reports on control, of models whose codes and experts are known to lead."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.evaluation import control
from gpt2_jax.evaluation.control import Row, expert_curve, guidance_curve, judge_of_references, table
from gpt2_jax.evaluation.outcome import Settings
from gpt2_jax.evaluation.tasks import find
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

TOKENIZER = train_characters(["ab"]).with_special_tokens(["<|a|>", "<|b|>"])
IDS = {name: TOKENIZER.encode(name, allow_special=True)[0] for name in ("a", "b", "<|a|>", "<|b|>", "<|endoftext|>")}
SPECIAL = [IDS[name] for name in IDS if len(name) > 1]
OPTIONS = {"samples": 16, "max_new_tokens": 6, "eos_token_id": [], "suppress_tokens": SPECIAL}


def majority(texts):
    return ["a" if text.count("a") > 3 else "b" for text in texts]


def made(edit):
    """A model whose logits are those of its last token's embedding alone: `edit` makes the table."""
    config = GPT2Config(
        vocab_size=len(TOKENIZER), n_positions=32, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False
    )
    model = jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0))
    model = jax.tree.map(jnp.zeros_like, model)
    model.ln_f.scale[...] = jnp.ones(8)
    edit(model)
    return LanguageModel(model, TOKENIZER)


def coded(model):
    """Each letter follows itself; <|a|> makes a likelier as the first, and <|b|> b, but not much."""
    wte, lm_head = model.wte.embedding[...], model.lm_head.embedding[...]
    for i, x in enumerate("ab"):
        wte = wte.at[IDS[x], i].set(1.0).at[IDS[f"<|{x}|>"], 2 + i].set(1.0)
        lm_head = lm_head.at[IDS[x], i].set(1.5).at[IDS[x], 2 + i].set(0.2)
    model.wte.embedding[...], model.lm_head.embedding[...] = wte, lm_head


def leaning(letter, strength):
    def edit(model):
        model.ln_f.bias[...] = jnp.zeros(8).at[0].set(1.0)
        model.lm_head.embedding[...] = model.lm_head.embedding[...].at[IDS[letter], 0].set(strength)

    return edit


def test_guidance_raises_the_accuracy_of_codes():
    lm = made(coded)
    rows = list(guidance_curve(lm, majority, scales=[1.0, 6.0], **OPTIONS))
    assert [row.setting for row in rows] == [{"guidance_scale": 1.0}, {"guidance_scale": 6.0}]
    assert list(rows[0].kinds) == ["a", "b"] and all(sum(of.values()) == 16 for of in rows[0].kinds.values())
    assert 0.4 < rows[0].accuracy < rows[1].accuracy and rows[1].accuracy > 0.9
    assert all(row.metrics["perplexity"] > 1 for row in rows)
    (one,) = guidance_curve(lm, majority, codes=["b"], **OPTIONS)
    assert list(one.kinds) == ["b"]


def test_experts_lead_with_alpha():
    base, expert, anti = made(leaning("a", 0.0)), made(leaning("a", 1.0)), made(leaning("b", 1.0))
    rows = list(expert_curve(base, majority, expert=expert, anti_expert=anti, alphas=[-3, 0, 3], **OPTIONS))
    shares = [row.share("", "a") for row in rows]
    assert all(1 < row.metrics["perplexity"] < 1.3 * len(TOKENIZER) for row in rows)  # the base finds all alike
    assert shares[0] < 0.1 < shares[1] < 0.9 < shares[2]


def test_a_judge_of_real_texts_is_tested_on_others_of_them():
    references = {"a": ["aaaab" * 4] * 10, "b": ["abbbb" * 4] * 10}
    judge, real = judge_of_references(references)
    assert judge(["aaaabaaaab", "abbbbabbbb"]) == ["a", "b"]
    assert real.kinds == {"a": {"a": 2}, "b": {"b": 2}} and real.accuracy == 1
    with pytest.raises(InputError, match="there are 4 texts of 'b'; give at least 5, one in five tests"):
        judge_of_references(references | {"b": ["abbb"] * 4})


def test_the_task_of_evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "TEXTS", 6)
    file = tmp_path / "texts.jsonl"
    lines = [
        {"text": letters * 4, "code": code} for code, letters in (("a", "aaaab"), ("b", "abbbb")) for _ in range(9)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = []
    outcome = find("control").run(made(coded), str(file), Settings(batch_size=4, progress=lambda *x: told.append(x)))
    assert list(outcome.figures) == ["accuracy", "accuracy_of_a", "accuracy_of_b", "accuracy_of_the_judge"]
    by_code = [outcome.figures[f"accuracy_of_{code}"].value for code in "ab"]
    assert outcome.figures["accuracy"].value == pytest.approx(sum(by_code) / 2)
    assert outcome.figures["accuracy_of_the_judge"].value == 1 and outcome.counts["samples"] == 12
    assert told == [(4, 12, "samples"), (6, 12, "samples"), (10, 12, "samples"), (12, 12, "samples")]
    with pytest.raises(InputError, match=r"this dataset is not read from the hub; give real texts of each code"):
        find("control").run(made(coded))


def test_tables():
    costs = {"perplexity": 3.14159, "distinct_2": 0.5, "repetition_4": None, "tokens": 6.0}
    row = Row({"guidance_scale": 1.5}, {"a": {"a": 3, "b": 1}, "b": {"": 1, "b": 3}}, costs)
    assert table([row]) == (
        "| guidance_scale | texts | a (accuracy) | b (accuracy) | all | perplexity | distinct_2 | tokens |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 1.5 | 8 | 75.0% | 75.0% | 75.0% | 3.14 | 0.500 | 6.0 |\n"
    )
    row = dataclasses.replace(row, setting={"alpha": 2.0}, kinds={"": {"": 1, "negative": 1, "positive": 2}})
    assert table([row]).splitlines()[0] == "| alpha | texts | negative | positive | perplexity | distinct_2 | tokens |"
    assert table([row]).splitlines()[2] == "| 2 | 4 | 25.0% | 50.0% | 3.14 | 0.500 | 6.0 |"


def test_a_model_without_codes():
    plain = LanguageModel(made(coded).model, train_characters(["abcd"]))
    with pytest.raises(InputError, match="this model's tokenizer has no control codes: train with"):
        next(guidance_curve(plain, majority))
