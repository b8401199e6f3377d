import subprocess
import sys

import jax
import numpy as np
import pytest

import gpt2_jax
from gpt2_jax import InputError, LanguageModel
from gpt2_jax.generation import sampler
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

TEXT = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters([TEXT])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    return gpt2_jax.save(lm, tmp_path_factory.mktemp("model"))


def test_a_generation_has_text_and_tokens_and_prints_as_text(lm):
    result = lm.generate("the ", max_new_tokens=8, top_p=0.95, seed=0)
    assert str(result) == result.text == "the " + result.completion
    assert result.tokens[:4].tolist() == lm.tokenizer.encode("the ")
    assert lm.tokenizer.decode(result.tokens) == result.text
    assert result.stop_reason == ("length" if len(result.tokens) == 12 else "end_token")
    assert result.logprobs is None and result.score is None


def test_text_and_token_ids_are_the_same_prompt(lm):
    ids = lm.tokenizer.encode("fox")
    want = lm.generate("fox", max_new_tokens=8, seed=4).text
    assert lm.generate(ids, max_new_tokens=8, seed=4).text == want
    assert lm.generate(np.array(ids), max_new_tokens=8, seed=4).text == want


def test_several_prompts_and_several_samples(lm):
    results = lm.generate(["a", "the quick", ""], max_new_tokens=6, num_return_sequences=2, seed=1)
    assert [r.text[:1] for r in results[:2]] == ["a", "a"] and results[2].text.startswith("the quick")
    assert len(results) == 6 and results[0].text != results[1].text
    assert len(lm.generate([[1, 2], [3]], max_new_tokens=2)) == 2


def test_an_empty_prompt_starts_from_end_of_text(lm):
    result = lm.generate("", max_new_tokens=5, temperature=0)
    assert result.tokens[0] == lm.tokenizer.end_of_text and result.text == result.completion


def test_generation_stops_at_end_of_text(lm):
    results = lm.generate("t", max_new_tokens=30, temperature=2.0, num_return_sequences=20)
    stopped = [r for r in results if r.stop_reason == "end_token"]
    assert stopped and all(lm.tokenizer.end_of_text not in r.tokens for r in results)
    assert all(len(r.tokens) == 31 for r in results if r.stop_reason == "length")
    endless = lm.generate("t", max_new_tokens=30, temperature=2.0, num_return_sequences=20, eos_token_id=[])
    assert all(r.stop_reason == "length" and len(r.tokens) == 31 for r in endless)
    space = lm.tokenizer.encode(" ")[0]
    words = lm.generate("t", max_new_tokens=30, eos_token_id=[space, lm.tokenizer.end_of_text], num_return_sequences=5)
    assert any(r.stop_reason == "end_token" for r in words) and not any(" " in r.completion for r in words)


def test_each_prompt_of_a_list_gives_what_it_gives_alone(lm):
    prompts = ["a", "the quick", "", "a"]
    together = lm.generate(prompts, max_new_tokens=12, num_return_sequences=2, seed=3)
    alone = [r for p in prompts for r in lm.generate(p, max_new_tokens=12, num_return_sequences=2, seed=3)]
    assert [r.text for r in together] == [r.text for r in alone]
    assert together[0].text != together[1].text and together[0].text == together[6].text
    one, other = lm.generate(["a", "a"], max_new_tokens=12, seed=[3, 4])
    assert one.text == together[0].text != other.text


def test_a_stop_string_ends_the_text_and_is_not_in_it(lm):
    for seed in range(6):
        free = lm.generate("the ", max_new_tokens=28, seed=seed, eos_token_id=[])
        stop = free.completion[9:12]
        result = lm.generate("the ", max_new_tokens=28, seed=seed, eos_token_id=[], stop_strings=[stop, "never so"])
        assert result.completion == free.completion[: free.completion.index(stop)]
        assert result.stop_reason == "stop_string"
        assert lm.tokenizer.decode(result.tokens).endswith(stop)
        pieces = lm.stream("the ", max_new_tokens=28, seed=seed, eos_token_id=[], stop_strings=stop)
        assert "".join(pieces) == result.completion


def test_time_is_bounded(lm):
    result = lm.generate("the ", max_new_tokens=28, max_time=1e-9, eos_token_id=[])
    assert result.stop_reason == "time" and 4 < len(result.tokens) < 32
    assert lm.generate("the ", max_new_tokens=28, max_time=1e9, eos_token_id=[]).stop_reason == "length"
    whole = lm.generate("the ", max_new_tokens=28, eos_token_id=[])
    assert whole.text.startswith(result.text)


def test_beyond_the_context(lm):
    result = lm.generate("the quick", max_new_tokens=70, beyond_context="slide", eos_token_id=[], top_k=5)
    assert len(result.tokens) == 79
    assert "".join(lm.stream("the quick", max_new_tokens=70, beyond_context="slide", eos_token_id=[], top_k=5)) == (
        result.completion
    )
    assert len(lm.generate("t" * 40, max_new_tokens=3, beyond_context="slide", eos_token_id=[]).tokens) == 43


def test_log_probabilities_and_alternatives_on_request(lm):
    result = lm.generate("the ", max_new_tokens=6, logprobs=3, temperature=0)
    new = result.tokens[4:]
    assert result.logprobs.shape == (len(new),) and result.top_tokens.shape == result.top_logprobs.shape == (
        len(new),
        3,
    )
    np.testing.assert_array_equal(result.top_tokens[:, 0], new)  # greedy
    np.testing.assert_allclose(result.top_logprobs[:, 0], result.logprobs, atol=1e-6)
    log_p = jax.nn.log_softmax(lm.model(result.tokens[None]))[0]
    np.testing.assert_allclose(result.logprobs, log_p[np.arange(3, len(result.tokens) - 1), new], atol=1e-4)
    assert lm.generate("the ", max_new_tokens=6, logprobs=0).top_tokens.shape[1] == 0


def test_the_best_of_many_have_the_highest_mean_log_probability(lm):
    options = {"max_new_tokens": 10, "temperature": 1.5, "seed": 2, "eos_token_id": []}
    many = lm.generate(["the ", "fox"], num_return_sequences=6, logprobs=0, **options)
    best = lm.generate(["the ", "fox"], best_of=6, num_return_sequences=2, **options)
    for kept, candidates in ((best[:2], many[:6]), (best[2:], many[6:])):
        ranked = sorted(candidates, key=lambda r: -r.logprobs.mean())
        assert [r.text for r in kept] == [r.text for r in ranked[:2]]
        np.testing.assert_allclose([r.score for r in kept], [r.logprobs.mean() for r in ranked[:2]], rtol=1e-5)
    assert best[0].logprobs is None
    assert isinstance(lm.generate("the ", best_of=3, **options), gpt2_jax.Generation)


def test_phrases_may_be_text_or_ids(lm):
    free = lm.generate("the ", max_new_tokens=20, temperature=0, eos_token_id=[])
    word = free.completion[2:4]
    for phrase in (word, lm.tokenizer.encode(word)):
        assert word not in lm.generate("the ", max_new_tokens=20, temperature=0, bad_words_ids=[phrase]).completion
    for bias in ({"z": 1e4}, {(lm.tokenizer.encode("z")[0],): 1e4}):
        assert lm.generate("the ", max_new_tokens=5, sequence_bias=bias).completion == "zzzzz"


def test_compile_makes_the_next_call_compile_nothing(lm):
    lm.compile(batch_size=2, prompt_length=10, max_new_tokens=12, stop_strings=["ab"], logprobs=2)
    before = sampler.fill._cache_size(), sampler.advance._cache_size()
    lm.generate(["the ", "fox"], max_new_tokens=9, stop_strings=["cd"], logprobs=2, top_k=3, seed=8)
    assert (sampler.fill._cache_size(), sampler.advance._cache_size()) == before


def test_the_stream_joined_is_the_completion(lm):
    for seed in range(3):
        want = lm.generate("the ", max_new_tokens=20, seed=seed)
        assert "".join(lm.stream("the ", max_new_tokens=20, seed=seed)) == want.completion


def test_the_model_is_callable_on_tokens(lm):
    assert lm.model(np.zeros((2, 5), np.int32)).shape == (2, 5, lm.config.vocab_size)


def test_without_a_length_the_context_bounds_it(lm):
    assert len(lm.generate("the quick", temperature=0).tokens) <= 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "t" * 32}, "the prompt has 32 tokens and the model's context is 32; at most 31"),
        ({"prompt": "the", "max_new_tokens": 30}, "max_new_tokens is 30; after a prompt of 3 tokens it must be from 1"),
        ({"prompt": "the", "max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number, at least 1"),
        ({"prompt": "the", "seed": [1, 2]}, "seed has 2 numbers for 1 prompts; give one, or one a prompt"),
        ({"prompt": "the", "eos_token_id": 99}, "eos_token_id has token id 99; ids must be from 0 to"),
        ({"prompt": "the", "stop_strings": [""]}, "stop_strings has an empty string"),
        ({"prompt": "the", "guidance_scale": 2, "negative_prompt": [77]}, "negative_prompt has token id 77"),
        ({"prompt": "the", "suppress_tokens": [77]}, "suppress_tokens .*77"),
        ({"prompt": "the", "do_sample": True}, "do_sample is not an option here: temperature=0 is greedy"),
        ({"prompt": "the", "top_p": 1.5}, "top_p is 1.5"),
        ({"prompt": "the", "temperature": -1}, "temperature is -1"),
        ({"prompt": [1, 99]}, "the prompt has token id 99; ids must be from 0 to"),
        ({"prompt": [1.5]}, r"the prompt is float64\[1\]; it must be text or a list of integer token ids"),
        ({"prompt": []}, r"the prompt is float64\[0\]"),
        ({"prompt": "the", "num_return_sequences": 0}, "num_return_sequences is 0; it must be a whole number, at"),
        ({"prompt": "Ω"}, "the character 'Ω'"),
    ],
)  # fmt: skip
def test_bad_requests(lm, arguments, message):
    with pytest.raises(InputError, match=message):
        lm.generate(**arguments)
    with pytest.raises(InputError, match=message):
        list(lm.stream(**arguments))


def test_bad_requests_of_lists_and_streams(lm):
    with pytest.raises(InputError, match="there are no prompts in the list; give at least one"):
        lm.compile(batch_size=0)
    with pytest.raises(InputError, match="logprobs is 1000; it must be at most the vocabulary's"):
        lm.generate("the", logprobs=1000)
    for option in ({"num_return_sequences": 2}, {"best_of": 2}, {"num_beams": 2}, {"logprobs": 0}):
        with pytest.raises(InputError, match="a stream has one text, known to its end only"):
            list(lm.stream("the", **option))


def test_generate_script_streams_and_explains_errors(folder, pytestconfig):
    def script(*arguments):
        command = [
            sys.executable,
            str(pytestconfig.rootpath / "scripts/generate.py"),
            f"--workdir={folder}",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    good = script("--prompt=the ", "--max_new_tokens=8", "--seed=2")
    want = gpt2_jax.load(folder).generate("the ", max_new_tokens=8, seed=2, temperature=0.8, top_p=0.95)
    assert good.returncode == 0 and good.stdout == want.text + "\n", good.stderr
    bad = script("--prompt=the ", "--top_p=2")
    assert bad.returncode == 2 and bad.stderr.strip().splitlines()[-1].startswith("error: top_p is 2.0; it must be in")
    assert "Traceback" not in bad.stderr
