import dataclasses
import subprocess
import sys
from runpy import run_path

import pytest
from absl import flags
from ml_collections import config_flags

from gpt2_jax import Config, InputError, default_config
from gpt2_jax.config import DataConfig, OptimizerConfig, meanings


def test_defaults_make_a_config_and_come_back_from_a_dict():
    config = Config.from_dict(default_config().to_dict(), vocab_size=100)
    assert config.model.vocab_size == 100 and config.sequence_length == 1024
    assert Config.from_dict(config.to_dict()) == config


def test_every_option_is_in_the_default_config():
    defaults = default_config().to_dict()
    config = Config.from_dict(defaults)
    for field in dataclasses.fields(config):
        assert set(defaults[field.name]) == {f.name for f in dataclasses.fields(getattr(config, field.name))}


RECIPES = ("text", "poetry", "code", "stories", "openwebtext")


@pytest.mark.parametrize(
    ("file", "argument"),
    [("quickstart", ()), ("shakespeare_char", ()), ("openwebtext", ()), *(("finetune", (name,)) for name in RECIPES)],
)
def test_shipped_configs_are_valid(file, argument, pytestconfig):
    options = run_path(str(pytestconfig.rootpath / f"configs/{file}.py"))["get_config"](*argument).to_dict()
    options["data"]["paths"] = options["data"]["paths"] or "mine.txt" * (options["data"]["source"] == "files")
    assert Config.from_dict(options, vocab_size=4096).model.n_layer >= 1


def test_an_unknown_recipe_is_refused_in_a_line(pytestconfig):
    command = [sys.executable, "scripts/train.py", "--workdir=nowhere", "--config=configs/finetune.py:haiku"]
    ended = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr == (
        "error: configs/finetune.py has no recipe 'haiku'; it must be one of text, poetry, code, stories, openwebtext\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": {}}, "config has no 'modle'; did you mean 'model'?"),
        ({"training": {"step": 3}}, "config.training has no 'step'; did you mean 'steps'?"),
        ({"training": {"xyzzy": 3}}, "config.training has no 'xyzzy'; known: steps, batch_size"),
        ({"training": {"steps": 3.5}}, "training.steps is 3.5; it must be of type int"),
        ({"model": {"n_inner": "x"}}, "model.n_inner is 'x'; it must be of type int or none"),
        ({"data": {"split": "tial"}}, "data.split is 'tial'; it must be 'auto' or 'document' or 'tail'"),
        ({"data": {"source": "files"}}, "data.paths is ''; it must be one or more files, folders or globs"),
        ({"data": {"paths": "a.txt"}}, "data.paths is 'a.txt'; it must be empty unless data.source is 'files'"),
        ({"data": {"validation_fraction": 1.0}}, "data.validation_fraction is 1.0; it must be between 0 and 1"),
        ({"data": {"vocab_size": 200}}, "data.vocab_size is 200; it must be from 257"),
        ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate is -1.0; it must be above 0"),
        ({"optimizer": {"final_learning_rate": 1.0}}, "final_learning_rate is 1.0; it must be from 0 to the peak"),
        ({"optimizer": {"warmup_steps": 2000}}, r"warmup_steps is 2000; it must be at most training.steps \(1000\)"),
        ({"optimizer": {"schedule": "cosin"}}, "optimizer.schedule is 'cosin'; it must be 'cosine' or"),
        ({"training": {"accumulation_steps": 3}}, r"accumulation_steps is 3; it must be a divisor of training.batch"),
        ({"training": {"sequence_length": 2000}}, r"sequence_length is 2000; it must be at most model.n_positions"),
        ({"training": {"loss_chunks": 3}}, r"loss_chunks is 3; it must be a divisor of the sequence length \(1024\)"),
        ({"mesh": {"data": 0}}, "mesh.data is 0; it must be at least 1, or -1"),
        ({"mesh": {"data": -1, "model": -1}}, "-1 on one axis at most"),
        ({"checkpoint": {"keep": 1}}, "checkpoint.keep is 1; it must be at least 2: one may turn out to be damaged"),
        ({"guard": {"window": 1}}, "guard.window is 1; it must be at least 2"),
        ({"guard": {"sigmas": 0}}, "guard.sigmas is 0.0; it must be above 0"),
        ({"guard": {"skips": -1}}, r"guard.skips is -1; it must be 0 \(off\) or more"),
        ({"guard": {"rollbacks": -1}}, r"guard.rollbacks is -1; it must be 0 \(stop at once\) or more"),
        ({"model": {"n_head": 7}}, "model.n_head is 7, which does not divide model.n_embd"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict(options)


def test_an_int_is_a_float_but_a_bool_is_no_int():
    assert Config.from_dict({"optimizer": {"weight_decay": 0}}).optimizer.weight_decay == 0.0
    with pytest.raises(InputError, match=r"training\.steps is True"):
        Config.from_dict({"training": {"steps": True}})


def test_groups_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().source = "files"
    assert OptimizerConfig() == OptimizerConfig()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections' own
def test_command_line_overrides(pytestconfig, monkeypatch):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    file = str(pytestconfig.rootpath / "configs/quickstart.py")
    arguments = ["train", f"--config={file}", "--config.optimizer.learning_rate=1e-2", "--config.model.n_inner=64"]
    monkeypatch.setattr("sys.argv", arguments)  # where ml_collections looks for overrides
    values(arguments)
    assert values.config.optimizer.learning_rate == 1e-2 and values.config.model.n_inner == 64


def test_weights_and_paths_of_a_mixture():
    config = DataConfig(
        source="mine=3, stories",
        paths="mine: a/, b.txt; stories: /copy",
        reweigh="10: stories; 20: mine=.5, stories=.5",
    )
    assert config.weights == {"mine": 3.0, "stories": 1.0}
    assert config.reweighing == [
        (0, config.weights), (10, {"stories": 1.0}), (20, {"mine": 0.5, "stories": 0.5}),
    ]  # fmt: skip
    assert (config.paths_of("mine"), config.paths_of("stories")) == ("a/, b.txt", "/copy")
    assert DataConfig(source="files", paths="C: not a name").paths_of("files") == "C: not a name"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": ""}, r"data.source is ''; it must be sources with weights above 0, each once"),
        ({"source": "a=0"}, r"data.source is 'a=0'; it must be sources with weights above 0"),
        ({"source": "a=x"}, r"data.source is 'a=x'; it must be"),
        ({"source": "a, a"}, r"data.source is 'a, a'; it must be"),
        (
            {"source": "a, b", "reweigh": "5: c"},
            r"data.reweigh is '5: c'; it must be of sources that data.source",
        ),
        ({"source": "a, b", "reweigh": "9: a; 5: b"}, r"data.reweigh is .* of rising steps, from 1 on"),
        ({"source": "a, b", "reweigh": "0: a"}, r"data.reweigh is .* of rising steps, from 1 on"),
        ({"source": "a, b", "reweigh": "x: a"}, r"data.reweigh is 'x: a'; it must be such as"),
        ({"source": "a, b", "paths": "poems/"}, r"data.paths is 'poems/'; it must be of a and b, such as \"a: folder/"),
        ({"source": "a, b", "paths": "a: x; a: y"}, r"data.paths is 'a: x; a: y'; it must be of a and b"),
        ({"source": "files, b", "paths": "b: x"}, r"data.paths is 'b: x'; it must be one or more files"),
        ({"min_characters": 5, "max_characters": 4}, r"data.min_characters is 5; it must be at most data.max_char"),
        (
            {"source": "files", "paths": "a.txt", "revision": "v1"},
            r"data.revision is 'v1'; it must be empty where noth",
        ),
        (
            {"source": "stories", "paths": "copy/", "revision": "v1"},
            r"data.revision is 'v1'; it must be empty where no",
        ),
        ({"revision": "v1"}, r"is 'v1'; it must be empty where nothing is read from the hub: files have no revisions"),
        ({"readers": 0}, r"data.readers is 0; it must be at least 1"),
        (
            {"road": "stream"},
            r"data.tokenizer is 'bpe'; it must be a tokenizer.json, a folder or a hub id with",
        ),
        ({"road": "stream", "tokenizer": "x", "deduplicate": True}, r"data.deduplicate is True; it must be false with"),
        (
            {"road": "stream", "tokenizer": "x", "split": "tail"},
            r"data.split is 'tail'; it must be 'document' or 'auto'",
        ),
    ],
)
def test_data_options_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**options)


def test_a_revision_is_of_what_is_read_from_the_hub():
    DataConfig(source="stories", revision="v1")
    DataConfig(source="mine, owner/name", paths="mine: a.txt", revision="v1")


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_numbers_that_no_float_holds(value):
    with pytest.raises(InputError, match=r"optimizer\.learning_rate is -?1000*\.\.\.; it must be of type float"):
        Config.from_dict({"optimizer": {"learning_rate": value}})
    with pytest.raises(InputError, match=r"config\.model is \[1\]; it must be a group of options"):
        Config.from_dict({"model": [1]})


def test_every_option_has_a_meaning():
    for kind in Config.__dataclass_fields__.values():
        names = {field.name for field in dataclasses.fields(kind.type)}
        assert set(meanings(kind.type)) == names, kind.type
