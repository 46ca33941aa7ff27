"""GRPO on tiny-shakespeare in GPT-2's tokens.

    grlu train shakespeare_grpo_tokens

The tokenizer's files lie in the folder gpt2_bpe of the data sets. Not yet trained to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "shakespeare", "tokenizer": "gpt2", "length": 39},
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128},
            "trainer": {
                "name": "grpo",
                "rewards": ("match",),
                "discount": 0.0,
                "reward_mode": "+1",
                "partial_logprob": 0.0,
                "advantage": "group_mean",
                "reference": "start",
                "kl": "exact",
                "beta_kl": 0.001,
                "kl_warmup_tokens": 0,
                "prompt": 32,
                "horizon": 8,
                "batch_size": 32,
                "samples": 4,
                "micro_batches": 8,
                "epochs": 1,
                "optimizer": "adamw",
                "learning_rate": 0.0001,
                "clip": 1.0,
            },
            "run": {"rows_per_epoch": 10},
        }
    )
