import errno
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_jax.config import Config, MeshConfig
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.sharding import make_mesh
from gpt2_jax.training import metrics
from gpt2_jax.training.accounting import Clock


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
     ("NVIDIA H100 NVL", 835e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12),
     ("NVIDIA L40", 181e12), ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5e", 197e12), ("TPU v5", 459e12),
     ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("cpu", None), ("NVIDIA GeForce RTX 9999", None)],
)  # fmt: skip
def test_peaks_of_known_devices_only(kind, peak):
    assert metrics.peak_flops(SimpleNamespace(device_kind=kind)) == peak


def test_flops_of_gpt2_small():
    # Matrices: per block 12 C^2 and 13 C of biases and norms; the tied embedding; the last norm.
    C, L, V, T = 768, 12, 50257, 1024
    matrices = L * (12 * C * C + 13 * C) + V * C + 2 * C
    expected = 6 * matrices + 12 * L * C * T
    assert metrics.flops_per_token(GPT2Config(), 124_439_808, T) == expected


def test_mfu_is_absent_on_cpu_and_right_where_the_peak_is_known(monkeypatch):
    config = Config.from_dict({"training": {"batch_size": 8}})
    mesh = make_mesh(MeshConfig())

    def read():
        meter = metrics.Meter(config, 124_439_808, mesh, Clock())
        meter.waiting(lambda: time.sleep(0.002))
        meter.waiting(lambda: time.sleep(0.004), on="device_wait")
        meter.count_step()
        return meter.read()

    values = read()
    assert set(values) == {"tokens_per_second", "step_seconds", "data_wait", "dispatch", "device_wait"}
    assert 0 == values["dispatch"] < values["data_wait"] and values["device_wait"] < 1
    assert values["tokens_per_second"] * values["step_seconds"] == pytest.approx(8 * 1024)
    monkeypatch.setattr("gpt2_jax.training.flops.PEAK_FLOPS", (("cpu", 1e12),))
    values = read()
    flops = metrics.flops_per_token(config.model, 124_439_808, 1024)
    assert values["mfu"] == pytest.approx(values["tokens_per_second"] * flops / (8 * 1e12))


def test_jsonl_has_one_object_a_line_and_forgets_what_will_be_written_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    writer = metrics.JsonlWriter(file, from_step=0)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"train_loss": np.float32(step)})
    writer.write_texts(2, {"sample": "a\nb"})
    writer.close()
    with file.open("a") as broken:
        broken.write('{"step": 3, "val_l')
    writer = metrics.JsonlWriter(file, from_step=2)
    writer.write_scalars(3, {"train_loss": 30.0})
    writer.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 1, "train_loss": 1.0},
        {"step": 2, "train_loss": 2.0},
        {"step": 2, "sample": "a\nb"},
        {"step": 3, "train_loss": 30.0},
    ]


def test_writers_are_closed_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), metrics.open_writer(tmp_path, from_step=0, tell=print) as writer:
        writer.write_scalars(1, {"train_loss": 1.0})
        raise RuntimeError
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train_loss": 1.0}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_what_cannot_be_written_stops_nothing_and_is_told_once(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    write, told = metrics.JsonlWriter._write, []

    def full_at_times(writer, step, values):
        if step in (2, 3):
            writer._file.write(json.dumps(values)[:5])  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, step, values)

    monkeypatch.setattr(metrics.JsonlWriter, "_write", full_at_times)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a": 1.0}\n{"step": 7, "of": "another attempt"}\n')
    with metrics.open_writer(tmp_path, from_step=0, tell=told.append) as writer:
        for step in range(1, 6):
            writer.write_scalars(step, {"a": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "a": 1.0} for step in (0, 1, 4, 5)]
    assert len(told) == 3
    assert told[0].startswith(f"{tmp_path / 'tensorboard'} cannot be written (") and "Not a directory" in told[0]
    assert told[1] == (
        f"{tmp_path / 'metrics.jsonl'} cannot be written ([Errno 28] No space left on device): training goes on without"
    )
    assert told[2] == f"{tmp_path / 'metrics.jsonl'} can be written again"
