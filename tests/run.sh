#!/usr/bin/env bash
# Sets up an environment and runs the tests:
#
#   bash tests/run.sh [pytest arguments]
#   bash tests/run.sh --megatron-core 0.19.2 [pytest arguments]    # on that version; default: the core
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unset PYTHONDONTWRITEBYTECODE # or each process would compile what the installation left uncompiled
venv=${VENV:-.venv}
VENV=$venv tools/install.sh dev,quickstart
VENV=.venv-vllm tools/install.sh vllm
# Without it the tests on Transformer Engine's layers are skipped, and say so.
VENV=$venv tools/install.sh te-on-cpu || true
if [[ ${1:-} == --megatron-core ]]; then
    version=${2:?name the version, e.g. --megatron-core 0.19.2}
    shift 2
    VENV=$venv tools/install.sh "megatron-core==$version"
    (($#)) || set -- \
        tests/distributed/{policy,checkpoint,conversion,training,rollout/test_megatron_engine.py} \
        tests/unit/{policy,checkpoint,conversion,weights,training} tests/end_to_end/test_train_and_resume.py
    export PYTHONPATH=$PWD/.megatron-core/$version${PYTHONPATH:+:$PYTHONPATH}
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
fi
# Without it the tests that versions of megatron-core agree are skipped, and say so.
VENV=$venv tools/install.sh megatron-core==0.19.2 || true
# Without it the tests on sandboxes of bubblewrap are skipped, and say so.
tools/install.sh bubblewrap || true
# Without it the tests on a real Slurm are skipped, and say so.
tools/install.sh slurm || true
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/codespell"
"$venv/bin/mypy"
# The distributed tests start their own ranks; more threads than cores would only slow them down.
# Files keep the order of tests/conftest.py: the longest first, so that the workers end together.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$venv/bin/python" -m pytest -n 2 --dist loadfile \
    --no-loadscope-reorder "$@"
