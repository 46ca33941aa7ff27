"""Learning from preferences: supervised, then a reward model, then a policy that it pays.

    grlu train sonnets_rlhf

The judge's taste is known, a number for each character, so that the truth can be measured: the
reward model sees only which of two completions is preferred; the policy sees only the reward model
(`reward_taste` has no weight and is there to be read).

Test, seeds 0 to 2, after 4 minutes on one core each: the reward model is right in 97.6 ± 1.6 % of
184 pairs; the true utility of a completion rises from 3.2 ± 0.1 to 14.5 ± 1.4 (standard deviation
among those of a prompt: 4.0) at a divergence of 7.0 ± 1.6 nats.
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
                        "utility": ("taste",),
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
                        "rewards": ("judge", "taste"),
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
