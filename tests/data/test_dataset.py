import dataclasses
import itertools
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from gpt2_jax.config import DataConfig
from gpt2_jax.data import dataset
from gpt2_jax.data.dataset import evaluation_batches, open_split, train_batches
from gpt2_jax.data.mixture import Mixture
from gpt2_jax.data.prepare import prepare
from gpt2_jax.data.rows import Rows
from gpt2_jax.data.windows import positions, segments
from gpt2_jax.errors import InputError


@dataclasses.dataclass
class Counted:
    """Tokens `first`, `first + 1`, ... in shards: a token is its own position."""

    train: int
    validation: int = 0
    shard: int = 10**9
    first: int = 0
    masked: bool = False
    tokenizer = types.SimpleNamespace(end_of_text=-1)

    def tokens(self, split: str) -> list[np.ndarray]:
        n = getattr(self, split)
        return np.split(np.arange(self.first, self.first + n, dtype=np.uint32), range(self.shard, n, self.shard))

    def learnt(self, split: str) -> list[np.ndarray] | None:
        return [np.packbits(is_learnt(shard)) for shard in self.tokens(split)] if self.masked else None


def is_learnt(tokens: np.ndarray) -> np.ndarray:
    return tokens * 7 % 10 < 6


@dataclasses.dataclass
class Poems(Counted):
    """Documents of 1 to 12 tokens, each followed by end-of-text, 0; other tokens count up to 1000."""

    tokenizer = types.SimpleNamespace(end_of_text=0)

    def tokens(self, split: str) -> list[np.ndarray]:
        n = getattr(self, split)
        tokens = self.first + np.arange(n, dtype=np.uint32) % 1000 + 1
        ends = np.cumsum(np.random.default_rng(0).integers(2, 14, n))
        tokens[ends[ends < n]] = 0
        return np.split(tokens, range(self.shard, n, self.shard))


ALL = {
    "reweighing": [(0, {"a": 3.0, "b": 1.0}), (4, {"a": 1.0, "b": 1.0})],
    "mask_documents": True,
    "restart_positions": True,
}


def mixed() -> dict[str, Poems]:
    return {"a": Poems(700, shard=123), "b": Poems(400, shard=99, first=2000, masked=True)}


def take(batches, n: int) -> np.ndarray:
    """The tokens of `n` batches [n, B, T+1]."""
    return np.stack([batch["tokens"] for batch in itertools.islice(batches, n)])


@given(st.integers(1, 50), st.integers(1, 60), st.data())
def test_windows_cross_shards(shard, n, data):
    tokens, learnt = open_split(Counted(n, shard=shard, masked=True), "train")
    start = data.draw(st.integers(0, n))
    row, mask = np.full(data.draw(st.integers(1, 70)), -1, np.int32), np.zeros(70, bool)
    assert len(tokens) == n
    wanted = np.arange(start, min(start + len(row), n))
    assert tokens.read(start, row) == len(wanted)
    assert row.tolist() == wanted.tolist() + [-1] * (len(row) - len(wanted))
    assert learnt.read(start, mask[: len(row)]) == len(wanted)
    assert mask.tolist() == is_learnt(wanted).tolist() + [False] * (70 - len(wanted))


@pytest.mark.parametrize("n", [9, 10, 15, 16, 17, 24, 25, 1000, 1007])
def test_every_epoch_visits_each_window_once(n):
    T, epochs = 8, 6
    windows = max(1, (n - T) // T)
    rows = take(train_batches(Counted(n, shard=7), batch_size=1, sequence_length=T, seed=3), windows * epochs)[:, 0]
    assert (np.diff(rows) == 1).all()
    assert rows.max() < n
    starts = rows[:, 0].reshape(epochs, windows)
    for epoch in starts:
        assert np.diff(np.sort(epoch)).tolist() == [T] * (windows - 1)
        assert 0 <= epoch.min() < T
    if windows > 10:
        assert len({tuple(np.argsort(epoch)) for epoch in starts}) == epochs
        assert len({epoch.min() for epoch in starts}) > 1


def test_batches_cross_epochs():
    n, T = 100, 8
    windows = (n - T) // T
    one_by_one = take(train_batches(Counted(n), batch_size=1, sequence_length=T, seed=0), 3 * windows)
    together = take(train_batches(Counted(n), batch_size=3, sequence_length=T, seed=0), windows)
    assert together.reshape(-1, T + 1).tolist() == one_by_one.reshape(-1, T + 1).tolist()


def test_what_a_batch_is():
    batch = next(train_batches(Counted(100), batch_size=4, sequence_length=8, seed=0))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "tokens": ((4, 9), np.int32),
        "mask": ((4, 8), bool),
    }
    assert batch["mask"].all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 40), st.sampled_from([1, 2, 3, 6]), st.integers(0, 10**6))
def test_resumed_and_shared_batches_are_the_same(seed, step, processes, base):
    make = lambda **more: train_batches(Counted(500, shard=123), batch_size=6, sequence_length=16, seed=seed, **more)
    uninterrupted = take(make(start_step=base), step + 2)
    assert (take(make(start_step=base + step), 2) == uninterrupted[step:]).all()
    shared = [take(make(start_step=base + step, rows=Rows.part(p, processes)), 2) for p in range(processes)]
    assert (np.concatenate(shared, axis=1) == uninterrupted[step:]).all()


def test_far_steps_come_at_once():
    batches = train_batches(Counted(10**6), batch_size=512, sequence_length=1024, seed=1, start_step=10**12)
    assert next(batches)["tokens"].shape == (512, 1025)


def test_the_order_is_that_of_earlier_versions():
    """A run resumed after an upgrade of TensorFlow or numpy must go on with the same batches."""
    batches = train_batches(Counted(100), batch_size=6, sequence_length=8, seed=7)
    assert take(batches, 3)[:, :, 0].tolist() == [
        [23, 31, 63, 87, 39, 71],
        [79, 55, 47, 7, 15, 70],
        [86, 54, 62, 14, 78, 46],
    ]


def test_many_small_batches_at_once_are_the_same_as_one_by_one(monkeypatch):
    make = lambda: take(train_batches(Counted(500), batch_size=3, sequence_length=8, seed=1, start_step=5), 200)
    together = make()
    monkeypatch.setattr(dataset, "CHUNK_WINDOWS", 1)
    assert (make() == together).all()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 40), st.sampled_from([1, 2, 4]), st.integers(0, 10**6))
def test_with_every_option_resumed_and_shared_batches_are_the_same(seed, step, processes, base):
    make = lambda **more: train_batches(mixed(), batch_size=8, sequence_length=16, seed=seed, **ALL, **more)
    some = lambda batches: list(itertools.islice(batches, 2))
    uninterrupted = list(itertools.islice(make(start_step=base), step + 2))[step:]
    shared = [some(make(start_step=base + step, rows=Rows.part(p, processes))) for p in range(processes)]
    for whole, parts in zip(uninterrupted, zip(*shared)):
        assert list(whole) == ["tokens", "mask", "segments", "positions"]
        for name in whole:
            assert (np.concatenate([part[name] for part in parts]) == whole[name]).all()


def test_a_mixture_takes_each_source_through_epochs_of_its_own():
    T, steps = 8, 300
    rows = take(train_batches(mixed(), batch_size=4, sequence_length=T, seed=3, **ALL), steps).reshape(-1, T + 1)
    is_b = rows.max(1) > 2000
    assert is_b[:16].sum() == (Mixture("ab", ALL["reweighing"], seed=3, batch_size=4).locate(np.arange(16))[0]).sum()
    for name, mine in {"a": rows[~is_b], "b": rows[is_b]}.items():
        whole = np.concatenate(mixed()[name].tokens("train"))
        text = sliding_window_view(whole, T + 1)
        starts = [int(np.flatnonzero((text == row).all(1))[0]) for row in mine]
        per_epoch = (len(whole) - T) // T
        epochs = [sorted(starts[i : i + per_epoch]) for i in range(0, len(starts) - per_epoch, per_epoch)]
        assert len(epochs) > 3
        assert all(np.diff(epoch).tolist() == [T] * (per_epoch - 1) for epoch in epochs)


def test_entries_that_options_add():
    batch = next(train_batches(mixed(), batch_size=16, sequence_length=32, seed=0, **ALL))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "tokens": ((16, 33), np.int32),
        "mask": ((16, 32), bool),
        "segments": ((16, 32), np.int32),
        "positions": ((16, 32), np.int32),
    }
    assert (batch["segments"] == segments(batch["tokens"], 0)).all() and batch["segments"].max() > 1
    assert (batch["positions"] == positions(batch["tokens"], 0)).all() and (batch["positions"][:, 5:] == 0).any()


def test_only_targets_that_are_learnt_count():
    masked = Counted(1000, 300, shard=77, masked=True)
    for batch in itertools.islice(train_batches(masked, batch_size=8, sequence_length=16, seed=0), 20):
        assert (batch["mask"] == is_learnt(batch["tokens"][:, 1:])).all()
    found = []
    for batch in evaluation_batches(masked, batch_size=8, sequence_length=16):
        found += batch["tokens"][:, 1:][batch["mask"]].tolist()
    assert found == [token for token in range(1, 300) if is_learnt(token)]
    both = {"masked": masked, "plain": Counted(1000, first=5000)}
    reweighing = [(0, {"masked": 1.0, "plain": 1.0})]
    batch = next(train_batches(both, batch_size=32, sequence_length=16, seed=0, reweighing=reweighing))
    targets = batch["tokens"][:, 1:]
    assert (batch["mask"] == (is_learnt(targets) | (targets >= 5000))).all()


def test_evaluation_tells_documents_apart():
    batches = evaluation_batches(Poems(0, 100), batch_size=4, sequence_length=16, mask_documents=True)
    for batch in batches:
        assert list(batch) == ["tokens", "mask", "segments"]
        assert (batch["segments"] == segments(batch["tokens"], 0)).all()


def test_the_order_of_mixtures_is_that_of_earlier_versions():
    sources = {"a": Counted(100), "b": Counted(60, first=1000)}
    reweighing = [(0, {"a": 1.0, "b": 1.0})]
    batches = train_batches(sources, batch_size=6, sequence_length=8, seed=7, reweighing=reweighing)
    assert take(batches, 3)[:, :, 0].tolist() == [
        [1013, 23, 1029, 31, 63, 1021],
        [1045, 1005, 87, 1037, 1016, 1008],
        [39, 1000, 1040, 71, 1024, 1032],
    ]


def test_seeds_differ():
    first, second = (take(train_batches(Counted(5000), batch_size=8, sequence_length=8, seed=s), 4) for s in (1, 2))
    assert (first != second).any()


@pytest.mark.parametrize("batch_size", [1, 4, 6])
@pytest.mark.parametrize("n", [2, 8, 9, 10, 17, 100])
def test_evaluation_predicts_each_token_once(n, batch_size):
    predicted = []
    for batch in evaluation_batches(Counted(0, n, shard=5), batch_size=batch_size, sequence_length=8):
        tokens, mask = batch["tokens"], batch["mask"]
        assert (tokens.shape, tokens.dtype, mask.shape, mask.dtype) == (
            (batch_size, 9),
            np.int32,
            (batch_size, 8),
            bool,
        )
        assert (tokens[:, 1:] - tokens[:, :-1] == 1)[mask].all()
        assert (tokens[:, 1:][~mask] == 0).all()
        predicted += tokens[:, 1:][mask].tolist()
    assert predicted == list(range(1, n))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("windows", [0, 5])
def test_evaluation_is_shared_out(processes, windows):
    make = lambda **more: list(
        evaluation_batches(Counted(0, 150), batch_size=6, sequence_length=8, windows=windows, **more)
    )
    parts = [make(rows=Rows.part(p, processes)) for p in range(processes)]
    alone = make()
    assert {len(part) for part in parts} == {len(alone)}
    for key in ("tokens", "mask"):
        for i, batch in enumerate(alone):
            assert (np.concatenate([part[i][key] for part in parts]) == batch[key]).all()


@pytest.mark.parametrize(
    ("windows", "starts"), [(1, [0]), (3, [0, 48, 96]), (13, range(0, 97, 8)), (99, range(0, 97, 8))]
)
def test_evaluation_windows_are_spread(windows, starts):
    batches = evaluation_batches(Counted(0, 100), batch_size=4, sequence_length=8, windows=windows)
    found = [int(row[0]) for b in batches for row, mask in zip(b["tokens"], b["mask"]) if mask.any()]
    assert found == list(starts)


def test_errors():
    def message(batches, prepared, **options):
        with pytest.raises(InputError) as caught:
            batches(prepared, **{"batch_size": 4, "sequence_length": 1024} | options)
        return str(caught.value)

    assert message(train_batches, Counted(812), seed=0) == (
        "the training split has 812 tokens; training.sequence_length is 1024 and needs at least 1025: use "
        "--config.training.sequence_length=811 or less, or more text"
    )
    both = {"long": Counted(2000), "short": Counted(5)}
    assert message(train_batches, both, seed=0, reweighing=[(0, {"long": 1.0, "short": 1.0})]).startswith(
        "the training split of short has 5 tokens; training.sequence_length is 1024"
    )
    assert message(evaluation_batches, Counted(0, 1)) == (
        "the validation split has 1 token, and predicting needs 2: use more text or a larger"
        " --config.data.validation_fraction"
    )
    for batches, options in ((train_batches, {"seed": 0}), (evaluation_batches, {})):
        assert message(batches, Counted(2000, 2000), rows=Rows.part(0, 3), **options) == (
            "batch_size is 4; it must be a multiple of 3, the parts of a batch that the processes share: change"
            " --config.training.batch_size or --config.evaluation.batch_size"
        )


def test_prepared_text_comes_back(tmp_path):
    text = "".join(f"line {i} of the story\n" for i in range(300))
    (tmp_path / "story.txt").write_text(text)
    config = DataConfig(
        source="files", paths=str(tmp_path / "story.txt"), tokenizer="characters", tokens_per_shard=1000
    )
    (prepared,) = prepare(config, tmp_path / "data", progress=lambda _: None).values()
    assert len(prepared.tokens("train")) > 3
    batch = next(train_batches(prepared, batch_size=16, sequence_length=300, seed=0))
    assert all(prepared.tokenizer.decode(row) in text for row in batch["tokens"])
    (batch,) = evaluation_batches(prepared, batch_size=1, sequence_length=1000)
    validation = text[int(len(text) * 0.95) :]
    assert prepared.tokenizer.decode(batch["tokens"][0][: len(validation)]) == validation
