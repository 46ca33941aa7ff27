"""Evolution strategies: noise on the parameters, and the mean reward of each noisy copy.

Sources: Salimans et al. (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement
Learning", arXiv:1703.03864; the low-rank noise is that of Sarkar et al. (2025), "Evolution
Strategies at the Hyperscale", arXiv:2511.16652.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.parameter_noise import Direction, ParameterNoise
from grlu.rule import Rule, reseed
from grlu.spread import gathered, require_even, shares, spread
from grlu.tracing.network import Objective

_CHOICES = {
    "shaping": ("centered_rank", "zscore", "none"),
    "batches": ("same", "own"),
    "nan": ("stop", "drop"),
}


@dataclasses.dataclass(frozen=True)
class EvolutionStrategy(Rule):
    """Antithetic pairs of noisy parameters θ ± σε, weighted by their rewards.

    With f₊ and f₋ the shaped mean rewards of a pair's two members over the batch, the estimate is
    the mean over the pairs of ε (f₊ - f₋) / 2σ. Nothing is differentiated.

    Without shaping and with full-rank noise it is an unbiased estimate of the gradient of the
    Gaussian-smoothed mean reward, E[reward(θ + σε)]; with low-rank noise, of the gradient itself up
    to O(σ²). With shaping it estimates the gradient of the mean shaped reward of the population, by
    the same formula: its size says nothing of the reward's, and the learning rate (or Adam) sets
    the pace. A reward that is the same for all members gives a gradient of zero.

    A pair's noise is a function of its key: it is not kept for more than `chunk` members at once,
    but drawn again for the weighted sum. The model's own randomness (dropout, top-k) is one
    draw for the whole population where all see the same batch, else one per pair.

    Over several devices (`grlu.spread`) each scores its share of the pairs, and two rewards a pair
    are all that crosses between them: the weighted sum over all pairs, which costs as much as a
    pass of one example for each, is computed by every device, from the pairs' keys.

    Attributes:
        population: number of members, even.
        sigma: σ, standard deviation of the noise, in units of the parameters.
        rank: rank of the noise on the kernels of dense layers, never materialised, however often a
            layer is called; all other parameters get full-rank noise, and with None the kernels
            too.
        shaping: of the rewards over the whole population: "centered_rank" (to [-1/2, 1/2], ties
            sharing their mean), "zscore", or "none".
        batches: whether all pairs see the "same" whole batch, or each its "own" slice of it.
        nan: what a member with a reward that is not finite does: "stop" makes the estimate nan, at
            which a run stops; "drop" leaves out its pair, and only if none is left is it nan. A run
            logs the number of members dropped a step, as `train_dropped`.
        chunk: members that a device holds in memory at once, by default 128 with a rank and 64
            without; it changes the speed and, but for rounding, not the result.

    Raises:
        UserError: on values outside these ranges, or a batch that the pairs cannot share out.

    >>> import grlu, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> rule = grlu.EvolutionStrategy(population=1024, sigma=0.01, rank=1, shaping="none")
    >>> reward_fn = lambda model, x: -(model(x) ** 2)[:, 0]
    >>> grlu.alignment(rule, reward_fn, model, jnp.eye(2), jax.random.key(0)).cosine > 0.95
    True
    """

    of_weights: ClassVar[bool] = True
    dealt: ClassVar[tuple[str, int]] = ("population", 2)

    population: int = 256
    sigma: Any = 0.02  # a float, or a traced scalar under a schedule
    rank: int | None = None
    shaping: Literal["centered_rank", "zscore", "none"] = "centered_rank"
    batches: Literal["same", "own"] = "same"
    nan: Literal["stop", "drop"] = "stop"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not _whole(self.population) or self.population < 2 or self.population % 2:
            raise UserError(
                f"population must be a positive even number of members, two a pair, got "
                f"{self.population!r}"
            )
        if isinstance(self.sigma, int | float) and not self.sigma > 0:
            raise UserError(f"sigma must be positive, got {self.sigma!r}")
        if self.rank is not None and (not _whole(self.rank) or self.rank < 1):
            raise UserError(f"rank must be a positive integer or None, got {self.rank!r}")
        if self.chunk is not None and (not _whole(self.chunk) or self.chunk < 2):
            raise UserError(f"chunk must be at least the 2 members of a pair, got {self.chunk!r}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )

    @property
    def traces(self) -> bool:
        return self.rank is not None

    @property
    def monitors(self) -> tuple[str, ...]:
        return ("dropped",) if self.nan == "drop" else ()

    @property
    def pairs(self) -> int:
        """Number of antithetic pairs."""
        return self.population // 2

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        return self.monitored(objective, params, rest, batch, key)[:3]

    def monitored(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any, dict[str, jax.Array]]:
        rewards, aux = objective(params, rest, batch)
        size = len(rewards)
        noise_key, draw_key = jax.random.split(key)

        def seen(pair: jax.Array | int) -> Any:
            return batch if self.batches == "same" else self._slice(batch, size, pair)

        noise = ParameterNoise(objective, params, rest, seen(0), self.rank)

        def draw(pair: jax.Array) -> Direction:
            return noise.draw(jax.random.fold_in(noise_key, pair))

        def score(direction: Direction, pair: jax.Array) -> jax.Array:
            own = self.batches == "own"
            state = reseed(rest, jax.random.fold_in(draw_key, pair)) if own else rest

            def member(step: jax.Array) -> jax.Array:
                return jnp.mean(noise.rewards(direction, step, state, seen(pair)))

            return jax.vmap(member)(self.sigma * jnp.array([1.0, -1.0]))

        ascent, scores = self._ascent(noise, jax.vmap(draw), jax.vmap(score))
        dropped = 2 * jnp.sum(~jnp.all(jnp.isfinite(scores), axis=1)).astype(jnp.float32)
        monitored = dict.fromkeys(self.monitors, dropped)
        return rewards, aux, noise.restore(ascent), monitored

    def _ascent(
        self, noise: ParameterNoise, draw: Any, score: Any
    ) -> tuple[list[jax.Array], jax.Array]:
        """The estimate, and the rewards of the pairs' members, shape (pairs, 2)."""
        devices = shares()
        require_even(self.pairs, "pairs of members")
        chunk = self.chunk or (64 if self.rank is None else 128)
        groups = -(-self.pairs // (chunk // 2 * devices))
        each = -(-self.pairs // (groups * devices)) * devices
        if groups == 1 and devices == 1:
            members = jnp.arange(self.pairs)
            directions = draw(members)
            scores = score(directions, members)
            return noise.weighted(directions, self.weights(scores)), scores

        def scored(pairs: jax.Array) -> jax.Array:
            pairs = spread(pairs)
            return gathered(spread(score(draw(pairs), pairs)))

        # The last group may be filled up with pairs that count for nothing.
        numbers = jnp.arange(groups * each)
        members = (numbers % self.pairs).reshape(groups, each)
        scores = jax.lax.map(scored, members).reshape(-1, 2)[: self.pairs]
        weights = jnp.pad(self.weights(scores), (0, len(numbers) - self.pairs))

        def add(total: Any, group: Any) -> tuple[Any, None]:
            pairs, weights = gathered(group)
            return jax.tree.map(jnp.add, total, noise.weighted(draw(pairs), weights)), None

        split = members, weights.reshape(groups, each)
        return jax.lax.scan(add, noise.zeros(), split)[0], scores

    def weights(self, rewards: jax.Array) -> jax.Array:
        """What each pair's direction counts in the estimate, shape (pairs,).

        Args:
            rewards: mean rewards of θ + σε and θ - σε, shape (pairs, 2).
        """
        finite = jnp.all(jnp.isfinite(rewards), axis=1, keepdims=True)
        alive = finite if self.nan == "drop" else jnp.ones_like(finite)
        shaped = jnp.where(alive, _shaped(self.shaping, rewards, alive), 0.0)
        weights = (shaped[:, 0] - shaped[:, 1]) / (2 * self.sigma * jnp.sum(alive))
        return weights if self.nan == "drop" else jnp.where(jnp.all(finite), weights, jnp.nan)

    def _slice(self, batch: Any, size: int, pair: jax.Array | int) -> Any:
        """A pair's own part of a batch of `size` examples."""
        if size % self.pairs:
            raise UserError(
                f"batches='own' shares the batch out to {self.pairs} pairs (population "
                f"{self.population}): its size must be a multiple of {self.pairs}, got {size}"
            )
        own = size // self.pairs

        def part(leaf: Any) -> Any:
            if jnp.ndim(leaf) == 0 or len(leaf) != size:
                return leaf
            return jax.lax.dynamic_slice_in_dim(leaf, pair * own, own)

        return jax.tree.map(part, batch)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shaped(shaping: str, rewards: jax.Array, alive: jax.Array) -> jax.Array:
    """Shaped rewards, shape (pairs, 2), over the pairs that are alive, shape (pairs, 1)."""
    if shaping == "none":
        return rewards
    members = 2 * jnp.sum(alive)
    if shaping == "zscore":
        mean = jnp.sum(jnp.where(alive, rewards, 0.0)) / members
        sd = jnp.sqrt(jnp.sum(jnp.where(alive, jnp.square(rewards - mean), 0.0)) / members)
        return jnp.where(sd > 0, (rewards - mean) / sd, 0.0)
    # The dead come last, and so take no rank from the others.
    ranked = jnp.where(alive, rewards, jnp.inf).ravel()
    ordered = jnp.sort(ranked)
    first, last = (jnp.searchsorted(ordered, ranked, side=side) for side in ("left", "right"))
    return (((first + last - 1) / 2) / (members - 1) - 0.5).reshape(rewards.shape)
