import dataclasses
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import gpt2_jax
from gpt2_jax import Config, InputError, LanguageModel
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.model import GPT2, GPT2Config
from gpt2_jax.tokenizer import train_characters
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.step import init_state

TEXT = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters([TEXT])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


@pytest.fixture(scope="module")
def workdir(lm, tmp_path_factory):
    """A workdir with two checkpoints of different parameters; the first has the better validation loss."""
    folder = tmp_path_factory.mktemp("run")
    config = Config.from_dict({"model": dataclasses.asdict(lm.config)})
    init = jax.jit(lambda seed: init_state(config.model, optax.identity(), seed), static_argnums=0)
    with Checkpoints(folder, CheckpointConfig(keep=2)) as checkpoints:
        for step, loss in ((10, 1.0), (20, 2.0)):
            state = init(step)._replace(step=np.int32(step))
            checkpoints.save(state, config.to_dict(), lm.tokenizer.to_json(), loss)
        checkpoints.wait()
    return folder


def test_a_generation_has_text_and_tokens_and_prints_as_text(lm):
    result = lm.generate("the ", max_new_tokens=8, top_p=0.95, seed=0)
    assert str(result) == result.text == "the " + result.completion
    assert result.tokens[:4].tolist() == lm.tokenizer.encode("the ")
    assert lm.tokenizer.decode(result.tokens) == result.text
    assert result.stopped == (len(result.tokens) < 12)


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
    results = lm.generate(["t"] * 20, max_new_tokens=30, temperature=2.0)
    stopped = [r for r in results if r.stopped]
    assert stopped and all(lm.tokenizer.end_of_text not in r.tokens for r in results)
    assert all(len(r.tokens) == 31 for r in results if not r.stopped)


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
        ({"prompt": "the", "max_new_tokens": 0}, "max_new_tokens is 0; after a prompt of 3 tokens"),
        ({"prompt": "the", "top_p": 1.5}, "top_p is 1.5"),
        ({"prompt": "the", "temperature": -1}, "temperature is -1"),
        ({"prompt": [1, 99]}, "the prompt has token id 99; ids must be from 0 to"),
        ({"prompt": [1.5]}, r"a prompt is float64\[1\]; it must be text or a list of integer token ids"),
        ({"prompt": []}, r"a prompt is float64\[0\]"),
        ({"prompt": "the", "num_return_sequences": 0}, "num_return_sequences is 0; it must be at least 1"),
        ({"prompt": "Ω"}, "the character 'Ω'"),
    ],
)  # fmt: skip
def test_bad_requests(lm, arguments, message):
    with pytest.raises(InputError, match=message):
        lm.generate(**arguments)
    if "num_return_sequences" not in arguments:
        with pytest.raises(InputError, match=message):
            list(lm.stream(**arguments))


def test_load_takes_the_latest_the_best_or_a_step(workdir):
    lms = {step: gpt2_jax.load(workdir, step=step) for step in (None, "best", 10, 20)}
    wte = {step: np.asarray(lm.model.wte.embedding[...]) for step, lm in lms.items()}
    assert np.array_equal(wte[None], wte[20]) and np.array_equal(wte["best"], wte[10])
    assert not np.array_equal(wte[10], wte[20])
    assert lms[None].generate("the ", max_new_tokens=4).text.startswith("the ")


def test_nothing_to_load(workdir, tmp_path):
    with pytest.raises(InputError, match=r"there is no folder '.*missing'; give the workdir of a training run"):
        gpt2_jax.load(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no checkpoints"):
        gpt2_jax.load(tmp_path)
    with pytest.raises(InputError, match="has no checkpoint 15; it has 10, 20"):
        gpt2_jax.load(workdir, step=15)


def test_loading_and_generating_import_no_tensorflow_nor_torch(workdir):
    code = (
        "import sys, gpt2_jax; lm = gpt2_jax.load(sys.argv[1]); lm.generate('the', max_new_tokens=2);"
        "bad = {'tensorflow', 'torch', 'transformers', 'clu', 'matplotlib'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(workdir)], check=True)


def test_generate_script_streams_and_explains_errors(workdir, pytestconfig):
    def script(*arguments):
        command = [
            sys.executable,
            str(pytestconfig.rootpath / "scripts/generate.py"),
            f"--workdir={workdir}",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    good = script("--prompt=the ", "--max_new_tokens=8", "--seed=2")
    want = gpt2_jax.load(workdir).generate("the ", max_new_tokens=8, seed=2, temperature=0.8, top_p=0.95)
    assert good.returncode == 0 and good.stdout == want.text + "\n", good.stderr
    bad = script("--prompt=the ", "--top_p=2")
    assert bad.returncode == 2 and bad.stderr.strip().splitlines()[-1].startswith("error: top_p is 2.0; it must be in")
    assert "Traceback" not in bad.stderr
