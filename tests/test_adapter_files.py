import json
import re
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from test_lora import assert_same, logits_of, moved

import gpt2_jax
from gpt2_jax import adapter_files, lora, weights
from gpt2_jax.errors import InputError
from gpt2_jax.model import unstack
from gpt2_jax.pretrained import load_config
from gpt2_jax.tensor_files import read_safetensors, write_safetensors
from gpt2_jax.training.finetune_options import LoraConfig

TOKENS = np.arange(10).reshape(2, 5)
OPENED = ("plain", "all", "regex", "one_layer", "wte", "lm_head", "grown")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A folder with what PEFT wrote, see golden/make_peft.py."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(Path(__file__).parent / "golden" / "peft.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def base(golden):
    """The model of those adapters, stacked."""
    return weights.load(weights.find(golden / "base"), load_config(golden / "base"), stacked=True)


@pytest.mark.parametrize("name", OPENED)
def test_what_peft_wrote_computes_the_same(golden, base, name):
    """With whole modules, an output layer of its own, and a larger vocabulary; stacked and unstacked."""
    want = np.load(golden / name / "logits.npy")
    merged = lora.merge(adapter_files.load(golden / name, unstack(base)))
    got = logits_of(merged, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=3e-5)
    assert np.abs(got[..., :19] - logits_of(unstack(base), TOKENS)).max() > 0.1
    assert_same(unstack(lora.merge(adapter_files.load(golden / name, base))), merged)
    assert merged.config.tie_word_embeddings == (name not in ("wte", "lm_head"))


@pytest.mark.parametrize(
    ("options", "vocab_size"),
    [
        (LoraConfig(rank=3, alpha=5.5, targets="c_fc|attn.c_proj", dropout=0.25), 19),
        (LoraConfig(rank=2, targets="c_fc", rslora=True, also_train=r"ln_1|ln_f|wpe|attn|mlp.c_proj.bias"), 19),
        (LoraConfig(rank=1, also_train="wte"), 21),
    ],
)
def test_what_is_saved_opens_again(base, tmp_path, options, vocab_size):
    trained = moved(base, options.also_train or "^$")
    model = moved(lora.attach(gpt2_jax.resize(trained, vocab_size=vocab_size), options, jax.random.key(0)))
    adapter_files.save(model, options, tmp_path / "a", base="owner/base")
    assert_same(adapter_files.load(tmp_path / "a", base), model)
    adapter_files.save(unstack(model), options, tmp_path / "b", base="owner/base")
    for name in (adapter_files.CONFIG_FILE, adapter_files.WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_names_are_those_of_peft(golden, base, tmp_path):
    """The same entries, and the same values of all the options that are written."""
    for name, options in {
        "plain": LoraConfig(rank=2, alpha=8.0),
        "all": LoraConfig(rank=2, alpha=5.0, targets=".", dropout=0.1, rslora=True),
        "regex": LoraConfig(rank=3, alpha=8.0, targets="mlp", also_train=r"ln_1|ln_f|attn\.c_attn"),
        "grown": LoraConfig(rank=1, alpha=8.0, also_train="wte"),
    }.items():
        vocab_size = 21 if name == "grown" else 19
        model = lora.attach(gpt2_jax.resize(base, vocab_size=vocab_size), options, jax.random.key(0))
        adapter_files.save(model, options, tmp_path / name)
        ours, theirs = (read_safetensors(at / name / adapter_files.WEIGHTS_FILE) for at in (tmp_path, golden))
        shapes = lambda tensors: {
            entry: tensor.shape for entry, tensor in tensors.items() if not adapter_files.COPIES.search(entry)
        }
        assert ours.keys() == shapes(ours).keys() and shapes(ours) == shapes(theirs)
        ours, theirs = (json.loads((at / name / adapter_files.CONFIG_FILE).read_text()) for at in (tmp_path, golden))
        differ = {"base_model_name_or_path", "target_modules", "modules_to_save"}
        assert {option: theirs[option] for option in ours.keys() - differ} == {
            option: ours[option] for option in ours.keys() - differ
        }
        assert set(ours["modules_to_save"] or []) == set(theirs["modules_to_save"] or [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dora", "'use_dora' True, which is not supported: merge"),
        ("bias", "'bias' 'lora_only', which is not supported"),
    ],
)
def test_other_adapters_are_refused_by_name(golden, base, name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        adapter_files.load(golden / name, base)


REFUSED_OPTIONS = [
    ("peft_type", "LOHA", "peft_type 'LOHA'; only LORA is supported"),
    ("rank_pattern", {"c_attn": 4}, "'rank_pattern' {'c_attn': 4}, which is not supported"),
    ("alpha_pattern", {"c_attn": 4}, "'alpha_pattern' {'c_attn': 4}, which is not supported"),
    ("a_new_variant", {"on": True}, "'a_new_variant' {'on': True}, which is not supported"),
    ("ensure_weight_tying", True, "'ensure_weight_tying' True, which is not supported"),
    ("init_lora_weights", "pissa", "init_lora_weights 'pissa', with which PEFT changes the base"),
    ("init_lora_weights", 1, "init_lora_weights 1, with which"),
    ("r", 0, "r 0; it must be an integer above 0"),
    ("r", True, "r True; it must be an integer above 0"),
    ("r", 2**40, "r and the model ask for (1099511627776, 8)"),
    ("lora_alpha", "8", "lora_alpha '8'; it must be a number above 0"),
    ("lora_dropout", 1, "lora_dropout 1; it must be in [0, 1)"),
    ("use_rslora", "yes", "use_rslora 'yes'; it must be true or false"),
]


@pytest.mark.parametrize(("option", "value", "message"), REFUSED_OPTIONS)
def test_options_that_are_refused(golden, base, tmp_path, option, value, message):
    fields = json.loads((golden / "plain" / adapter_files.CONFIG_FILE).read_text()) | {option: value}
    (tmp_path / adapter_files.CONFIG_FILE).write_text(json.dumps(fields))
    content = (golden / "plain" / adapter_files.WEIGHTS_FILE).read_bytes()
    (tmp_path / adapter_files.WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f" has {message}" if "ask for" not in message else message)):
        adapter_files.load(tmp_path, base)


LAYER = "base_model.model.transformer.h.0.attn.c_attn.lora_"
A, B = np.zeros((2, 8), np.float32), np.zeros((24, 2), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{LAYER}A.weight": A}, "one of lora_A and lora_B for layer 0 of h.attn.c_attn"),
        ({f"{LAYER}A.weight": A.T, f"{LAYER}B.weight": B}, "lora_A.weight of shape (8, 2); r and the model ask for"),
        ({f"{LAYER}A.weight": A, f"{LAYER}B.weight": B[:8]}, "lora_B.weight of shape (8, 2); r and the model ask for"),
        ({f"{LAYER}A.weight": A + np.nan, f"{LAYER}B.weight": B}, "16 numbers in base_model.model.transformer.h.0"),
        ({LAYER.replace("h.0", "h.2") + "A.weight": A}, "no part of a LoRA adapter for this GPT-2 of 2 layers"),
        ({LAYER.replace("c_attn", "q_proj") + "A.weight": A}, "q_proj.lora_A.weight, which is no part of"),
        ({"transformer.ln_f.weight": A[0]}, "transformer.ln_f.weight, which is no part of"),
        ({LAYER.replace("c_attn", "c_attn.base_layer") + "A.weight": A}, "which is no part of"),
        ({f"{LAYER}A.weight": A, f"{LAYER.replace('transformer.', '')}A.weight": A}, "a second h.0.attn.c_attn.lora_A"),
        ({"base_model.model.transformer.wte.weight": np.zeros((21, 8))}, "tables of 21 rows, and the model has 19"),
        ({"base_model.model.transformer.wte.weight": np.zeros((19, 7))}, "of shape (19, 7); r and the model ask for"),
        ({}, "has no tensors; give the folder of an adapter that was trained"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(golden, base, tmp_path, tensors, message):
    content = (golden / "plain" / adapter_files.CONFIG_FILE).read_bytes()
    (tmp_path / adapter_files.CONFIG_FILE).write_bytes(content)
    shapes = {name: array.shape for name, array in tensors.items()}
    write_safetensors(tmp_path / adapter_files.WEIGHTS_FILE, shapes, tensors.__getitem__)
    with pytest.raises(InputError, match=re.escape(message)):
        adapter_files.load(tmp_path, base)


def test_a_folder_without_the_files(golden, base, tmp_path):
    with pytest.raises(InputError, match=r"adapter_config.json is no adapter_config.json of PEFT \(No such file"):
        adapter_files.load(tmp_path, base)
    (tmp_path / adapter_files.CONFIG_FILE).write_bytes((golden / "plain" / adapter_files.CONFIG_FILE).read_bytes())
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors; save the adapter with PEFT 0\.5 or later"):
        adapter_files.load(tmp_path, base)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(InputError, match=r"has only adapter_model.bin, a pickle, which can run any code"):
        adapter_files.load(tmp_path, base)


def test_what_cannot_be_saved(base, tmp_path):
    options = LoraConfig(rank=2, also_train=r"c_attn\.bias")
    with pytest.raises(InputError, match=r"the model has no adapters; attach them \(lora.attach\)"):
        adapter_files.save(base, options, tmp_path)
    model = lora.attach(base, options, jax.random.key(0))
    with pytest.raises(
        InputError, match=r"also_train is 'c_attn.*bias', which finds parameters of h.attn.c_attn; it has"
    ):
        adapter_files.save(model, options, tmp_path)
    with pytest.raises(
        InputError, match=r"adapter of h.attn.c_attn has rank 2 and scale 8.0, and the config 4 and 4.0"
    ):
        adapter_files.save(model, LoraConfig(rank=4), tmp_path)
    assert not list(tmp_path.iterdir())
