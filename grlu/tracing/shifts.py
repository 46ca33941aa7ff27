"""Shifts: detection of stopped values that cancel, such as the maximum that a softmax subtracts.

For a stopped value m, each value of a program is tracked as u + c·m or as u·exp(c·m), where u does
not depend on m. A program whose outputs all have c = 0 computes the same result for every m, so
noise may pass such a stop. The rules hold for every element of m separately; if an operation has no
rule, its result counts as dependent on m.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from grlu.tracing.program import Atom, Bind, Op, Stop


class Shift(NamedTuple):
    """Dependence of a value on m.

    Attributes:
        factor: True if m multiplies by exp(degree·m), False if it adds degree·m.
        degree: the number c; NaN for an unknown dependence.
        axes: axis of the value for each axis of m that is longer than one.
    """

    factor: bool
    degree: float
    axes: tuple[int, ...]


UNKNOWN = Shift(False, math.nan, ())
Maybe = Shift | None  # None for a value that does not depend on m.


def cancels(stop: Stop, ops: Sequence[Op], outs: Iterable[Atom], shape: Sequence[int]) -> bool:
    """Return True if the outputs are the same for every value of a stop.

    Args:
        stop: the stop, one of `ops`.
        ops: the program's operations, in order.
        outs: the outputs that matter.
        shape: shape of the stopped value.
    """
    axes = tuple(a for a, size in enumerate(shape) if size != 1)
    shifts: dict[Any, Shift] = {stop.outs[0]: Shift(False, 1.0, axes)}
    for op in ops:
        ins = [shifts.get(a) if isinstance(a, int) else None for a in op.ins]
        if not any(ins):
            continue
        out = _shift(op.eqn, ins) if isinstance(op, Bind) and len(op.outs) == 1 else UNKNOWN
        if out is not None and out.degree != 0:
            shifts.update(dict.fromkeys(op.outs, out))
    return not any(isinstance(a, int) and a in shifts for a in outs)


def _shift(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    rule = _RULES.get(eqn.primitive.name)
    return UNKNOWN if rule is None or UNKNOWN in ins else rule(eqn, ins)


Rule = Callable[[Any, Sequence[Maybe]], Maybe]


def _alike(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    """Return the common shift of several values, if they have one."""
    del eqn
    first = ins[0]
    return first if all(other == first for other in ins) else UNKNOWN


def _added(sign: int) -> Rule:
    def rule(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
        if any(s and s.factor for s in ins):
            return _alike(eqn, ins)
        return _combined(ins, sign)

    return rule


def _multiplied(sign: int) -> Rule:
    def rule(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
        del eqn
        return UNKNOWN if any(s and not s.factor for s in ins) else _combined(ins, sign)

    return rule


def _combined(ins: Sequence[Maybe], sign: int) -> Maybe:
    axes = {s.axes for s in ins if s}
    if len(axes) != 1:
        return UNKNOWN
    left, right = (s.degree if s else 0.0 for s in ins)
    shift = next(s for s in ins if s)
    return shift._replace(degree=left + sign * right)


def _negated(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    del eqn
    (shift,) = ins
    return shift if shift is None or shift.factor else shift._replace(degree=-shift.degree)


def _of_kind(factor: bool, becomes: bool) -> Rule:
    def rule(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
        del eqn
        (shift,) = ins
        if shift is None or shift.factor != factor:
            return UNKNOWN
        return shift._replace(factor=becomes)

    return rule


def _sign(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    del eqn
    return None if ins[0] and ins[0].factor else UNKNOWN


def _reduced(factor: bool) -> Rule:
    def rule(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
        (shift,) = ins
        gone = eqn.params["axes"]
        if shift is None or shift.factor != factor or set(gone) & set(shift.axes):
            return UNKNOWN
        left = [a for a in range(len(eqn.invars[0].aval.shape)) if a not in gone]
        return _moved(shift, {a: i for i, a in enumerate(left)})

    return rule


def _broadcast(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    return _moved(ins[0], dict(enumerate(eqn.params["broadcast_dimensions"])))


def _transposed(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    return _moved(ins[0], {a: i for i, a in enumerate(eqn.params["permutation"])})


def _reshaped(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    """Return the shift after a reshape that only adds or drops axes of length one."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    long = [[a for a, size in enumerate(shape) if size != 1] for shape in (before, after)]
    if [before[a] for a in long[0]] != [after[a] for a in long[1]]:
        return UNKNOWN
    return _moved(ins[0], dict(zip(*long, strict=True)))


def _gathered(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    """Return the shift of elements gathered along axes other than those of m."""
    shift, picks = ins
    numbers = eqn.params["dimension_numbers"]
    if shift is None or picks is not None:
        return UNKNOWN
    rank = len(eqn.outvars[0].aval.shape)
    batch = [a for a in range(rank) if a not in numbers.offset_dims]
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return _moved(shift, {a: batch[b] for a, b in pairs})


def _selected(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    which, *cases = ins
    return UNKNOWN if which is not None else _alike(eqn, cases)


def _converted(eqn: Any, ins: Sequence[Maybe]) -> Maybe:
    return ins[0] if jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact) else UNKNOWN


def _moved(shift: Maybe, axes: dict[int, int]) -> Maybe:
    """Return the shift of a value whose axes move, given a map from old to new axes."""
    if shift is None or not set(shift.axes) <= set(axes):
        return UNKNOWN
    return shift._replace(axes=tuple(axes[a] for a in shift.axes))


_RULES: dict[str, Rule] = {
    "add": _added(1),
    "add_any": _added(1),
    "sub": _added(-1),
    "mul": _multiplied(1),
    "div": _multiplied(-1),
    "neg": _negated,
    "exp": _of_kind(False, True),
    "log": _of_kind(True, False),
    "abs": _of_kind(True, True),
    "sign": _sign,
    "reduce_sum": _reduced(True),
    "reduce_max": _reduced(False),
    "broadcast_in_dim": _broadcast,
    "transpose": _transposed,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "gather": _gathered,
    "select_n": _selected,
    "copy": _alike,
    "convert_element_type": _converted,
}
