"""What a compiled program exchanges between devices, read from XLA's text of it (`compiled.as_text()`).

Loops count as often as they run. The text of the TPU's compiler has its own ways: a reduce-scatter is a fusion that
calls `%all-reduce-scatter...`, which holds an all-reduce; a loop's length is a constant in its condition alone.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "ragged-all-to-all", "all-to-all")
BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole array on one device: the result of an all-gather, what goes into a reduce-scatter.
      groups: the devices, by their place in the mesh, that exchange with each other; between slices, the slices.
      executions: in a run of the program.
      name: where it is from, XLA's `op_name`, its own or that of what calls it; "" if neither says.
      types: its type in the text.
    """

    kind: str
    bytes: float
    groups: tuple[tuple[int, ...], ...]
    executions: int
    name: str
    types: str
    between_slices: bool = False

    @property
    def group_size(self) -> int:
        """Devices that exchange with each other."""
        return len(self.groups[0])


@dataclasses.dataclass(frozen=True)
class Program:
    """Collectives among two devices or more, custom calls with how often they run, and loops of unknown length.

    What is in a loop of unknown length counts once.
    """

    collectives: list[Collective]
    custom_calls: dict[str, int]
    unknown_loops: int


def read(text: str) -> Program:
    """The program of an HLO module's text.

    Raises:
      ValueError: it is not such a text, or has groups of devices in a notation that is not known.
    """
    computations, entry = _computations(text)
    collectives, calls, unknown = [], Counter(), 0
    devices = re.search(r"num_partitions=(\d+)", text)
    everyone = "{{" + ",".join(map(str, range(int(devices.group(1)) if devices else 1))) + "}}"

    def visit(computation: str, executions: int, scatters: bool, caller: str) -> None:
        nonlocal unknown
        for line in computations[computation]:
            line = line.replace("replica_groups={}", f"replica_groups={everyone}")
            name = re.search(r'op_name="([^"]*)"', line)
            name = name.group(1) if name else caller
            if found := _between_slices(line, executions, name) or _collective(line, executions, scatters, name):
                collectives.append(found)
            if target := re.search(r'custom_call_target="([^"]+)"', line):
                calls[target.group(1)] += executions
            if loop := re.search(r" while\(.*body=%?([\w.\-]+)", line):
                times = _trip_count(line, computations)
                unknown += times is None
                visit(loop.group(1), executions * (times or 1), scatters, name)
                continue
            for called in _called(line):
                if called in computations:
                    visit(called, executions, scatters or "all-reduce-scatter" in called, name)

    visit(entry, 1, False, "")
    return Program([c for c in collectives if c.group_size > 1], dict(calls), unknown)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """{name: its lines}, and the name of the one that is run."""
    computations, name, entry = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head and name is None:
            name = head.group(2)
            computations[name] = []
            entry = name if head.group(1) else entry
        elif line.rstrip() == "}":  # attributes of Pallas calls have lines that only begin so
            name = None
        elif name is not None:
            computations[name].append(line)
    if entry is None:
        raise ValueError("the text is no HLO module: it has no ENTRY")
    return computations, entry


def _called(line: str) -> Iterator[str]:
    if re.search(r" (reduce|reduce-window|scatter|sort|select-and-scatter|map|all-reduce|reduce-scatter)\(", line):
        return  # what they call is applied to single numbers
    for one, several in re.findall(
        r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)|(?:branch|called)_computations=\{([^}]*)\}",
        line,
    ):
        yield from [one] if one else re.findall(r"[\w.\-]+", several)


def _trip_count(line: str, computations: dict[str, list[str]]) -> int | None:
    if known := re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', line):
        return int(known.group(1))
    condition = "\n".join(computations.get(re.search(r"condition=%?([\w.\-]+)", line).group(1), ()))
    constants = re.findall(r"[us]32\[\]\S* constant\((\d+)\)", condition)
    counted = len(constants) == 1 and "direction=LT" in condition and int(constants[0]) > 0
    return int(constants[0]) if counted else None


def _collective(line: str, executions: int, scatters: bool, name: str) -> Collective | None:
    match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if not match:
        return None
    types, kind, start = match.groups()
    groups = _groups(line)
    size, n = _bytes(types), len(groups[0])
    if start and kind in ("all-gather", "reduce-scatter"):  # their types list what goes in and what comes out
        size *= n / (n + 1)
    elif start and kind != "all-reduce":
        size /= 2
    elif kind == "reduce-scatter":
        size *= n
    if kind == "all-reduce" and scatters:
        kind = "reduce-scatter"
    return Collective(kind, size, groups, executions, name, types[:200])


def _between_slices(line: str, executions: int, name: str) -> Collective | None:
    """What the TPU's runtime does over the data centre's network, for which the program sends to its host."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', line)
    sent = re.search(r"= \((\w+\[[\d,]*\]).* send\(", line)
    if not (kind and sent):
        return None
    slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', line)
    if slices is None:
        raise ValueError(f"unknown notation of slices in the compiler's text: {line.strip()[:300]}")
    ends = [list(map(int, part.split(":"))) for part in slices.group(1).split(",")]
    group = tuple(number for end in ends for number in range(end[0], end[-1] + 1))
    kind = kind.group(1).lower().replace("_", "-")
    return Collective(kind, _bytes(sent.group(1)), (group,), executions, name, sent.group(1), between_slices=True)


def _bytes(types: str) -> float:
    """Of all arrays in a type, tuple or not."""
    total = 0.0
    for kind, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", types):
        if kind in BITS:
            total += BITS[kind] / 8 * math.prod(int(size) for size in dimensions.split(",") if size)
    return total


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    """The groups of devices of a collective, in any of XLA's notations."""
    if "source_target_pairs=" in line:
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
        return tuple(_braced(pairs.group(1))) if pairs else ((0,),)
    if braces := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return tuple(_braced(braces.group(1)))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, source, order = (tuple(map(int, part.split(","))) if part else None for part in iota.groups())
        return _rows(np.arange(math.prod(source)).reshape(source).transpose(order).reshape(shape))
    order = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if axes := re.search(rf"replica_groups=mesh\[([^\]]*)\]{order} \{{([^}}]*)\}}", line):
        sizes, along = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1))), axes.group(4).split(",")
        along = [axis.strip("'") for axis in along]
        if set(along) <= set(sizes):
            shape, names = [int(size) for size in sizes.values()], list(sizes)
            devices = np.arange(math.prod(shape))
            if axes.group(2):
                source, permutation = (tuple(map(int, p.split(","))) if p else None for p in axes.group(2, 3))
                devices = devices.reshape(source).transpose(permutation)
            last = [i for i, name in enumerate(names) if name not in along] + [names.index(name) for name in along]
            devices = devices.reshape(shape).transpose(last)
            return _rows(devices.reshape(-1, math.prod(int(sizes[name]) for name in along)))
    raise ValueError(f"unknown notation of groups of devices in the compiler's text: {line.strip()[:300]}")


def _braced(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, group.split(","))) for group in re.findall(r"\{?(\d[\d,]*)", text)]


def _rows(devices: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in devices.reshape(-1, devices.shape[-1]).tolist())
