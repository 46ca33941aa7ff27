"""Evolution strategies: noise on the parameters, weighted by the mean reward of each noisy copy.

Sources: Salimans et al. (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement
Learning", arXiv:1703.03864; low-rank noise from Sarkar et al. (2025), "Evolution
Strategies at the Hyperscale", arXiv:2511.16652.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.network import Aux, Batch, Objective, Params, State
from grlu.noise.parameters import Direction, ParameterNoise
from grlu.noise.spread import gathered, require_even, shares, spread
from grlu.rules.rule import Rule, reseed

_CHOICES = {
    "shaping": ("centered_rank", "zscore", "none"),
    "batches": ("same", "own"),
    "nan": ("stop", "drop"),
}


@dataclasses.dataclass(frozen=True)
class EvolutionStrategy(Rule):
    """Antithetic pairs of noisy parameters θ ± σε, weighted by their rewards.

    If f₊ and f₋ are the shaped mean rewards of a pair's two members over the batch, the estimate is
    the mean over pairs of ε (f₊ - f₋) / 2σ. Nothing is differentiated.

    Without shaping and with full-rank noise, this is an unbiased estimate of the gradient of the
    Gaussian-smoothed mean reward, E[reward(θ + σε)]; with low-rank noise, it estimates the plain
    gradient up to O(σ²). With shaping, it estimates the gradient of the population's mean shaped
    reward: its scale is independent of the reward's, and the learning rate (or Adam) sets the step
    size. A reward that is the same for all members gives a gradient of zero.

    A pair's noise is a function of its key: at most `chunk` members' noise is in memory, and the
    weighted sum samples it again. The model's own randomness (dropout, top-k) is sampled
    once for the whole population if all pairs see the same batch, else once per pair.

    On several devices (`grlu.noise.spread`) each device scores its shard of the pairs, and they
    exchange only two rewards per pair. Every device computes the weighted sum over all pairs from
    their keys, which costs as much as one pass of one example per pair.

    Attributes:
        population: number of members, even.
        sigma: σ, standard deviation of the noise, in units of the parameters.
        rank: rank of the noise on the kernels of dense layers, which is never materialised, even if
            a layer is called several times. All other parameters get full-rank noise; with None,
            so do the kernels.
        shaping: shaping of the rewards over the population: "centered_rank" (to [-1/2, 1/2], ties
            share their mean), "zscore", or "none".
        batches: "same": all pairs see the full batch; "own": each pair sees its own slice.
        nan: handling of members with a non-finite reward: "stop" makes the estimate nan,
            which stops a run; "drop" leaves out their pairs, and the estimate is nan only if no
            pair is left. A run logs the number of members dropped per step as `train_dropped`.
        chunk: members that a device holds in memory at once, by default 128 with a rank and 64
            without; it affects the speed and, up to rounding, not the result.

    Raises:
        UserError: on values outside these ranges, or if the pairs do not divide the batch.

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
        if not _is_integer(self.population) or self.population < 2 or self.population % 2:
            raise UserError(
                f"population must be a positive even number of members, two per pair, got "
                f"{self.population!r}"
            )
        if isinstance(self.sigma, int | float) and not self.sigma > 0:
            raise UserError(f"sigma must be positive, got {self.sigma!r}")
        if self.rank is not None and (not _is_integer(self.rank) or self.rank < 1):
            raise UserError(f"rank must be a positive integer or None, got {self.rank!r}")
        if self.chunk is not None and (not _is_integer(self.chunk) or self.chunk < 2):
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
        """Return the number of antithetic pairs."""
        return self.population // 2

    def passes(self, hidden: int | None = None) -> tuple[int, str] | None:
        del hidden
        if self.batches == "own":
            return 2, "2: each example is seen by one pair of the population"
        return self.population, f"{self.population}, all members of the population"

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        return self.monitored(objective, params, rest, batch, key)[:3]

    def monitored(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params, dict[str, jax.Array]]:
        rewards, aux = objective(params, rest, batch)
        size = len(rewards)
        noise_key, model_key = jax.random.split(key)

        def seen(pair: jax.Array | int) -> Any:
            return batch if self.batches == "same" else self._slice(batch, size, pair)

        noise = ParameterNoise(objective, params, rest, seen(0), self.rank)

        def sample(pair: jax.Array) -> Direction:
            return noise.draw(jax.random.fold_in(noise_key, pair))

        def score(direction: Direction, pair: jax.Array) -> jax.Array:
            own = self.batches == "own"
            state = reseed(rest, jax.random.fold_in(model_key, pair)) if own else rest

            def member(step: jax.Array) -> jax.Array:
                return jnp.mean(noise.rewards(direction, step, state, seen(pair)))

            return jax.vmap(member)(self.sigma * jnp.array([1.0, -1.0]))

        ascent, scores = self._ascent(noise, jax.vmap(sample), jax.vmap(score))
        dropped = 2 * jnp.sum(~jnp.all(jnp.isfinite(scores), axis=1)).astype(jnp.float32)
        monitored = dict.fromkeys(self.monitors, dropped)
        return rewards, aux, noise.restore(ascent), monitored

    def _ascent(
        self, noise: ParameterNoise, sample: Any, score: Any
    ) -> tuple[list[jax.Array], jax.Array]:
        """Return the estimate and the rewards of the pairs' members, shape (pairs, 2)."""
        devices = shares()
        require_even(self.pairs, "pairs of members")
        chunk = self.chunk or (64 if self.rank is None else 128)
        groups = -(-self.pairs // (chunk // 2 * devices))
        each = -(-self.pairs // (groups * devices)) * devices
        if groups == 1 and devices == 1:
            members = jnp.arange(self.pairs)
            directions = sample(members)
            scores = score(directions, members)
            return noise.weighted(directions, self.weights(scores)), scores

        def scored(pairs: jax.Array) -> jax.Array:
            pairs = spread(pairs)
            return gathered(spread(score(sample(pairs), pairs)))

        # The last group may be padded with pairs of weight 0.
        numbers = jnp.arange(groups * each)
        members = (numbers % self.pairs).reshape(groups, each)
        scores = jax.lax.map(scored, members).reshape(-1, 2)[: self.pairs]
        weights = jnp.pad(self.weights(scores), (0, len(numbers) - self.pairs))

        def add(total: Any, group: Any) -> tuple[Any, None]:
            pairs, weights = gathered(group)
            return jax.tree.map(jnp.add, total, noise.weighted(sample(pairs), weights)), None

        split = members, weights.reshape(groups, each)
        return jax.lax.scan(add, noise.zeros(), split)[0], scores

    def weights(self, rewards: jax.Array) -> jax.Array:
        """Return the weight of each pair's direction in the estimate, shape (pairs,).

        Args:
            rewards: mean rewards of θ + σε and θ - σε, shape (pairs, 2).
        """
        finite = jnp.all(jnp.isfinite(rewards), axis=1, keepdims=True)
        alive = finite if self.nan == "drop" else jnp.ones_like(finite)
        shaped = jnp.where(alive, _shaped(self.shaping, rewards, alive), 0.0)
        weights = (shaped[:, 0] - shaped[:, 1]) / (2 * self.sigma * jnp.sum(alive))
        return weights if self.nan == "drop" else jnp.where(jnp.all(finite), weights, jnp.nan)

    def _slice(self, batch: Batch, size: int, pair: jax.Array | int) -> Any:
        """Return a pair's own slice of a batch of `size` examples."""
        if size % self.pairs:
            raise UserError(
                f"batches='own' splits the batch among {self.pairs} pairs (population "
                f"{self.population}): its size must be a multiple of {self.pairs}, got {size}"
            )
        own = size // self.pairs

        def part(leaf: Any) -> Any:
            if jnp.ndim(leaf) == 0 or len(leaf) != size:
                return leaf
            return jax.lax.dynamic_slice_in_dim(leaf, pair * own, own)

        return jax.tree.map(part, batch)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shaped(shaping: str, rewards: jax.Array, alive: jax.Array) -> jax.Array:
    """Shape rewards (pairs, 2) over the pairs in the mask `alive`, shape (pairs, 1)."""
    if shaping == "none":
        return rewards
    members = 2 * jnp.sum(alive)
    if shaping == "zscore":
        mean = jnp.sum(jnp.where(alive, rewards, 0.0)) / members
        sd = jnp.sqrt(jnp.sum(jnp.where(alive, jnp.square(rewards - mean), 0.0)) / members)
        return jnp.where(sd > 0, (rewards - mean) / sd, 0.0)
    # Dropped pairs are sorted last, so they take no rank from the others.
    ranked = jnp.where(alive, rewards, jnp.inf).ravel()
    ordered = jnp.sort(ranked)
    first, last = (jnp.searchsorted(ordered, ranked, side=side) for side in ("left", "right"))
    return (((first + last - 1) / 2) / (members - 1) - 0.5).reshape(rewards.shape)
