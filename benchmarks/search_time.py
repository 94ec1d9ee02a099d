"""How long the searches take with growing networks, and how far the genetic one is from the optimum.

    python benchmarks/search_time.py
    python benchmarks/search_time.py --layers 50 1000 --instances 3

Random networks of blocks of three layers: weights and sensitivities log-normal, the loss falling by a factor of about
ten from 2 to 3 bits and so on, cross terms of up to 20 % of the single ones between all pairs of a block. The budget
lies halfway between 2 and 4 bits. Then the tables that benchmarks/mixed_precision.py measured on real networks, at the
budgets of that script. Median and greatest of all instances. Printed only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from itertools import combinations

import numpy as np
from cells import RESULTS, environment

from brecq import SensitivityTable
from brecq.precision import exact, genetic
from brecq.precision.layers import Knob
from brecq.precision.pairwise import Pairwise
from brecq.precision.problem import Problem, build, uniform_choices

BITS = (2, 3, 4, 8)
SHARES = (0.125, 0.25, 0.5, 0.625, 0.75)


def main() -> None:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--layers", type=int, nargs="+", default=(10, 20, 50, 100, 200, 500, 1000), metavar="N")
    found.add_argument("--instances", type=int, default=5, metavar="N")
    found.add_argument("--genetic-up-to", type=int, default=100, metavar="N", help="layers")
    options = found.parse_args()
    print(f"{environment()}\n")
    print("| network | instances | exact, s | greatest | genetic, s | genetic over exact loss, % | greatest |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for layers in options.layers:
        problems = [random_problem(layers, seed) for seed in range(options.instances)]
        row(f"{layers} layers", problems, layers <= options.genetic_up_to)
    for folder in sorted((RESULTS / "tables").glob("*")):
        table = SensitivityTable.load(folder)
        row(folder.name, [at_share(table, share) for share in SHARES], True)


def row(name: str, problems: Iterable[Problem], run_genetic: bool) -> None:
    seconds, slower, gaps = [], [], []
    for seed, problem in enumerate(problems):
        began = time.perf_counter()
        best = problem.loss(exact.solve(problem)[None])[0]
        seconds.append(time.perf_counter() - began)
        if run_genetic:
            began = time.perf_counter()
            found = problem.loss(genetic.solve(problem, seed)[None])[0]
            slower.append(time.perf_counter() - began)
            gaps.append(100 * (found / best - 1))
    cells = [f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"]
    cells += (
        [f"{statistics.median(slower):.1f}", f"{statistics.median(gaps):.3f}", f"{max(gaps):.3f}"]
        if gaps
        else [""] * 3
    )
    print(f"| {name} | {len(seconds)} | {' | '.join(cells)} |", flush=True)


def random_problem(layers: int, seed: int) -> Problem:
    generator = np.random.default_rng(seed)
    knobs = tuple(Knob(f"{i}/weight", "weight", (str(i),), BITS) for i in range(layers))
    sizes = [len(BITS)] * layers
    loss, size = Pairwise(sizes), Pairwise(sizes)
    decay = np.array([1.0, 0.1, 0.02, 1e-4])
    single = generator.lognormal(0, 1.5, layers)[:, None] * decay * generator.lognormal(0, 0.4, (layers, len(BITS)))
    weights = np.round(generator.lognormal(10, 1.2, layers)) * 8
    for i in range(layers):
        loss.add(i, single[i])
        size.add(i, [weights[i] * bits / 8 for bits in BITS])
    for start in range(0, layers, 3):
        for i, j in combinations(range(start, min(start + 3, layers)), 2):
            share = generator.uniform(-0.2, 0.2, (len(BITS), len(BITS)))
            loss.add_pair(i, j, share * np.sqrt(single[i][:, None] * single[j]))
    return Problem(knobs, loss, {"size": size}, {"size": float(weights.sum() * 3 / 8)})


def at_share(table: SensitivityTable, share: float) -> Problem:
    problem = build(table, [], None, "fisher")
    low, high = (problem.costs["size"](uniform_choices(problem, bits)[None])[0] for bits in (2, 4))
    return Problem(problem.knobs, problem.loss, problem.costs, {"size": float(low + share * (high - low))})


if __name__ == "__main__":
    main()
