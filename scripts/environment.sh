# Makes .venv from requirements.lock, or reuses it. Sourced by quickstart.sh and test.sh from the repository's root.
# PYTHON chooses the interpreter (3.11, 3.12 or 3.13); python3 by default.

# environment FOLDER LOCK PYTHON [PACKAGE]: a virtual environment of what LOCK names, and of PACKAGE, a folder.
environment() {
    local folder=$1 lock=$2 python=$3 package=${4:-} stamp
    stamp=$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)
    [ "$(cat "$folder/complete" 2>/dev/null)" != "$stamp" ] || return 0

    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
        echo "error: $python is $("$python" --version 2>&1); Python 3.11, 3.12 or 3.13 is needed: PYTHON=python3.12 $0" >&2
        exit 2
    }
    echo "setting up $folder from $lock (about a minute, once)"
    [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
    "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --require-hashes -r "$lock"
    [ -z "$package" ] ||
        "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --no-deps --no-build-isolation --editable "$package"
    echo "$stamp" >"$folder/complete"
}

environment .venv requirements.lock "${PYTHON:-python3}" .
