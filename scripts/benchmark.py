"""Times training and generation with random weights; prints one JSON line a workload, its `value` a median.

python scripts/benchmark.py
python scripts/benchmark.py --workloads=gen_b1,prefill --preset=gpt2-medium

train_fp32_b{4x256,1x1024}: an optimizer step of AdamW with clipping, without dropout. eval_b{1,4}x1024: its loss alone.
first_step_{12,24,36,48}_layers: seconds to trace and compile a training step of such a depth, of width 256.
gen_b{1,8}_{greedy,sample}: 128 new tokens after 32; sample is top-k 50, then top-p 0.95.
prefill_b1x1024: the last of 1024 tokens after the others. decode_b1_context{128,512,1024}: the last 64 tokens of such a
context, streamed. serving_b{1,8,16}: so many requests at once to a Batcher, for the texts of gen_b{1,8,16}_greedy.
serving_first_token: seconds to the first token of one more while 8 are written. first_token_warm, first_token_cold:
seconds to the first token of a stream, and of a new process that loads the model from a file and finds the compiled
programs in the cache.
"""

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import gpt2_jax
from gpt2_jax import GPT2, GPT2Config, LanguageModel, compilation_cache
from gpt2_jax.config import Config, MeshConfig
from gpt2_jax.serving.batcher import Batcher
from gpt2_jax.sharding import make_mesh
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training.memory import keep_freed_memory
from gpt2_jax.training.options import TrainingConfig
from gpt2_jax.training.program import Program
from gpt2_jax.training.step import Batch

WORKLOADS = flags.DEFINE_list("workloads", [], "Beginnings of the names of the workloads to run; all by default.")
PRESET = flags.DEFINE_enum("preset", "gpt2", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"], "Size of the model.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations and matrix products.")
REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Undisturbed repetitions of each workload.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 40, "Stop repeating a workload after this time, disturbed or not.")

PROMPT, NEW, STREAMED = 32, 128, 64
DISTURBED = 0.04  # share of the processors that others had: such a repetition counts only if there are no two better
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NEVER_END = {"eos_token_id": ()}
GREEDY = {"temperature": 0}
SAMPLE = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
COLD = (
    "import sys, gpt2_jax; lm = gpt2_jax.load(sys.argv[1], dtype=sys.argv[2]); "
    "print(next(lm.stream([1] * 32, max_new_tokens=128, temperature=0, eos_token_id=())), flush=True)"
)


def busy_seconds() -> float:
    """Of all processors, since the machine started; NaN where it does not say (Linux only)."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, soft, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return float("nan")
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def repeat(run: Callable[[], float]) -> tuple[list[float], list[float]]:
    """The seconds that `run` returns of each repetition, and the share of the processors that others had meanwhile."""
    run()  # compiles
    seconds, foreign, began = [], [], time.perf_counter()
    while sum(not share >= DISTURBED for share in foreign) < REPETITIONS.value:
        own, busy, start = sum(os.times()[:4]), busy_seconds(), time.perf_counter()
        seconds.append(run())
        others = busy_seconds() - busy - (sum(os.times()[:4]) - own)
        foreign.append(max(0.0, others / os.cpu_count() / (time.perf_counter() - start)))
        if len(seconds) > 1 and time.perf_counter() - began > SECONDS.value:
            break
    return seconds, foreign


def report(workload: str, tokens: int | None, seconds: list[float], foreign: list[float]) -> None:
    """Prints tokens per second, or seconds where `tokens` is None."""
    values = [tokens / s if tokens else s for s in seconds]
    clean = [value for value, share in zip(values, foreign) if not share >= DISTURBED]
    counted = clean if len(clean) > 1 else values
    record = {
        "peer": "gpt2_jax", "workload": workload, "unit": "tokens/s" if tokens else "s",
        "value": round(statistics.median(counted), 3), "lo": round(min(counted), 3), "hi": round(max(counted), 3),
        "n": len(values), "clean": len(clean), "foreign": round(statistics.median(foreign), 3),
        "rates": [round(value, 3) for value in values], "foreigns": [round(share, 3) for share in foreign],
        "preset": PRESET.value, "dtype": DTYPE.value, "device": jax.devices()[0].device_kind, "ncpu": os.cpu_count(),
        "jax": jax.__version__, "at": time.strftime("%H:%M:%S"),
    }  # fmt: skip
    print(json.dumps(record), flush=True)


def model_config(**options) -> GPT2Config:
    return GPT2Config(**gpt2_jax.preset(PRESET.value), dtype=DTYPE.value, **options)


@functools.cache
def random_model() -> LanguageModel:
    """Random weights, and a tokenizer to which each id is one character."""
    compilation_cache.enable()
    config = model_config()
    model = jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0))
    characters = "".join(chr(0x20000 + i) for i in range(config.vocab_size - 1))  # and end-of-text
    return LanguageModel(model, train_characters([characters]))


@functools.cache
def batcher() -> Batcher:
    return Batcher(random_model())


def program_of(model: GPT2Config, batch_size: int, length: int) -> tuple[Program, Batch]:
    """(what a run on one device would jit, a batch of random tokens)."""
    keep_freed_memory()
    training = TrainingConfig(batch_size=batch_size, sequence_length=length)
    program = Program.of(Config(model, training=training), make_mesh(MeshConfig(), jax.devices()[:1]))
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (batch_size, length + 1), np.int32)
    return program, {"tokens": jnp.asarray(tokens), "mask": jnp.ones((batch_size, length), bool)}


def first_step(layers: int) -> float:
    """Seconds to trace and compile, without what earlier calls left."""
    jax.clear_caches()
    program, batch = program_of(GPT2Config(n_layer=layers, n_embd=256, n_head=4, dtype=DTYPE.value), 1, 128)
    return timed(lambda: program.train_step.lower(program.shapes, batch).compile())


def train(batch_size: int, length: int) -> Iterator[float]:
    """Seconds of one step after another."""
    program, batch = program_of(model_config(**NO_DROPOUT), batch_size, length)
    state = jax.jit(program.init, out_shardings=program.shardings)()
    while True:
        start = time.perf_counter()
        state, metrics = program.train_step(state, batch)
        jax.block_until_ready(metrics)
        yield time.perf_counter() - start


def evaluate(batch_size: int, length: int) -> Iterator[float]:
    """Seconds of one evaluation after another."""
    program, batch = program_of(model_config(**NO_DROPOUT), batch_size, length)
    model = jax.jit(GPT2, static_argnums=0)(program.model, jax.random.key(0))
    while True:
        yield timed(lambda: jax.block_until_ready(program.eval_step(model, batch)))


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; name workloads with --workloads=gen_b1,prefill")
    ids = np.random.default_rng(0).integers(0, model_config().vocab_size - 1, 8 * 1024)

    def generate(batch: int, prompt: int, new: int, **options) -> float:
        lm = random_model()
        prompts = list(ids[: batch * prompt].reshape(batch, prompt))
        return timed(lambda: lm.generate(prompts, max_new_tokens=new, **NEVER_END, **options))

    def serve(requests: int) -> float:
        submit = functools.partial(batcher().submit, max_new_tokens=NEW, **NEVER_END, **GREEDY)
        prompts = list(ids[: requests * PROMPT].reshape(requests, PROMPT))
        return timed(lambda: [stream.result() for stream in list(map(submit, prompts))])

    def first_token_beside_others() -> float:
        """Seconds, while 8 other texts are written."""
        submit = functools.partial(batcher().submit, max_new_tokens=NEW, **NEVER_END, **GREEDY)
        others = [submit(prompt) for prompt in ids[: 8 * PROMPT].reshape(8, PROMPT)]
        for other in others:
            next(iter(other))
        one_more = submit(ids[:PROMPT])
        seconds = timed(lambda: next(iter(one_more)))
        for text in [*others, one_more]:
            text.cancel()
        return seconds

    def stream(prompt: int, new: int) -> list[float]:
        """Seconds from the call to each token."""
        lm = random_model()
        start = time.perf_counter()
        pieces = lm.stream(ids[:prompt], max_new_tokens=new, temperature=0, **NEVER_END)
        return [time.perf_counter() - start for _ in pieces]

    def last_tokens(context: int) -> float:
        times = stream(context - STREAMED, STREAMED)
        return times[-1] - times[0]

    def first_token_cold() -> float:
        if not os.listdir(folder):
            gpt2_jax.save(random_model(), folder)
        return timed(
            lambda: subprocess.run([sys.executable, "-c", COLD, folder, DTYPE.value], check=True, capture_output=True)
        )

    workloads: dict[str, tuple[int | None, Callable[[], float]]] = {}  # tokens of a run, and a run in seconds
    for layers in (12, 24, 36, 48):  # before the cache of compiled programs is in use
        workloads[f"first_step_{layers}_layers"] = None, functools.partial(first_step, layers)
    for batch, length in ((4, 256), (1, 1024)):
        kind = {"float32": "fp32", "bfloat16": "bf16"}[DTYPE.value]
        workloads[f"train_{kind}_b{batch}x{length}"] = batch * length, train(batch, length).__next__
    for batch in (1, 4):
        workloads[f"eval_b{batch}x1024"] = batch * 1024, evaluate(batch, 1024).__next__
    for batch, (mode, options) in itertools.product((1, 8), (("greedy", GREEDY), ("sample", SAMPLE))):
        run = functools.partial(generate, batch, PROMPT, NEW, **options)
        workloads[f"gen_b{batch}_{mode}"] = batch * NEW, run
    workloads["gen_b16_greedy"] = 16 * NEW, functools.partial(generate, 16, PROMPT, NEW, **GREEDY)
    for requests in (1, 8, 16):
        workloads[f"serving_b{requests}"] = requests * NEW, functools.partial(serve, requests)
    workloads["serving_first_token"] = None, first_token_beside_others
    workloads["prefill_b1x1024"] = 1023, lambda: generate(1, 1023, 1, **GREEDY)
    for context in (128, 512, 1024):
        workloads[f"decode_b1_context{context}"] = STREAMED - 1, functools.partial(last_tokens, context)
    workloads["first_token_warm"] = None, lambda: stream(PROMPT, NEW)[0]
    workloads["first_token_cold"] = None, first_token_cold

    for beginning in WORKLOADS.value:
        if not any(name.startswith(beginning) for name in workloads):
            raise app.UsageError(f"no workload begins with {beginning!r}; there are {', '.join(workloads)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in list(workloads):
            tokens, run = workloads.pop(name)  # and then free what it holds
            if not WORKLOADS.value or name.startswith(tuple(WORKLOADS.value)):
                report(name, tokens, *repeat(run))


if __name__ == "__main__":
    app.run(main)
