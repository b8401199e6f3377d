#!/usr/bin/env bash
# Trains a small GPT-2 on Python's standard library and lets it write; run again after ctrl-C, it goes on.
# Options go on to scripts/train.py: ./scripts/quickstart.sh --config.training.steps=100
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

status=0
.venv/bin/python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart "$@" || status=$?
if [ "$status" -gt 128 ]; then
    echo "To go on from there: ./scripts/quickstart.sh"
fi
[ "$status" -eq 0 ] || exit "$status"

cat <<'NEXT'

The run is in runs/quickstart: perplexity.png, metrics.jsonl, tensorboard/, checkpoints/. Try next:

    source .venv/bin/activate
    python scripts/generate.py --workdir=runs/quickstart --prompt="class "
    python scripts/generate.py --workdir=runs/quickstart --prompt="import " --temperature=0
    python -c 'import gpt2_jax; print(gpt2_jax.load("runs/quickstart").generate("def ", top_p=0.95, seed=1))'
    python scripts/app.py --model=runs/quickstart
    python scripts/report.py --workdir=runs/quickstart   # what it learnt, on one page: report.html
    tensorboard --logdir runs/quickstart/tensorboard
    python scripts/train.py --config=configs/shakespeare_char.py --workdir=runs/mine --config.data.paths=mine.txt
NEXT
