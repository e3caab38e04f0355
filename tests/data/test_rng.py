"""Draws keyed by what they belong to."""

import numpy as np

from ddfnet.data import rng


def test_uniforms_are_splitmix64():
    """SplitMix64 started at 1234567 gives these numbers (its author's published test vector)."""
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * rng._GOLDEN
    assert rng._mix(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]  # fmt: skip


def test_uniforms_depend_on_their_own_key_alone():
    whole = rng.uniforms(rng.SAMPLE, 3, 5, [7, 0, 2**40], [0, 1, 0], 50)
    assert whole.shape == (3, 50)
    assert whole.dtype == np.float64
    assert ((whole >= 0) & (whole < 1)).all()
    for i, (index, repeat) in enumerate([(7, 0), (0, 1), (2**40, 0)]):
        assert (rng.uniforms(rng.SAMPLE, 3, 5, [index], [repeat], 8)[0] == whole[i, :8]).all()
    for other in ((rng.BATCH, 3, 5), (rng.SAMPLE, 4, 5), (rng.SAMPLE, 3, 6)):
        assert not (rng.uniforms(*other, [7, 0, 2**40], [0, 1, 0], 50) == whole).any()


def test_uniforms_are_uniform_and_independent():
    """100,000 neighboring indices, 2 repeats, 4 draws: moments, equal cells, and no correlation between neighbors."""
    n = 100_000
    draws = rng.uniforms(rng.SAMPLE, 0, 0, [*range(n), *range(n)], [0] * n + [1] * n, 4)
    assert abs(draws.mean() - 0.5) < 0.002
    assert abs(draws.var() - 1 / 12) < 0.001
    cells = np.histogram(draws, bins=64, range=(0, 1))[0]
    expected = draws.size / 64
    assert ((cells - expected) ** 2 / expected).sum() < 118  # chi squared with 63 degrees of freedom, p = 3e-5
    first, second = draws[:n], draws[n:]
    pairs = [(first[:-1, 0], first[1:, 0]), (first[:, 0], second[:, 0]), (first[:, 0], first[:, 1])]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.016 for a, b in pairs)  # 5 standard errors
