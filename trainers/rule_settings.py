"""The keys of the gradient trainer: its own, those of its rule, and those of its objective."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from flax import nnx

from grlu.backprop import Backprop
from grlu.errors import UserError
from grlu.rule import Rule
from input_pipeline import Data
from trainers.objectives import OBJECTIVES, objective_named
from trainers.optimizing import OptimizerSettings
from trainers.precision import PrecisionName
from trainers.schedules import OptimizerName, ScheduleName, require
from trainers.schema import Key, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientSettings(OptimizerSettings):
    """The config's `trainer` section, less the keys of its rule and of its objective.

    Attributes:
        objective: what is rewarded, one of `trainers.OBJECTIVES`, which brings keys of its own.
        schedule_per: whether schedules move with each "step" or each "epoch".
        online_chunk: with "sgd", a local rule and a dense first layer, the examples after which
            that layer is written; it changes the speed and not the result (`grlu.online`). 1 turns
            it off.
        precision: in which the layers of training multiply: "float32", or "bfloat16", by backprop;
            evaluation, parameters, optimizer and likelihoods are float32 (`trainers.precision`).
        micro_batches: parts in which a batch is computed one after the other, to save memory under
            backprop and rules that move weights (node perturbation has `chunk`). They change the
            update by rounding alone, but dropout and Gumbel top-k are drawn anew for each part.
        average: decay per step of the running average of the weights that evaluation uses (0.999
            averages over about 1,000 steps), or None.
    """

    epochs: int = 10
    batch_size: int = 1
    objective: str = "classification"
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.01
    schedule: ScheduleName = "cosine"
    schedule_per: Literal["step", "epoch"] = "step"
    clip: float | None = None
    precision: PrecisionName = "float32"
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
        self.rule(vars(self).get("sigma"))

    @classmethod
    def of_section(cls, section: Mapping[str, Any]) -> "type[GradientSettings]":
        """These settings with the keys of the objective that a section names.

        Raises:
            UserError: if there is no such objective, or it has keys that are these settings' own.
        """
        name = section.get("objective", cls.objective)
        own = schema(objective_named(name))
        if twice := own.keys() & {*dir(cls), *schema(cls), *schema(cls.rule_class)}:
            raise UserError(
                f"the objective {name!r} must call its keys otherwise than the trainer: "
                f"{', '.join(sorted(twice))}"
            )
        others = {f"objective={n}": schema(f) for n, f in OBJECTIVES.items() if n != name}
        return _with_keys(cls, cls.__name__, own, others=others, __doc__=cls.__doc__)

    def _made(self, factory: Callable[..., Any], **more: Any) -> Any:
        """What `factory` makes of those of these settings that are its keys."""
        own = vars(self).keys() & schema(factory).keys()
        return factory(**{k: vars(self)[k] for k in own} | more)

    def make_objective(self, data: Data) -> Any:
        """What is rewarded, on some data.

        Raises:
            UserError: if what is called an objective is none.
        """
        made = self._made(objective_named(self.objective))
        if not hasattr(made, "on"):
            raise UserError(
                f"the objective {self.objective!r} must be a trainers.Objective, and it is a "
                f"{type(made).__name__}"
            )
        return made.on(data, self.rule(vars(self).get("sigma")))

    def rule(self, sigma: Any) -> Rule:
        """The learning rule at a noise scale (ignored by rules that have none)."""
        noise = {"sigma": sigma} if "sigma" in schema(self.rule_class) else {}
        return self._made(self.rule_class, **noise)

    def build(
        self,
        make_model: Callable[[nnx.Rngs], Any],
        steps_per_epoch: int,
        data: Data,
        judge: Any = None,
    ) -> Any:
        """The trainer of a model, for data of so many steps an epoch, and a judge."""
        from trainers.gradient import Trainer

        return Trainer(self, make_model, steps_per_epoch, data, judge)


def gradient_settings(name: str, rule_class: type[Rule], summary: str) -> type[GradientSettings]:
    """The settings of the gradient trainer with a rule: both's keys in one section.

    A rule's `sigma` gets a schedule: `sigma_schedule`, from `sigma` to `sigma_end`.
    """
    keys = schema(rule_class, exclude=("wrt", "update"))
    if sigma := keys.pop("sigma", None):
        keys["sigma"] = sigma._replace(type=float)
        keys["sigma_end"] = Key(float, 0.0, False)
        keys["sigma_schedule"] = Key(ScheduleName, "constant", False)
    return _with_keys(GradientSettings, name, keys, rule_class=rule_class, __doc__=summary)


def _with_keys(
    base: type[GradientSettings], name: str, keys: Mapping[str, Key], **namespace: Any
) -> type[GradientSettings]:
    """Settings that have more keys than `base`."""
    fields = []
    for key, (hint, default, required) in keys.items():
        default = dataclasses.MISSING if required else default
        fields.append((key, hint, dataclasses.field(default=default, kw_only=True)))
    return dataclasses.make_dataclass(name, fields, bases=(base,), frozen=True, namespace=namespace)
