#!/usr/bin/env bash
# Sets up an environment and runs the tests: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unset PYTHONDONTWRITEBYTECODE # or each process would compile what the installation left uncompiled
venv=${VENV:-.venv}
VENV=$venv tools/install.sh dev,quickstart
VENV=.venv-vllm tools/install.sh vllm
# Without it the tests on Transformer Engine's layers are skipped, and say so.
VENV=$venv tools/install.sh te-on-cpu || true
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/codespell"
"$venv/bin/mypy"
# The distributed tests start their own ranks; more threads than cores would only slow them down.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
