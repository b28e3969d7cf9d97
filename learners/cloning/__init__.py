"""Likelihood: behaviour cloning, rejection fine-tuning, AgentEvol."""
