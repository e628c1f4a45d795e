#!/usr/bin/env bash
# The acceptance test of a machine with one GPU; see docs/gpu_acceptance.md.
#   tools/gpu_acceptance.sh --pack FOLDER [--engine BUNDLE]    on a machine with a network
#   tools/gpu_acceptance.sh [--from FOLDER]                    on the machine with the GPU
#   tools/gpu_acceptance.sh --rehearse                         on any CPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONDONTWRITEBYTECODE # or each section would compile the libraries again
exec "${PYTHON:-python3}" tools/gpu_acceptance.py "$@"
