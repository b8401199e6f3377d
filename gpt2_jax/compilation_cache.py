"""JAX's persistent compilation cache, so that the second start of a script compiles nothing."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def enable() -> None:
    """Turns the cache on in the user's cache folder, unless a folder is configured already.

    The folder is named after the processor: XLA's CPU programs use every instruction of the machine that compiled
    them, and must not be found by another machine that shares the home folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        processor = hashlib.sha256((platform.machine() + _cpu_features()).encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(home / "gpt2_jax" / f"xla-{jax.__version__}-{processor}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
