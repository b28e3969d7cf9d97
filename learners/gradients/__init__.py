"""Policy gradients: GRPO and its kin without a critic, PPO with one."""
