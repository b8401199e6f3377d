import dataclasses
import threading
import time

import pytest

from gpt2_jax.config import DataConfig
from gpt2_jax.data import together
from gpt2_jax.data.together import prepare_together
from gpt2_jax.errors import InputError


@pytest.fixture
def story(tmp_path, monkeypatch) -> DataConfig:
    monkeypatch.setattr(together, "BEAT", 0.05)
    monkeypatch.setattr(together, "PATIENCE", 1.0)
    (tmp_path / "story.txt").write_text("Once upon a time. " * 30)
    return DataConfig(source="files", paths=str(tmp_path / "story.txt"), tokenizer="characters", workers=1)


def quiet(message: str) -> None:
    pass


def both(config, directory, progress=quiet):
    """What processes 0 and 1 get: tokens, or what is raised."""
    results = {}

    def run(index):
        try:
            results[index] = prepare_together(config, directory, index, 2, progress=progress if index == 0 else quiet)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in (1, 0)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results[0], results[1]


def test_one_prepares_and_all_have_the_tokens(story, tmp_path):
    messages = []
    first, second = both(story, tmp_path / "out", messages.append)
    assert first["files"].manifest == second["files"].manifest
    assert not (tmp_path / "out" / together.SIGN).exists()
    assert both(story, tmp_path / "out")[1]["files"].manifest == first["files"].manifest
    (alone,) = prepare_together(story, tmp_path / "alone", 0, 1, progress=quiet).values()
    assert alone.manifest == first["files"].manifest


def test_a_slow_one_is_waited_for(story, tmp_path):
    def slow(message):
        if "part 1 of" in message:
            time.sleep(2)

    first, second = both(story, tmp_path / "out", slow)
    assert first["files"].manifest == second["files"].manifest


def test_all_stop_when_it_fails(story, tmp_path):
    for _ in range(2):  # the second time beside the sign of the first
        first, second = both(dataclasses.replace(story, tokenizer="nowhere.json"), tmp_path / "out")
        assert isinstance(first, InputError) and "tokenizer 'nowhere.json' does not exist" in str(first)
        assert str(second) == f"process 0 of the run could not prepare {tmp_path / 'out'}: {first}"
    first, second = both(story, tmp_path / "out")
    assert first["files"].manifest == second["files"].manifest


def test_none_waits_for_a_dead_one(story, tmp_path):
    with pytest.raises(InputError, match=r"^process 0 of the run, which .*out, was not heard of for 1 seconds;"):
        prepare_together(story, tmp_path / "out", 1, 2)
