import pytest

import gpt2_jax
from gpt2_jax import InputError
from gpt2_jax.serving.models import Models, named
from gpt2_jax.serving.stream import Closed


def test_models_are_loaded_by_name_and_closed(lm, tmp_path):
    gpt2_jax.save(lm, tmp_path / "first")
    with Models.load([str(tmp_path / "first"), f"other={tmp_path / 'first'}"], rows=2, waiting=3) as models:
        assert list(models) == ["first", "other"] and len(models) == 2 and "first" in models
        assert models["other"].rows == 2 and models["first"].lm.config.vocab_size == lm.config.vocab_size
    with pytest.raises(Closed):
        models["first"].submit("a")


def test_names():
    assert named(["runs/quickstart", "big=openai-community/gpt2", "a=b=c"]) == {
        "quickstart": "runs/quickstart", "big": "openai-community/gpt2", "a": "b=c"
    }  # fmt: skip
    with pytest.raises(InputError, match="two models are called 'gpt2'; give one another name: NAME=other/gpt2"):
        named(["openai-community/gpt2", "other/gpt2"])
    with pytest.raises(InputError, match="the model '=x' has no name or no path; give NAME=PATH"):
        named(["=x"])


def test_none_and_wrong_options_are_refused(lm):
    with pytest.raises(InputError, match="there is no model to serve; name one, such as --model=runs/quickstart"):
        Models({})
    with pytest.raises(InputError, match="rows is 5"):
        Models({"a": lm}, rows=5)
