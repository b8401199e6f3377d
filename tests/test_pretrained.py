import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from model_folders import TEXT, python

import gpt2_jax
from gpt2_jax import Config, InputError, weights
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.pretrained import load_config
from gpt2_jax.tokenizer_training import train_bpe, train_characters
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.step import init_state


def change(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_fields_left_out_are_gpt2_s_and_others_are_ignored(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "summary_type": "cls_index", "torch_dtype": "f", "n_head": 6}'
    )
    assert load_config(tmp_path) == GPT2Config(n_head=6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "has model_type 'llama'; only gpt2 is supported"),
        ({"add_cross_attention": True}, "has add_cross_attention True, which is not supported; it must be False"),
        ({"quantization_config": {"bits": 4}}, r"has quantization_config {'bits': 4}, which is not supported"),
        ({"activation_function": "mish"}, "model.activation_function is 'mish'; it must be one of gelu_new, "),
        ({"n_head": 5}, r"model.n_head is 5, which does not divide model.n_embd \(16\)"),
        ({"n_layer": "2"}, "model.n_layer is '2'; it must be of type int"),
        ({"n_layer": 2.0}, "model.n_layer is 2.0; it must be of type int"),
        ({"n_layer": True}, "model.n_layer is True; it must be of type int"),
        ({"n_layer": 0}, "model.n_layer is 0; it must be at least 1"),
        (
            {"layer_norm_epsilon": float("nan")},
            r"config\.json cannot be read \(NaN is no number in JSON\); weights",
        ),
        ({"layer_norm_epsilon": 0}, "model.layer_norm_epsilon is 0.0; it must be above 0, and finite"),
        ({"n_embd": 2**32}, "model.n_embd is 4294967296; it must be at least 1 and at most 2147483647"),
        ({"n_embd": 2**64}, "the number 18446744073709551616... is too large"),
        ({"n_embd": 2**31 - 1, "n_head": 1}, r"of shape \(\d+,( \d+)?\); config.json asks for \("),
        ({"n_layer": 2**31 - 1}, "has 16 tensors, too few for the 2,147,483,647 layers of config.json; give the"),
        ({"model_type": "x" * 10**6}, "has model_type '" + "x" * 199 + "...; only gpt2 is supported"),
        ({"tie_word_embeddings": None}, "model.tie_word_embeddings is None; it must be of type bool"),
        ({"n_layer": 2}, r"lacks 12 \(h\.1\.attn\.c_attn\.bias, .*\) for 2 layers; give the config.json it came with"),
    ],
)
def test_configs_that_are_refused(fields, message, saved_copy):
    change(saved_copy, **fields)
    with pytest.raises(InputError, match=message) as caught:
        gpt2_jax.load(saved_copy)
    assert str(saved_copy) in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "[" * 100_000, "\udcff"])
def test_config_json_must_be_there_and_json(text, saved_copy):
    file = saved_copy / "config.json"
    file.unlink()
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json cannot be read .*; weights need the config\.json they came"):
        gpt2_jax.load(saved_copy)


def test_tokenizers_that_do_not_fit(saved_copy, small_lm, tmp_path):
    long = train_bpe([TEXT * 3, "many other words, so that there is more to merge, and more, and more"], 300)
    with pytest.raises(
        InputError, match=rf"has {len(long)} entries and the model {small_lm.config.vocab_size}; give the"
    ):
        gpt2_jax.load(saved_copy, tokenizer=long)
    other = train_characters([TEXT]).save(tmp_path / "characters.json")
    assert gpt2_jax.load(saved_copy, tokenizer=other).tokenizer.kind == "characters"
    (saved_copy / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json"):
        gpt2_jax.load(saved_copy)
    empty = json.loads(small_lm.tokenizer.to_json())
    empty["model"] |= {"vocab": {}, "merges": []}
    (saved_copy / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(
        InputError, match=rf"gives '<\|endoftext\|>' the id {small_lm.tokenizer.end_of_text}, and it would"
    ):
        gpt2_jax.load(saved_copy)
    empty["added_tokens"][0]["id"] = 0
    (saved_copy / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(InputError, match=r"is empty: '<\|endoftext\|>' is its only entry"):
        gpt2_jax.load(saved_copy)
    for name in ("tokenizer.json", "vocab.json"):
        (saved_copy / name).unlink()
    with pytest.raises(InputError, match=r"a tokenizer is a tokenizer\.json or a vocab\.json with a merges\.txt"):
        gpt2_jax.load(saved_copy)
    assert len(gpt2_jax.load(saved_copy, tokenizer=small_lm.tokenizer).tokenizer) == len(small_lm.tokenizer)


def test_ids_that_the_tokenizer_has_not_never_come(saved_model):
    lm = gpt2_jax.load(saved_model)
    results = lm.generate("the ", max_new_tokens=27, temperature=50.0, num_return_sequences=20, eos_token_id=[])
    tokens = np.concatenate([result.tokens for result in results])
    assert tokens.max() < len(lm.tokenizer) < lm.config.vocab_size and len(np.unique(tokens)) > 100


def test_a_shorter_context_on_loading(saved_model, small_lm):
    short = gpt2_jax.load(saved_model, n_positions=8)
    assert short.config.n_positions == 8 and short.model.wpe.embedding.shape[0] == 8
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(short.model(tokens), small_lm.model(tokens), atol=1e-5)
    with pytest.raises(InputError, match="n_positions is 64; the model has 32 positions and can only be cropped"):
        gpt2_jax.load(saved_model, n_positions=64)


def test_files_compute_in_float32_and_runs_as_they_were_trained(saved_model, saved_run):
    assert gpt2_jax.load(saved_model).config.dtype == "float32"
    assert gpt2_jax.load(saved_model, dtype="bfloat16").config.dtype == "bfloat16"
    assert gpt2_jax.load(saved_run).config.dtype == "bfloat16"
    assert gpt2_jax.load(saved_run, dtype="float32").config.dtype == "float32"
    with pytest.raises(InputError, match="dtype is 'float16'; it must be one of float32, bfloat16"):
        gpt2_jax.load(saved_model, dtype="float16")


def test_load_takes_the_latest_the_best_or_a_step(saved_run):
    lms = {step: gpt2_jax.load(saved_run, step=step) for step in (None, "best", 10, 20)}
    wte = {step: np.asarray(lm.model.wte.embedding[...]) for step, lm in lms.items()}
    assert np.array_equal(wte[None], wte[20]) and np.array_equal(wte["best"], wte[10])
    assert not np.array_equal(wte[10], wte[20])
    assert lms[None].generate("the ", max_new_tokens=4).text.startswith("the ")


def test_a_checkpoint_that_is_not_finite_is_refused_by_name(saved_run, tmp_path):
    lm = gpt2_jax.load(saved_run)
    config = Config.from_dict({"model": dataclasses.asdict(lm.config)})
    state = jax.jit(lambda: init_state(config.model, optax.identity(), 0))()
    bad = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[0].set(np.nan) if "ln_f" in str(path) and "scale" in str(path) else x, state.model
    )
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(state._replace(model=bad), config.to_dict(), lm.tokenizer.to_json(), 1.0)
    with pytest.raises(InputError, match=r"step 0 in .* has numbers in ln_f\.scale that are not finite; no model comp"):
        gpt2_jax.load(tmp_path)


def test_nothing_to_load(saved_run, saved_model, tmp_path):
    with pytest.raises(InputError, match=r"there is no folder or file '.*missing'; give the workdir of a training run"):
        gpt2_jax.load(tmp_path / "missing")
    with pytest.raises(InputError, match=r"has no model\.safetensors and no flax_model\.msgpack; give a folder"):
        gpt2_jax.load(tmp_path)
    with pytest.raises(InputError, match="has no checkpoint 15; it has 10, 20"):
        gpt2_jax.load(saved_run, step=15)
    with pytest.raises(InputError, match=r"step is 10, but .* is no training run; only runs have steps"):
        gpt2_jax.load(saved_model, step=10)
    with pytest.raises(InputError, match=r"revision is 'main', but .* is a training run; only hub ids have revisions"):
        gpt2_jax.load(saved_run, revision="main")
    with pytest.raises(InputError, match=r"revision is 'main', but .* is a path; only hub ids have revisions"):
        gpt2_jax.load(saved_model, revision="main")


def test_hub_ids_come_from_the_cache_without_network(small_lm, tmp_path):
    for format in weights.FILES:
        repository = tmp_path / f"models--some--{format}"
        gpt2_jax.save(small_lm, repository / "snapshots" / ("0" * 40), format)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    code = (
        "import gpt2_jax\n"
        "for name, revision in (('safetensors', None), ('flax', 'main'), ('flax', '0' * 40)):\n"
        "    lm = gpt2_jax.load('some/' + name, revision=revision)\n"
        "    print(lm.model.wpe.embedding[...].tobytes() == bytes.fromhex(input()))\n"
        "try: gpt2_jax.load('some/other')\n"
        "except gpt2_jax.InputError as error: print(error)"
    )
    wpe = np.asarray(small_lm.model.wpe.embedding[...]).tobytes().hex() + "\n"
    done = python("-c", code, input=3 * wpe, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path))
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[:3] == ["True"] * 3, done.stderr
    assert lines[3].startswith("'some/other' is no folder or file here and could not be fetched from the hub (")
    assert lines[3].endswith("check the id and the network, or give the workdir of a training run or a folder")


def test_loading_and_generating_import_no_tensorflow_nor_torch(saved_model, saved_run):
    code = (
        "import sys, gpt2_jax; lm = gpt2_jax.load(sys.argv[1]); lm.generate('the', max_new_tokens=2);"
        "assert 'orbax.checkpoint' not in sys.modules; gpt2_jax.load(sys.argv[2]);"
        "bad = {'tensorflow', 'torch', 'transformers', 'clu', 'matplotlib', 'safetensors'} & set(sys.modules);"
        "assert not bad, bad"
    )
    done = python("-c", code, saved_model, saved_run)
    assert done.returncode == 0, done.stderr
