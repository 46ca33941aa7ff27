"""Recipes: random networks as plain data whose repr is code."""

import dataclasses

# Number of examples.
EXAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Step:
    """Operation of a recipe.

    Attributes:
        name: key of `LAYERS`, `FUNCTIONS`, `REGIONS` or `AGAIN`.
        reads: values to read, counted back from the latest.
        pick: chooses a variant.
        bodies: steps inside a region.
    """

    name: str
    reads: tuple[int, ...] = (0, 1)
    pick: int = 0
    bodies: tuple[tuple["Step", ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of the values in a body.

    Attributes:
        steps: T.
        width: W.
        examples: length of the first axis if examples lie on it, else None.
    """

    steps: int
    width: int
    examples: int | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Recipe of a network, its reward and its batch.

    Attributes:
        steps: the network.
        reward: key of `REWARDS`.
        changes: keys of `CHANGES`, applied to the rewards in turn.
        time: T.
        width: W.
        seed: seed of parameters and data.
        extra: "", or the place of a parameter without effect on rewards: "unused" or "aux".
    """

    steps: tuple[Step, ...]
    reward: str = "total"
    changes: tuple[str, ...] = ()
    time: int = 2
    width: int = 2
    seed: int = 0
    extra: str = ""

    @property
    def loops(self) -> bool:
        """Return True if a while loop, which has no reverse-mode gradient, is among the steps."""
        return _loops(self.steps)

    def names(self) -> set[str]:
        """Return the names of all steps, at every depth, and of the reward and its changes."""
        return {self.reward, *self.changes, *_names(self.steps)}


def _names(steps: tuple[Step, ...]) -> set[str]:
    inner = [_names(body) for step in steps for body in step.bodies]
    return {step.name for step in steps}.union(*inner)


def _loops(steps: tuple[Step, ...]) -> bool:
    return any(
        (step.name == "repeated" and step.pick % 4 == 3) or any(map(_loops, step.bodies))
        for step in steps
    )
