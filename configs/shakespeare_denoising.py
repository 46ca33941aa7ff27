"""A GPT that sees the whole text and fills in its masked characters, on tiny-shakespeare.

    grlu data prepare shakespeare
    grlu train shakespeare_denoising
    grlu sample runs/shakespeare_denoising-... --prompt "ROMEO:"

The share of masked characters is anything from one to all of them. Of these 38.6 ± 0.5 % are right
on held-out and 38.0 ± 0.7 % on test text (seeds 0-2), at 2.177 ± .016 and 2.199 ± .025 nats; 12
minutes each on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "shakespeare", "length": 64, "stride": 32},
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128, "causal": False},
            "trainer": {
                "name": "backprop",
                "objective": "denoising",
                "epochs": 6,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 2e-3,
                "schedule": "warmup_cosine",
                "weight_decay": 0.1,
                "clip": 1.0,
            },
        }
    )
