#!/usr/bin/env bash
# Makes a virtual environment with this package and some of its extras.
#
#   tools/install.sh quickstart        # or: dev, dev,bench, ...
#
# VENV=DIR chooses the environment (default: .venv in the checkout), PYTHON=EXE the interpreter
# it is made with. Running it again only installs what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:?name the extras to install, e.g. tools/install.sh dev}
venv=${VENV:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "$python is $("$python" --version 2>&1); Python 3.10 or newer is needed: set PYTHON" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

# torch first and by itself: asked for by another package, it would come as the CUDA build.
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    if command -v nvidia-smi >/dev/null; then
        "$venv/bin/pip" install --quiet -c constraints.txt torch
    else
        "$venv/bin/pip" install --quiet torch==2.13.0+cpu ||
            "$venv/bin/pip" install --quiet torch==2.13.0 \
                --index-url https://download.pytorch.org/whl/cpu
    fi
fi

# The constraints were tested on Python 3.11 and newer; 3.10 needs older transformers and numpy.
constraints=(-c constraints.txt)
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || constraints=()
"$venv/bin/pip" install --quiet "${constraints[@]}" -e ".[$extras]"
