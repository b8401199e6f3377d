#!/usr/bin/env bash
# Makes the reference of all modules from their docstrings: HTML pages in build/api, or in the folder that is given.
set -euo pipefail
out=$(realpath -m "${1:-build/api}")
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
export TF_CPP_MIN_LOG_LEVEL=2 TF_ENABLE_ONEDNN_OPTS=0
# By name, since pdoc takes __all__ for all that there is. Dataset builders have a file each, where TFDS looks for them;
# gpt2_jax.data.builders tells of all.
modules=$("$python" -c 'import pkgutil as p, gpt2_jax as g; print(*(m.name for m in p.iter_modules(g.__path__, "gpt2_jax.")))')
# shellcheck disable=SC2086  # a word a module
"$python" -m pdoc gpt2_jax $modules '!gpt2_jax\.data\.builders\.(?!base)\w+' --docformat google \
    --template-directory scripts/reference --output-directory "$out"
echo "$out/index.html"
