"""What is known of a compiled step, as one dict for JSON and as text for people."""

from collections import defaultdict
from typing import Any

from gpt2_jax.config import Config
from gpt2_jax.topology import bounds
from gpt2_jax.topology.chips import GiB, Topology
from gpt2_jax.topology.hlo import Collective

MiB = 2**20
LARGEST = 5  # collectives named one by one
NOT_MEASURED = "bounds, not measurements: published peaks and the compiler's own account; no chip ran this"


def summarize(
    topology: Topology, config: Config, step: str, batch_size: int, memory: dict[str, Any], counted: dict[str, Any]
) -> dict[str, Any]:
    """One dict, ready for JSON.

    Args:
      topology, config, step, batch_size: what was asked.
      memory: of `process.compile_elsewhere`, as the program runs.
      counted: the same, or of a second compilation in which the collectives can be counted.

    Returns:
      "topology", "chips", "step", "parameters", "mesh", "attention", "fits", "needs" and "has" (bytes on a device),
      "memory" (None if the compiler gave up, and then the following are missing), "collectives" {kind: "count" and
      "bytes" a step}, "largest", "custom_calls", "unknown_loops", "whole_copies", "model_flops", "flops", "bounds"
      (seconds), "limit", "mfu_ceiling" and "tokens_per_second_ceiling", with the note "measured": false;
      "cpu_seconds" of compiling.
    """
    summary = {
        "topology": topology.name,
        "chips": str(topology),
        "step": step,
        "batch_size": config.training.batch_size if step == "train" else batch_size,
        **{name: memory[name] for name in ("parameters", "mesh", "attention", "memory", "cpu_seconds")},
    }
    refused = memory["refused"] or counted["refused"]
    if refused:
        return summary | {"fits": False, **refused, "memory": None}
    devices = len(counted["slice_of"])
    collectives = [Collective(**{**c, "groups": tuple(map(tuple, c["groups"]))}) for c in counted["collectives"]]
    if step == "train":
        flops = bounds.train_flops(config, memory["parameters"], memory["attention"])
        tokens = config.training.batch_size * config.sequence_length
        traffic = bounds.train_traffic(memory["memory"])
    else:
        flops = (bounds.decode_flops(config.model, memory["parameters"], batch_size),) * 2
        tokens = batch_size
        traffic = bounds.decode_traffic(config.model, memory["parameters"], batch_size)
    sent = bounds.sent_bytes(collectives, counted["slice_of"])
    found = bounds.bound(topology, devices, flops, traffic, sent)
    ordered = sorted(collectives, key=lambda c: -c.executions * c.bytes)
    return summary | {
        "fits": memory["memory"]["peak"] <= topology.chip.memory,
        "needs": memory["memory"]["peak"],
        "has": topology.chip.memory,
        "collectives": _by_kind(collectives),
        "largest": [
            {
                "kind": c.kind,
                "count": c.executions,
                "bytes": c.bytes,
                "among": f"{c.group_size} {'slices' if c.between_slices else 'devices'}",
                "name": c.name,
            }
            for c in ordered[:LARGEST]
        ],
        "custom_calls": counted["custom_calls"],
        "unknown_loops": counted["unknown_loops"],
        "whole_copies": counted["whole_copies"],
        "model_flops": found.model_flops,
        "flops": found.flops,
        "sent": found.sent,
        "bounds": found.seconds,
        "limit": found.limit,
        "mfu_ceiling": found.mfu(devices * topology.chip.peak),
        "tokens_per_second_ceiling": tokens / found.step_seconds,
        "measured": False,
    }


def _by_kind(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "bytes": 0.0})
    for c in collectives:
        kind = f"{c.kind} between slices" if c.between_slices else c.kind
        kinds[kind]["count"] += c.executions
        kinds[kind]["bytes"] += c.executions * c.bytes
    return dict(sorted(kinds.items()))


def text(summary: dict[str, Any]) -> str:
    """The summary for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in summary["mesh"].items() if size > 1) or "one device"
    unit = "sequences a step" if summary["step"] == "train" else "rows, a token of each"
    lines = [
        summary["chips"],
        f"{summary['step']} step of {summary['parameters']:,} parameters, {summary['batch_size']} {unit}, on {mesh};"
        f" attention: {summary['attention']}",
    ]
    verdict = "fits" if summary["fits"] else "DOES NOT FIT"
    room = summary["has"] - summary["needs"]
    lines.append(
        f"{verdict}: needs {summary['needs'] / GiB:.2f} GiB of the {summary['has'] / GiB:.2f} GiB that a device has;"
        f" {abs(room) / GiB:.2f} GiB {'left' if room >= 0 else 'too much'}"
    )
    if summary["memory"] is not None:
        lines += _of_a_program(summary)
    return "\n".join(lines)


def _of_a_program(summary: dict[str, Any]) -> list[str]:
    sizes = {name: size for name, size in summary["memory"].items() if name != "peak"}
    lines = ["", "bytes on a device:  " + ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())]
    lines.append("collectives a step: " + (_collectives(summary["collectives"]) or "none"))
    for c in summary["largest"]:
        lines.append(f"  {c['count']:>5} x {_size(c['bytes']):>10}  {c['kind']} of {c['among']}  {c['name'][-90:]}")
    if summary["whole_copies"]:
        lines.append(f"arrays made whole on each device to lay them out anew: {summary['whole_copies']}")
    if summary["unknown_loops"]:
        lines.append(f"loops of unknown length, whose content counts once: {summary['unknown_loops']}")
    calls = ", ".join(f"{name} {count}" for name, count in sorted(summary["custom_calls"].items()))
    lines += [f"custom calls a step: {calls or 'none'}", ""]
    lines.append(
        f"FLOPs a step: {summary['model_flops'] / 1e12:.4g} T of the model, {summary['flops'] / 1e12:.4g} T run,"
        " with what is recomputed and without what is masked away"
    )
    times = ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in summary["bounds"].items() if seconds)
    lines.append(f"at least, ms a step: {times}; the longest is {summary['limit']}")
    lines.append(
        f"ceiling: MFU {summary['mfu_ceiling']:.1%}, {summary['tokens_per_second_ceiling']:,.0f} tokens/s"
        f" ({NOT_MEASURED})"
    )
    return lines


def _collectives(kinds: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{kind} {c['count']} ({_size(c['bytes'])})" for kind, c in kinds.items())


def _size(size: float) -> str:
    return f"{size / MiB:,.1f} MiB" if size >= MiB / 10 else f"{size:,.0f} B"
