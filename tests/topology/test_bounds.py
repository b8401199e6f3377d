"""Bounds follow by arithmetic that is done here by hand."""

import dataclasses

import pytest

from gpt2_jax.config import Config
from gpt2_jax.model import GPT2Config
from gpt2_jax.topology import bounds, chips
from gpt2_jax.topology.hlo import Collective

C, L, T, N = 768, 12, 1024, 124_439_808
MODEL = 6 * (N - 1024 * 768) + 12 * L * C * T  # a token


def config(**model):
    return Config.from_dict({"model": model, "training": {"batch_size": 8}})


def test_without_recomputation_all_that_is_run_is_the_models():
    model, run = bounds.train_flops(config(remat="none"), N, "xla")
    assert model == 8 * T * MODEL
    assert model - run == 8 * T * 12 * L * C * T * 0.4375  # 8 blocks of queries see 1, 2, ... and 8 of keys


def test_a_masked_kernel_runs_half_of_the_attention():
    model, run = bounds.train_flops(config(remat="none"), N, "splash")
    assert model - run == 8 * T * 6 * L * C * T


@pytest.mark.parametrize(
    ("remat", "matrices", "scores"),
    [("none", 0, 0), ("dots", 0, 0), ("named", 16 * L * C * C, 0), ("full", 16 * L * C * C, 1)],
)
def test_what_remat_repeats(remat, matrices, scores):
    assert bounds.recomputed(GPT2Config(remat=remat)) == (matrices, scores)


def test_a_decoded_token_reads_half_a_cache():
    assert bounds.decode_flops(GPT2Config(), N, 4) == 4 * (2 * (N - T * C) + 4 * L * C * T / 2)
    read = (N - T * C) + 4 * 2 * L * C * T / 2
    assert bounds.decode_traffic(GPT2Config(), N, 4) == 4 * read
    assert bounds.decode_traffic(GPT2Config(dtype="bfloat16"), N, 4) == 2 * read


def test_memory_traffic():
    memory = {"arguments": 100, "outputs": 80, "reused": 70, "temporary": 60, "peak": 140}
    assert bounds.train_traffic(memory) == 100 + 80 + 2 * 30


def collective(kind, groups, *, size=80.0, executions=2):
    return Collective(kind, size, groups, executions, "", "")


def test_bytes_sent():
    eight, slice_of = (tuple(range(8)),), [0] * 4 + [1] * 4
    sent = lambda c, slices: tuple(bounds.sent_bytes([c], slices).values())
    assert sent(collective("all-gather", eight), [0] * 8) == (2 * 70, 0)
    assert sent(collective("reduce-scatter", eight), [0] * 8) == (2 * 70, 0)
    assert sent(collective("all-reduce", eight), [0] * 8) == (4 * 70, 0)
    assert sent(collective("collective-permute", ((0, 1), (1, 0))), [0] * 8) == (160, 0)
    between = dataclasses.replace(collective("all-reduce", ((1, 2),)), between_slices=True)
    assert sent(between, slice_of) == (0, 2 * 80)
    assert sent(collective("all-reduce", eight), slice_of) == (4 * 60, 4 * 80 / 4 / 2)
    assert sent(collective("all-reduce", ((0, 4), (1, 5))), slice_of) == (0, 4 * 80 / 2)
    assert sent(collective("collective-permute", ((0, 4), (4, 0))), slice_of) == (0, 160)


def test_the_longest_time_is_the_limit_and_the_ceiling_follows():
    v5e = chips.find("v5e-8")
    idle = {"interconnect": 0.0, "network": 0.0}
    whole = (8 * 197e12, 8 * 197e12 * 4 / 3)  # a second of the model's, a third of it again
    found = bounds.bound(v5e, 8, whole, 819e9 / 2, idle | {"interconnect": 50e9})
    assert found.seconds == pytest.approx({"compute": 4 / 3, "memory": 0.5, "interconnect": 0.5, "network": 0})
    assert found.limit == "compute" and found.mfu(8 * 197e12) == pytest.approx(0.75)
    slow = dataclasses.replace(found, seconds=found.seconds | {"interconnect": 2.0})
    assert slow.limit == "interconnect" and slow.mfu(8 * 197e12) == pytest.approx(0.5)


def test_one_chip_needs_no_links():
    found = bounds.bound(chips.find("v6e-1"), 1, (918e12,) * 2, 0, {"interconnect": 0.0, "network": 0.0})
    assert found.step_seconds == pytest.approx(1)


def test_adapters_leave_out_the_gradients_of_all_else():
    """4 of 6 FLOPs a parameter are left, and attention."""
    groups = {"data": {"tokenizer": "start"}, "finetune": {"start": "my_gpt2"}, "training": {"batch_size": 8}}
    full, adapters = (
        bounds.train_flops(Config.from_dict(groups | more), N, "xla")[0] for more in ({}, {"lora": {"rank": 8}})
    )
    assert full == 8 * T * MODEL
    assert full - adapters == pytest.approx(8 * T * 2 * (N - 1024 * 768), rel=0.01)
