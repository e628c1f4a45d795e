#!/usr/bin/env bash
# Starts a server with OpenEnv's package in an environment of its own, prepares and trains the example
# on a CPU, from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

if [[ ! -x .venv-openenv/bin/python ]]; then
  python -m venv .venv-openenv
  .venv-openenv/bin/pip install --quiet openenv-core==0.3.0
fi
.venv-openenv/bin/python examples/agents/openenv/server.py 8000 &
trap 'kill %1' EXIT
python examples/agents/prepare.py openenv # takes longer than the start of the server
python -m megatron_resrl train examples/agents/openenv/recipe.yaml "$@"
