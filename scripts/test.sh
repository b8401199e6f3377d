#!/usr/bin/env bash
# Lint, format and tests. Options go on to pytest: ./scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment .venv-oracle tests/oracle/requirements.lock .venv/bin/python
environment .venv-aot tests/topology/requirements.lock .venv/bin/python

.venv/bin/ruff check .
.venv/bin/ruff format --check .
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" 2>&1 | tee "$log"; then
    # XLA's compiler for CPUs (JAX 0.10.2) crashes now and then in a process that has compiled thousands of programs. A
    # test that takes its process down is run once more, in a new one, if no test failed in another way.
    crashed=$(grep -c "^worker '.*' crashed while running" "$log" || true)
    failed=$(grep -cE "^(FAILED|ERROR) " "$log" || true)
    [ "$crashed" -gt 0 ] && [ "$failed" -eq "$crashed" ] || exit 1
    .venv/bin/python -m pytest --last-failed --last-failed-no-failures=none "$@"
fi
