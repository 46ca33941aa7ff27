"""A small GPT on eight bundled sonnets by Shakespeare, by backprop.

    grlu train sonnets_lm

Negative log-likelihood per character (seed 0): 2.14 nats on held-out and 2.34 on test text, after
19 seconds on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "sonnets", "stride": 4},
            "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 64, "dropout": 0.1},
            "trainer": {
                "name": "backprop",
                "objective": "lm",
                "epochs": 6,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 3e-3,
                "schedule": "warmup_cosine",
                "weight_decay": 0.1,
                "clip": 1.0,
            },
            "run": {"rows_per_epoch": 1},
        }
    )
