"""Model FLOPs and the peaks of devices: arithmetic alone, without the imports of metrics.py."""

import jax

from gpt2_jax.model_config import GPT2Config

# Nominal bfloat16 FLOP/s of one device, without sparsity; the first pattern in `device_kind` decides.
PEAK_FLOPS = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L40", 181e12),
    ("NVIDIA L4", 121e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)


def peak_of_kind(kind: str) -> float | None:
    """bfloat16 FLOP/s of a device of this `device_kind`, or None if it is not in the table (as for CPUs)."""
    return next((peak for name, peak in PEAK_FLOPS if name in kind), None)


def peak_flops(device: jax.Device) -> float | None:
    """`peak_of_kind` of a device."""
    return peak_of_kind(device.device_kind)


def flops_per_token(config: GPT2Config, num_parameters: int, sequence_length: int, *, frozen: int = 0) -> float:
    """Training FLOPs a token, without recomputation: 6 N + 12 L C T, N without the position table.

    A `frozen` parameter, which has no gradient, needs 4 of the 6.
    """
    matrices = num_parameters - config.n_positions * config.n_embd
    return 6 * matrices - 2 * frozen + 12 * config.n_layer * config.n_embd * sequence_length
