import json
import re
import time

import jax
import numpy as np
import pytest
from test_loop import curve, options

from gpt2_jax import Config, InputError
from gpt2_jax.training import loop
from gpt2_jax.training.accounting import ACTIVITIES, Clock, in_tenths


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of 6 steps with steps 3 and 4 traced."""
    folder = tmp_path_factory.mktemp("traced")
    loop.train(options(folder, steps=6) | {"profile": {"start": 3, "steps": 2}}, folder / "run")
    return folder


def test_each_moment_counts_for_one_activity():
    clock = Clock()
    with clock.on("evaluation"):
        time.sleep(0.02)
        with clock.on("data_wait"):
            time.sleep(0.2)
    with pytest.raises(ValueError), clock.on("checkpoint"):
        time.sleep(0.01)
        raise ValueError
    time.sleep(0.01)
    shares = clock.shares()
    assert sum(shares.values()) == pytest.approx(1) and set(shares) == {"training", *ACTIVITIES[2:]}
    assert clock.seconds["data_wait"] >= 0.2 and 0.02 <= clock.seconds["evaluation"] < 0.2
    assert clock.seconds["checkpoint"] >= 0.01 and clock.seconds["other"] >= 0.01


def test_compiling_is_told_from_what_it_is_part_of():
    told = []
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jax.nn.gelu(x @ x), x))
    x = np.ones((4, 4), np.float32)
    with Clock(told.append) as clock:
        start = time.perf_counter()
        for step in (1, 2):
            with clock.dispatching(step):
                slow(x).block_until_ready()
        took = time.perf_counter() - start
    assert 0 < clock.seconds["compile"] < took and clock.seconds["dispatch"] >= 0
    assert took / 2 < clock.seconds["compile"] + clock.seconds["dispatch"] <= took
    assert len(told) == 1 and re.fullmatch(r"step +1  training step traced and compiled in \d+\.\d s", told[0])
    counted = clock.seconds["compile"]
    jax.jit(lambda x: x + 2)(x)  # the clock listens no more
    assert clock.seconds["compile"] == counted


def test_nested_spans_count_once():
    clock = Clock()
    clock.seconds["other"] = 10.0
    event = "/jax/core/compile/jaxpr_trace_duration"
    for start, end in ((1.0, 2.0), (3.0, 4.0), (0.5, 5.0), (6.0, 7.0)):  # the third holds those before it
        clock._compiled(event, start, end)
    clock._compiled("/jax/another", 8.0, 9.0)
    assert clock.seconds["compile"] == pytest.approx(5.5)


def test_the_cache_is_named_where_the_step_came_from_it():
    told = []
    clock = Clock(told.append)
    clock.seconds["dispatch"] = 10.0
    for step, events in ((1, ("compile_requests_use_cache", "cache_hits")), (2, ("compile_requests_use_cache",))):
        with clock.dispatching(step):
            for event in events:
                clock._event(f"/jax/compilation_cache/{event}")
            clock._compiled("/jax/core/compile/backend_compile_duration", step, step + 0.5)
    assert [line.endswith("0.5 s (from the persistent cache)") for line in told] == [True, False]


@pytest.mark.parametrize("shares", [[1 / 3] * 3, [0.0005] * 20 + [0.99], [1.0, 0.0], [1 / 7] * 7])
def test_printed_shares_sum_to_100(shares):
    tenths = in_tenths(dict(enumerate(shares)))
    assert sum(tenths) == 1000 and all(abs(t - 1000 * s) < 1 for t, s in zip(tenths, shares))


def test_a_run_accounts_for_its_time(traced):
    log = (traced / "run" / "train.log").read_text()
    (line,) = re.findall(r"goodput: (.*)", log)
    parts = re.findall(r"([a-z ]+) (\d+\.\d) %", line)
    assert [name.strip() for name, _ in parts] == [
        "training", "data wait", "evaluation", "checkpoint", "compile", "other",
    ]  # fmt: skip
    assert sum(float(share) for _, share in parts) == pytest.approx(100)
    assert len(re.findall(r"step +1  training step traced and compiled in", log)) == 1
    assert len(re.findall("traced and compiled", log)) == 1  # and never again

    lines = [json.loads(line) for line in (traced / "run" / "metrics.jsonl").read_text().splitlines()]
    (times,) = [line for line in lines if "time/training" in line]
    assert times.pop("step") == 6 and sum(times.values()) == pytest.approx(1) and min(times.values()) > 0


def test_a_window_is_traced_and_changes_no_loss(traced, capfd):
    files = list((traced / "run" / "profile").rglob("*.xplane.pb"))
    assert len(files) == 1
    trace = jax.profiler.ProfileData.from_file(str(files[0]))
    events = [
        (event.name, dict(event.stats)) for plane in trace.planes for line in plane.lines for event in line.events
    ]
    assert sorted(stats["step_num"] for name, stats in events if name == "train") == [3, 4]

    config = options(traced, steps=6)
    loop.train(config, traced / "plain")
    assert curve(traced / "plain") == curve(traced / "run") and not (traced / "plain" / "profile").exists()
    capfd.readouterr()
    # Going on behind the window: allowed, and said.
    loop.train(options(traced, steps=8) | {"profile": {"start": 2}}, traced / "plain")
    assert "nothing is traced: profile.start (2) is before this run, which goes on from 6" in capfd.readouterr().out


def test_a_run_that_ends_in_the_window_writes_it(traced):
    config = options(traced, steps=8) | {"profile": {"start": 8, "steps": 100}}
    loop.train(config, traced / "run")
    assert len(list((traced / "run" / "profile").rglob("*.xplane.pb"))) == 2


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"start": -1}, r"profile.start is -1; it must be 0 \(off\) or the number of a step"),
        ({"start": 2000}, r"profile.start is 2000; it must be at most training.steps \(1000\)"),
        ({"steps": 0}, "profile.steps is 0; it must be at least 1"),
    ],
)
def test_windows_that_cannot_be(profile, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict({"profile": profile})
