"""YAML files of the research code run unchanged."""

import logging

import pytest

import trainers
from trainers.config.load import load_config

ITERATIVE = """
dataset: {name: mnist, batch_size: 64, num_workers: 4}
model:
  type: ivae_iterative
  z_dim: 15
  lr: 1e-4
  lr_inf: 1e-2
  svi_steps: 20
  beta: 1.0
  weight_decay: 1e-5
  encoder_hidden: [512, 256, 128]
  decoder_hidden: [256, 512]
train: {epochs: 3, save_dir: out, use_amp: true, early_stopping: true, patience: 7, save_top_k: 5,
        grad_clip: 1.0}
"""


def test_an_iterative_layout_is_translated(tmp_path, caplog):
    (tmp_path / "ivae.yaml").write_text(ITERATIVE)
    with caplog.at_level(logging.WARNING, "grlu"):
        config = trainers.resolve(tmp_path / "ivae.yaml")
    for key in ("has no num_workers", "has no save_dir"):
        assert key in caplog.text
    assert "use_amp" not in caplog.text
    assert (config.model.name, config.model.latent) == ("ivae", 15)
    assert config.model.encoder_hidden == (512, 256, 128)
    trainer = config.trainer
    assert (trainer.name, trainer.mode, trainer.svi_steps) == ("svi", "decoupled", 20)
    assert (trainer.learning_rate, trainer.svi_learning_rate) == (1e-4, 1e-2)
    assert (trainer.batch_size, trainer.clip, trainer.epochs) == (64, 1.0, 3)
    assert (trainer.optimizer, trainer.weight_decay) == ("adamw", 1e-5)
    assert trainer.precision == "bfloat16"
    assert (config.run.patience, config.run.keep_best) == (7, 5)


def test_a_convolutional_layout_trains(tmp_path, caplog):
    (tmp_path / "conv.yaml").write_text(
        "dataset: {name: digits, batch_size: 64}\n"
        "model: {type: vae_conv, z_dim: 4, beta: 0.5, lr_inf: 0.1, encoder_channels: [4]}\n"
        "train: {epochs: 1, early_stopping: false, patience: 3}\n"
    )
    with caplog.at_level(logging.WARNING, "grlu"):
        config = load_config(tmp_path / "conv.yaml", ["model.decoder_channels=(4,)"])
        result = trainers.train(config, tmp_path / "run", progress=False)
    assert "trainer 'backprop' with 'elbo' has no svi_learning_rate: dropped" in caplog.text
    assert config.run.patience is None
    assert result.metrics["test_reward"] == pytest.approx(
        result.metrics["test_reconstruction"] - 0.5 * result.metrics["test_kl"], rel=1e-4
    )
