import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_jax.errors import InputError
from gpt2_jax.tiktoken_encoding import tiktoken_encoder
from gpt2_jax.tokenizer import Tokenizer, pieces
from gpt2_jax.tokenizer_files import load
from gpt2_jax.tokenizer_training import train_bpe, train_characters


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_tiktoken_gives_the_same_ids(text):
    tokenizer = own_bpe()
    assert lists(tiktoken_encoder(tokenizer)([text, text + text])) == tokenizer.encode_batch([text, text + text])


def lists(arrays):
    return [array.tolist() for array in arrays]


@functools.cache
def own_bpe():
    return train_bpe(
        ["the quick brown fox jumps over the lazy dog's back 123 456\n\n  def f(x):\n" * 3, "ab abc bc"], 330
    )


def test_tiktoken_gives_the_same_ids_on_real_text(pytestconfig):
    data = pytestconfig.rootpath.parent / "shared" / "data"
    if not data.exists():
        pytest.skip(f"there is no {data}")
    tokenizer = load(data / "gpt2_vocab")
    encode = tiktoken_encoder(tokenizer)
    files = [path for path in sorted(data.rglob("*")) if path.is_file()]
    assert len(files) > 8
    for path in files:
        text = path.read_bytes().decode("utf-8", "replace")
        parts = list(pieces(text))
        assert lists(encode(parts)) == tokenizer.encode_batch(parts), path


def test_tiktoken_takes_special_tokens_and_long_words_as_text():
    tokenizer = own_bpe()
    texts = ["<|endoftext|>", "a" * 300_000, "\u00e9\u4e2d" * 50_000]
    assert lists(tiktoken_encoder(tokenizer)(texts)) == tokenizer.encode_batch(texts)
    with pytest.raises(InputError, match="which a vocabulary of characters has not; use 'tokenizers'"):
        tiktoken_encoder(train_characters(["ab"]))


def test_tiktoken_refuses_what_it_would_encode_otherwise():
    def changed(**changes):
        tokenizer = json.loads(own_bpe().to_json())
        tokenizer["model"] |= changes.pop("model", {})
        return Tokenizer.from_json(json.dumps(tokenizer | changes))

    merges = json.loads(own_bpe().to_json())["model"]["merges"]
    before = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    cases = {
        "pre-tokenizer is not GPT-2's": {"pre_tokenizer": before},
        "normalizer changes the text": {"normalizer": {"type": "Lowercase"}},
        "BPE has dropout, prefixes or no merges": {"model": {"ignore_merges": True}},
        "merges are not in the order of its ids": {"model": {"merges": merges[::-1]}},
    }
    for says, changes in cases.items():
        message = rf"^data.encoder is 'tiktoken', but this tokenizer's {says}; use 'tokenizers'$"
        with pytest.raises(InputError, match=message):
            tiktoken_encoder(changed(**changes))
