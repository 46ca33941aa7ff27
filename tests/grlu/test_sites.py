"""Detection and naming of sites, and models that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
from grlu.network import trace


def sites_of(model, reward_fn, batch):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def objective(params, rest, batch):
        return reward_fn(nnx.merge(graphdef, params, rest, copy=True), batch), None

    return trace(objective, params, rest, batch).sites


def total(model, x):
    return model(x).reshape(x.shape[0], -1).sum(-1)


def test_a_layer_and_its_bias_are_one_site_named_after_it():
    model = nnx.Sequential(
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1))
    )
    first, second = sites_of(model, total, jnp.ones((5, 4)))
    assert (first.name, first.shape, first.axis) == ("layers.0", (5, 3), 0)
    assert (second.name, second.shape) == ("layers.2", (5, 2))
    assert first.site.first
    assert not first.site.fed
    assert second.site.fed
    assert (first.output, second.output) == (False, True)


def test_a_module_called_twice_has_two_sites():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    found = sites_of(model, lambda m, x: m(jnp.tanh(m(x))).sum(-1), jnp.ones((5, 4)))
    assert [s.name for s in found] == ["kernel+bias", "kernel+bias#1"] or [
        s.name for s in found
    ] == ["bias+kernel", "bias+kernel#1"]


def test_the_site_of_a_normalisation_is_its_output():
    found = sites_of(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), total, jnp.ones((5, 4)))
    assert [s.shape for s in found] == [(5, 4)]


def test_position_embedding_becomes_a_site_where_it_meets_the_data():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.words = nnx.Embed(9, 3, rngs=rngs)
            self.places = nnx.Embed(5, 3, rngs=rngs)

        def __call__(self, ids):
            return self.words(ids) + self.places(jnp.arange(5))[None]

    # Five positions and five examples: sizes do not distinguish the axes.
    found = sites_of(Model(nnx.Rngs(0)), total, jnp.zeros((5, 5), jnp.int32))
    assert [(s.shape, s.axis) for s in found] == [((5, 5, 3), 0)]


def shapes(model, reward_fn, batch):
    return [info.shape for info in sites_of(model, reward_fn, batch)]


def test_a_product_with_rows_that_the_data_choose_is_one_site():
    model, x, rows = nnx.Embed(9, 4, rngs=nnx.Rngs(0)), jnp.ones((5, 3)), jnp.ones((5, 3), int)

    def reward(model, batch):
        x, rows = batch
        return jnp.einsum("bk,bkn->bn", x, model.embedding[...][rows]).sum(1)

    assert shapes(model, reward, (x, rows)) == [(5, 4)]
    assert shapes(model, lambda m, b: m(b[1]).sum((1, 2)), (x, rows)) == [(5, 3, 4)]


def test_winners_are_a_site_but_the_choice_of_a_label_is_not():
    model, x, label = nnx.Linear(3, 6, rngs=nnx.Rngs(0)), jnp.ones((5, 3)), jnp.ones((5, 1), int)

    def chosen(model, batch):
        z = model(batch[0])
        winners = jax.lax.top_k(jax.lax.stop_gradient(z), 2)[1]
        return jnp.tanh(jnp.take_along_axis(z, winners, axis=1)).sum(1)

    def labelled(model, batch):
        return jnp.take_along_axis(model(batch[0]), batch[1], axis=1)[:, 0]

    assert shapes(model, chosen, (x, label)) == [(5, 2)]
    assert shapes(model, labelled, (x, label)) == [(5, 6)]
    rule = grlu.NodePerturbation(4, 0.1, output_noise="softmax")
    rule(labelled)(model, (x, label), jax.random.key(0))
    with pytest.raises(grlu.UserError, match="needs all logits of the output layer"):
        rule(chosen)(model, (x, label), jax.random.key(0))


def test_batch_axis_is_found_in_time_major_layout():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def reward(model, x):
        return jnp.tanh(model(jnp.swapaxes(x, 0, 1))).sum((0, 2))

    x = jax.random.normal(jax.random.key(0), (5, 5, 4))
    assert [s.axis for s in sites_of(model, reward, x)] == [1]
    rule = grlu.NodePerturbation(samples=512, sigma=0.01, noise="orthogonal")
    assert grlu.alignment(rule, reward, model, x, jax.random.key(1)).cosine > 0.99


def test_layer_on_the_batch_mean_is_credited_by_all_rewards():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def reward(model, x):
        return x[:, 0] + jnp.tanh(model(x.mean(0))).sum()

    x = jax.random.normal(jax.random.key(0), (6, 4))
    assert [s.axis for s in sites_of(model, reward, x)] == [None]
    rule = grlu.NodePerturbation(samples=8, sigma=0.01, noise="orthogonal")
    found = grlu.alignment(rule, reward, model, x, jax.random.key(1))
    assert found.cosine > 0.99
    assert abs(found.norm_ratio - 1) < 0.05


def test_unused_layer_gets_exactly_zero():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.used, self.aside = nnx.Linear(4, 2, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def reward(model, x):
        return model.used(x).sum(-1), model.aside(x)

    estimate = grlu.NodePerturbation(samples=4, sigma=0.1)(reward, has_aux=True)
    model, x = Model(nnx.Rngs(0)), jnp.ones((3, 4))
    (_, aux), grads = estimate(model, x, jax.random.key(0))
    np.testing.assert_allclose(aux, model.aside(x), rtol=1e-6)
    assert not jnp.any(grads["aside"]["kernel"][...])
    assert jnp.any(grads["used"]["kernel"][...])


def test_frozen_parts_have_no_sites_and_no_gradient():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.back, self.head = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.back(x)))

    head = nnx.All(nnx.Param, nnx.PathContains("head"))
    rule = grlu.NodePerturbation(samples=512, sigma=0.01, noise="orthogonal", wrt=head)
    model, x = Model(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (3, 4))
    _, grads = rule(total)(model, x, jax.random.key(0))
    assert set(grads) == {"head"}
    assert grlu.alignment(rule, total, model, x, jax.random.key(0)).cosine > 0.99


def test_a_layer_inside_a_loop_has_a_site_per_step():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def reward(model, x):
        kernel = model.kernel[...]
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ kernel), None), x, length=3)[0].sum(-1)

    x = jax.random.normal(jax.random.key(0), (5, 4))
    (site,) = sites_of(model, reward, x)
    assert (site.name, site.shape, site.axis) == ("kernel", (3, 5, 4), 1)
    rule = grlu.NodePerturbation(samples=16, sigma=0.01, noise="orthogonal")
    assert grlu.alignment(rule, reward, model, x, jax.random.key(1)).cosine > 0.999


def test_examples_folded_into_another_axis_are_distinguished():
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def reward(model, x):
        return jnp.tanh(model(x.reshape(-1, 4))).reshape(x.shape[0], -1).sum(-1)

    x = jax.random.normal(jax.random.key(0), (3, 5, 4))
    (site,) = sites_of(model, reward, x)
    assert (site.shape, site.rows.groups, site.rows.units) == ((15, 2), 3, 10)
    rule = grlu.NodePerturbation(samples=16, sigma=0.01, noise="orthogonal")
    assert grlu.alignment(rule, reward, model, x, jax.random.key(1)).cosine > 0.999


def test_flattened_output_is_supported():
    """Check flattening before the loss, as for the logits of a language model."""
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def reward(model, x):
        return jnp.tanh(model(x).reshape(-1, 2)).reshape(x.shape[0], -1).sum(-1)

    assert [(s.shape, s.axis) for s in sites_of(model, reward, jnp.ones((3, 5, 4)))] == [
        ((3, 5, 2), 0)
    ]


def test_a_reward_that_ignores_the_model_is_refused():
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    with pytest.raises(grlu.UserError, match="depends on no trainable parameter"):
        sites_of(model, lambda m, x: x.sum(-1), jnp.ones((3, 4)))


@pytest.mark.parametrize("rule", [grlu.Backprop(), grlu.NodePerturbation(2, 0.1)])
@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (lambda m, x: m(x).sum(), "one reward per example"),
        (lambda m, x: m(x), "one reward per example"),
        (lambda m, x: m(x).sum(-1)[:2], "one reward per example"),
        (lambda m, x: (m(x).sum(-1) > 0).astype(jnp.int32), "must return floats"),
    ],
)
def test_rewards_of_the_wrong_shape_or_type_are_refused(rule, reward, sentence):
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    with pytest.raises(grlu.UserError, match=sentence):
        rule(reward)(model, jnp.ones((3, 4)), jax.random.key(0))


def test_integer_parameters_are_refused():
    class Model(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.arange(4))

        def __call__(self, x):
            return x * self.table[...][None]

    with pytest.raises(grlu.UserError, match="table: a rule trains floating-point"):
        grlu.NodePerturbation(2, 0.1)(total)(Model(), jnp.ones((3, 4)), jax.random.key(0))


def test_a_parameter_in_a_while_loop_or_shard_map_is_perturbed_itself():
    """Check that the weights, without an identifiable layer, are credited by all rewards."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x, unrolled=False):
            def first(kernel, x):
                return jnp.tanh(x @ kernel)

            one, two = self.one.kernel[...], self.two.kernel[...]
            if unrolled:
                h = first(one, x)
                for _ in range(3):
                    h = jnp.tanh(h @ two)
                return h
            specs = {"in_specs": (spec(), spec("data")), "out_specs": spec("data")}
            h = jax.shard_map(first, mesh=mesh, **specs)(one, x)
            step = (lambda s: s[0] < 3), (lambda s: (s[0] + 1, jnp.tanh(s[1] @ two)))
            return jax.lax.while_loop(*step, (0, h))[1]

    model, x = Model(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (8, 3))
    found = grlu.sites(lambda m, x: m(x).sum(-1), model, x)
    assert [(row.name, row.kind, row.examples) for row in found] == [
        ("one", "weight", 8),
        ("two", "weight", 8),
    ]
    rule = grlu.NodePerturbation(samples=32, sigma=0.01, noise="orthogonal")
    _, estimate = rule(lambda m, x: m(x).sum(-1))(model, x, jax.random.key(1))
    unrolled = grlu.Backprop()(lambda m, x: m(x, unrolled=True).sum(-1))
    _, exact = unrolled(model, x, jax.random.key(1))
    for name in ("one", "two"):
        np.testing.assert_allclose(
            estimate[name]["kernel"][...], exact[name]["kernel"][...], rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize(
    ("reward", "groups"),
    [
        (lambda z: z.sum(-1), 6),
        (lambda z: z.sum(-1)[jnp.arange(6)], 6),
        (lambda z: z[jnp.arange(6), jnp.arange(6) % 4], 6),
        (lambda z: jnp.swapaxes(z, 0, 1).sum(0), 6),
        (lambda z: z.reshape(3, 2, 4).sum(-1).reshape(6), 6),
        (lambda z: jnp.stack([z, z], 1).sum((1, 2)), 6),
        (lambda z: jnp.concatenate([z, z], 1).sum(1), 6),
        (lambda z: jax.vmap(lambda row: jnp.sort(row)[0])(z), 6),
        (lambda z: jax.lax.map(jnp.sum, z), 6),
        (lambda z: jnp.cumsum(z, axis=1)[:, -1], 6),
        (lambda z: z.sum(-1) - z.sum(-1).reshape(3, 2).mean(1).repeat(2), 3),
        (lambda z: z.sum(-1) - jnp.tile(z.sum(-1).reshape(2, 3).mean(0), 2), 3),
        (lambda z: z.sum(-1) - z.mean(), 1),
        (lambda z: z.sum(-1)[::-1], 1),
        (lambda z: jnp.sort(z.sum(-1)), 1),
        (lambda z: jnp.cumsum(z, axis=0).sum(-1), 1),
        (lambda z: jnp.roll(z.sum(-1), 1), 1),
    ],
)
def test_affected_rewards_of_a_unit_match_the_jacobian(reward, groups):
    """Check with the Jacobian that a unit of a group affects only the rewards of that group."""
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (6, 3))
    (site,) = sites_of(model, lambda m, x: reward(jnp.tanh(m(x))), x)
    assert site.rows.groups == groups
    jacobian = jax.jacobian(reward)(model(x))
    moved = np.asarray(site.rows.split(jacobian) != 0).any(-1)  # (rewards, groups)
    allowed = np.asarray(site.rows.of_examples(np.eye(site.rows.groups))).T > 0
    assert not (moved & ~allowed).any()
