"""Settings of other trainers, and what they are called here.

Names of verl (ppo_trainer.yaml), TRL (GRPOConfig), NeMo-RL (grpo_math_1B.yaml) and OpenRLHF. What
is written in another unit or has another default is explained in docs/migrating.md.
"""

from __future__ import annotations

from collections.abc import Container

_CALLED = {
    "rollout.group_size": "n num_generations num_generations_per_prompt n_samples_per_prompt",
    "rollout.prompts_per_step": (
        "train_batch_size num_prompts_per_step rollout_batch_size gen_batch_size"
    ),
    "algorithm.updates_per_step": (
        "ppo_mini_batch_size mini_batch_size steps_per_generation num_mini_batches "
        "train_global_batch_size"
    ),
    "algorithm.micro_batch_size": (
        "ppo_micro_batch_size ppo_micro_batch_size_per_gpu per_device_train_batch_size "
        "train_micro_batch_size micro_train_batch_size log_prob_micro_batch_size_per_gpu "
        "logprob_batch_size"
    ),
    "steps": "total_training_steps max_steps max_num_steps num_train_steps train_steps",
    "algorithm.clip_low and algorithm.clip_high": (
        "clip_ratio_low epsilon eps_clip ratio_clip_min clip_ratio"
    ),
    "algorithm.clip_high": "clip_ratio_high epsilon_high eps_clip_high ratio_clip_max",
    "algorithm.dual_clip": "clip_ratio_c ratio_clip_c delta",
    "algorithm.aggregation": "loss_agg_mode token_level_loss loss_type",
    "algorithm.options": (
        "norm_adv_by_std_in_grpo scale_rewards normalize_rewards entropy_coeff entropy_coef "
        "entropy_loss_coef"
    ),
    "algorithm.kl_coefficient": (
        "kl_coef kl_loss_coef use_kl_loss beta reference_policy_kl_penalty init_kl_coef"
    ),
    "algorithm.kl_estimator": (
        "kl_loss_type kl_penalty reference_policy_kl_type use_kl_estimator_k3"
    ),
    "algorithm.kl_in": "use_kl_in_reward",
    "algorithm.name": (
        "adv_estimator advantage_estimator loss_mode importance_sampling_level "
        "sequence_level_importance_ratios"
    ),
    "optimizer.lr": "learning_rate actor_learning_rate max_lr",
    "optimizer.lr_warmup_steps": (
        "lr_warmup_iters warmup_steps lr_warmup_steps_ratio warmup_ratio lr_warmup_ratio"
    ),
    "optimizer.lr_decay_style": "lr_scheduler_type lr_scheduler warmup_style",
    "optimizer.min_lr": "min_lr_ratio",
    "optimizer.clip_grad": "max_grad_norm grad_clip max_norm",
    "optimizer.adam_beta1 and optimizer.adam_beta2": "adam_betas betas",
    "rollout.dynamic_sampling": "filter_groups use_dynamic_sampling dynamic_filtering",
    "rollout.max_refills": "max_num_gen_batches",
    "rollout.max_response_length": (
        "max_completion_length max_new_tokens generate_max_len response_length"
    ),
    "data.max_prompt_length": "max_input_seq_length prompt_max_len filter_overlong_prompts",
    "reward.overlong": (
        "mask_truncated_completions overlong_filtering overlong_buffer_len overlong_buffer"
    ),
    "rollout.max_staleness": "max_trajectory_age_steps async_train rollout.mode",
    "correction.method": (
        "rollout_is vllm_importance_sampling_correction use_importance_sampling_correction"
    ),
    "rollout.stop_token_ids": "stop stop_strings stop_token_id",
    "vllm.tensor_parallel_size and vllm.servers": "vllm_tensor_parallel_size vllm_num_engines",
    "vllm.arguments": "gpu_memory_utilization vllm_gpu_memory_utilization enforce_eager",
    "optimizer.megatron": "param_offload optimizer_offload cpu_offload adam_offload",
    "reward.functions": "reward_weights reward.weights",
    "reward.function": "custom_reward_function reward_funcs remote_rm_url reward_fn",
    "evaluation.every": "test_freq eval_steps val_period",
    "evaluation.files": "val_files eval_dataset",
    "evaluation.samples_per_prompt and evaluation.temperature": (
        "val_kwargs num_generations_eval eval_temperature"
    ),
    "evaluation.max_prompts": "val_max_samples max_val_samples max_eval_samples",
    "checkpoint.save_every": "save_freq save_steps save_period",
    "checkpoint.keep_last": "max_actor_ckpt_to_keep save_total_limit max_ckpt_num keep_top_k",
    "checkpoint.best_metric": "metric_name",
    "checkpoint.resume": "resume_mode resume_from_checkpoint load_checkpoint",
    "checkpoint.export_hf": "save_contents save_hf_ckpt",
    "model.path": "pretrain model_name_or_path hf_model_path model_name model.name",
    "data.train_files": "prompt_data train_file dataset_name",
    "data.prompt_key": "input_key question_key",
    "data.answer_key": "label_key output_key reward_fn_key",
    "data.chat_template_kwargs": "apply_chat_template_kwargs",
    "model.recompute_granularity": (
        "gradient_checkpointing enable_gradient_checkpointing activation_checkpointing"
    ),
    "algorithm.sequence_packing": "packing_samples use_remove_padding",
    "precision.params_dtype": "bf16 torch_dtype dtype",
    "logging.wandb_name": "experiment_name run_name wandb_run_name",
    "logging.wandb_project": "project_name wandb_proj",
    "logging.wandb_project and logging.tensorboard": "report_to use_wandb use_tensorboard",
    "logging.sample_responses": "log_completions rollout_data_dir",
    "rollout.environment and rollout.max_turns": (
        "multi_turn tool_config_path max_rollout_turns agent_func_path"
    ),
    "output_dir": "default_local_dir save_path ckpt_path checkpoint_dir",
}
"""Settings that do the same -> other trainers' names."""

_MISSING = {
    "the reference has the weights that the run began with, and the factor of the KL penalty is "
    "constant": "sync_ref_model ref_model ref_model_sync_steps kl_ctrl kl_target",
    "there are no adapters; all weights are trained": (
        "lora_rank lora_alpha lora peft_config use_peft target_modules"
    ),
    (
        "a run's length is counted in steps: set steps to epochs x questions / "
        "rollout.prompts_per_step"
    ): "total_epochs num_train_epochs max_num_epochs num_episodes max_epochs",
    "each response is used for one update; algorithm.updates_per_step splits a step's prompts": (
        "ppo_epochs num_iterations"
    ),
    "micro-batches are counted in responses (algorithm.micro_batch_size), not in tokens": (
        "use_dynamic_bsz ppo_max_token_len_per_gpu dynamic_batching train_mb_tokens "
        "max_tokens_per_gpu use_dynamic_batch"
    ),
    "it follows from rollout.prompts_per_step, algorithm.updates_per_step and micro_batch_size": (
        "gradient_accumulation_steps"
    ),
    "responses are drawn with temperature, top_p and top_k only": (
        "repetition_penalty min_p presence_penalty frequency_penalty"
    ),
    "rewards are functions, not models; reward.functions combines several": (
        "reward_model_path reward_pretrain"
    ),
    "the launcher says it: torchrun --nnodes N --nproc-per-node G, or srun": (
        "nnodes n_gpus_per_node num_nodes gpus_per_node actor_num_nodes"
    ),
    "evaluation.files are always evaluated before the first step": (
        "val_before_train eval_on_start val_at_start"
    ),
    "there is no critic; advantages are of whole responses": (
        "critic critic_pretrain gae_lambda gamma lam"
    ),
    "it is gone: each data-parallel replica has whole groups of responses": "split_groups",
}
"""Why there is no such setting -> other trainers' names."""


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: said for said, names in table.items() for name in names.split()}


MEANT = _by_name(_CALLED)
"""Name -> the settings that do the same, joined by " and "."""

ABSENT = _by_name(_MISSING)
"""Name -> why there is no such setting."""

_PAGE = "docs/migrating.md"


def hint(name: str, settings: Container[str]) -> str | None:
    """What a setting of another trainer is here; None if the name is not known.

    Args:
        name: As given, dotted or not; `actor_rollout_ref.rollout.n` is known by its last part.
        settings: Of the recipe; one without rollouts is not told of them.
    """
    parts = name.split(".")
    for known in (".".join(parts[-2:]), parts[-1]):
        if known in ABSENT and "rollout.group_size" in settings:
            return f"{ABSENT[known]}; see {_PAGE}"
        if known in MEANT and all(each in settings for each in MEANT[known].split(" and ")):
            return f"use {MEANT[known]}; see {_PAGE}"
    return None
