"""What a rank does in scoring and update, in closed form: a sieve for many layouts.

A dry run counts what the product's own code does, and takes seconds to minutes for each layout;
these formulas take microseconds, and leave out what is small. `plan --search` ranks layouts with
them and dry-runs the best ones. Tensors are counted as Transformer Engine's layers save them.

Letters: h hidden size, q and k sizes of queries and keys, f inner size of the MLP, V vocabulary; t
tensor, c context, p pipeline and d data-parallel ranks; T tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_resrl.planning.model_layout import Layout
from megatron_resrl.planning.records import PhaseRecord, RankRecord, Traffic
from megatron_resrl.planning.scaling import combined
from megatron_resrl.planning.seconds import KERNELS_PER_LAYER
from megatron_resrl.planning.step_work import StepWork

_LOGIT_BYTES = 2**30
"""Of a chunk of logits and what becomes of it (`policy/log_probs.py`)."""


@dataclass(frozen=True)
class Stage:
    """One pipeline stage of a layout."""

    layout: Layout
    first: bool
    last: bool

    @property
    def parameters(self) -> tuple[float, float]:
        """Of a rank: without experts, and experts."""
        layout, count = self.layout, self.layout.model.parameters
        share = layout.layers / layout.model.layers
        ends = count.embedding * self.first + (count.head or count.embedding) * self.last
        if self.first and self.last:
            ends = count.embedding + count.head
        dense = (share * count.in_layers + ends) / layout.tensor
        return dense, share * count.experts / layout.expert_ranks

    @property
    def static_bytes(self) -> dict[str, int]:
        """Bytes between steps, by kind: weights, fp32 gradients, and the optimizer's fp32 masters
        and moments, divided among the ranks that share it."""
        layout = self.layout
        dense, experts = self.parameters
        masters = 0 if layout.item == 4 else 4
        expert_data = max(1, layout.optimizer_ranks * layout.tensor // layout.expert_ranks)
        shared = dense / layout.optimizer_ranks + experts / expert_data
        found = {
            "weights": int(layout.item * (dense + experts)),
            "gradients": int(4 * (dense + experts)),
            "optimizer": int((masters + 8) * shared),
        }
        if layout.dtype != layout.plain_dtype:
            # On Hopper, a copy for the products of the forward pass and one for the backward's.
            in_layers = layout.layers / layout.model.layers * layout.model.parameters.in_layers
            found["FP8 weights"] = int(2 * (in_layers / layout.tensor + experts))
        return found

    def saved_bytes(self, tokens: float, copied_keys: float = 0.0) -> float:
        """What the backward pass of one layer needs of a micro-batch.

        Per token: the inputs and outputs of both norms, 4 h, divided under sequence parallelism;
        queries, keys and values twice, around the rotary embedding, and attention's output; gate,
        up and their product. Attention to shared prompts holds keys and values once more.
        """
        layout, model = self.layout, self.layout.model
        kept = 4 * model.hidden / layout.token_share
        inside = 3 * model.queries + 4 * model.keys + 3 * model.active_inner
        if layout.recompute == "selective":
            # The core attention's output is made again, and so are copies of keys.
            inside, copied_keys = inside - model.queries, 0.0
        copies = 2 * model.keys * copied_keys / layout.tensor
        per_token = kept + inside / layout.tensor
        return layout.item * (tokens / layout.context * per_token + copies)

    def in_flight(self, micro_batches: int) -> float:
        """Micro-batches whose activations a rank holds at once.

        1F1B: as many as there are stages from this one on. Interleaved, megatron-core's warm-up
        takes (v - 1) p + 2 (p - 1) chunks on the first stage, (v - 1) p on the last, and one more.
        """
        layout = self.layout
        behind = layout.stages - 1 if self.first else 0 if self.last else layout.stages - 2
        if layout.chunks == 1:
            return min(micro_batches, behind + 1)
        warm_up = (layout.chunks - 1) * layout.stages + 2 * behind + 1
        return min(micro_batches, warm_up / layout.chunks)

    def activation_bytes(self, work: StepWork, in_flight: float) -> float:
        """Of `in_flight` micro-batches, one of them in a layer that is being recomputed."""
        layout, tokens = self.layout, work.tokens
        saved = self.saved_bytes(tokens, work.copied_keys)
        kept = layout.layers - layout.recomputed
        inputs = layout.item * tokens / layout.context * layout.model.hidden / layout.token_share
        per_micro_batch = kept * saved + layout.recomputed * inputs
        working = saved if layout.recomputed else 0.0
        return in_flight * per_micro_batch + working + _LOGIT_BYTES * self.last

    def forward_flops(self, tokens: float, pairs: float, targets: float) -> float:
        """Of a micro-batch on one rank: 2 for each weight and token, 2 (q + q) for each pair of
        tokens that attend, and the logits of targets."""
        attention = self.attention_flops(pairs)
        return self.weight_flops(tokens) + attention + self.logit_flops(targets)

    def weight_flops(self, tokens: float) -> float:
        """Of them, the products with the layers' weights."""
        layout = self.layout
        shared = layout.layers * tokens * layout.model.layer_flops(0)
        return shared / layout.tensor / layout.context

    def attention_flops(self, pairs: float) -> float:
        """Of them, those of the core attention, which selective recomputation does again."""
        layout = self.layout
        shared = layout.layers * 4 * layout.model.queries * pairs
        return shared / layout.tensor / layout.context

    def logit_flops(self, targets: float) -> float:
        """Of them, those of the output matrix."""
        layout, model = self.layout, self.layout.model
        logits = 2 * model.hidden * model.vocabulary * targets * self.last
        return logits / layout.tensor / layout.context

    def flops(
        self, work: StepWork, count: int, *, weights: float, attention: float, logits: float
    ) -> dict[str, float]:
        """Of `count` micro-batches, by dtype, each part as often as a forward pass has it."""
        layout = self.layout
        plain = attention * self.attention_flops(work.pairs)
        plain += logits * self.logit_flops(work.targets)
        parts = {layout.plain_dtype: count * plain}
        products = count * weights * self.weight_flops(work.tokens)
        return parts | {layout.dtype: parts.get(layout.dtype, 0.0) + products}

    def forward_bytes(self, tokens: float, responses: float) -> float:
        """Read and written on the device by one forward pass of a micro-batch: weights once, what
        the backward pass saves about three times, and logits in fp32 four times."""
        layout, model = self.layout, self.layout.model
        weights = layout.item * sum(self.parameters)
        logits = 4 * 4 * responses * model.vocabulary * self.last / layout.tensor / layout.context
        return weights + 3 * layout.layers * self.saved_bytes(tokens) + logits

    @property
    def recomputed_share(self) -> float:
        """Of the layers."""
        return self.layout.recomputed / self.layout.layers

    def traffic(self, tokens: float, forward: int, backward: int, again: float) -> list[Traffic]:
        """Of `forward` and `backward` passes of a micro-batch, `again` of them recomputed."""
        layout, model = self.layout, self.layout.model
        own = layout.item * tokens / layout.context * model.hidden
        found = []
        t, layers = layout.tensor, layout.layers
        # Two regions in each layer: a gather before each, and a reduction after it.
        regions = 2 * layers * (forward + again)
        if t > 1 and layout.parallel.sequence_parallel:
            sent = own * (t - 1) / t
            gathers = int(regions + 4 * layers * backward)  # Inputs are gathered again.
            scatters = int(regions + 2 * layers * backward)
            found += [
                Traffic("tensor", t, "all_gather", gathers, int(gathers * sent)),
                Traffic("tensor", t, "reduce_scatter", scatters, int(scatters * sent)),
            ]
        elif t > 1:
            calls = int(regions + 2 * layers * backward)
            sent = 2 * own * (t - 1) / t
            found.append(Traffic("tensor", t, "all_reduce", calls, int(calls * sent)))
        if layout.stages > 1:
            # Each chunk of a rank sends on, but the model's last; backward, but the first.
            chunks = layout.chunks
            calls = forward * (chunks - self.last) + backward * (chunks - self.first)
            sent = own / layout.token_share
            found.append(Traffic("pipeline", layout.stages, "send", calls, int(calls * sent)))
        if layout.context > 1:
            calls = int(layers * (layout.context - 1) * (forward + again + 2 * backward))
            sent = 2 * layout.item * tokens / layout.context * model.keys / t
            found.append(Traffic("context", layout.context, "send", calls, int(calls * sent)))
        found += self._expert_traffic(tokens, forward + backward + again)
        return [traffic for traffic in found if traffic.calls]

    def _expert_traffic(self, tokens: float, passes: float) -> list[Traffic]:
        """Each token goes to its experts and back; balanced routing."""
        layout, model = self.layout, self.layout.model
        ranks = layout.parallel.expert_model_parallel_size
        if ranks == 1 or not model.experts:
            return []
        rows = tokens / layout.context / layout.token_share * model.experts_per_token
        sent = layout.item * rows * model.hidden * (ranks - 1) / ranks
        calls = int(2 * layout.layers * model.sparse_share * passes)
        return [Traffic("expert", ranks, "all_to_all", calls, int(calls * sent))]

    def optimizer_traffic(self) -> list[Traffic]:
        """Of one optimizer step: fp32 gradients are reduced, new weights gathered."""
        layout = self.layout
        replicas = layout.world_size // (layout.tensor * layout.stages)
        if replicas == 1:
            return []
        dense, _ = self.parameters
        share = (replicas - 1) / replicas
        gradients, weights = int(4 * dense * share), int(layout.item * dense * share)
        if not layout.parallel.use_distributed_optimizer:
            return [Traffic("data", replicas, "all_reduce", 1, 2 * gradients)]
        return [
            Traffic("data", replicas, "reduce_scatter", 1, gradients),
            Traffic("data", replicas, "all_gather", 1, weights),
        ]


def stages_of(layout: Layout) -> dict[str, Stage]:
    """The stages that differ, by the role of their ranks."""
    if layout.stages == 1:
        return {"all stages": Stage(layout, first=True, last=True)}
    found = {
        "first stage": Stage(layout, first=True, last=False),
        "last stage": Stage(layout, first=False, last=True),
    }
    if layout.stages > 2:
        found["middle stage"] = Stage(layout, first=False, last=False)
    return found


def estimate(layout: Layout, work: StepWork, largest: StepWork) -> list[RankRecord]:
    """Scoring, where the stage has it, and update of a step.

    Args:
        layout: Model, ranks and recomputation.
        work: As long as sequences are on average: operations and traffic.
        largest: As long as the recipe allows: memory.
    """
    found = []
    for rank, (role, stage) in enumerate(stages_of(layout).items()):
        phases: tuple[PhaseRecord, ...] = ()
        if work.scoring is not None and largest.scoring is not None:
            once = _scoring(stage, work.scoring, largest.scoring)
            phases = (combined([(once, work.scoring_passes)], like=once),)
        found.append(RankRecord(rank, role, (*phases, _update(stage, work, largest))))
    return found


def _scoring(stage: Stage, work: StepWork, largest: StepWork) -> PhaseRecord:
    layout = stage.layout
    count = layout.scheduled(work.micro_batches)
    static = stage.static_bytes
    # A layer's tensors are freed when the next one has its input.
    working = stage.saved_bytes(largest.tokens, largest.copied_keys) + _LOGIT_BYTES * stage.last
    kinds = static | {"activations": int(working)}
    return _record(
        "scoring",
        start=sum(static.values()),
        kinds=kinds,
        traffic=stage.traffic(work.tokens, count, 0, 0),
        flops=stage.flops(work, count, weights=1, attention=1, logits=1),
        touched=count * stage.forward_bytes(work.tokens, work.targets),
        kernels=count * KERNELS_PER_LAYER * layout.layers,
    )


def _update(stage: Stage, work: StepWork, largest: StepWork) -> PhaseRecord:
    """All updates of a step together."""
    layout = stage.layout
    count = work.micro_batches
    if layout.chunks > 1:
        count = work.updates * layout.scheduled(work.micro_batches_per_update)
    again = stage.recomputed_share
    # The backward pass is two forward passes of weights. Of attention, whose kernel makes the
    # scores again, it is two and a half.
    passes = 3 + again
    attention = 3.5 + (1 if layout.recompute == "selective" else again)
    static = stage.static_bytes
    in_flight = stage.in_flight(layout.scheduled(work.micro_batches_per_update))
    memory = stage.activation_bytes(largest, in_flight)
    parameters = sum(stage.parameters)
    # Gradient, master and moments are read, and all but the gradient written, with the weight.
    optimizer = (4 * 4 + 3 * 4 + layout.item) * parameters / layout.optimizer_ranks
    accumulation = 8 * parameters * count
    reductions = [
        replace(each, calls=work.updates * each.calls, bytes=work.updates * each.bytes)
        for each in stage.optimizer_traffic()
    ]
    return _record(
        "update",
        start=sum(static.values()),
        kinds=static | {"activations": int(memory)},
        traffic=stage.traffic(work.tokens, count, count, again * count) + reductions,
        flops=stage.flops(
            work, count, weights=passes, attention=attention, logits=4 if work.logits_twice else 3
        ),
        touched=count * passes * stage.forward_bytes(work.tokens, work.targets)
        + accumulation
        + work.updates * optimizer,
        kernels=int(count * passes * KERNELS_PER_LAYER * layout.layers),
    )


def _record(
    name: str,
    *,
    start: int,
    kinds: dict[str, int],
    traffic: list[Traffic],
    flops: dict[str, float],
    touched: float,
    kernels: int,
) -> PhaseRecord:
    return PhaseRecord(
        name=name,
        start_bytes=start,
        peak_bytes=sum(kinds.values()),
        peak_by_kind=kinds,
        holders=(),
        traffic=tuple(traffic),
        waits=(),
        matrix_flops={dtype: int(count) for dtype, count in flops.items() if count},
        touched_bytes=int(touched),
        host_copy_bytes=0,
        kernels=kernels,
    )
