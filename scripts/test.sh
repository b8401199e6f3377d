#!/usr/bin/env bash
# Lint, format and tests. Options go on to pytest: ./scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment .venv-oracle tests/oracle/requirements.lock .venv/bin/python
environment .venv-aot tests/topology/requirements.lock .venv/bin/python

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest -n 2 "$@"
