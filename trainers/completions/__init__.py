"""Completions of language models: prompts, rollouts, rewards and their evaluation."""
