"""Inspection of a network's sites, and a check that a rule sees the network the user wrote."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from grlu.errors import UserError
from grlu.inspection.alignment import alignment
from grlu.network import Batch, Network, Objective, Params, SiteInfo, State, trace
from grlu.rules.exact_credit import ExactCredit
from grlu.rules.rule import Model, RewardFn, Rule, pure_objective, reseed

# Largest difference that counts as rounding, relative to the largest reward.
_TOLERANCE = 1e-4
_LOW_TOLERANCE = 3e-2


@dataclasses.dataclass(frozen=True)
class SiteRow:
    """Row of a site table.

    Attributes:
        name: path of its layer, with `#n` for a later call.
        shape: shape of its values, loop axes first.
        loops: number of loop axes.
        axis: axis that runs over examples, or None.
        examples: number of examples whose rewards one unit affects; 0 if it affects none.
        kind: "dense", "other", "weight" (a parameter's own value) or "penalty" (a term of the
            reward that depends on parameters alone).
        output: True if no other site lies between this one and the reward.
        first: True if no other site lies before this one.
        parameters: paths of the parameters trained at this site.
    """

    name: str
    shape: tuple[int, ...]
    loops: int
    axis: int | None
    examples: int
    kind: str
    output: bool
    first: bool
    parameters: tuple[str, ...]


class SiteTable(Sequence[SiteRow]):
    """Sites of a network in the order of execution; prints as a table."""

    def __init__(self, rows: Iterable[SiteRow], batch_size: int):
        self._rows = tuple(rows)
        self.batch_size = batch_size

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[SiteRow]:
        return iter(self._rows)

    def __str__(self) -> str:
        header = ("site", "shape", "in loops", "examples a unit moves", "kind", "place")
        return _table(header, [self._cells(row) for row in self])

    def __repr__(self) -> str:
        return str(self)

    def _cells(self, row: SiteRow) -> tuple[str, ...]:
        place = " ".join(word for word in ("first", "output") if getattr(row, word)) or "inner"
        if not row.examples:
            moved, place = "none", "unused"
        elif row.examples == 1:
            moved = "one" if row.axis is None else f"one, along axis {row.axis}"
        else:
            whole = row.examples == self.batch_size
            moved = f"all {row.examples}" if whole else f"{row.examples} of {self.batch_size}"
        return row.name, str(row.shape), str(row.loops), moved, row.kind, place


def sites(reward_fn: RewardFn, model: Model, batch: Batch, *, wrt: Any = nnx.Param) -> SiteTable:
    """Return the table of sites to which a rule assigns credit.

    Args:
        reward_fn: `reward_fn(model, batch) -> rewards` of shape (B,).
        model: the NNX module.
        batch: a batch.
        wrt: NNX filter of the variables to train.

    Raises:
        UserError: if a rule could not follow the network.

    >>> import grlu, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.tanh)
    >>> print(grlu.sites(lambda model, x: model(x).sum(-1), model, jnp.ones((2, 4))))
    site      shape   in loops  examples a unit moves  kind   place
    layers.0  (2, 8)  0         one, along axis 0      dense  first output
    """
    network = _traced(reward_fn, model, batch, wrt)[0]
    return SiteTable((_row(network, info) for info in network.sites), network.batch_size)


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of `grlu.check`; prints as a table.

    Attributes:
        reward_error: largest difference between the traced network's rewards and the model's,
            relative to the largest reward.
        gradient_error: norm of the difference between the local update with exact credit and
            `jax.grad`, relative to the norm of the gradient.
        cosine: cosine between one estimate of the rule and the exact gradient.
        norm_ratio: norm of the estimate over the norm of the gradient.
        untrained: paths of the parameters that do not affect the reward.
        shared: names of the sites whose units affect the rewards of several examples.
        sites: the sites.
        tolerance: largest `reward_error` and `gradient_error` that rounding explains.
    """

    reward_error: float
    gradient_error: float
    cosine: float
    norm_ratio: float
    untrained: tuple[str, ...]
    shared: tuple[str, ...]
    sites: SiteTable
    tolerance: float

    @property
    def sound(self) -> bool:
        """Return True if the traced network equals the model up to rounding."""
        return self.reward_error <= self.tolerance and self.gradient_error <= self.tolerance

    def __str__(self) -> str:
        def verdict(error: float) -> str:
            return "rounding" if error <= self.tolerance else "ANOTHER NETWORK: please report it"

        shared = ", ".join(self.shared)
        rows = [
            ("traced reward, error", f"{self.reward_error:.1e}", verdict(self.reward_error)),
            ("exact credit, error", f"{self.gradient_error:.1e}", verdict(self.gradient_error)),
            ("this rule, cosine", f"{self.cosine:.4f}", "one estimate to the exact gradient"),
            ("this rule, norm ratio", f"{self.norm_ratio:.4f}", "1 for an unbiased gradient"),
            ("untrained parameters", str(len(self.untrained)), ", ".join(self.untrained) or "-"),
            ("sites that mix examples", str(len(self.shared)), shared or "-"),
        ]
        return f"{_table(('check', 'value', 'meaning'), rows)}\n\n{self.sites}"


def check(rule: Rule, reward_fn: RewardFn, model: Model, batch: Batch, key: jax.Array) -> Check:
    """Compare the network as a rule sees it with the network itself.

    Args:
        rule: the rule, whose `wrt` selects the parameters.
        reward_fn: `reward_fn(model, batch) -> rewards` of shape (B,).
        model: the NNX module.
        batch: a batch.
        key: PRNG key of the rule's and the model's own randomness.

    Raises:
        UserError: if a rule could not follow the network.

    >>> import grlu, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.tanh)
    >>> rule = grlu.NodePerturbation(samples=16, sigma=0.01, noise="orthogonal")
    >>> reward_fn = lambda model, x: model(x).sum(-1)
    >>> found = grlu.check(rule, reward_fn, model, jnp.ones((2, 4)), jax.random.key(0))
    >>> found.sound, found.cosine > 0.999
    (True, True)
    """
    network, (objective, params, rest) = _traced(reward_fn, model, batch, rule.wrt)
    rest = reseed(rest, jax.random.split(key)[0])
    partial = functools.partial(traced_and_own, objective)
    exact = alignment(ExactCredit(wrt=rule.wrt), reward_fn, model, batch, key)
    found = alignment(rule, reward_fn, model, batch, key)
    trained = frozenset[int]().union(*(i.site.params for i in network.sites if i.live))
    return Check(
        reward_error=reward_error(*jax.jit(partial)(params, rest, batch)),
        gradient_error=exact.difference,
        cosine=found.cosine,
        norm_ratio=found.norm_ratio,
        untrained=tuple(n for i, n in enumerate(network.names) if i not in trained),
        shared=tuple(i.name for i in network.sites if i.moved and not i.rows.each),
        sites=SiteTable((_row(network, i) for i in network.sites), network.batch_size),
        tolerance=_tolerance(network),
    )


def traced_and_own(
    objective: Objective, params: Params, rest: State, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Return the rewards (B,) of the traced network and those of the objective itself.

    The two are compiled together, so that XLA runs their common computation only once.
    """
    network = trace(objective, params, rest, batch)
    return network.rewards(params, rest, batch), objective(params, rest, batch)[0]


def reward_error(traced: jax.Array, own: jax.Array) -> float:
    """Return the largest difference between rewards, relative to the largest absolute `own`."""
    one, two = np.asarray(traced, np.float64), np.asarray(own, np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    if np.all(same):
        return 0.0
    scale = np.max(np.abs(two), initial=0.0, where=np.isfinite(two)) or 1.0
    return float(np.max(np.where(same, 0.0, np.abs(one - two)))) / float(scale)


def require_same_rewards(traced: jax.Array, own: jax.Array) -> None:
    """Raise UserError if the traced network's rewards differ from the model's.

    The model may compute in bfloat16, so differences from its rounding are allowed.
    """
    error = reward_error(traced, own)
    if not error <= _LOW_TOLERANCE:
        raise UserError(
            f"the traced network is not the model: its rewards differ by {error:.1e} of the "
            "largest; print grlu.check(rule, reward_fn, model, batch, key) and report the model"
        )


def _tolerance(network: Network) -> float:
    return _LOW_TOLERANCE if network.low else _TOLERANCE


def _traced(reward_fn: RewardFn, model: Model, batch: Batch, wrt: Any) -> tuple[Network, Any]:
    graphdef, params, rest = nnx.split(model, wrt, ...)  # type: ignore[misc]
    objective = pure_objective(graphdef, reward_fn)
    return trace(objective, params, rest, batch), (objective, params, rest)


def _row(network: Network, info: SiteInfo) -> SiteRow:
    site = info.site
    kind = "penalty" if info.penalty else "weight" if site.weight else None
    return SiteRow(
        info.name,
        info.shape,
        len(site.loops),
        info.axis,
        network.batch_size // info.rows.groups if info.live else 0,
        kind or ("dense" if site.dense else "other"),
        info.output,
        site.first,
        tuple(network.names[i] for i in sorted(site.params)),
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)
