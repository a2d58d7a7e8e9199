"""Hints for settings of version 0.1.0 that were renamed or removed."""

from __future__ import annotations

RENAMED = {
    "model.context": "It is now model.max_length",
    "env.user.key_variable": "It is now env.user.api_key_env",
    "rollout.groups": "It is now rollout.num_groups",
    "rollout.max_seqs": "It is now rollout.max_num_seqs",
    "rollout.gpu_memory": "It is now rollout.gpu_memory_utilization",
    "rollout.eval_temperature": "It is now evaluate.temperature",
    **{
        f"warm_start.{name}": f"It is now sft.{name}"
        for name in ("demos", "epochs", "lr", "batch_rows", "noise", "hints")
    },
    "credit.normalise": "It is now credit.normalize",
    "credit.success_return": "It is now credit.success_reward",
    "credit.lam": "It is now credit.gae_lambda",
    "critic.lr": "It is now credit.critic_lr (with credit.advantage=gae)",
    "critic.clip": "It is now credit.value_clip (with credit.advantage=gae)",
    "feedback.success": "It is now feedback.sibling",
    "judge.key_variable": "It is now judge.api_key_env",
    "reweight.strength": "It is now signal.strength (with signal.name=reweight)",
    "reweight.decay_steps": "It is now signal.decay_steps (with signal.name=reweight)",
    "reweight.clip": "It is now signal.clip (with signal.name=reweight)",
    "reweight.tokens": "It is now signal.tokens",
    "distil.weight": "It is now signal.weight (with signal.name=distill)",
    "distil.divergence": "It is now signal.divergence (with signal.name=distill)",
    "distil.beta": "It is now signal.beta (with signal.name=distill)",
    "distil.top_k": "It is now signal.top_k (with signal.name=distill)",
    "distil.importance_cap": "It is now signal.tis_cap (with signal.name=distill)",
    "teacher.refresh_every": "It is now teacher.sync_every",
    "teacher.ema": "It is now teacher.ema_decay, which is 1 minus the old value",
    "loss.importance_cap": "It is now loss.tis_cap",
    "learner.updates": "It is now learner.mini_batches",
    "learner.micro_tokens": "It is now learner.micro_batch_tokens",
    "learner.checkpointing": "It is now learner.gradient_checkpointing",
    "learner.grad_clip": "It is now learner.max_grad_norm",
    "publish.transport": "It is now weight_sync.transport",
    "publish.tolerance": "It is now weight_sync.max_logprob_gap",
    "evaluate.policy": "It is now evaluate.agent",
    "rollout.workers": "It was removed: one actor hosts all episodes",
    "warm_start.observations": "It was removed",
    "judge.retries": "It was removed: a question is retried twice",
    "loss.kl_estimator": "It was removed: the penalty is k3",
    "distil.temperature": "It was removed: distillation compares distributions at temperature 1",
    "cluster.actor_logs": "It was removed: the Ray dashboard shows the logs",
    "cluster.dashboard": "It is now cluster.dashboard_port, where 0 starts no dashboard",
}
