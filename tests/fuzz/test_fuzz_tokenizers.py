"""tokenizer.json, vocab.json and merges.txt; what is taken must encode, decode and be written again."""

import contextlib
import json

import pytest
from hypothesis import strategies as st
from mutations import accepted, damaged_bytes, damaged_json, fuzz

from gpt2_jax.errors import InputError
from gpt2_jax.exporting import _tokenizer_files
from gpt2_jax.tiktoken_encoding import tiktoken_encoder
from gpt2_jax.tokenizer_files import load

TEXT = "the quick\u00e9 <|endoftext|> \n\n 12 aaaa"


@pytest.fixture
def quiet(capfd):
    """Panics of the libraries print themselves before they are caught."""
    yield
    capfd.readouterr()


def used(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert all(0 <= i < len(tokenizer) for i in ids)
    tokenizer.decode(ids)
    assert 0 <= tokenizer.end_of_text < len(tokenizer)
    assert len(tiktoken_encoder(tokenizer)([TEXT])) == 1


def read(path):
    accepted(lambda: load(path), path)
    with contextlib.suppress(InputError):
        used(load(path))


@fuzz(30)
def test_tokenizer_json(tokenizer, tmp_path_factory, data, quiet):
    file = tmp_path_factory.getbasetemp() / "tokenizer.json"
    good = json.loads(tokenizer.to_json())
    place = data.draw(st.sampled_from([None, None, "model", "added_tokens", "pre_tokenizer", "decoder"]))
    if place is None:
        changed = damaged_json(data, good)
    else:
        changed = json.dumps(good | {place: json.loads(damaged_json(data, good[place]))}).encode()
    if data.draw(st.integers(0, 4)) == 0:
        changed = damaged_bytes(data, tokenizer.to_json().encode())
    file.write_bytes(changed)
    read(file)


@fuzz(20)
def test_vocab_and_merges(saved, tmp_path_factory, data, quiet):
    folder = tmp_path_factory.getbasetemp() / "vocab"
    folder.mkdir(exist_ok=True)
    for name, damage in (("vocab.json", damaged_json), ("merges.txt", damaged_bytes)):
        content = (saved["flax"] / name).read_bytes()
        (folder / name).write_bytes(damage(data, content) if data.draw(st.booleans()) else content)
    read(folder)


@fuzz(20)
def test_ids_of_a_vocabulary(tokenizer, tmp_path_factory, data, quiet):
    good = json.loads(tokenizer.to_json())
    for token in data.draw(st.lists(st.sampled_from(sorted(good["model"]["vocab"])), min_size=1, max_size=3)):
        good["model"]["vocab"][token] = data.draw(st.integers(-2, 270) | st.integers(0, 2**33))
    file = tmp_path_factory.getbasetemp() / "tokenizer.json"
    file.write_text(json.dumps(good))
    read(file)


def test_what_is_written_is_read(saved, tokenizer):
    assert _tokenizer_files  # written by `save` in conftest.py
    assert load(saved["flax"]).to_json() == tokenizer.to_json()
    used(load(saved["flax"]))
