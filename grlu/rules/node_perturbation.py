"""Node perturbation (GRLU): credit from noise and reward, weight updates from credit and input.

The network runs with noise on its units and with the same noise negated; the difference in reward
times the noise is each unit's credit. No gradient flows from one layer to another.

Sources: Werfel, Xie & Seung (2005), "Learning curves for stochastic gradient descent in linear
feedforward networks"; Ren et al. (2022), arXiv:2210.03310, for activity perturbation.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax

from grlu.errors import UserError
from grlu.network import Aux, Batch, Objective, Params, State, trace, untouched
from grlu.noise.directions import NOISES, covering, hadamard
from grlu.rules.clean_inputs import from_clean_inputs, perturbed_units
from grlu.rules.noisy_inputs import from_noisy_inputs
from grlu.rules.rule import Rule

_PLACES = ("pre", "post", "active")


@dataclasses.dataclass(frozen=True)
class NodePerturbation(Rule):
    """Credit by antithetic perturbation of the units, with a local update of each layer.

    For N pairs of noise ±σξ, a unit with pre-activation z in an example with reward r has credit
    ĉ = mean over the pairs of ξ (r₊ - r₋) / 2σ ≈ ∂r/∂z. Each layer updates its weights by its own
    input times its own credit, averaged over the batch.

    If a unit affects the rewards of several examples, as with batch normalisation in training, its
    credit comes from the sum of these rewards (`grlu.sites` shows where). The estimate remains that
    of the mean reward's gradient, but it is noisier and needs more samples.

    A parameter in a loop (`jax.lax.scan`, `nnx.scan`, `nnx.RNN`) has one site per step, each with
    its own noise. Where no layer can be identified (in a while loop), the rule perturbs the
    parameter itself.

    Noise and perturbed passes are float32 even if the model computes in bfloat16 or float16, in
    which noise would be lost. A term of the reward that depends on parameters only, such as a
    weight decay, gets its exact gradient.

    On several devices (`grlu.noise.spread`) each device runs its shard of the N pairs, and they
    exchange only the sum of the credits, one number per unit and example.

    Attributes:
        samples: N, number of antithetic pairs per example. "auto": just enough to make the
            credit of orthogonal noise exact, the size of the smallest Hadamard matrix with a column
            for every perturbed unit of an example; suits few units, as in sparse networks.
        sigma: σ, standard deviation of the noise, in units of the pre-activation.
        noise: "rademacher" (signs), "gaussian", or "orthogonal" (Hadamard columns with random
            signs; N a power of two), whose directions interfere least.
        site: location of the noise. "pre": on the pre-activation, unbiased. "post": after the
            activation, as published, which also credits silent units. "active": only on units that
            respond, scaled by their slope in the clean pass, f(z) + f'(z)·σξ; the winners of a
            top-k stay those of the clean pass in all N pairs.
        inputs: input that a layer's update multiplies by its credit. "clean": the layer's input in
            the unperturbed pass; the model's own randomness (dropout, top-k) is then sampled once
            per example. "noisy": the mean of the pair's two inputs, as published; the model's
            randomness is then sampled once per pair.
        antithetic: use pairs +ξ and -ξ; if False, +ξ and the clean pass as its baseline, which
            halves the passes but keeps the reward's curvature as noise.
        output: "perturb" the output layer like the others (reward-only learning), or leave it
            unperturbed and give it the exact local "delta" of the reward: onehot - softmax for a
            log softmax. The output layer is the one with no other site before the reward.
        output_rate: factor on the output layer's update, because its credit is larger and less
            noisy than that of the hidden layers.
        output_noise: "uniform", or "softmax" for an output layer of logits: the noise of a logit
            with probability p is scaled by 2 √(p (1 - p)), so that confident logits get little
            noise. The output's estimate is then the gradient times the square of that scale.
        layers: "together": perturb all layers at once; "apart": perturb one layer at a time, with N
            pairs each, so that no layer's noise dominates another layer's credit. If
            `stop_gradient` divides the model into blocks with separate rewards, "apart" costs no
            more than "together". "steps": one layer at a time, and in a loop one step at a time.
        ridge: None for the mean over the pairs, or the strength λ of a regularised least-squares
            estimate of the credit from the N slopes, with (ΞΞᵀ + λ d)⁻¹ instead of 1/N for d
            perturbed units: it removes the interference of directions that are not orthogonal.
        feedback: None, or the learning rate, relative to the other parameters, of feedback weights
            that predict the hidden credit from the output's (`grlu.rules.learned_feedback`);
            perturbation then estimates only the residual. The output's credit must be known first:
            output="delta", or layers="apart". The model needs `grlu.add_feedback`.
        scaled: divide the estimate by σ², as for a gradient. If False, as published, it is σ² times
            the gradient.
        reduction: "mean" over the batch, or "sum" as published.
        chunk: number of pairs to run at once, a divisor of N, or None for all: memory then grows
            with the chunk, not with N. Orthogonal noise stays the same; other noise is sampled
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

    samples: int | Literal["auto"] = 16
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
        if self.samples != "auto" and not _positive(self.samples):
            raise UserError(f"samples must be a positive integer or 'auto', got {self.samples!r}")
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
        if self.samples == "auto":
            if self.noise != "orthogonal" or self.site == "active":
                raise UserError(
                    "samples='auto' covers every perturbed unit by a direction of its own: use "
                    "noise='orthogonal' and site='pre' or 'post'"
                )
        elif self.noise == "orthogonal":
            hadamard(self.samples)
        if self.site == "active" and self.inputs == "noisy":
            raise UserError("site='active' selects units by the clean pass: use inputs='clean'")
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
            if not _positive(self.chunk):
                raise UserError(f"chunk must be a positive integer or None, got {self.chunk!r}")
            if self.samples == "auto":
                raise UserError("samples='auto' runs all pairs at once: use chunk=None")
            if self.chunk < self.samples and self.samples % self.chunk:
                raise UserError(f"chunk must divide the {self.samples} samples, got {self.chunk}")
            if self.ridge is not None:
                raise UserError("ridge solves for all samples at once: use chunk=None")

    @classmethod
    def published(cls, samples: int, sigma: Any, **options: Any) -> "NodePerturbation":
        """Return the published GRLU: noise after the activation, no 1/σ², a sum over the batch."""
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

    def passes(self, hidden: int | None = None) -> tuple[int, str] | None:
        if self.samples == "auto":
            return None
        number, words = 2 * self.samples, f"2N, N = {self.samples} antithetic pairs"
        if not self.antithetic:
            number, words = self.samples, f"N = {self.samples}, against the clean pass"
        if self.layers == "together":
            return number, words
        if hidden is None:
            return None
        layers = hidden + (self.output != "delta")
        return number * layers, f"{words}, for each of {layers} layers apart"

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        network = trace(objective, params, rest, batch)
        if self.samples == "auto":
            self = dataclasses.replace(self, samples=covering(perturbed_units(self, network)))
        if self.inputs == "noisy" and network.program.stops:
            raise UserError(
                "inputs='noisy' has no clean pass to take the values at the model's stop_gradient "
                "from, so noise would pass it: use inputs='clean'"
            )
        learn = from_noisy_inputs if self.inputs == "noisy" else from_clean_inputs
        rewards, aux, ascent = learn(self, network.widened(), params, rest, batch, key)
        if network.low:
            rewards, aux = network.run(params, rest, batch, untouched)
        return rewards, aux, ascent


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
