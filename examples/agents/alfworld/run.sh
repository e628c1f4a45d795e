#!/usr/bin/env bash
# Prepares and trains the example on a CPU, from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

python examples/agents/prepare.py alfworld
python -m megatron_resrl train examples/agents/alfworld/recipe.yaml "$@"
