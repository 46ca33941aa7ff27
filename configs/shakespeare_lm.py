"""A character-level GPT, 4 layers of width 128, on tiny-shakespeare, by backprop.

    grlu data prepare shakespeare
    grlu train shakespeare_lm
    grlu sample runs/shakespeare_lm-... --prompt "ROMEO:"

Goal: a validation NLL of at most 1.95 nats per character in 10 minutes on 2 cores. Not yet trained
to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            # Three epochs are six passes over the text.
            "dataset": {"name": "shakespeare", "length": 64, "stride": 32},
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128},
            "trainer": {
                "name": "backprop",
                "objective": "lm",
                "epochs": 3,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 2e-3,
                "schedule": "warmup_cosine",
                "weight_decay": 0.1,
                "clip": 1.0,
            },
        }
    )
