"""Imported GPT-2 weights give the logits of the transformers library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import trainers
from models.text.gpt2_weights import _GLOBAL, _LAYER, gpt2_from_file
from trainers.loop.run_dir import RunDirectory
from trainers.pipelines.open import restored


def random_weights(layers=2, width=64, vocabulary=50, block=16):
    rng = np.random.default_rng(0)
    shapes = {
        "wte.weight": (vocabulary, width),
        "wpe.weight": (block, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    wide = {"attn.c_attn": 3 * width, "mlp.c_fc": 4 * width}
    for i in range(layers):
        for name in _LAYER.values():
            units = wide.get(name.rpartition(".")[0], width)
            fan_in = 4 * width if name == "mlp.c_proj.weight" else width
            is_kernel = name.endswith("weight") and not name.startswith("ln")
            shapes[f"h.{i}.{name}"] = (fan_in, units) if is_kernel else (units,)
    return {k: rng.normal(0, 0.2, s).astype(np.float32) for k, s in shapes.items()}


@pytest.fixture
def save(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors")

    def save(arrays):
        safetensors.save_file(arrays, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return save


def test_every_weight_is_assigned(save):
    theirs = random_weights()
    model = gpt2_from_file(save({f"transformer.{k}": v for k, v in theirs.items()}), heads=4)
    params = nnx.state(model, nnx.Param)
    assert sum(p.size for p in jax.tree.leaves(params)) == sum(v.size for v in theirs.values())
    np.testing.assert_array_equal(model.tokens.embedding[...], theirs["wte.weight"])
    np.testing.assert_array_equal(model.layers[1].down.kernel[...], theirs["h.1.mlp.c_proj.weight"])
    assert model.block == 16
    assert model.vocabulary == 50
    assert len(_GLOBAL) + 2 * len(_LAYER) == len(theirs)


def test_logits_are_those_of_the_transformers_library(save):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs torch")
    theirs = random_weights()
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=2, n_head=4)
    reference = transformers.GPT2LMHeadModel(config).eval()
    weights = {f"transformer.{k}": torch.tensor(v) for k, v in theirs.items()}
    reference.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    tokens = np.random.default_rng(1).integers(0, 50, (3, 16))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    found = gpt2_from_file(save(theirs), heads=4)(jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_files_without_a_gpt_2_are_refused(save, tmp_path):
    with pytest.raises(grlu.UserError, match="there is no file"):
        gpt2_from_file(tmp_path / "none.safetensors")
    with pytest.raises(grlu.UserError, match=r"holds no GPT-2: it has no 'wte.weight'"):
        gpt2_from_file(save({"a": np.zeros(3, np.float32)}))
    wrong = random_weights() | {"h.1.mlp.c_fc.bias": np.zeros(3, np.float32)}
    with pytest.raises(grlu.UserError, match=r"h.1.mlp.c_fc.bias must have shape \(256,\)"):
        gpt2_from_file(save(wrong))
    flat = random_weights() | {"wte.weight": np.zeros(3, np.float32)}
    with pytest.raises(grlu.UserError, match=r"wte.weight must be a matrix, not \(3,\)"):
        gpt2_from_file(save(flat))
    bare = {name: array for name, array in random_weights().items() if name[0] == "w"}
    with pytest.raises(grlu.UserError, match=r"it has no layers"):
        gpt2_from_file(save(bare))
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    with pytest.raises(grlu.UserError, match="is not a complete safetensors file"):
        gpt2_from_file(tmp_path / "broken.safetensors")


def test_run_starts_from_gpt_2_weights(save, tmp_path):
    """Train a model with fewer positions and a vocabulary of the same size."""
    theirs = random_weights(vocabulary=12)
    config = {
        "dataset": {"name": "copy", "digits": 2},
        "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 64},
        "trainer": {"name": "backprop", "objective": "lm", "epochs": 0, "batch_size": 8},
        "run": {"init_from": str(save(theirs))},
    }
    trainers.train(config, tmp_path / "run", progress=False)
    run = RunDirectory(tmp_path / "run")
    params = restored(run, best=False).state.params
    np.testing.assert_array_equal(params["positions"][...], theirs["wpe.weight"][:5])
    np.testing.assert_array_equal(params["tokens"]["embedding"][...], theirs["wte.weight"])
