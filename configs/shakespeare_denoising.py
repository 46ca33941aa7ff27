"""A bidirectional GPT that predicts masked characters, on tiny-shakespeare.

    grlu data prepare shakespeare
    grlu train shakespeare_denoising
    grlu sample runs/shakespeare_denoising-... --prompt "ROMEO:"

Each example has between one and all of its characters masked. Accuracy on the masked characters
(seeds 0-2) is 38.6 ± 0.5 % on held-out and 38.0 ± 0.7 % on test text, at 2.177 ± .016 and
2.199 ± .025 nats. Each seed takes 12 minutes on one core.
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
