#!/usr/bin/env bash
# Prepares and trains the example on a CPU, from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export PYTHONPATH="$PWD/examples/agents/verifiers${PYTHONPATH:+:$PYTHONPATH}" # has guess_number.py

python examples/agents/prepare.py verifiers
# The environment has questions of its own.
python tools/verifiers_questions.py guess-number --output outputs/agents/verifiers/questions.jsonl
python -m megatron_resrl train examples/agents/verifiers/recipe.yaml "$@"
