"""Refuses to train in processes that would not do the same: other options, other code, other versions of libraries.

Devices of different programs wait for each other for ever, or learn something that no single config says.
"""

import hashlib
import importlib.metadata
import itertools
import json
import sys
from pathlib import Path

import jax

import gpt2_jax
from gpt2_jax.config import Config
from gpt2_jax.errors import InputError, one_line
from gpt2_jax.training.peers import are_several, store

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tokenizers",
    "tensorflow-cpu",
    "tensorflow",
)
# Options that each host may have its own of: who it is, how it reaches process 0, where its copy of the data lies.
OWN = (
    "distributed.process_id",
    "distributed.coordinator",
    "data.paths",
    "data.prepared",
    "data.workers",
    "image.paths",
)
NAMED = 4  # differences that an error names

_calls = itertools.count()  # all processes count alike


def check_alike(config: Config) -> None:
    """Returns in all processes if they are alike, and raises in all if not; one process alone does nothing.

    Raises:
      InputError: naming what differs, and between which processes.
    """
    if not are_several():
        return
    index, names = jax.process_index(), f"gpt2_jax/alike/{next(_calls)}"
    seconds, own = config.distributed.initialization_seconds, description(config)
    wait = 1000 * seconds
    try:
        if index == 0:
            store().key_value_set(f"{names}/first", json.dumps(own))
        first = json.loads(store().blocking_key_value_get(f"{names}/first", wait))
        store().key_value_set(f"{names}/differences/{index}", json.dumps(differences(first, own)))
        store().wait_at_barrier(f"{names}/compared", wait)
        answers = store().key_value_dir_get(f"{names}/differences/")
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"the processes could not compare what they run within {seconds} seconds "
            f"(distributed.initialization_seconds): {one_line(error)[:200]}; has each of them the same code?"
        ) from error
    if different := {int(key.rpartition("/")[2]): found for key, text in answers if (found := json.loads(text))}:
        raise InputError(
            f"{refusal(different)}; start all processes with the same command, code and environment on all hosts"
        )


def description(config: Config) -> dict[str, str]:
    """{what: its value} of all that must be the same."""
    options = {
        f"config.{group}.{name}": repr(value)
        for group, values in config.to_dict().items()
        for name, value in values.items()
        if f"{group}.{name}" not in OWN
    }
    return options | sources() | versions()


def sources() -> dict[str, str]:
    """The digest of each file of this package."""
    root = Path(gpt2_jax.__file__).parent
    files = {f"gpt2_jax/{path.relative_to(root).as_posix()}": path for path in sorted(root.rglob("*.py"))}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:8] for name, path in files.items()}


def versions() -> dict[str, str]:
    """Of Python and the libraries that say what is computed."""
    found = {"Python": "{}.{}".format(*sys.version_info)}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def differences(first: dict[str, str], own: dict[str, str]) -> list[list[str]]:
    """[what, the value in process 0, the one here] of all that differs."""
    here = {**dict.fromkeys(first, "none"), **own}
    return [[name, first.get(name, "none"), value] for name, value in here.items() if first.get(name, "none") != value]


def refusal(different: dict[int, list[list[str]]]) -> str:
    """Says what differs between which processes."""
    where: dict[tuple[str, str, str], list[int]] = {}
    for index, found in sorted(different.items()):
        for what in found:
            where.setdefault(tuple(what), []).append(index)
    named = []
    for (name, first, here), indices in itertools.islice(where.items(), NAMED):
        others = f"process{'es' * (len(indices) > 1)} {', '.join(map(str, indices[:8]))}{', ...' * (len(indices) > 8)}"
        named.append(f"{name} differs between process 0 ({first}) and {others} ({here})")
    if len(where) > NAMED:
        named.append(f"and {len(where) - NAMED} more")
    return "; ".join(named)
