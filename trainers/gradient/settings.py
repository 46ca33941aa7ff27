"""Settings of the gradient trainer: its own keys, those of its rule and of its objective."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from grlu.errors import UserError
from grlu.rules.backprop import Backprop
from grlu.rules.rule import Rule
from input_pipeline import Data
from trainers.config.schema import Key, schema
from trainers.config.values import require
from trainers.objectives.refinement import Mode, Refined, Refinement
from trainers.objectives.registry import OBJECTIVES, objective_named
from trainers.optimizer import OptimizerName, OptimizerSettings, ScheduleName


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientSettings(OptimizerSettings):
    """The config's `trainer` section, without the keys of its rule and of its objective.

    Attributes:
        objective: name of the objective, one of `trainers.OBJECTIVES`; it adds its own keys.
        schedule_per: schedules change with each "step" or each "epoch".
        online_chunk: with "sgd", a local rule and a dense first layer, the number of examples per
            write of that layer's weights; changes the speed, not the result. 1 turns it off.
        precision: dtype of the matrix products in training: "float32", or "bfloat16" for backprop
            on accelerators (a CPU takes 1.4 times as long); evaluation, parameters, optimizer and
            likelihoods are float32.
        micro_batches: number of parts in which a batch is computed, to save memory under backprop
            and rules that perturb weights (node perturbation has `chunk`). They change the update
            only by rounding, but dropout and Gumbel top-k sample anew for each part.
        average: decay per step of the running average of the weights for evaluation (0.999 averages
            over about 1,000 steps), or None.
    """

    epochs: int = 10
    batch_size: int = 1
    objective: str = "classification"
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.01
    schedule: ScheduleName = "cosine"
    schedule_per: Literal["step", "epoch"] = "step"
    clip: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    average: float | None = None
    online_chunk: int = 64
    micro_batches: int = 1

    rule_class: ClassVar[type[Rule]]

    def __post_init__(self) -> None:
        super().__post_init__()
        require("trainer.average", self.average, 0, 1)
        require("trainer.online_chunk", self.online_chunk, 1)
        require("trainer.micro_batches", self.micro_batches, 1)
        if self.batch_size % self.micro_batches:
            raise UserError(
                f"trainer.micro_batches must divide trainer.batch_size, {self.batch_size}, got "
                f"{self.micro_batches}"
            )
        if self.precision != "float32" and self.rule_class is not Backprop:
            raise UserError(
                f"trainer.precision={self.precision} is for backprop (trainer.name backprop or "
                "svi): other rules compare rewards that differ in later digits; set it to float32"
            )
        self.rule()

    @classmethod
    def of_section(cls, section: Mapping[str, Any]) -> "type[GradientSettings]":
        """Return these settings with the keys of the objective that a section names."""
        name = section.get("objective", cls.objective)
        objective_named(name)
        base: Any = cls
        return _with_objective(base, name, tuple(OBJECTIVES.items()))

    def make_objective(self, data: Data) -> Any:
        """Return the objective on some data."""
        objective = self._call(objective_named(self.objective))
        if not hasattr(objective, "on"):
            raise UserError(
                f"the objective {self.objective!r} must be a trainers.Objective, and it is a "
                f"{type(objective).__name__}"
            )
        return objective.on(data, self.rule())

    def rule(self, sigma: Any = None) -> Rule:
        """Return the rule at a noise scale, by default `sigma`; some rules have none."""
        noise = {} if sigma is None or "sigma" not in vars(self) else {"sigma": sigma}
        return self._call(self.rule_class, **noise)

    def passes(self, hidden: int | None) -> tuple[int, str] | None:
        """Return the forward passes per training example, as `grlu.Rule.passes` counts them."""
        return self.rule().passes(hidden)

    def _call(self, factory: Callable[..., Any], **given: Any) -> Any:
        """Call `factory` with the settings that it accepts."""
        own = vars(self).keys() & schema(factory).keys()
        return factory(**{k: vars(self)[k] for k in own} | given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVI(GradientSettings):
    """Iterative inference in a VAE: posteriors refined by gradient steps, then backprop.

    Attributes:
        mode: learning signal of the encoder: "decoupled" (the ordinary ELBO), "kl" (the refined
            posterior) or "e2e" (the ELBO after refinement, with gradients through the loop).
        svi_steps: steps of the inner loop.
        svi_learning_rate: rate of the inner loop, for an example's own ELBO in nats.
        svi_momentum: momentum of the inner loop.
        svi_clip: largest norm of an example's gradient in the inner loop, or None.
        svi_natural: use natural gradients in the inner loop, with a rate below 1.
        svi_schedule: schedule of the inner loop's rate: "constant", or "linear" to zero.
    """

    mode: Mode = "kl"
    svi_steps: int = 20
    svi_learning_rate: float = 1e-2
    svi_momentum: float = 0.0
    svi_clip: float | None = None
    svi_natural: bool = False
    svi_schedule: Literal["constant", "linear"] = "constant"
    objective: Literal["elbo"] = "elbo"

    rule_class: ClassVar[type[Rule]] = Backprop
    remedy: ClassVar[str] = (
        "a lower trainer.svi_learning_rate, a trainer.svi_clip or a lower trainer.learning_rate "
        "may help"
    )

    def passes(self, hidden: int | None) -> tuple[int, str]:
        steps = self.svi_steps
        return 1 + steps, f"1 + S, S = {steps} steps of inference through the decoder"

    def refinement(self) -> Refinement:
        names = ("steps", "learning_rate", "momentum", "clip", "natural", "schedule")
        return Refinement(**{name: getattr(self, f"svi_{name}") for name in names})

    def make_objective(self, data: Data) -> Refined:
        return Refined(super().make_objective(data), self.refinement(), self.mode)


def gradient_settings(name: str, rule_class: type[Rule], summary: str) -> type[GradientSettings]:
    """Return the settings of the gradient trainer with a rule, the keys of both in one section.

    A rule's `sigma` gets a schedule: `sigma_schedule`, from `sigma` to `sigma_end`.
    """
    keys = schema(rule_class, exclude=("wrt", "update"))
    if sigma := keys.pop("sigma", None):
        keys["sigma"] = sigma._replace(type=float)
        keys["sigma_end"] = Key(float, 0.0, False)
        keys["sigma_schedule"] = Key(ScheduleName, "constant", False)
    return _with_keys(GradientSettings, name, keys, rule_class=rule_class, __doc__=summary)


@functools.lru_cache(64)
def _with_objective(
    cls: Any, name: str, objectives: tuple[tuple[str, Any], ...]
) -> type[GradientSettings]:
    """Return settings with the keys of an objective; `others` holds the other objectives' keys."""
    schemas = {known: schema(factory) for known, factory in objectives}
    own = schemas.pop(name)
    if taken := own.keys() & {*dir(cls), *schema(cls), *schema(cls.rule_class)}:
        raise UserError(
            f"the objective {name!r} must call its keys otherwise than the trainer: "
            f"{', '.join(sorted(taken))}"
        )
    others = {f"objective={other}": keys for other, keys in schemas.items()}
    return _with_keys(cls, cls.__name__, own, others=others, __doc__=cls.__doc__)


def _with_keys(
    base: type[GradientSettings], name: str, keys: Mapping[str, Key], **namespace: Any
) -> type[GradientSettings]:
    fields = []
    for key, (hint, default, required) in keys.items():
        default = dataclasses.MISSING if required else default
        fields.append((key, hint, dataclasses.field(default=default, kw_only=True)))
    return dataclasses.make_dataclass(name, fields, bases=(base,), frozen=True, namespace=namespace)
