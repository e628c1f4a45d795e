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

VENV=${VENV:-.venv}
OUTPUT=outputs/quickstart # the recipe's paths start with it
unset PYTHONDONTWRITEBYTECODE # or each start would compile what the installation left uncompiled

installation() {
    VENV=$VENV tools/install.sh quickstart
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

phase installation
phase model_and_questions
phase training "$@"
phase report
printf '\n%s%-20s %5d s\n' "$summary" total "$SECONDS"
