# Makes .venv from requirements.lock, or reuses it. Sourced by quickstart.sh and test.sh from the repository's root.
# PYTHON chooses the interpreter (3.11, 3.12 or 3.13); python3 by default.

python=${PYTHON:-python3}
stamp=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)

if [ "$(cat .venv/complete 2>/dev/null)" != "$stamp" ]; then
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
        echo "error: $python is $("$python" --version 2>&1); Python 3.11, 3.12 or 3.13 is needed: PYTHON=python3.12 $0" >&2
        exit 2
    }
    echo "setting up .venv from requirements.lock (about a minute, once)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
    .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
    .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
    echo "$stamp" >.venv/complete
fi
