import json
import os
import re
import signal

import numpy as np
import pytest
from model_folders import TEXT, assert_same_parameters, contents, make_lm, python

import gpt2_jax
from gpt2_jax import InputError, weights
from gpt2_jax.pretrained import FIELDS
from gpt2_jax.tokenizer import END_OF_TEXT, Tokenizer
from gpt2_jax.tokenizer_training import train_characters

FILES = {
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt",
}  # fmt: skip


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
@pytest.mark.parametrize("format", weights.FILES)
def test_a_folder_gives_the_model_and_saved_again_its_bytes(format, tokenizer, small_lm, tmp_path):
    lm = small_lm if tokenizer == "bpe" else make_lm(train_characters([TEXT]))
    first = gpt2_jax.save(lm, tmp_path / "deep" / "first", format)
    loaded = gpt2_jax.load(first)
    assert_same_parameters(loaded, lm)
    assert loaded.config == lm.config and loaded.tokenizer.to_json() == lm.tokenizer.to_json()
    options = {"max_new_tokens": 6, "temperature": 0}
    assert loaded.generate("the ", **options).text == lm.generate("the ", **options).text
    assert contents(gpt2_jax.save(loaded, str(tmp_path / "second"), format)) == contents(first)
    names = FILES - ({"vocab.json", "merges.txt"} if tokenizer == "characters" else set())
    assert contents(first).keys() == names - {"model.safetensors"} | {weights.FILES[format]}
    assert_same_parameters(gpt2_jax.load(first / weights.FILES[format]), lm)


def test_what_transformers_needs_is_in_the_json_files(small_lm, saved_model):
    read = {file.name: json.loads(file.read_text()) for file in saved_model.glob("*.json")}
    config, end = read["config.json"], small_lm.tokenizer.end_of_text
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]
    assert config["n_ctx"] == config["n_positions"] == 32 and config["vocab_size"] == small_lm.config.vocab_size
    for file in ("config.json", "generation_config.json"):
        assert read[file]["bos_token_id"] == read[file]["eos_token_id"] == end
    assert read["tokenizer_config.json"]["tokenizer_class"] == "GPT2Tokenizer"
    assert read["tokenizer_config.json"]["eos_token"] == END_OF_TEXT
    assert sorted(read["vocab.json"].values()) == list(range(len(small_lm.tokenizer)))


def test_gpt2_s_two_files_are_the_same_tokenizer(saved_copy, small_lm):
    (saved_copy / "tokenizer.json").unlink()
    own = gpt2_jax.load(saved_copy).tokenizer
    for text in (TEXT, "unseen wörds", ""):
        assert own.encode(text) == small_lm.tokenizer.encode(text)
    assert own.end_of_text == small_lm.tokenizer.end_of_text and len(own) == len(small_lm.tokenizer)


def test_every_variant_survives_the_files(small_lm, tmp_path):
    variants = [
        {"n_inner": 24, "activation_function": "quick_gelu", "scale_attn_by_inverse_layer_idx": True, "n_layer": 2},
        {"scale_attn_weights": False, "reorder_and_upcast_attn": True, "layer_norm_epsilon": 1e-3},
        {"tie_word_embeddings": False, "resid_pdrop": 0.0, "embd_pdrop": 0.2, "attn_pdrop": 0.3},
    ]
    tokens = np.arange(12)[None]
    plain = small_lm.model(tokens)
    for i, changes in enumerate(variants):
        want = make_lm(small_lm.tokenizer, **changes)
        got = gpt2_jax.load(gpt2_jax.save(want, tmp_path / str(i), "flax"))
        assert got.config == want.config
        np.testing.assert_array_equal(got.model(tokens), want.model(tokens))
        assert np.abs(np.asarray(got.model(tokens) - plain)).max() > 1e-4
    assert {name for changes in variants for name in changes} < set(FIELDS)


def test_a_run_is_exported(saved_run, tmp_path):
    lm = gpt2_jax.load(saved_run)
    assert_same_parameters(gpt2_jax.load(gpt2_jax.save(lm, tmp_path)), lm)


FULL_DISK = """
import resource, sys
import gpt2_jax

lm = gpt2_jax.load(sys.argv[1])
for size in (0, 2000, 1 << 14):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for format in ("safetensors", "flax"):
        try:
            gpt2_jax.save(lm, sys.argv[1], format)
        except gpt2_jax.InputError as error:
            print(error)
"""


def test_a_full_disk_leaves_the_old_files(saved_copy, small_lm):
    gpt2_jax.save(small_lm, saved_copy, "flax")
    before = contents(saved_copy)
    done = python("-c", FULL_DISK, saved_copy)
    messages = done.stdout.splitlines()
    assert done.returncode == 0 and len(messages) == 6, done.stderr
    for message in messages:
        assert message.startswith(f"could not write {saved_copy}/") and message.endswith(
            ": File too large; make room, or give another folder"
        )
    assert contents(saved_copy) == before


KILLED = """
import os, signal, sys
import gpt2_jax

lm = gpt2_jax.load(sys.argv[1])
replace, left = os.replace, int(sys.argv[3])

def dying(*paths):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(*paths)

os.replace = dying
gpt2_jax.save(lm, sys.argv[2])
"""


def test_a_killed_export_is_refused_or_the_old_one_and_the_next_is_whole(saved_model, small_lm, tmp_path):
    for names in (0, 1):  # of files, that were given before the kill
        folder = tmp_path / str(names)
        assert python("-c", KILLED, saved_model, folder, names).returncode == -signal.SIGKILL
        with pytest.raises(InputError, match=r"has no model\.safetensors|come with|came with"):
            gpt2_jax.load(folder)
        assert python("-c", KILLED, saved_model, folder, 100).returncode == 0
        assert contents(folder) == contents(saved_model)
    other = gpt2_jax.save(make_lm(train_characters([TEXT])), tmp_path / "other")
    before = contents(other)
    assert python("-c", KILLED, saved_model, other, 0).returncode == -signal.SIGKILL
    assert {name: data for name, data in contents(other).items() if not name.startswith(".")} == before
    gpt2_jax.load(other)


def test_folders_that_cannot_be_written_to(small_lm, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"could not make the folder .*file/a: Not a directory; give another"):
        gpt2_jax.save(small_lm, tmp_path / "file" / "a")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"could not write .*model\.safetensors: Is a directory; make room, or give"):
        gpt2_jax.save(small_lm, tmp_path)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="format is 'torch'; it must be one of safetensors, flax"):
        gpt2_jax.save(small_lm, tmp_path, "torch")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
def test_without_permission(saved_copy, small_lm):
    saved_copy.chmod(0o500)
    with pytest.raises(InputError, match=r"could not write .*: Permission denied; make room, or give another folder"):
        gpt2_jax.save(small_lm, saved_copy)
    saved_copy.chmod(0o700)
    (saved_copy / "model.safetensors").chmod(0)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read \(Permission denied\)"):
        gpt2_jax.load(saved_copy)


def test_convert_script_both_ways(saved_model, saved_run, tmp_path, pytestconfig):
    script = pytestconfig.rootpath / "scripts" / "convert.py"
    flax, safe = tmp_path / "flax", tmp_path / "safe"
    done = python(script, f"--input={saved_model}", f"--output={flax}", "--format=flax")
    assert done.returncode == 0, done.stderr
    assert re.search(r"flax_model\.msgpack  [\d,]+ bytes\n", done.stdout)
    assert python(script, f"--input={flax}", f"--output={safe}").returncode == 0
    assert contents(safe) == contents(saved_model)


def test_convert_script_takes_runs_and_explains_errors(saved_run, tmp_path, pytestconfig):
    script = pytestconfig.rootpath / "scripts" / "convert.py"
    done = python(script, f"--input={saved_run}", f"--output={tmp_path / 'run'}", "--step=10", "--n_positions=8")
    assert done.returncode == 0, done.stderr
    assert_same_parameters(gpt2_jax.load(tmp_path / "run"), gpt2_jax.load(saved_run, step=10, n_positions=8))
    done = python(script, f"--input={tmp_path / 'run'}", f"--output={tmp_path / 'out'}", "--step=best")
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr.splitlines()[-1].startswith("error: step is 'best', but ") and "Traceback" not in done.stderr


def test_a_real_tokenizer_comes_back(pytestconfig, tmp_path):
    vocabulary = pytestconfig.rootpath.parent / "shared" / "data" / "gpt2_vocab"
    if not vocabulary.exists():
        pytest.skip("there is no ../shared/data/gpt2_vocab")
    lm = make_lm(gpt2_jax.tokenizer_files.load(vocabulary), vocab_size=50257)
    folder = gpt2_jax.save(lm, tmp_path)
    own = gpt2_jax.load(folder).tokenizer
    assert isinstance(own, Tokenizer) and len(own) == 50257 and own.encode("Hello world") == [15496, 995]
    for name in ("vocab.json", "merges.txt"):
        was, new = ((place / name).read_text(encoding="utf-8") for place in (vocabulary, folder))
        assert new == was if name == "merges.txt" else json.loads(new) == json.loads(was)
