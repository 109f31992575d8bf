"""Faults of two-dimensional sets, and of functions as pytrees."""

from .mutant import of

POINTS = ("tests/data/test_points.py",)
STATE = ("tests/core/test_energy_state.py",)

MUTANTS = (
    *of(
        "jebm/data/points.py", POINTS,
        ("((drawn - problem.mean) / problem.extent)", "(drawn / problem.extent)", "a square about the origin"),
        ("problem.mean + problem.extent * np.asarray", "problem.mean - problem.extent * np.asarray", "turned over"),
        ("return images[:NUM_TRAIN], images[NUM_TRAIN:]", "return images[:NUM_TRAIN], images[:NUM_TEST]",
         "training points test"),
    ),
    *of(
        "jebm/evaluation/likelihood.py", POINTS,
        ("(np.arange(resolution) + 0.5) * (2 / resolution) - 1", "np.arange(resolution) * (2 / resolution) - 1",
         "corners for middles"),
        ("+ 2 * np.log(2 / resolution)", "+ np.log(2 / resolution)", "the side of a cell for its area"),
        ("+ log_z + 2 * np.log(problem.extent)", "+ log_z", "nats of the square"),
        ("+ log_z + 2 * np.log(problem.extent)", "- log_z + 2 * np.log(problem.extent)", "the normaliser's sign"),
        ("+ problem.log_normalizer", "- problem.log_normalizer", "the sign of the problem's normaliser"),
    ),
    *of(
        "jebm/metrics/kernel.py", POINTS,
        ("(len(x) * (len(x) - 1))", "(len(x) * len(x))", "a biased energy distance"),
        ("return 2 * _sum_of_distances(a, b)", "return _sum_of_distances(a, b)", "the cross term once"),
        ("cdist(a[i : i + BLOCK], b)", "cdist(a[i : i + BLOCK - 1], b)", "rows between blocks left out"),
    ),
    *of(
        "jebm/images.py", POINTS,
        ("(255 - points[:, 1].astype(int) + down", "(points[:, 1].astype(int) + down", "upside down"),
    ),
    *of(
        "jebm/partials.py", STATE,
        ("return Partial(_call, _Closure(plain), *arguments)", "return Partial(function, *arguments)",
         "what a closure reads is not followed"),
        ("if next(_reads(plain), None) is not None:", "if next(_reads(function), None) is not None:",
         "what jit keeps is not followed"),
        ("return self.value is other.value or (numbers and self.value == other.value)",
         "return self.value is other.value", "floats by identity"),
        ("for value in (owner, *cells, *(known[name]", "for value in (owner, *(known[name]", "cells are not read"),
        ("*(known[name] for name in sorted(names & known.keys()))", "", "global variables are not read"),
        ("yield from of_function(types.MethodType(method, leaf))", "pass", "methods that are called are not read"),
        ("if callable(leaf):\n", "if False:\n", "callables inside containers are not read"),
        ("frozenset(code.co_names).union(*map(_names, inner))", "frozenset(code.co_names)",
         "names of inner functions are not read"),
        ("leaf if _is_array(leaf) else _followed(leaf) for", "leaf if _is_array(leaf) else None for",
         "methods among the leaves are not followed"),
        ("if (inner := _followed(function.func)) is not None:", "if False:", "a Partial of a module is not followed"),
        ("*function.args, **function.keywords)", "*function.args)", "keywords of a Partial are dropped"),
    ),
)  # fmt: skip
