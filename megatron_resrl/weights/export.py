"""How a policy becomes Hugging Face tensors: planned once, carried out at every export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from transformers import PretrainedConfig

from megatron_resrl.platform.distributed import device
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.weights.bridge import GroupedNames, bridge_of

_EXPERTS = ".mlp.experts.linear_fc"


@dataclass(frozen=True)
class TensorFacts:
    """Description of an exported tensor."""

    name: str
    """Hugging Face's."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def dtype_name(self) -> str:
        """E.g. bfloat16."""
        return dtype_name(self.dtype)

    @property
    def num_bytes(self) -> int:
        """Size of the whole tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class _Origin(NamedTuple):
    """A parameter of one pipeline stage, as the stages describe it to each other."""

    stage: int
    chunk: int
    local_name: str
    name: str
    """In the whole model; of an expert, its number on the rank."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_split: bool
    """Over tensor-parallel ranks; experts are over theirs, if there are several."""
    partition_dim: int | None


@dataclass(frozen=True)
class _Step:
    """The export of one parameter."""

    origin: _Origin
    parameter: torch.Tensor | None
    """None: it is another stage's."""
    like: torch.Tensor
    """On the meta device, with megatron-core's attributes."""
    names: tuple[str, ...]
    """In the whole model: one for each expert-parallel rank, else one."""
    group: dist.ProcessGroup | None
    """Ranks over which each of them is split; None: each is whole."""


class ExportPlan:
    """Which rank has which parameter, and what becomes of it.

    Valid as long as the process groups and the model's parameters are; their values may change.

    Attributes:
        tensors: What an export yields, in its order.
    """

    def __init__(self, model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig) -> None:
        """Collective over the pipeline-parallel group.

        Args:
            model_chunks: This rank's bare model chunks.
            hf_config: The model's own configuration.
        """
        self._bridge = bridge_of(hf_config, model_chunks[0])
        self._layout = self._bridge.mpu
        chunks = [GroupedNames(model) for model in model_chunks]
        own = [dict(chunk.named_parameters()) for chunk in chunks]
        self._steps: list[_Step] = []
        self.tensors: list[TensorFacts] = []
        planned: set[str] = set()
        for origin in _of_all_stages(self._origins(chunks), self._layout.pp_group):
            step = self._step(origin, own)
            tensors = self._planned_tensors(step)
            # The last stage's copy of a tied embedding is not sent again.
            if not planned.issuperset(facts.name for facts in tensors):
                planned.update(facts.name for facts in tensors)
                self._steps.append(step)
                self.tensors += tensors

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(facts.num_bytes for facts in self.tensors)

    @torch.no_grad()
    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Streams the whole model as Hugging Face tensors, one at a time, on every rank.

        Collective over the tensor-, pipeline- and expert-parallel groups: all their ranks must
        iterate to the end. A tied output matrix is not repeated.

        Yields:
            Hugging Face name and full tensor in the parameters' dtype.
        """
        for step in self._steps:
            parameter = self._from_its_stage(step)
            for name, shard in zip(step.names, self._of_expert_ranks(step, parameter), strict=True):
                shards = [shard] if step.group is None else _gathered(shard, step.group)
                yield from self._as_hugging_face(name, shards, step.like)

    def _origins(self, chunks: Sequence[GroupedNames]) -> list[_Origin]:
        """This stage's parameters."""
        origins = []
        for number, chunk in enumerate(chunks):
            names = self._bridge._weight_name_mapping_mcore_local_to_global(
                chunk, consider_ep=False
            )
            for local_name, parameter in chunk.named_parameters():
                origins.append(
                    _Origin(
                        stage=self._layout.pp_rank,
                        chunk=number,
                        local_name=local_name,
                        name=names[local_name],
                        shape=tuple(parameter.shape),
                        dtype=parameter.dtype,
                        is_split=bool(getattr(parameter, "tensor_model_parallel", False)),
                        partition_dim=getattr(parameter, "partition_dim", None),
                    )
                )
        return origins

    def _step(self, origin: _Origin, own: Sequence[dict[str, torch.nn.Parameter]]) -> _Step:
        layout = self._layout
        is_expert = _EXPERTS in origin.name
        like = torch.empty(origin.shape, dtype=origin.dtype, device="meta")
        like.tensor_model_parallel = origin.is_split  # type: ignore[attr-defined]
        like.partition_dim = origin.partition_dim  # type: ignore[attr-defined]
        names: tuple[str, ...] = (origin.name,)
        if is_expert and layout.ep_size > 1:
            prefix, _, local = origin.name.partition(".weight")
            each = self._bridge.config.num_moe_experts // layout.ep_size
            names = tuple(
                f"{prefix}.weight{rank * each + int(local)}" for rank in range(layout.ep_size)
            )
        group = layout.etp_group if is_expert else layout.tp_group
        is_whole = dist.get_world_size(group) == 1 or not (is_expert or origin.is_split)
        return _Step(
            origin=origin,
            parameter=(
                own[origin.chunk][origin.local_name] if origin.stage == layout.pp_rank else None
            ),
            like=like,
            names=names,
            group=None if is_whole else group,
        )

    def _planned_tensors(self, step: _Step) -> list[TensorFacts]:
        """What a step yields, found out without any data."""
        ranks = 1 if step.group is None else dist.get_world_size(step.group)
        return [
            TensorFacts(name, tensor.dtype, tuple(tensor.shape))
            for whole in step.names
            for name, tensor in self._as_hugging_face(whole, [step.like] * ranks, step.like)
        ]

    def _from_its_stage(self, step: _Step) -> torch.Tensor:
        """The parameter of one rank per stage, on all stages."""
        group, parameter = self._layout.pp_group, step.parameter
        if parameter is None:
            parameter = torch.empty(step.origin.shape, dtype=step.origin.dtype, device=device())
        if self._layout.pp_size > 1:
            source = dist.get_global_rank(group, step.origin.stage)
            dist.broadcast(parameter, src=source, group=group)
        return parameter

    def _of_expert_ranks(self, step: _Step, parameter: torch.Tensor) -> list[torch.Tensor]:
        """The parameter of every expert-parallel rank; of one that is no expert, just this one."""
        if len(step.names) == 1:
            return [parameter]
        return _gathered(parameter, self._layout.ep_group)

    def _as_hugging_face(
        self, name: str, shards: list[torch.Tensor], like: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        merged = shards[0]
        if len(shards) > 1:
            merged = self._bridge._weight_merge_across_tp(name, shards, like)
        names, tensors = self._bridge._weight_to_hf_format(name, merged)
        for hugging_face_name, tensor in zip(names, tensors, strict=True):
            yield hugging_face_name, tensor.detach()


def _of_all_stages(own: list[_Origin], group: dist.ProcessGroup) -> Iterator[_Origin]:
    """The parameters of all pipeline stages, in their order."""
    found: list[list[_Origin]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(found, own, group=group)
    for of_stage in found:
        yield from of_stage


def _gathered(tensor: torch.Tensor, group: dist.ProcessGroup) -> list[torch.Tensor]:
    """The tensors [same shape] of all ranks of a group."""
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, tensor, group=group)
    return found
