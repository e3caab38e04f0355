"""Few cases that still meet every combination of values of any two (or three) options: each is compiled or slow."""

import itertools
import random


def covering_cases(options, strength, seed=0):
    """Cases, as dicts, such that each combination of values of any `strength` of the `options` occurs in one of them.

    `options`: name -> list of values. Greedy: of some random completions of a combination not met
    yet, the one that meets most others is taken. The full product has no fewer combinations, only more repetitions.
    """
    rng = random.Random(seed)
    names = list(options)
    missing = {
        (chosen, values)
        for chosen in itertools.combinations(range(len(names)), strength)
        for values in itertools.product(*(range(len(options[names[i]])) for i in chosen))
    }

    def met_by(case):
        return {
            (chosen, tuple(case[i] for i in chosen)) for chosen in itertools.combinations(range(len(names)), strength)
        }

    cases = []
    while missing:
        chosen, values = min(missing)
        fixed = dict(zip(chosen, values, strict=True))
        candidates = [
            tuple(fixed.get(i, rng.randrange(len(options[name]))) for i, name in enumerate(names)) for _ in range(40)
        ]
        best = max(candidates, key=lambda case: len(met_by(case) & missing))
        missing -= met_by(best)
        cases.append({name: options[name][i] for name, i in zip(names, best, strict=True)})
    return cases
