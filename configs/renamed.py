"""Settings of version 0.1.0 that have another name now; their values mean the same unless said otherwise."""

from __future__ import annotations

RENAMED = {
    "model.context": "model.max_length",
    "env.user.key_variable": "env.user.api_key_env",
    "rollout.groups": "rollout.num_groups",
    "rollout.max_seqs": "rollout.max_num_seqs",
    "rollout.gpu_memory": "rollout.gpu_memory_utilization",
    "rollout.eval_temperature": "evaluate.temperature",
    **{
        f"warm_start.{name}": f"sft.{name}"
        for name in ("demos", "epochs", "lr", "batch_rows", "noise", "hints")
    },
    "credit.normalise": "credit.normalize",
    "credit.success_return": "credit.success_reward",
    "credit.lam": "credit.gae_lambda",
    "critic.lr": "credit.critic_lr (with credit.advantage=gae)",
    "critic.clip": "credit.value_clip (with credit.advantage=gae)",
    "feedback.success": "feedback.sibling",
    "judge.key_variable": "judge.api_key_env",
    "reweight.strength": "signal.strength (with signal.name=reweight)",
    "reweight.decay_steps": "signal.decay_steps (with signal.name=reweight)",
    "reweight.clip": "signal.clip (with signal.name=reweight)",
    "reweight.tokens": "signal.tokens",
    "distil.weight": "signal.weight (with signal.name=distill)",
    "distil.divergence": "signal.divergence (with signal.name=distill)",
    "distil.beta": "signal.beta (with signal.name=distill)",
    "distil.top_k": "signal.top_k (with signal.name=distill)",
    "distil.importance_cap": "signal.tis_cap (with signal.name=distill)",
    "teacher.refresh_every": "teacher.sync_every",
    "teacher.ema": "teacher.ema_decay, which is 1 minus the old value",
    "loss.importance_cap": "loss.tis_cap",
    "learner.updates": "learner.mini_batches",
    "learner.micro_tokens": "learner.micro_batch_tokens",
    "learner.checkpointing": "learner.gradient_checkpointing",
    "learner.grad_clip": "learner.max_grad_norm",
    "publish.transport": "weight_sync.transport",
    "publish.tolerance": "weight_sync.max_logprob_gap",
    "evaluate.policy": "evaluate.agent",
    "cluster.dashboard": "cluster.dashboard_port, where 0 starts no dashboard",
}
