"""Times text on its way to the device, and checks that a stream goes on exactly; prints one JSON line a measurement.

    python scripts/benchmark_data.py --paths=corpus/ --tokenizer=gpt2_folder
    python scripts/benchmark_data.py --paths=corpus/ --tokenizer=gpt2_folder --measure=encode,memory

prepared: tokens/s from 100 M tokens in four shards to batches of 8 x 1024, plain and with a mixture, loss masks and
documents apart, beside a bare numpy gather of such windows; seconds to the first batch at step ten million.
encode: MB/s of documents to tokens on one core, beside the encoder alone, in alternating rounds.
stream: seconds to the first batch, tokens/s; three resumes at random steps, the next 1000 batches compared.
memory: the peak of a process that prepares twice, and 50 times, as much text as is encoded at once (Linux only).
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core

import numpy as np
from absl import app, flags, logging

from gpt2_jax.data import dataset
from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.prepare import encoding_of
from gpt2_jax.data.prepared import Prepared
from gpt2_jax.data.sources import Source, open_source
from gpt2_jax.data.stream import Stream
from gpt2_jax.data.tokenize import BATCH_CHARACTERS
from gpt2_jax.tiktoken_encoding import tiktoken_encoder
from gpt2_jax.tokenizer_files import load

PATHS = flags.DEFINE_string("paths", None, "Text for encode, stream and memory: see data.paths.", required=True)
TOKENIZER = flags.DEFINE_string("tokenizer", None, "A tokenizer.json, a folder or a hub id.", required=True)
MEASURE = flags.DEFINE_list("measure", ["prepared", "encode", "stream", "memory"], "What to measure.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Alternating rounds of each comparison.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 100_000_000, "Of the prepared shards.", lower_bound=100_000)
BATCHES = flags.DEFINE_integer("batches", 1000, "Compared after each resume, and timed in a round.", lower_bound=1)

BATCH, LENGTH = 8, 1024
MEMORY = (
    "import sys; from gpt2_jax.data.options import DataConfig; from gpt2_jax.data.prepare import prepare; "
    "paths, tokenizer, out = sys.argv[1:]; "
    "options = dict(source='files', paths=paths, tokenizer=tokenizer, tokens_per_shard=1_000_000, workers=1); "
    "prepare(DataConfig(**options), out); "
    "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)


def report(measurement: str, unit: str, values: list[float], **more: object) -> None:
    record = {"measurement": measurement, "unit": unit, "value": round(statistics.median(values), 3)}
    print(json.dumps(record | {"values": [round(value, 3) for value in values]} | more), flush=True)


def alternate(runs: dict[str, Callable[[], float]], unit: str, beside: str) -> None:
    """Rates of each run in turn, and their ratios to that of `beside` in the same round."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS.value):
        for name, run in runs.items():
            rates[name].append(run())
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[beside]))
        report(name, unit, values, ratio=round(ratio, 3), beside=beside)


def random_shards(folder: Path, masked: bool) -> Prepared:
    """Four shards of random tokens, of documents of about 500 tokens."""
    tokenizer, rng = load(TOKENIZER.value), np.random.default_rng(0)
    shards, size = [], TOKENS.value // 4
    folder.mkdir()
    for i in range(4):
        tokens = rng.integers(0, len(tokenizer), size).astype(np.uint16)
        tokens[rng.integers(0, size, size // 500)] = tokenizer.end_of_text
        tokens.tofile(folder / f"{i}.bin")
        shard = {"file": f"{i}.bin", "tokens": size}
        if masked:
            np.packbits(rng.random(size) < 0.7).tofile(folder / f"{i}.mask")
            shard["mask"] = ""
        shards.append(shard)
    return Prepared(folder, {"dtype": "<u2", "splits": {"train": {"shards": shards}}}, tokenizer)


def measure_prepared(folder: Path) -> None:
    plain, masked = random_shards(folder / "plain", False), random_shards(folder / "masked", True)
    options = {"batch_size": BATCH, "sequence_length": LENGTH, "seed": 0}
    full = {"reweighing": [(0, {"a": 3.0, "b": 1.0})], "mask_documents": True, "restart_positions": True}

    def timed(batches: Iterator) -> float:
        next(batches)
        start = time.perf_counter()
        for _ in itertools.islice(batches, BATCHES.value):
            pass
        return BATCHES.value * BATCH * LENGTH / (time.perf_counter() - start)

    def gather() -> Iterator[np.ndarray]:
        shards, rng = plain.tokens("train"), np.random.default_rng(0)
        while True:
            batch = np.empty((BATCH, LENGTH + 1), np.int32)
            for row in batch:
                shard = shards[rng.integers(4)]
                at = rng.integers(len(shard) - LENGTH)
                row[:] = shard[at : at + LENGTH + 1]
            yield batch

    runs = {
        "prepared/numpy_gather": lambda: timed(gather()),
        "prepared/plain": lambda: timed(dataset.train_batches(plain, **options)),
        "prepared/everything": lambda: timed(dataset.train_batches({"a": plain, "b": masked}, **options, **full)),
    }
    alternate(runs, "tokens/s", "prepared/numpy_gather")
    seconds = []
    for _ in range(ROUNDS.value):
        start = time.perf_counter()
        next(dataset.train_batches(plain, **options, start_step=10_000_000))
        seconds.append(time.perf_counter() - start)
    report("prepared/first_batch_at_step_10_million", "s", seconds)


def corpus(**options: object) -> tuple[DataConfig, Source]:
    config = DataConfig(source="files", paths=PATHS.value, tokenizer=TOKENIZER.value, workers=1, **options)
    return config, open_source(config)


def measure_encode() -> None:
    tokenizer = load(TOKENIZER.value)
    documents = list(corpus()[1].documents())
    texts = [document.text for document in documents]
    size = sum(len(text.encode()) for text in texts) / 1e6

    def rate(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return size / (time.perf_counter() - start)

    for name, alone in (("tokenizers", tokenizer.encode_batch), ("tiktoken", tiktoken_encoder(tokenizer))):
        encoding = encoding_of(corpus(encoder=name)[0], "files", tokenizer)
        runs = {
            f"encode/{name}_alone": lambda alone=alone: rate(lambda: alone(texts)),
            f"encode/{name}": lambda encoding=encoding: rate(lambda: list(encoding.encode(documents))),
        }
        for run in runs.values():
            run()
        alternate(runs, "MB/s", f"encode/{name}_alone")


def measure_stream() -> None:
    config, source = corpus(road="stream", encoder="tiktoken")
    encoding = encoding_of(config, "files", load(TOKENIZER.value))

    def stream(**options: object) -> dataset.StreamedBatches:
        return dataset.StreamedBatches(
            Stream(
                {"files": source}, {"files": encoding}, [(0, {"files": 1.0})], batch_size=BATCH, sequence_length=LENGTH,
                validation_fraction=0.05, readers=config.readers, shuffle_windows=config.shuffle_windows, seed=0,
                mask_documents=True, **options,
            )
        )  # fmt: skip

    start = time.perf_counter()
    batches = stream()
    next(batches)
    report("stream/first_batch", "s", [time.perf_counter() - start])
    rng = np.random.default_rng()
    for _ in range(3):
        step = int(rng.integers(1, 3 * BATCHES.value))
        start = time.perf_counter()
        straight, after = stream(), None
        for _ in range(step):
            next(straight)
        rate = step * BATCH * LENGTH / (time.perf_counter() - start)
        after = stream(start_step=step, position=json.loads(json.dumps(straight.position.tolist())))
        same = sum(
            all(np.array_equal(a[key], b[key]) for key in a)
            for a, b in ((next(straight), next(after)) for _ in range(BATCHES.value))
        )
        epoch = int(after.position[..., 0].max())
        report("stream/rate", "tokens/s", [rate], step=step, identical=same, of=BATCHES.value, epoch=epoch)
        straight.close()
        after.close()
    batches.close()


def measure_memory(folder: Path) -> None:
    pieces = [
        document.text[start : start + 10_000]
        for document in corpus()[1].documents()
        for start in range(0, len(document.text), 10_000)
    ]
    for buffers in (2, 50):
        lines, characters = folder / f"{buffers}.jsonl", 0
        with lines.open("w") as file:
            for piece in itertools.cycle(pieces):
                file.write(json.dumps({"text": piece}) + "\n")
                characters += len(piece)
                if characters >= buffers * BATCH_CHARACTERS:
                    break
        command = [sys.executable, "-c", MEMORY, lines, TOKENIZER.value, folder / str(buffers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report(f"memory/{buffers}_buffers", "MB", [int(done.stdout) / 1024], corpus_MB=lines.stat().st_size / 1e6)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; choose with --measure=prepared,encode,stream,memory")
    measures = {"prepared", "encode", "stream", "memory"}
    if unknown := set(MEASURE.value) - measures:
        raise app.UsageError(f"--measure has {sorted(unknown)[0]!r}; there are {', '.join(sorted(measures))}")
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "prepared" in MEASURE.value:
            measure_prepared(folder)
        if "encode" in MEASURE.value:
            measure_encode()
        if "stream" in MEASURE.value:
            measure_stream()
        if "memory" in MEASURE.value:
            measure_memory(folder)


if __name__ == "__main__":
    app.run(main)
