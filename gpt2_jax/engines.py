"""Causal attention over whole sequences, by three engines: XLA anywhere, splash on TPUs, cuDNN on NVIDIA GPUs.

Splash (a Pallas kernel) and cuDNN never hold the T x S weights of a head; XLA's holds those of a block, and makes them
again for the gradient. On a mesh with a `sequence` axis each device has some of the queries, and gathers all keys and
values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gpt2_jax.attention import attend_causally
from gpt2_jax.errors import InputError
from gpt2_jax.layers import kept
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.partitions import constrain, mesh_in_force, spec_of, ways

INTERPRET = False  # splash without a TPU, for tests
CUDNN = "cudnn"  # what `jax.nn.dot_product_attention` calls it
BLOCKS = (512, 256, 128)  # of splash, the largest that divides the sequence

# (q [B, H, T, K], k, v [B, H, S, K], scale, key of dropout) -> [B, H, T, K]
Attention = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


def choose(config: GPT2Config, platform: str, T: int, sequence: int = 1) -> str:
    """The engine for training on a platform: what `config.attention` names, or of "auto" the best that can be.

    Args:
      config: the model.
      platform: "cpu", "gpu" or "tpu".
      T: tokens of a sequence.
      sequence: devices along the mesh's axis of that name.

    Raises:
      InputError: the engine that is named cannot do this.
    """
    if config.attention != "auto":
        if reason := obstacle(config.attention, config, platform, T, sequence):
            raise InputError(
                f"model.attention is {config.attention!r}, which {reason}; change that, or use auto or xla"
            )
        return config.attention
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "xla")
    return "xla" if obstacle(kernel, config, platform, T, sequence) else kernel


def obstacle(engine: str, config: GPT2Config, platform: str, T: int, sequence: int) -> str:
    """Why an engine cannot be used; "" if it can."""
    if engine == "xla":
        return ""
    wanted = {"splash": "tpu", "cudnn": "gpu"}[engine]
    if platform != wanted:
        return f"runs on a {wanted.upper()}, and this mesh is of {platform.upper()}"
    if config.attn_pdrop:
        return f"has no dropout, and model.attn_pdrop is {config.attn_pdrop}"
    if config.reorder_and_upcast_attn:
        return "multiplies in the dtype of its input, and model.reorder_and_upcast_attn asks for float32"
    if engine == "splash" and (T // sequence % BLOCKS[-1] or T % sequence):
        return f"takes multiples of {BLOCKS[-1]} tokens a device, and a sequence has {T} on {sequence}"
    if engine == "cudnn" and config.dtype != "bfloat16":
        return f"takes bfloat16, and model.dtype is {config.dtype!r}"
    if engine == "cudnn" and sequence > 1:
        return f"takes whole sequences, and mesh.sequence is {sequence}"
    return ""


def make_attention(config: GPT2Config, T: int, segments: jax.Array | None) -> Attention:
    """The attention of every layer over T tokens, by the engine that `config.attention` names ("auto" is XLA's).

    Args:
      config: the model.
      T: queries, as many as keys.
      segments: int [B, T]; a token sees those of its own segment up to itself. None: all are one.
    """
    return {"splash": _splash, "cudnn": _cudnn}.get(config.attention, _xla)(config, T, segments)


def _xla(config: GPT2Config, T: int, segments: jax.Array | None) -> Attention:
    mask = None if segments is None else _same(segments)
    block = None if ways("sequence") == 1 else T  # queries that are cut already are not cut again

    def attention(q, k, v, scale, key):
        keep = kept((*q.shape[:3], T), config.attn_pdrop, key)
        q, k, v = constrain(q, "<queries>"), constrain(k, "<keys>"), constrain(v, "<keys>")
        return attend_causally(
            q, k, v, scale, mask, keep=keep, rate=config.attn_pdrop, block=block, upcast=config.reorder_and_upcast_attn
        )

    return attention


def _same(segments: jax.Array) -> jax.Array:
    """[B, T] -> bool [B, 1, T, S]."""
    return (segments[:, :, None] == segments[:, None, :])[:, None]


def _splash(config: GPT2Config, T: int, segments: jax.Array | None) -> Attention:
    """Splash attention: flash attention (Dao et al., 2022) that skips the blocks above the diagonal."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mesh = mesh_in_force()
    shards = ways("model"), ways("sequence")
    block = next(size for size in BLOCKS if T // shards[1] % size == 0)
    mask = splash.MultiHeadMask([splash.CausalMask((T, T), shard_count=shards[1]) for _ in range(config.n_head)])
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), block),
        **dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), block),
    )
    kernel = splash.make_splash_mha(
        mask,
        head_shards=shards[0],
        q_seq_shards=shards[1],
        block_sizes=sizes,
        interpret=INTERPRET,
        residual_checkpoint_name="attention",  # what `remat` may keep: without it the whole kernel would run again
    )

    def on_device(kernel, q, k, v, of_q, of_kv):
        ids = None if of_q is None else splash.SegmentIds(of_q, of_kv)
        return jax.vmap(kernel)(q, k, v, ids)

    apply = on_device
    if mesh is not None:
        heads, queries, keys = P("model", "sequence"), spec_of("<queries>"), spec_of("<keys>")
        of_q, of_kv = (None, None) if segments is None else (spec_of("<stream>"), spec_of("<batch>"))
        apply = jax.shard_map(
            on_device,
            in_specs=(kernel.manual_sharding_spec(NamedSharding(mesh, heads)), queries, keys, keys, of_q, of_kv),
            out_specs=queries,
            check_vma=False,  # a Pallas kernel does not say how its result varies over the mesh
        )

    def attention(q, k, v, scale, key):
        q = (q.astype(jnp.float32) * scale).astype(q.dtype)
        return apply(kernel, q, k, v, segments, segments)

    return attention


def _cudnn(config: GPT2Config, T: int, segments: jax.Array | None) -> Attention:
    """cuDNN's flash attention; where documents are kept apart, it reads a mask of them."""
    mask = None if segments is None else _same(segments)

    def attention(q, k, v, scale, key):
        q = (q.astype(jnp.float32) * scale).astype(q.dtype)
        turn = lambda x: x.swapaxes(1, 2)  # [B, H, T, K] <-> [B, T, H, K]
        y = jax.nn.dot_product_attention(
            turn(q), turn(k), turn(v), mask=mask, scale=1.0, is_causal=True, implementation=CUDNN
        )
        return checkpoint_name(turn(y), "attention")

    return attention
