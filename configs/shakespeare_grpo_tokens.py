"""GRPO on tiny-shakespeare with GPT-2's tokens.

    grlu train shakespeare_grpo_tokens

GPT-2's tokens need `pip install grlu[text]` and the tokenizer's files in the folder `gpt2_bpe/` of
the data folder. The objective adds the log-probability of the right token to the reward
(`trainer.partial_logprob`).

Greedy accuracy (seeds 0-2) is .177 ± .021 on held-out and .155 ± .012 on test text; the untrained
model (`trainer.epochs=0`) has .009 ± .008 and .013 ± .011. Each seed takes 6 minutes on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "dataset": {"name": "shakespeare", "tokenizer": "gpt2", "length": 32, "stride": 8},
            "model": {"name": "gpt", "layers": 4, "heads": 4, "width": 128},
            "trainer": {
                "name": "grpo",
                "rewards": ("match",),
                "discount": 0.0,
                "reward_mode": "+1",
                # An untrained model rarely samples the right token out of 50,257.
                "partial_logprob": 0.1,
                "advantage": "group_mean",
                "reference": "start",
                "kl": "exact",
                "beta_kl": 0.001,
                "kl_warmup_tokens": 0,
                "prompt": 32,
                "horizon": 1,
                "batch_size": 64,
                "samples": 4,
                "epochs": 1,
                "optimizer": "adamw",
                "learning_rate": 0.001,
                "clip": 1.0,
            },
            "run": {"rows_per_epoch": 20},
        }
    )
