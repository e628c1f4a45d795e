"""Hugging Face configuration -> megatron-core `TransformerConfig`."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_resrl.config.model_place import find_model
from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.errors import InputError
from megatron_resrl.platform.precision import transformer_precision
from megatron_resrl.policy.families import SUPPORTED_ARCHITECTURES, family_of, find_family
from megatron_resrl.policy.families.family import Family
from megatron_resrl.policy.layer_spec import uses_transformer_engine
from megatron_resrl.weights.config_json import read_config
from megatron_resrl.weights.tied import is_tied_in_name_only

logger = logging.getLogger(__name__)

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
}
"""By transformers' names."""


def read_hf_config(path: str, tokenizer_path: str | None = None) -> PretrainedConfig:
    """Reads `config.json` of a model, or what a checkpoint of Megatron-LM says instead.

    A model that is tied there, and whose files have an output matrix of its own, is not tied, as
    in transformers; the log says so.

    Args:
        path: See `find_model`.
        tokenizer_path: Setting `model.tokenizer_path`, for checkpoints of Megatron-LM.

    Returns:
        The configuration; `name_or_path` is the directory of its file and the tokenizer's.

    Raises:
        InputError: There is no config.json, transformers does not accept it, its architecture is
            not supported, or the files of the weights cannot be read.
    """
    place = find_model(path)
    of_megatron_lm = None
    if not (place.files / "config.json").is_file():
        of_megatron_lm = read_config(path, tokenizer_path)
        if of_megatron_lm is None:
            raise InputError(
                f"model.path is {path!r}, which has no config.json; give the directory of a "
                "Hugging Face model, or a checkpoint of a run or of Megatron-LM"
            )
    try:
        if of_megatron_lm is None:
            hf_config = AutoConfig.from_pretrained(place.files, local_files_only=True)
        else:
            hf_config = CONFIG_MAPPING[of_megatron_lm["model_type"]].from_dict(of_megatron_lm)
            hf_config.name_or_path = str(place.files)
    # transformers checks a configuration with errors of many classes.
    except Exception as error:
        raise InputError(
            f"model.path is {path!r}, whose config.json transformers does not accept: {error}"
        ) from error
    if not hf_config.architectures or find_family(hf_config.to_dict()) is None:
        found = (hf_config.architectures or ["none"])[0]
        raise InputError(
            f"model.path {path!r} holds a {found}; supported are "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if is_tied_in_name_only(place):
        logger.warning(
            "model.path %s ties the output matrix to the embedding (tie_word_embeddings in "
            "config.json), but its files hold an lm_head.weight of other values: the model is "
            "trained and saved untied, as transformers reads it",
            path,
        )
        hf_config.tie_word_embeddings = False
    return hf_config


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int) -> int:
    """Vocabulary rows after padding, so that every tensor-parallel rank holds as many."""
    return math.ceil(vocab_size / tensor_model_parallel_size) * tensor_model_parallel_size


def rotary_inverse_frequencies(
    hf_config: PretrainedConfig, kind: str | None = None
) -> torch.Tensor | None:
    """Scaled inverse frequencies as Hugging Face computes them, or None for plain RoPE.

    Args:
        hf_config: The model's own configuration.
        kind: Of layers; see `Family.rotary`.

    Returns:
        [head_dim / 2] float32.

    Raises:
        InputError: An unsupported kind of scaling.
    """
    frequencies = _rotary_scaling(hf_config, kind)[0]
    return None if frequencies is None else frequencies.float()


def _rotary_scaling(
    hf_config: PretrainedConfig, kind: str | None
) -> tuple[torch.Tensor | None, float]:
    """Scaled inverse frequencies, if they are, and the factor of sines and cosines."""
    family = family_of(hf_config)
    rope_type = family.rotary[kind]["rope_type"]
    if rope_type not in family.rope_types:
        raise InputError(
            f"rope type {rope_type!r} in the model's config.json is not supported; "
            f"supported are {', '.join(family.rope_types)}"
        )
    if rope_type == "default":
        return None, 1.0
    of_layers = {} if kind is None else {"layer_type": kind}
    return ROPE_INIT_FUNCTIONS[rope_type](hf_config, torch.device("cpu"), **of_layers)


def _scales_sines(family: Family) -> bool:
    """Whether sines and cosines have a factor, which Transformer Engine's fused kernel lacks."""
    return any(settings["rope_type"] == "yarn" for settings in family.rotary.values())


def _scale_rotation(config: TransformerConfig, hf_config: PretrainedConfig) -> None:
    """Makes megatron-core multiply sines and cosines as transformers does (yarn's "mscale").

    megatron-core reads its factor from attributes that its class does not declare, as
    1 + 0.1 * yarn_mscale * log(yarn_rotary_scaling_factor).
    """
    # One factor for all layers: families with several rotary embeddings have no yarn.
    kind, settings = next(iter(family_of(hf_config).rotary.items()))
    if settings["rope_type"] != "yarn":
        return
    _, factor = _rotary_scaling(hf_config, kind)
    config.yarn_rotary_scaling_factor = math.e
    config.yarn_mscale = 10 * (factor - 1)
    config.yarn_mscale_all_dim = 0.0


def transformer_config(
    hf_config: PretrainedConfig,
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
) -> TransformerConfig:
    """The megatron-core configuration of a model of a supported family.

    Args:
        hf_config: The model's own configuration.
        model: Dropout, recomputation, and megatron-core fields passed through.
        parallel: Layout.
        precision: Number formats.

    Returns:
        The configuration; its loss is a sum whose denominators the caller has put in
        (`calculate_per_token_loss`), so that gradients do not depend on the layout.
    """
    family = family_of(hf_config)
    interleaved = (parallel.virtual_pipeline_model_parallel_size or 1) > 1
    cuda = torch.cuda.is_available()
    fields: dict[str, Any] = {
        "activation_func": ACTIVATIONS[family.activation],
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
        "recompute_granularity": model.recompute_granularity,
        "recompute_method": model.recompute_method,
        "recompute_num_layers": model.recompute_num_layers,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "calculate_per_token_loss": True,
        "variable_seq_lengths": not interleaved,
        # Variable lengths are refused with the default dispatcher, even without experts.
        "moe_token_dispatcher_type": "alltoall",
        # With batched sends the interleaved schedule computes wrong gradients.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        # A repair for versions of torch that are too old for us.
        "batch_p2p_sync": False,
        "use_cpu_initialization": not cuda,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        # The fused kernels are of SiLU.
        "bias_activation_fusion": cuda and family.activation == "silu",
        "bias_dropout_fusion": cuda,
        "apply_rope_fusion": uses_transformer_engine() and not _scales_sines(family),
        # Weights are overwritten right after construction.
        "perform_initialization": False,
    }
    fields |= family.transformer_fields() | transformer_precision(precision)
    if family.experts is not None:
        fields |= {
            "moe_grouped_gemm": uses_transformer_engine(),
            "expert_model_parallel_size": parallel.expert_model_parallel_size,
            "expert_tensor_parallel_size": parallel.expert_tensor_parallel_size,
        }
    config = TransformerConfig(**(fields | model.megatron))
    _scale_rotation(config, hf_config)
    return config
