"""What of a config may change when a run goes on."""

import dataclasses
from typing import Any

from gpt2_jax.config import FinetuneConfig, LoraConfig, OptimizerConfig
from gpt2_jax.data.options import with_defaults
from gpt2_jax.image_options import ImageConfig

# Options that may differ when a run goes on; all others decide what the parameters and the data order are.
FREE = (
    *("model.dtype", "model.attention", "model.remat", "model.scan_unroll", "training.loss_chunks", "mesh."),
    *("training.accumulation_steps", "training.steps", "training.log_every", "training.sample_", "optimizer."),
    *("evaluation.", "checkpoint.", "distributed.", "profile.", "data.retries", "data.encoder", "data.workers"),
    *("data.prepared", "data.fill_prepared", "data.accept_changes", "guard.", "finetune.layer_decay"),
)
FIXED = ("optimizer.name", "optimizer.moments_dtype")  # for all that: another optimizer state


def differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a resumed run may not change, as "model.n_layer (4 there, 6 here)"; both are `Config.to_dict()`."""
    flat = lambda config: {f"{group}.{k}": v for group, options in config.items() for k, v in options.items()}
    optimizer = dataclasses.asdict(OptimizerConfig()) | saved["optimizer"]  # older runs name no optimizer
    finetune = dataclasses.asdict(FinetuneConfig()) | saved.get("finetune", {})  # nor what is trained
    lora = dataclasses.asdict(LoraConfig()) | saved.get("lora", {})
    image = dataclasses.asdict(ImageConfig()) | saved.get("image", {})
    groups = {"optimizer": optimizer, "finetune": finetune, "lora": lora, "image": image}
    saved = saved | {"data": with_defaults(saved["data"]), **groups}
    old, new = flat(saved), flat(wanted)
    if lora["rank"]:
        new["finetune.start"] = old["finetune.start"]  # where the same model is, which a fingerprint tells
    return [
        f"{name} ({old.get(name)!r} there, {new.get(name)!r} here)"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and (name in FIXED or not name.startswith(FREE))
    ]
