"""PPO with a critic on tiny-shakespeare, character by character.

    grlu train shakespeare_ppo

Not yet trained to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "shakespeare", "length": 39},
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128},
            "trainer": {
                "name": "ppo",
                "rewards": ("match",),
                "discount": 1.0,
                "reward_mode": "+1",
                "partial_logprob": 0.0,
                "reference": "bigram",
                "kl": "exact",
                "beta_kl": 0.001,
                "kl_warmup_tokens": 200000,
                "prompt": 32,
                "horizon": 8,
                "batch_size": 64,
                "samples": 1,
                "epochs": 1,
                "optimizer": "adamw",
                "learning_rate": 0.0003,
                "clip": 1.0,
                "gae_decay": 0.95,
                "updates": 4,
                "minibatches": 4,
                "value_learning_rate": 0.001,
            },
            "run": {"rows_per_epoch": 10},
        }
    )
