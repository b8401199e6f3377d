"""Parity with FlaxGPT2 (transformers 4.57.6) itself, on random weights that it wrote; cases.py has what is asked."""

import shutil

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax import LanguageModel, save, weights
from gpt2_jax.analysis.attention_maps import attention_weights
from gpt2_jax.config import MeshConfig, OptimizerConfig
from gpt2_jax.generation.chain import transform
from gpt2_jax.generation.logits import History
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import GPT2, parameter_name
from gpt2_jax.pretrained import load_config
from gpt2_jax.sharding import make_mesh, tree_shardings
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training.guard import GuardState
from gpt2_jax.training.optimizer import make_optimizer, make_schedule
from gpt2_jax.training.step import TrainState, make_train_step, sum_of_losses

MODELS = [name for name in cases.MODELS if name != "chatter"]
forward = jax.jit(lambda model, tokens: model(tokens))


def as_model(flat: dict[str, np.ndarray], prefix: str, like: GPT2) -> GPT2:
    """A tree named as FlaxGPT2's -> one like the stacked model `like`; independent of weights.py."""

    def read(name: str) -> np.ndarray:
        array = flat[f"{prefix}transformer/{name.replace('.', '/')}"]
        return array.T if name.endswith("kernel") else array

    def leaf(path, x):
        name = parameter_name(path)
        if name.startswith("h."):
            return np.stack([read(f"h.{i}.{name[2:]}") for i in range(like.config.n_layer)]).reshape(x.shape)
        array = read(name)
        return np.pad(array, ((0, x.shape[0] - len(array)), (0, 0))) if name == "wte.embedding" else array

    return jax.tree_util.tree_map_with_path(leaf, like)


def norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.ravel()))


def assert_trees_close(found, expected, *, rtol: float, atol: float):
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(found)[0], jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=parameter_name(path))


@pytest.mark.parametrize("name", MODELS)
def test_logits_scanned_and_unrolled(oracle, name):
    answers = oracle.answers(name)
    for stacked in (True, False):
        logits = forward(oracle.model(name, stacked=stacked), answers["tokens"][:, :-1])
        np.testing.assert_allclose(logits, answers["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_gradient(oracle, name):
    answers, model = oracle.answers(name), oracle.model(name)
    batch = {key: answers[key] for key in ("tokens", "mask")}
    mean = lambda model: sum_of_losses(model, batch) / batch["mask"].sum()
    loss, gradient = jax.jit(jax.value_and_grad(mean))(model)
    np.testing.assert_allclose(loss, answers["loss"], rtol=2e-6)
    # Sums over a batch in another order: errors are of the size of the largest terms.
    assert_trees_close(gradient, as_model(answers, "gradient:", model), rtol=1e-4, atol=2e-6)


def test_ten_steps_of_adamw(oracle):
    answers, model = oracle.answers("small"), oracle.model("small")
    config = OptimizerConfig(**cases.OPTIMIZER, schedule="constant", warmup_steps=0)
    tx = make_optimizer(config, cases.STEPS)
    train_step = jax.jit(make_train_step(tx, make_schedule(config, cases.STEPS)))
    key = jax.random.key_data(jax.random.key(0))
    # The dropout rates of its config.json are those of the oracle, 0.
    state = TrainState(jnp.zeros((), jnp.int32), model, tx.init(model), key, GuardState.fresh())
    losses = []
    for i in range(cases.STEPS):
        state, metrics = train_step(state, {name: answers[f"step {name}"][i] for name in ("tokens", "mask")})
        losses.append(metrics["loss"])
    np.testing.assert_allclose(losses, answers["step losses"], rtol=1e-5)
    trained, expected = (
        jax.tree_util.tree_leaves_with_path(m) for m in (state.model, as_model(answers, "trained:", model))
    )
    for (path, found), (_, wanted), start in zip(trained, expected, jax.tree.leaves(model)):
        name, error, way = parameter_name(path), np.asarray(found - wanted), np.asarray(wanted - start)
        if name == "h.attn.c_attn.bias":
            # A bias of the keys moves all scores of a query alike, and has no gradient but rounding, which Adam scales
            # up to steps of the learning rate, here and there in other directions.
            assert np.abs(answers["gradient:transformer/h/0/attn/c_attn/bias"][32:64]).max() < 1e-7
            error, way = np.delete(error, 1, axis=1), np.delete(way, 1, axis=1)
        # Where a gradient happens to be near 0, Adam scales rounding up as well: single numbers err more than the rest.
        assert norm(error) < 1e-3 * norm(way) and np.abs(error).max() < 1e-4, name


def test_bfloat16_is_as_near_to_float32_as_that_of_flaxgpt2(oracle):
    answers = oracle.answers("small")
    tokens, exact = answers["tokens"][:, :-1], answers["logits"]
    logits = forward(oracle.model("small", dtype="bfloat16"), tokens)
    errors, theirs = np.abs(logits - exact), np.abs(answers["logits in bfloat16"] - exact)
    # Both round at much the same places: the mean error differs by little, the largest of 13,000 by luck.
    assert errors.mean() < 1.1 * theirs.mean() and errors.max() < 1.5 * theirs.max()


@pytest.mark.parametrize("name", cases.ATTENTIONS)
def test_attention_weights(oracle, name):
    answers = oracle.answers(name)
    tokens, expected = answers["tokens"][0, :-1], answers["attentions"]
    model = oracle.model(name)
    found = [attention_weights(model, tokens, layer) for layer in range(model.config.n_layer)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_eight_devices_give_the_logits_of_one(oracle):
    answers, model = oracle.answers("wide"), oracle.model("wide")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    spread = oracle.model("wide", shardings=tree_shardings(model, mesh))
    assert len(spread.h.mlp.c_fc.kernel[...].sharding.device_set) == 8
    np.testing.assert_allclose(forward(spread, answers["tokens"][:, :-1]), answers["logits"], rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def chatter(oracle):
    tokenizer = train_characters(["abcdefgh"])
    assert tokenizer.end_of_text == cases.PROMPTS["end"]
    return LanguageModel(oracle.model("chatter"), tokenizer)


@pytest.mark.parametrize("name", cases.GENERATIONS)
def test_greedy_and_beam_search_token_for_token(oracle, chatter, name):
    answers, options, end = oracle.answers("chatter"), dict(cases.GENERATIONS[name]), cases.PROMPTS["end"]
    if "num_beams" not in options:
        options["temperature"] = 0
    found = chatter.generate(list(answers["prompts"]), max_new_tokens=cases.NEW_TOKENS, **options)
    expected = answers["generated:" + name]
    assert len(found) == len(expected)
    for result, row in zip(found, expected):
        padded = np.full(len(row), end)  # its rows are filled up with the end token
        padded[: len(result.tokens)] = result.tokens
        assert padded.tolist() == row.tolist()


@pytest.mark.parametrize("name", cases.TRANSFORMS)
def test_transforms_of_logits(oracle, name):
    answers = dict(np.load(oracle.folder / "transformed.npz"))
    options = dict(cases.TRANSFORMS[name][2])
    sampling = Sampling.of(cases.LOGITS["vocabulary"], **options)
    lengths = np.full(cases.LOGITS["rows"], cases.LOGITS["length"])
    history = History(tokens=answers["history"], lengths=lengths, prompt_lengths=lengths)
    ends = np.full(4, -1, np.int32)
    found = np.asarray(transform(answers["logits"], sampling, history, end_tokens=ends, limit=9))
    expected = np.maximum(answers["transformed:" + name], np.finfo(np.float32).min)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_is_saved_here_opens_there(oracle, flaxgpt2, tmp_path):
    name = "activation gelu"
    answers, model = oracle.answers(name), oracle.model(name)
    tokenizer = train_characters([chr(200 + i) for i in range(model.config.vocab_size - 1)])
    folders = [save(LanguageModel(model, tokenizer), tmp_path / form, form) for form in weights.FILES]
    flaxgpt2("open", *folders)
    for folder in folders:
        opened = dict(np.load(folder / "opened.npz"))
        jax.tree.map(np.testing.assert_array_equal, as_model(opened, "", model), model)
        np.testing.assert_allclose(opened["logits"], answers["logits"], rtol=0, atol=2e-5)  # and config.json's options
    own, theirs = (folder / "flax_model.msgpack" for folder in (tmp_path / "flax", oracle.folder / name))
    assert own.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("name", cases.SIZES)
def test_logits_of_the_published_sizes(request, name, tmp_path):
    if not request.config.getoption("--sizes"):
        pytest.skip("--sizes compares the published sizes: 6.3 GB of disk, 13 GB of memory, minutes")
    request.getfixturevalue("flaxgpt2")("answer", tmp_path, name)
    answers = dict(np.load(tmp_path / name / "answers.npz"))
    model = weights.load(weights.find(tmp_path / name), load_config(tmp_path / name))
    logits = forward(model, answers["tokens"][:, :-1])
    worst, largest = np.abs(logits - answers["logits"]).max(), np.abs(answers["logits"]).max()
    print(f"{name}: the logits, up to {largest:.2f}, differ by {worst:.2e} at most")
    shutil.rmtree(tmp_path)
    assert worst <= 2e-5
