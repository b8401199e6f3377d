"""FlaxGPT2 of transformers 4.57.6 answers cases.py; .venv-oracle/bin/python runs this file.

    flaxgpt2.py answer FOLDER MODEL ...   makes a folder for each model: its random weights as save_pretrained writes
                                          them, and answers.npz
    flaxgpt2.py open FOLDER ...           writes what from_pretrained reads of each folder, and the logits that the
                                          model then gives for the same tokens, to its opened.npz

Parameters and gradients are named as in FlaxGPT2's own tree: "transformer/h/0/attn/c_attn/kernel".
"""

import functools
import sys
import zlib
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import FlaxGPT2LMHeadModel, GPT2Config


def new_model(name: str) -> FlaxGPT2LMHeadModel:
    shape = cases.SIZES[name] if name in cases.SIZES else cases.SMALL | cases.MODELS[name]
    config = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return FlaxGPT2LMHeadModel(config, _do_init=False)


def random_params(model: FlaxGPT2LMHeadModel, seed: int) -> dict:
    """Every number random, so that none can be left out or put elsewhere unseen.

    Products keep the magnitude of what goes in at any width, and logits are of magnitude 1.
    """
    rng = np.random.default_rng(seed)
    spread = {"kernel": model.config.n_embd**-0.5, "embedding": model.config.n_embd**-0.5, "bias": 0.1, "scale": 0.1}
    shapes = jax.eval_shape(functools.partial(model.init_weights, input_shape=(1, 1)), jax.random.PRNGKey(0))
    params = {}
    for path, leaf in sorted(flatten_dict(shapes).items()):
        params[path] = rng.standard_normal(leaf.shape, np.float32)
        params[path] *= np.float32(spread[path[-1]])
        if path[-1] == "scale":
            params[path] += 1
    return unflatten_dict(params)


def with_scaled_queries(params: dict, config: GPT2Config) -> dict:
    """FlaxGPT2 ignores both options that scale attention scores; scaling the queries instead is the same."""
    flat = dict(flatten_dict(params))
    for path, leaf in flat.items():
        if "c_attn" in path:
            factor = 1.0 if config.scale_attn_weights else (config.n_embd // config.n_head) ** 0.5
            factor /= int(path[2]) + 1 if config.scale_attn_by_inverse_layer_idx else 1
            rows = jnp.arange(3 * config.n_embd) < config.n_embd
            flat[path] = leaf * jnp.where(rows, factor, 1.0).reshape(-1, *[1] * (leaf.ndim - 1))
    return unflatten_dict(flat)


def logits_of(model: FlaxGPT2LMHeadModel, params: dict, tokens: jax.Array) -> jax.Array:
    return model(tokens, params=with_scaled_queries(params, model.config)).logits.astype(jnp.float32)


def loss_of(model: FlaxGPT2LMHeadModel, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """(the mean cross entropy where the mask is True, logits)."""
    logits = logits_of(model, params, batch["tokens"][:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
    return (losses * batch["mask"]).sum() / batch["mask"].sum(), logits


def make_batches(config: GPT2Config, count: int, seed: int) -> list[dict]:
    """Batches of 8 sequences over half the context, a tenth of whose positions do not count."""
    rng = np.random.default_rng(seed)
    shape = (8, config.n_positions // 2)
    return [
        {
            "tokens": rng.integers(0, config.vocab_size, (shape[0], shape[1] + 1), np.int32),
            "mask": rng.random(shape) < 0.9,
        }
        for _ in range(count)
    ]


def train(model: FlaxGPT2LMHeadModel, params: dict, batches: list[dict]) -> dict[str, np.ndarray]:
    """A constant learning rate after clipping by the global norm; kernels and embeddings decay."""
    o = cases.OPTIMIZER
    decays = lambda params: unflatten_dict({p: p[-1] in ("kernel", "embedding") for p in flatten_dict(params)})
    adamw = optax.adamw(
        o["learning_rate"], o["beta1"], o["beta2"], o["eps"], weight_decay=o["weight_decay"], mask=decays
    )
    tx = optax.chain(optax.clip_by_global_norm(o["clip_norm"]), adamw)

    @jax.jit
    def step(params, opt_state, batch):
        (loss, _), grads = jax.value_and_grad(functools.partial(loss_of, model), has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for batch in batches:
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
    return {"step losses": np.array(losses), **named("trained:", params)}


def generate(model: FlaxGPT2LMHeadModel, params: dict) -> dict[str, np.ndarray]:
    """Token ids [rows * num_return_sequences, length] for every set of options, filled up with the end token.

    Each prompt goes alone: in a batch, FlaxGPT2's beam search lets one row decide when another stops.
    """
    rows, length, end = cases.PROMPTS["rows"], cases.PROMPTS["length"], cases.PROMPTS["end"]
    prompts = np.random.default_rng(0).integers(0, end, (rows, length), np.int32)
    found = {"prompts": prompts}
    for name, options in cases.GENERATIONS.items():
        options = {"eos_token_id": end, "pad_token_id": end, "max_new_tokens": cases.NEW_TOKENS, **options}
        if options["eos_token_id"] == []:
            options["eos_token_id"] = model.config.vocab_size  # no token: without an id, it takes its config's
        if "min_new_tokens" in options:
            # It counts the prompt, and bans the end token at that length, too.
            options["min_length"] = options.pop("min_new_tokens") + length - 1
        call = jax.jit(
            lambda params, prompt, options=options: model.generate(prompt, params=params, **options).sequences
        )
        found["generated:" + name] = np.concatenate([call(params, row[None]) for row in prompts])
    return found


def raise_end(params: dict) -> None:
    """Adds to the logit of the end token, so that texts end."""
    end = params["transformer"]["wte"]["embedding"][cases.PROMPTS["end"]]
    params["transformer"]["ln_f"]["bias"] += end * (cases.PROMPTS["raise"] / (end @ end))


def transform() -> dict[str, np.ndarray]:
    """Random logits [B, V] and histories [B, T], and what the classes that change logits make of them."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((cases.LOGITS["rows"], cases.LOGITS["vocabulary"]), np.float32) * 3
    history = rng.integers(0, 3, (cases.LOGITS["rows"], cases.LOGITS["length"]), np.int32)
    found = {"logits": logits, "history": history}
    for name, (kind, arguments, _) in cases.TRANSFORMS.items():
        found["transformed:" + name] = getattr(transformers, kind)(*arguments)(
            history, jnp.asarray(logits), history.shape[1]
        )
    return found


def named(prefix: str, tree: dict) -> dict[str, np.ndarray]:
    return {prefix + "/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}


def answer(name: str, folder: Path) -> None:
    model = new_model(name)
    params = random_params(model, seed=zlib.crc32(name.encode()))
    if name == "chatter":
        raise_end(params)
    model.save_pretrained(folder, params=params, max_shard_size="2GB")
    if name in cases.SIZES:
        answers = {"tokens": np.random.default_rng(0).integers(0, model.config.vocab_size, (1, 65), np.int32)}
        answers["logits"] = jax.jit(functools.partial(logits_of, model))(params, answers["tokens"][:, :-1])
    else:
        batches = make_batches(model.config, cases.STEPS, seed=0)
        grad = jax.value_and_grad(functools.partial(loss_of, model), has_aux=True)
        (loss, logits), grads = jax.jit(grad)(params, batches[0])
        answers = {**batches[0], "logits": logits, "loss": loss, **named("gradient:", grads)}
        if name in cases.ATTENTIONS:
            tokens, scaled = batches[0]["tokens"][:1, :-1], with_scaled_queries(params, model.config)
            look = jax.jit(lambda params, tokens: model(tokens, params=params, output_attentions=True).attentions)
            answers["attentions"] = np.concatenate(look(scaled, tokens))  # [L, H, T, S]
        if name == "small":
            half = FlaxGPT2LMHeadModel(model.config, dtype=jnp.bfloat16, _do_init=False)
            tokens = batches[0]["tokens"][:, :-1]
            answers["logits in bfloat16"] = jax.jit(functools.partial(logits_of, half))(params, tokens)
            answers |= train(model, params, batches)
            answers |= {f"step {key}": np.stack([batch[key] for batch in batches]) for key in batches[0]}
        if name == "chatter":
            answers |= generate(model, params)
    np.savez(folder / "answers.npz", **answers)


def main(task: str, *arguments: str) -> None:
    if task == "answer":
        folder, *names = arguments
        for name in names:
            answer(name, Path(folder) / name)
        np.savez(Path(folder) / "transformed.npz", **transform())
    elif task == "open":
        for folder in map(Path, arguments):
            model = FlaxGPT2LMHeadModel.from_pretrained(folder)
            tokens = make_batches(model.config, 1, seed=0)[0]["tokens"][:, :-1]
            logits = jax.jit(functools.partial(logits_of, model))(model.params, tokens)
            np.savez(folder / "opened.npz", logits=logits, **named("", model.params))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
