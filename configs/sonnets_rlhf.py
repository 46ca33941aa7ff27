"""RLHF: a supervised model, a reward model from preferences, and a policy trained on its reward.

    grlu train sonnets_rlhf

The true preference score, a number per character, is known, so the result can be measured. The
reward model sees only which of two completions is preferred, and the policy sees only the reward
model. The true score is logged with weight 0.

On test prompts (seeds 0-2), the reward model is right on 97.6 ± 1.6 % of 184 preference pairs. The
true score of a completion rises from 3.2 ± 0.1 to 14.5 ± 1.4 (standard deviation within a prompt:
4.0) at a KL of 7.0 ± 1.6 nats. Each seed takes 4 minutes on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {
                "name": "sonnets",
                "length": 32,
                "stride": 2,
                "validation": 0.15,
                "test": 0.15,
            },
            "stages": [
                {
                    "name": "supervised",
                    "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 64},
                    "trainer": {
                        "name": "backprop",
                        "objective": "lm",
                        "epochs": 2,
                        "batch_size": 16,
                        "optimizer": "adamw",
                        "learning_rate": 0.003,
                        "clip": 1.0,
                    },
                },
                {
                    "name": "judge",
                    "start": "supervised",
                    "trainer": {
                        "name": "reward_model",
                        "utility": ("preference_score",),
                        "pairs": 8,
                        "prompt": 16,
                        "horizon": 16,
                        "epochs": 10,
                        "batch_size": 32,
                        "optimizer": "adamw",
                        "learning_rate": 0.001,
                    },
                },
                {
                    "name": "policy",
                    "start": "supervised",
                    "judge": "judge",
                    "trainer": {
                        "name": "grpo",
                        "rewards": ("judge", "preference_score"),
                        "reward_weights": (1.0, 0.0),
                        "prompt": 16,
                        "horizon": 16,
                        "beta_kl": 0.1,
                        "epochs": 2,
                        "batch_size": 16,
                        "samples": 8,
                        "optimizer": "adamw",
                        "learning_rate": 0.0003,
                    },
                },
            ],
            "run": {"rows_per_epoch": 4},
        }
    )
