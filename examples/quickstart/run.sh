#!/usr/bin/env bash
# From a fresh clone to a model that has learned something: installs into .venv, fetches
# SmolLM2-135M-Instruct, evaluates it, trains it with ResRL, evaluates again, draws the result.
#
#   bash examples/quickstart/run.sh [--section.setting VALUE ...]    # settings of the recipe
#   PYTHON=python3.12 VENV=/tmp/venv bash examples/quickstart/run.sh
#
# Running it again keeps the environment, the model, the questions and a finished run.
set -Eeuo pipefail # E: the trap below also sees failures inside functions
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
OUTPUT=outputs/quickstart # the recipe's paths start with it
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONDONTWRITEBYTECODE # or each start would compile again what pip_install left uncompiled

fail() {
    echo "quickstart: $*" >&2
    exit 1
}

pip_install() {
    # Python compiles at the first import; compiling what is never imported takes 20 s more.
    "$VENV/bin/python" -m pip install -qq --no-compile "$@"
}

environment() {
    command -v "$PYTHON" >/dev/null || fail "no $PYTHON here; name one: PYTHON=/path/to/python3.11"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$PYTHON" --version) is too old for the versions in constraints.txt;" \
            "name Python 3.11 or newer: PYTHON=/path/to/python3.11"
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        "$PYTHON" -m venv "$VENV" ||
            fail "cannot make a virtual environment in $VENV (on Debian: apt-get install python3-venv)"
    fi
}

torch_build() {
    local torch
    torch=$(grep '^torch==' constraints.txt)
    if [[ $(uname -s) != Linux ]] || nvidia-smi -L >/dev/null 2>&1; then
        pip_install "$torch"
        return
    fi
    # Without an NVIDIA GPU the CPU build: PyPI's own build for Linux brings gigabytes of CUDA
    # libraries. The version with "+cpu" satisfies constraints.txt, so nothing replaces it later.
    # First from the indexes pip is set up with (a mirror may have it), then from PyTorch's.
    pip_install "$torch+cpu" 2>/dev/null ||
        pip_install "$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
}

packages() {
    local stamp="$VENV/quickstart-installed" wanted
    wanted="$(cksum setup.py constraints.txt) $PWD"
    [[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]] && return
    torch_build && pip_install -c constraints.txt -e '.[quickstart]' ||
        fail "installing failed (pip's message is above); PyPI must be reachable"
    echo "$wanted" >"$stamp"
}

model_and_questions() {
    TQDM_DISABLE=1 "$VENV/bin/python" examples/quickstart/prepare.py --directory "$OUTPUT"
}

training() {
    if [[ -f $OUTPUT/run/hf/config.json ]]; then
        echo "$OUTPUT/run is finished; remove it to train again"
        return
    fi
    "$VENV/bin/python" -m megatron_resrl train examples/quickstart/recipe.yaml "$@"
}

report() {
    "$VENV/bin/python" examples/quickstart/report.py "$OUTPUT/run"
}

summary=
phase() { # command [argument ...]
    local began=$SECONDS
    current=$1
    echo "== ${current//_/ }"
    "$@"
    summary+=$(printf '%-20s %5d s' "${current//_/ }" $((SECONDS - began)))$'\n'
}
trap 'echo "quickstart: stopped during \"${current//_/ }\"" >&2' ERR

phase environment
phase packages
phase model_and_questions
phase training "$@"
phase report
printf '\n%s%-20s %5d s\n' "$summary" total "$SECONDS"
