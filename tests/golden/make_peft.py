"""Makes `peft.tar.xz` here: a tiny GPT-2, adapters of it as PEFT writes them, and the logits that PEFT computes.

    pip install torch transformers peft && python make_peft.py

Neither is needed to test against what is here.
"""

import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

TOKENS = torch.arange(10).reshape(2, 5)
ALL = ["c_attn", "c_proj", "c_fc"]
CASES = {
    "plain": {"r": 2},
    "all": {"r": 2, "lora_alpha": 5, "lora_dropout": 0.1, "target_modules": ALL, "use_rslora": True},
    "regex": {"r": 3, "target_modules": r".*mlp\.c_\w+", "modules_to_save": ["ln_1", "ln_f", "attn.c_attn"]},
    "one_layer": {"r": 2, "target_modules": ["attn.c_attn"], "layers_to_transform": [1]},
    "wte": {"r": 1, "modules_to_save": ["wte"]},
    "lm_head": {"r": 1, "modules_to_save": ["lm_head"]},
    "grown": {"r": 1, "modules_to_save": ["wte", "lm_head"]},
    "dora": {"r": 1, "use_dora": True},
    "bias": {"r": 1, "bias": "lora_only"},
}


def main() -> None:
    target = Path(__file__).absolute().parent / "peft.tar.xz"
    os.chdir(tempfile.mkdtemp())
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=19,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained("base")
    for name, options in CASES.items():
        base = transformers.GPT2LMHeadModel.from_pretrained("base")
        if name == "grown":
            base.resize_token_embeddings(21)
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        with torch.no_grad():
            if name == "grown":  # a head of its own, which PEFT makes of a tied one, stays equal to it
                noise = torch.randn(21, 8)
            for _, parameter in model.named_parameters():
                if parameter.requires_grad:
                    is_table = name == "grown" and parameter.shape == noise.shape
                    parameter += 0.3 * (noise if is_table else torch.randn_like(parameter))
            model.save_pretrained(name)
            np.save(f"{name}/logits.npy", model(TOKENS).logits.numpy())
    with tarfile.open(target, "w:xz") as tar:
        for name in ("base", *CASES):
            tar.add(name, filter=lambda entry: None if entry.name.endswith(".md") else entry)
    print(f"{target.name} of PEFT {peft.__version__}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
