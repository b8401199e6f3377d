import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import gpt2_jax
from gpt2_jax import Config, InputError, LanguageModel, weights
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.pretrained import FIELDS, load_config
from gpt2_jax.tokenizer import END_OF_TEXT, Tokenizer
from gpt2_jax.tokenizer_training import train_bpe, train_characters
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.step import init_state

TEXT = "the quick brown fox jumps over the lazy dog\n"
EXTRA = 7  # entries of the model's vocabulary that the tokenizer has not
FILES = {
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt",
}  # fmt: skip


def make_lm(tokenizer, **changes):
    fields = {"vocab_size": len(tokenizer) + EXTRA, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**fields | {"initializer_range": 0.3} | changes)
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


@pytest.fixture(scope="module")
def lm():
    return make_lm(train_bpe([TEXT], 270))


@pytest.fixture(scope="module")
def original(lm, tmp_path_factory):
    return gpt2_jax.save(lm, tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original, tmp_path):
    """A saved model to damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with two checkpoints of different parameters; the first has the better validation loss."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_characters([TEXT])
    model = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, dtype="bfloat16")
    config = Config.from_dict({"model": dataclasses.asdict(model)})
    init = jax.jit(lambda seed: init_state(config.model, optax.identity(), seed), static_argnums=0)
    with Checkpoints(folder, CheckpointConfig(keep=2)) as checkpoints:
        for step, loss in ((10, 1.0), (20, 2.0)):
            state = init(step)._replace(step=np.int32(step))
            checkpoints.save(state, config.to_dict(), tokenizer.to_json(), loss)
        checkpoints.wait()
    return folder


def change(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same_parameters(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(a.model), jax.tree.leaves(b.model))


def python(*arguments, input=None, **environment):
    # One device, as most users of a CPU have.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, input=input, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
@pytest.mark.parametrize("format", weights.FILES)
def test_a_folder_gives_the_model_and_saved_again_its_bytes(format, tokenizer, lm, tmp_path):
    lm = lm if tokenizer == "bpe" else make_lm(train_characters([TEXT]))
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


def test_what_transformers_needs_is_in_the_json_files(lm, original):
    read = {file.name: json.loads(file.read_text()) for file in original.glob("*.json")}
    config, end = read["config.json"], lm.tokenizer.end_of_text
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]
    assert config["n_ctx"] == config["n_positions"] == 32 and config["vocab_size"] == lm.config.vocab_size
    for file in ("config.json", "generation_config.json"):
        assert read[file]["bos_token_id"] == read[file]["eos_token_id"] == end
    assert read["tokenizer_config.json"]["tokenizer_class"] == "GPT2Tokenizer"
    assert read["tokenizer_config.json"]["eos_token"] == END_OF_TEXT
    assert sorted(read["vocab.json"].values()) == list(range(len(lm.tokenizer)))


def test_gpt2_s_two_files_are_the_same_tokenizer(folder, lm):
    (folder / "tokenizer.json").unlink()
    own = gpt2_jax.load(folder).tokenizer
    for text in (TEXT, "unseen wörds", ""):
        assert own.encode(text) == lm.tokenizer.encode(text)
    assert own.end_of_text == lm.tokenizer.end_of_text and len(own) == len(lm.tokenizer)


def test_every_variant_survives_the_files(lm, tmp_path):
    variants = [
        {"n_inner": 24, "activation_function": "quick_gelu", "scale_attn_by_inverse_layer_idx": True, "n_layer": 2},
        {"scale_attn_weights": False, "reorder_and_upcast_attn": True, "layer_norm_epsilon": 1e-3},
        {"tie_word_embeddings": False, "resid_pdrop": 0.0, "embd_pdrop": 0.2, "attn_pdrop": 0.3},
    ]
    tokens = np.arange(12)[None]
    plain = lm.model(tokens)
    for i, changes in enumerate(variants):
        want = make_lm(lm.tokenizer, **changes)
        got = gpt2_jax.load(gpt2_jax.save(want, tmp_path / str(i), "flax"))
        assert got.config == want.config
        np.testing.assert_array_equal(got.model(tokens), want.model(tokens))
        assert np.abs(np.asarray(got.model(tokens) - plain)).max() > 1e-4
    assert {name for changes in variants for name in changes} < set(FIELDS)


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
def test_configs_that_are_refused(fields, message, folder):
    change(folder, **fields)
    with pytest.raises(InputError, match=message) as caught:
        gpt2_jax.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "[" * 100_000, "\udcff"])
def test_config_json_must_be_there_and_json(text, folder):
    file = folder / "config.json"
    file.unlink()
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json cannot be read .*; weights need the config\.json they came"):
        gpt2_jax.load(folder)


def test_tokenizers_that_do_not_fit(folder, lm, tmp_path):
    long = train_bpe([TEXT * 3, "many other words, so that there is more to merge, and more, and more"], 300)
    with pytest.raises(InputError, match=rf"has {len(long)} entries and the model {lm.config.vocab_size}; give the"):
        gpt2_jax.load(folder, tokenizer=long)
    other = train_characters([TEXT]).save(tmp_path / "characters.json")
    assert gpt2_jax.load(folder, tokenizer=other).tokenizer.kind == "characters"
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json"):
        gpt2_jax.load(folder)
    empty = json.loads(lm.tokenizer.to_json())
    empty["model"] |= {"vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(InputError, match=rf"gives '<\|endoftext\|>' the id {lm.tokenizer.end_of_text}, and it would"):
        gpt2_jax.load(folder)
    empty["added_tokens"][0]["id"] = 0
    (folder / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(InputError, match=r"is empty: '<\|endoftext\|>' is its only entry"):
        gpt2_jax.load(folder)
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"a tokenizer is a tokenizer\.json or a vocab\.json with a merges\.txt"):
        gpt2_jax.load(folder)
    assert len(gpt2_jax.load(folder, tokenizer=lm.tokenizer).tokenizer) == len(lm.tokenizer)


def test_ids_that_the_tokenizer_has_not_never_come(original):
    lm = gpt2_jax.load(original)
    results = lm.generate("the ", max_new_tokens=27, temperature=50.0, num_return_sequences=20, eos_token_id=[])
    tokens = np.concatenate([result.tokens for result in results])
    assert tokens.max() < len(lm.tokenizer) < lm.config.vocab_size and len(np.unique(tokens)) > 100


def test_a_shorter_context_on_loading(original, lm):
    short = gpt2_jax.load(original, n_positions=8)
    assert short.config.n_positions == 8 and short.model.wpe.embedding.shape[0] == 8
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(short.model(tokens), lm.model(tokens), atol=1e-5)
    with pytest.raises(InputError, match="n_positions is 64; the model has 32 positions and can only be cropped"):
        gpt2_jax.load(original, n_positions=64)


def test_files_compute_in_float32_and_runs_as_they_were_trained(original, workdir):
    assert gpt2_jax.load(original).config.dtype == "float32"
    assert gpt2_jax.load(original, dtype="bfloat16").config.dtype == "bfloat16"
    assert gpt2_jax.load(workdir).config.dtype == "bfloat16"
    assert gpt2_jax.load(workdir, dtype="float32").config.dtype == "float32"
    with pytest.raises(InputError, match="dtype is 'float16'; it must be one of float32, bfloat16"):
        gpt2_jax.load(original, dtype="float16")


def test_load_takes_the_latest_the_best_or_a_step(workdir):
    lms = {step: gpt2_jax.load(workdir, step=step) for step in (None, "best", 10, 20)}
    wte = {step: np.asarray(lm.model.wte.embedding[...]) for step, lm in lms.items()}
    assert np.array_equal(wte[None], wte[20]) and np.array_equal(wte["best"], wte[10])
    assert not np.array_equal(wte[10], wte[20])
    assert lms[None].generate("the ", max_new_tokens=4).text.startswith("the ")


def test_a_checkpoint_that_is_not_finite_is_refused_by_name(workdir, tmp_path):
    lm = gpt2_jax.load(workdir)
    config = Config.from_dict({"model": dataclasses.asdict(lm.config)})
    state = jax.jit(lambda: init_state(config.model, optax.identity(), 0))()
    bad = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[0].set(np.nan) if "ln_f" in str(path) and "scale" in str(path) else x, state.model
    )
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(state._replace(model=bad), config.to_dict(), lm.tokenizer.to_json(), 1.0)
    with pytest.raises(InputError, match=r"step 0 in .* has numbers in ln_f\.scale that are not finite; no model comp"):
        gpt2_jax.load(tmp_path)


def test_a_run_is_exported(workdir, tmp_path):
    lm = gpt2_jax.load(workdir)
    assert_same_parameters(gpt2_jax.load(gpt2_jax.save(lm, tmp_path)), lm)


def test_nothing_to_load(workdir, original, tmp_path):
    with pytest.raises(InputError, match=r"there is no folder or file '.*missing'; give the workdir of a training run"):
        gpt2_jax.load(tmp_path / "missing")
    with pytest.raises(InputError, match=r"has no model\.safetensors and no flax_model\.msgpack; give a folder"):
        gpt2_jax.load(tmp_path)
    with pytest.raises(InputError, match="has no checkpoint 15; it has 10, 20"):
        gpt2_jax.load(workdir, step=15)
    with pytest.raises(InputError, match=r"step is 10, but .* is no training run; only runs have steps"):
        gpt2_jax.load(original, step=10)
    with pytest.raises(InputError, match=r"revision is 'main', but .* is a training run; only hub ids have revisions"):
        gpt2_jax.load(workdir, revision="main")
    with pytest.raises(InputError, match=r"revision is 'main', but .* is a path; only hub ids have revisions"):
        gpt2_jax.load(original, revision="main")


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


def test_a_full_disk_leaves_the_old_files(folder, lm):
    gpt2_jax.save(lm, folder, "flax")
    before = contents(folder)
    done = python("-c", FULL_DISK, folder)
    messages = done.stdout.splitlines()
    assert done.returncode == 0 and len(messages) == 6, done.stderr
    for message in messages:
        assert message.startswith(f"could not write {folder}/") and message.endswith(
            ": File too large; make room, or give another folder"
        )
    assert contents(folder) == before


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


def test_a_killed_export_is_refused_or_the_old_one_and_the_next_is_whole(original, lm, tmp_path):
    for names in (0, 1):  # of files, that were given before the kill
        folder = tmp_path / str(names)
        assert python("-c", KILLED, original, folder, names).returncode == -signal.SIGKILL
        with pytest.raises(InputError, match=r"has no model\.safetensors|come with|came with"):
            gpt2_jax.load(folder)
        assert python("-c", KILLED, original, folder, 100).returncode == 0
        assert contents(folder) == contents(original)
    other = gpt2_jax.save(make_lm(train_characters([TEXT])), tmp_path / "other")
    before = contents(other)
    assert python("-c", KILLED, original, other, 0).returncode == -signal.SIGKILL
    assert {name: data for name, data in contents(other).items() if not name.startswith(".")} == before
    gpt2_jax.load(other)


def test_folders_that_cannot_be_written_to(lm, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"could not make the folder .*file/a: Not a directory; give another"):
        gpt2_jax.save(lm, tmp_path / "file" / "a")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"could not write .*model\.safetensors: Is a directory; make room, or give"):
        gpt2_jax.save(lm, tmp_path)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="format is 'torch'; it must be one of safetensors, flax"):
        gpt2_jax.save(lm, tmp_path, "torch")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
def test_without_permission(folder, lm):
    folder.chmod(0o500)
    with pytest.raises(InputError, match=r"could not write .*: Permission denied; make room, or give another folder"):
        gpt2_jax.save(lm, folder)
    folder.chmod(0o700)
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read \(Permission denied\)"):
        gpt2_jax.load(folder)


def test_hub_ids_come_from_the_cache_without_network(lm, tmp_path):
    for format in weights.FILES:
        repository = tmp_path / f"models--some--{format}"
        gpt2_jax.save(lm, repository / "snapshots" / ("0" * 40), format)
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
    wpe = np.asarray(lm.model.wpe.embedding[...]).tobytes().hex() + "\n"
    done = python("-c", code, input=3 * wpe, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path))
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[:3] == ["True"] * 3, done.stderr
    assert lines[3].startswith("'some/other' is no folder or file here and could not be fetched from the hub (")
    assert lines[3].endswith("check the id and the network, or give the workdir of a training run or a folder")


def test_loading_and_generating_import_no_tensorflow_nor_torch(original, workdir):
    code = (
        "import sys, gpt2_jax; lm = gpt2_jax.load(sys.argv[1]); lm.generate('the', max_new_tokens=2);"
        "assert 'orbax.checkpoint' not in sys.modules; gpt2_jax.load(sys.argv[2]);"
        "bad = {'tensorflow', 'torch', 'transformers', 'clu', 'matplotlib', 'safetensors'} & set(sys.modules);"
        "assert not bad, bad"
    )
    done = python("-c", code, original, workdir)
    assert done.returncode == 0, done.stderr


def test_convert_script_both_ways(original, workdir, tmp_path, pytestconfig):
    script = pytestconfig.rootpath / "scripts" / "convert.py"
    flax, safe = tmp_path / "flax", tmp_path / "safe"
    done = python(script, f"--input={original}", f"--output={flax}", "--format=flax")
    assert done.returncode == 0, done.stderr
    assert re.search(r"flax_model\.msgpack  [\d,]+ bytes\n", done.stdout)
    assert python(script, f"--input={flax}", f"--output={safe}").returncode == 0
    assert contents(safe) == contents(original)


def test_convert_script_takes_runs_and_explains_errors(workdir, tmp_path, pytestconfig):
    script = pytestconfig.rootpath / "scripts" / "convert.py"
    done = python(script, f"--input={workdir}", f"--output={tmp_path / 'run'}", "--step=10", "--n_positions=8")
    assert done.returncode == 0, done.stderr
    assert_same_parameters(gpt2_jax.load(tmp_path / "run"), gpt2_jax.load(workdir, step=10, n_positions=8))
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
