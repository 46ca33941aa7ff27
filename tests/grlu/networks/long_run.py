"""Long run over 10,000 random networks in two processes; run it from the repository's root:

python -m tests.grlu.networks --count 10000 --seed 0
"""

import argparse
import collections
import dataclasses
import multiprocessing
import random
import time
from collections.abc import Iterator

import jax
import numpy as np

from tests.grlu.networks.grammar import recipe as make
from tests.grlu.networks.properties import Outcome, check
from tests.grlu.networks.recipes import Recipe, Step


def recipe_of(seed: int, number: int) -> Recipe:
    """Return the recipe of one network of a run."""
    choose = random.Random(f"{seed}/{number}")
    return make(choose.randrange)


def shrunk(recipe: Recipe, kind: str, tries: int = 200) -> Recipe:
    """Return a smaller recipe with an outcome of the same kind."""
    smaller = True
    while smaller and tries > 0:
        smaller = False
        for candidate in _smaller(recipe):
            tries -= 1
            if tries >= 0 and check(candidate).kind == kind:
                recipe, smaller = candidate, True
                break
    return recipe


def _smaller(recipe: Recipe) -> Iterator[Recipe]:
    for steps in _smaller_steps(recipe.steps):
        if steps:
            yield dataclasses.replace(recipe, steps=steps)
    for i in range(len(recipe.changes)):
        yield dataclasses.replace(recipe, changes=recipe.changes[:i] + recipe.changes[i + 1 :])
    simple = {"reward": "total", "extra": "", "time": 2, "width": 2}
    for name, value in simple.items():
        if getattr(recipe, name) != value:
            yield dataclasses.replace(recipe, **{name: value})
    if recipe.seed % 2:
        yield dataclasses.replace(recipe, seed=recipe.seed - 1)


def _smaller_steps(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    for i, step in enumerate(steps):
        yield steps[:i] + steps[i + 1 :]
        for body in step.bodies:
            yield steps[:i] + body + steps[i + 1 :]
        for j, body in enumerate(step.bodies):
            for inner in _smaller_steps(body):
                if inner:
                    bodies = (*step.bodies[:j], inner, *step.bodies[j + 1 :])
                    yield (*steps[:i], dataclasses.replace(step, bodies=bodies), *steps[i + 1 :])
        for pick in range(min(step.pick, 6)):
            yield (*steps[:i], dataclasses.replace(step, pick=pick), *steps[i + 1 :])
        if len(step.reads) > 1 and step.bodies:
            fewer = dataclasses.replace(step, reads=step.reads[:-1])
            yield (*steps[:i], fewer, *steps[i + 1 :])


def _examine(task: tuple[int, int]) -> tuple[int, Recipe, Outcome]:
    recipe = recipe_of(*task)
    return task[1], recipe, check(recipe)


def _share(count: int, total: int) -> str:
    return f"{count} ({count / max(1, total):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="number of networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    parser.add_argument("--shrink", type=int, default=20, help="number of faults made smaller")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    tasks = [(options.seed, i) for i in range(options.first, options.first + options.count)]
    began, results = time.perf_counter(), []
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, maxtasksperchild=150) as pool:
        for result in pool.imap_unordered(_examine, tasks, chunksize=10):
            number, recipe, outcome = result
            results.append(result)
            if outcome.kind in ("silent", "crashed"):
                print(f"{outcome.kind} {number}: {outcome.detail}\n    {recipe}", flush=True)
            if len(results) % 500 == 0:
                print(f"{len(results)} in {time.perf_counter() - began:.0f} s", flush=True)
    _report(results, time.perf_counter() - began, options.shrink)


def _report(results: list[tuple[int, Recipe, Outcome]], seconds: float, most: int) -> None:
    kinds = collections.Counter(outcome.kind for _, _, outcome in results)
    print(f"\n{len(results)} networks in {seconds:.0f} s")
    for kind, count in kinds.most_common():
        times = [outcome.seconds for _, _, outcome in results if outcome.kind == kind]
        print(f"  {kind:8} {_share(count, len(results)):16} {np.mean(times):.3f} s each")
    checked = collections.Counter(name for _, _, o in results for name in o.checked)
    print("compared:", ", ".join(f"{name} {count}" for name, count in checked.items()))
    for kind in ("refused", "invalid", "crashed"):
        reasons = collections.Counter(
            outcome.detail.split(": ", 1)[-1][:150] if kind == "refused" else outcome.detail[:150]
            for _, _, outcome in results
            if outcome.kind == kind
        )
        for reason, count in reasons.most_common(12):
            print(f"  {kind} {_share(count, len(results))}: {reason}")
    faults = [r for r in results if r[2].kind in ("silent", "crashed")]
    for number, recipe, outcome in sorted(faults, key=lambda r: len(repr(r[1])))[:most]:
        small = shrunk(recipe, outcome.kind)
        print(f"{outcome.kind} {number}, made smaller: {check(small).detail}\n    {small}")
