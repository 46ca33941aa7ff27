"""Node perturbation (GRLU): credit from noise and reward, weights from credit and input.

Run the network with noise on its units and with the same noise negated; the difference in reward
times the noise tells each unit which way to move. No gradient flows from one layer to another.

Sources: Werfel, Xie & Seung (2005), "Learning curves for stochastic gradient descent in linear
feedforward networks"; Ren et al. (2022), arXiv:2210.03310, for activity perturbation.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from grlu import credit
from grlu.errors import UserError
from grlu.learned_feedback import Prediction
from grlu.noise import NOISES, Part, directions, hadamard
from grlu.rule import Rule, reseed
from grlu.tracing.network import CleanPass, Network, Objective, SiteInfo, trace, untouched
from grlu.tracing.program import Arrival

_PLACES = ("pre", "post", "active")


@dataclasses.dataclass(frozen=True)
class NodePerturbation(Rule):
    """Credit by antithetic perturbation of the units, and a local update of each layer.

    For N pairs of noise ±σξ, a unit with pre-activation z in an example with reward r has credit
    ĉ = mean over the pairs of ξ (r₊ - r₋) / 2σ ≈ ∂r/∂z. Each layer changes its weights by its own
    input times its own credit, averaged over the batch.

    Where a unit moves the rewards of several examples, as batch normalisation in training makes it
    do, its credit comes from the sum of these rewards (`grlu.sites` shows where). That is the
    gradient of the mean reward, but more noise speaks into it: more samples are needed.

    A parameter in a loop (`jax.lax.scan`, `nnx.scan`, `nnx.RNN`) has one site per step, with noise
    of its own. A parameter that meets the data where no layer can be told apart (a while loop) is
    perturbed itself.

    Noise and perturbed passes are float32 where the model computes in bfloat16 or float16, since
    noise would be lost in so few bits. A term of the reward that depends on parameters alone, such
    as a weight decay, gets its exact gradient.

    Over several devices (`grlu.spread`) each runs its share of the N pairs, and what crosses
    between them is the sum of the credits, one number per unit and example.

    Attributes:
        samples: N, the number of antithetic pairs per example.
        sigma: σ, standard deviation of the noise, in units of the pre-activation.
        noise: "rademacher" (signs), "gaussian", or "orthogonal" (Hadamard columns with random
            signs; N a power of two), whose interference is least.
        site: where the noise enters. "pre": on the pre-activation, unbiased. "post": after the
            activation, as published, which also credits units that are silent. "active": on the
            units that respond, through their own slope at the clean pass, f(z) + f'(z)·σξ; a
            top-k's winners are then chosen once for all N pairs.
        inputs: what a layer's credit is multiplied with. "clean": its input in the unperturbed
            pass; the model's own randomness (dropout, top-k) is then one draw per example.
            "noisy": the mean of the pair's two inputs, as published; one draw per pair.
        antithetic: whether a pair is +ξ and -ξ; else it is +ξ and the clean pass, its baseline,
            which halves the passes and keeps the reward's curvature as noise.
        output: "perturb" the output layer like the others (reward-only learning), or leave it
            unperturbed and give it the exact local "delta" of the reward: log softmax's is
            onehot - softmax. The output layer is the one with no site between it and the reward.
        output_rate: factor on the output layer's update, whose credit is larger and less noisy
            than the hidden layers'.
        output_noise: "uniform", or "softmax" where the output layer gives logits: a logit's noise
            is scaled by 2 √(p (1 - p)), p being its probability, so that what is settled is left
            alone. The output's estimate is then the gradient times the square of that scale.
        layers: whether the noise enters all layers "together", or "apart", one layer after the
            other, in N pairs each: no layer's noise then drowns another one's credit. Where
            `stop_gradient` divides the model into blocks with rewards of their own, "apart" costs
            no more than "together". "steps": one layer at a time, and in a loop one step of it.
        ridge: None for the mean over the pairs, or the strength λ of a regularised least squares
            estimate of the credit from the N slopes, (ΞΞᵀ + λ d)⁻¹ taking the place of 1/N, for d
            perturbed units: it removes the interference of directions that are not orthogonal.
        feedback: None, or the rate, relative to the other parameters', at which feedback weights
            learn to foretell the hidden credit from the output's (`grlu.learned_feedback`), so that
            perturbation need only find what is left. The output's credit must be known before:
            output="delta", or layers="apart". The model needs `grlu.add_feedback`.
        scaled: whether the estimate is divided by σ², as a gradient is. Without, as published, it
            is σ² times the gradient.
        reduction: "mean" over the batch, or "sum" as published.
        chunk: number of pairs that are run at once, a divisor of N, or None for all: memory then
            grows with it and not with N. Orthogonal noise stays the same; other noise is drawn
            chunk by chunk.

    Raises:
        UserError: on values outside these ranges.

    >>> import grlu, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.tanh)
    >>> rule = grlu.NodePerturbation(samples=64, sigma=0.1, noise="orthogonal")
    >>> reward, grads = rule(lambda model, x: model(x).sum(-1))(
    ...     model, jnp.ones((2, 4)), jax.random.key(0))
    >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(grads))
    {'layers': {0: {'bias': (8,), 'kernel': (4, 8)}}}
    """

    local: ClassVar[bool] = True
    dealt: ClassVar[tuple[str, int]] = ("samples", 1)

    samples: int = 16
    sigma: Any = 0.1  # a float, or a traced scalar under a schedule
    noise: Literal["rademacher", "gaussian", "orthogonal"] = "rademacher"
    site: Literal["pre", "post", "active"] = "pre"
    inputs: Literal["clean", "noisy"] = "clean"
    antithetic: bool = True
    output: Literal["perturb", "delta"] = "perturb"
    output_rate: float = 1.0
    output_noise: Literal["uniform", "softmax"] = "uniform"
    layers: Literal["together", "apart", "steps"] = "together"
    ridge: float | None = None
    feedback: float | None = None
    scaled: bool = True
    reduction: Literal["mean", "sum"] = "mean"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise UserError(f"samples must be a positive integer, got {self.samples!r}")
        if isinstance(self.sigma, int | float) and self.scaled and not self.sigma > 0:
            raise UserError(f"sigma must be positive, got {self.sigma!r}")
        for name, known in {
            "noise": NOISES,
            "site": _PLACES,
            "inputs": ("clean", "noisy"),
            "output": ("perturb", "delta"),
            "output_noise": ("uniform", "softmax"),
            "layers": ("together", "apart", "steps"),
            "reduction": ("mean", "sum"),
        }.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.noise == "orthogonal":
            hadamard(self.samples)
        if self.site == "active" and self.inputs == "noisy":
            raise UserError("site='active' fixes the units by the clean pass: use inputs='clean'")
        published = self.antithetic and self.output == "perturb" and self.output_noise == "uniform"
        published = published and self.layers == "together" and self.ridge is None
        published = published and self.feedback is None
        if self.inputs == "noisy" and not published:
            raise UserError(
                "inputs='noisy' is the published pair: antithetic, output='perturb', "
                "output_noise='uniform', layers='together', ridge=None, feedback=None"
            )
        if self.ridge is not None and not self.ridge > 0:
            raise UserError(f"ridge must be positive or None, got {self.ridge!r}")
        if self.feedback is not None:
            if not self.feedback > 0:
                raise UserError(f"feedback must be positive or None, got {self.feedback!r}")
            if self.output == "perturb" and self.layers == "together":
                raise UserError(
                    "feedback carries the output's credit to the hidden layers, so it must be "
                    "known before theirs: use output='delta', layers='apart' or layers='steps'"
                )
            if self.site == "post" or not self.scaled or self.reduction == "sum":
                raise UserError(
                    "feedback needs site='pre' or 'active', scaled=True and reduction='mean'"
                )
        if not self.output_rate > 0:
            raise UserError(f"output_rate must be positive, got {self.output_rate!r}")
        if self.chunk is not None:
            if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1:
                raise UserError(f"chunk must be a positive integer or None, got {self.chunk!r}")
            if self.chunk < self.samples and self.samples % self.chunk:
                raise UserError(f"chunk must divide the {self.samples} samples, got {self.chunk}")
            if self.ridge is not None:
                raise UserError("ridge solves for all samples at once: use chunk=None")

    @classmethod
    def published(cls, samples: int, sigma: Any, **options: Any) -> "NodePerturbation":
        """The published GRLU: noise after the activation, no 1/σ², a sum over the batch."""
        return cls(
            samples=samples,
            sigma=sigma,
            noise="gaussian",
            site="post",
            inputs="noisy",
            scaled=False,
            reduction="sum",
            **options,
        )

    @property
    def traces(self) -> bool:
        return True

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        network = trace(objective, params, rest, batch)
        if self.inputs == "noisy" and network.program.cuts:
            raise UserError(
                "inputs='noisy' has no clean pass, whose value would pass the model's "
                "stop_gradient instead of the noise: use inputs='clean'"
            )
        learn = self._from_noisy_inputs if self.inputs == "noisy" else self._from_clean_inputs
        rewards, aux, ascent = learn(network.widened(), params, rest, batch, key)
        if network.low:
            rewards, aux = network.run(params, rest, batch, untouched)
        return rewards, aux, ascent

    def _from_clean_inputs(
        self, network: Network, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        clean = network.clean(
            params, rest, batch, slopes=self.site == "active" or self.feedback is not None
        )

        def reward(shifts: Mapping[int, jax.Array]) -> jax.Array:
            given: dict[int, Any] = dict(shifts)
            if self.site == "active":
                given = {
                    i: (*clean.responses[i], clean.zs[i], shifts.get(i))
                    for i in range(len(network.sites))
                }
            run = network.run(params, rest, batch, self._moved, given=given, stops=clean.stops)
            return run[0]

        def slope(xi: dict[int, jax.Array]) -> jax.Array:
            up = reward({i: self.sigma * x for i, x in xi.items()})
            if not self.antithetic:
                return 2 * (up - clean.rewards)
            return up - reward({i: -self.sigma * x for i, x in xi.items()})

        credits = self._known(network, params, rest, batch)
        prediction = None
        if self.feedback is not None:
            slopes_at = [slope for _, slope in clean.responses]
            prediction = Prediction(network, params, slopes_at, self.feedback)
        surprise = {}
        for group, group_key in self._groups(network, key):
            foretold = None
            if prediction is not None:
                delta = credits[prediction.output.site.index]
                foretold = [prediction.credit(info, delta) for info in group]
            beyond = self._found(network, clean, slope, group, group_key, foretold)
            for i, (info, new) in enumerate(zip(group, beyond, strict=True)):
                known = 0.0 if foretold is None else foretold[i]
                credits[info.site.index] = known + new
                surprise[info.site.index] = new
        ascent = clean.local_update(self._rated(network, credits))
        if prediction is not None:
            delta = credits[prediction.output.site.index]
            ascent = prediction.learned(ascent, delta, surprise)
        return clean.rewards, clean.aux, ascent

    def _moved(self, at: Arrival) -> tuple[jax.Array, None]:
        """Visit a site with the noise that is given, which is already scaled."""
        if at.given is None:
            return at.fn(at.z), None
        if self.site == "pre":
            return at.fn(at.z + at.given), None
        if self.site == "post":
            return at.fn(at.z) + at.given, None
        response, slope, z, step = at.given
        moved = at.z - z if step is None else at.z - z + step
        return response + slope * moved, None

    def _known(self, network: Network, params: Any, rest: Any, batch: Any) -> list[jax.Array]:
        """Credits that need no noise, zero for the other sites."""
        credits = [jnp.zeros(info.shape, info.dtype) for info in network.sites]
        known = [
            info
            for info in network.sites
            if info.penalty or (info.output and self.output == "delta")
        ]
        if not known:
            return credits
        indices = [info.site.index for info in known]
        deltas = credit.exact(network, params, rest, batch, indices)
        factor = network.batch_size if self.reduction == "sum" else 1
        for info, delta in zip(known, deltas, strict=True):
            # A penalty keeps its weight against what perturbation finds.
            scale = self.sigma**2 if info.penalty and not self.scaled else 1
            credits[info.site.index] = delta * factor * scale
        return credits

    def _found(
        self,
        network: Network,
        clean: CleanPass,
        slope: Callable[[dict[int, jax.Array]], jax.Array],
        group: Sequence[SiteInfo],
        key: jax.Array,
        foretold: Sequence[jax.Array] | None,
    ) -> list[jax.Array]:
        """Credits that perturbation finds at a group of sites, beyond those foretold."""
        active: list[jax.Array] | None = None
        if self.site == "active":
            active = [clean.responses[info.site.index][1] != 0 for info in group]

        def draw(
            key: jax.Array, active: list[jax.Array] | None, part: Part | None
        ) -> tuple[list[jax.Array], jax.Array]:
            rows = [info.rows for info in group]
            xi = directions(key, self.noise, self.samples, rows, active, part)
            if self.output_noise == "softmax":
                xi = [
                    x * _spread(clean.zs[info.site.index])[None] if info.output else x
                    for x, info in zip(xi, group, strict=True)
                ]
            slopes = jax.vmap(slope)({i.site.index: x for i, x in zip(group, xi, strict=True)})
            slopes = slopes * self._scale(network)
            if foretold is not None:
                slopes = slopes - credit.slopes(group, xi, foretold)
            return xi, slopes

        def estimate(key: jax.Array, active: list[jax.Array] | None) -> list[jax.Array]:
            size = self.chunk or self.samples
            if size >= self.samples:
                return credit.from_slopes(group, *draw(key, active, None), self.ridge)

            def add(number: jax.Array) -> list[jax.Array]:
                return credit.from_slopes(group, *draw(key, active, Part(number, size)))

            parts = self.samples // size
            return [c / parts for c in _total(add, parts)]

        steps = group[0].steps if group else ()
        if self.layers != "steps" or math.prod(steps) == 1:
            return estimate(key, active)

        def step(number: jax.Array) -> list[jax.Array]:
            here = jnp.arange(math.prod(steps)) == number
            mask = jnp.broadcast_to(
                here.reshape(*steps, *[1] * len(group[0].site.shape)), group[0].shape
            )
            masks = [mask] if active is None else [mask & active[0]]
            return estimate(jax.random.fold_in(key, number), masks)

        return _total(step, math.prod(steps))

    def _from_noisy_inputs(
        self, network: Network, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        infos = network.sites
        draws = jax.random.fold_in(key, len(infos))  # The sites have the keys before.
        keys = jax.random.split(draws, self.samples)

        def ascent(keys: jax.Array, part: Part | None) -> Any:
            xi = directions(key, self.noise, self.samples, [i.rows for i in infos], None, part)
            # Noise on what the reward does not depend on would only move weights at random.
            xi = [x if info.moved else jnp.zeros_like(x) for x, info in zip(xi, infos, strict=True)]

            def pairs(params: Any) -> tuple[list[jax.Array], jax.Array]:
                def visit(at: Arrival) -> tuple[jax.Array, jax.Array]:
                    z = jax.lax.stop_gradient(at.z)
                    if self.site == "post":
                        return at.fn(z) + at.given, at.z
                    return at.fn(z + at.given), at.z

                def one(key: jax.Array, xi: list[jax.Array], sign: jax.Array) -> Any:
                    given = {i: sign * self.sigma * x for i, x in enumerate(xi)}
                    state = reseed(rest, key)
                    outcome = network.outcome(params, state, batch, visit, given=given)
                    zs = [outcome.records[i] for i in range(len(infos))]
                    return zs, network.unflatten(outcome)[0]

                both = jax.vmap(one, in_axes=(None, None, 0))
                return jax.vmap(both, in_axes=(0, 0, None))(keys, xi, jnp.array([1.0, -1.0]))

            _, vjp, rewards = jax.vjp(pairs, params, has_aux=True)
            differences = rewards[:, 0] - rewards[:, 1]
            credits = credit.by_sample(infos, xi, differences * self._scale(network))
            credits = self._rated(network, credits)
            # Half of a pair's credit for each of its two inputs, by the mean over the N pairs.
            return vjp([jnp.stack([c, c], axis=1) / (2 * self.samples) for c in credits])[0]

        if self.chunk is None or self.chunk >= self.samples:
            total = ascent(keys, None)
        else:
            size, parts = self.chunk, self.samples // self.chunk
            split = keys.reshape(parts, size)
            total = _total(lambda number: ascent(split[number], Part(number, size)), parts)
        known = self._known(network, params, rest, batch)
        if any(info.penalty for info in infos):
            clean = network.clean(params, rest, batch)
            total = jax.tree.map(jnp.add, total, clean.local_update(known))
            return clean.rewards, clean.aux, total
        rewards, aux = network.run(params, rest, batch, untouched)
        return rewards, aux, total

    def _rated(self, network: Network, credits: Sequence[jax.Array]) -> list[jax.Array]:
        return [
            c * self.output_rate if info.output else c
            for c, info in zip(credits, network.sites, strict=True)
        ]

    def _groups(self, network: Network, key: jax.Array) -> list[tuple[list[SiteInfo], jax.Array]]:
        """The sites that are perturbed at the same time, with a key for each group."""
        # Noise on what the reward does not depend on would only move weights at random.
        moved = [i for i in network.sites if i.moved and not (i.output and self.output == "delta")]
        if self.layers == "together":
            return [(moved, key)] if moved else []
        if self.feedback is not None:
            moved.sort(key=lambda info: not info.output)  # Its credit foretells the others'.
        return [([info], jax.random.fold_in(key, info.site.index)) for info in moved]

    def _scale(self, network: Network) -> Any:
        """What turns a pair's difference in reward into a slope: 1 / 2σ, over the batch's size."""
        scale = 1 / (2 * self.sigma) if self.scaled else self.sigma / 2
        return scale / network.batch_size if self.reduction == "mean" else scale


def _total(fn: Callable[[jax.Array], Any], count: int) -> Any:
    """The sum of `fn(number)` over numbers from 0, one after the other."""

    def add(so_far: Any, number: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, so_far, fn(number)), None

    shapes = jax.eval_shape(fn, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, jnp.arange(count))[0]


def _spread(logits: jax.Array) -> jax.Array:
    """2 √(p (1 - p)): standard deviation of a choice by the softmax, 1 for an even one of two."""
    p = jax.nn.softmax(logits, axis=-1)
    return 2 * jnp.sqrt(p * (1 - p))
