"""Tiles of values in registers, taken apart and put together: Triton cannot index them.

`tl.split` and `tl.join` cost no instruction where a thread has all that is split. Where several threads have it, the
compiler exchanges values through shared memory, and once for a chain of splits.
"""

import triton
import triton.language as tl


@triton.jit
def strided(tile, COUNT: tl.constexpr):
    """COUNT tiles (B, C / COUNT) of one of (B, C), whose columns are COUNT apart in it: in an order that is always the
    same."""
    tiles = (tile,)
    for level in tl.static_range(6):
        if 2**level < COUNT:
            halves = ()
            for i in tl.static_range(2**level):
                half = tiles[i]
                a, b = tl.split(half.reshape(half.shape[0], half.shape[1] // 2, 2))
                halves = halves + (a, b)
            tiles = halves
    return tiles


@triton.jit
def columns(tile):
    """The columns (B, 1) of a tile (B, COUNT)."""
    ROWS: tl.constexpr = tile.shape[0]
    COUNT: tl.constexpr = tile.shape[1]
    tiles = (tile,)
    for level in tl.static_range(6):
        if 2**level < COUNT:
            halves = ()
            for i in tl.static_range(2**level):
                half = tiles[i].reshape(ROWS, 2, COUNT // 2 ** (level + 1))
                a, b = tl.split(half.permute((0, 2, 1)))
                halves = halves + (a, b)
            tiles = halves
    return tiles


@triton.jit
def stacked(tiles, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """One tile (B, COUNT, L) of COUNT tiles (B, L) from number FIRST on."""
    ROWS: tl.constexpr = tiles[0].shape[0]
    WIDTH: tl.constexpr = tiles[0].shape[1]
    tl.static_assert(COUNT <= 64)
    joined = ()
    for i in tl.static_range(COUNT):
        joined = joined + (tiles[FIRST + i].reshape(ROWS, 1, WIDTH),)
    for level in tl.static_range(6):
        if 2**level < COUNT:
            pairs = ()
            for i in tl.static_range(COUNT // 2 ** (level + 1)):
                pair = tl.join(joined[2 * i], joined[2 * i + 1]).permute((0, 3, 1, 2))
                pairs = pairs + (pair.reshape(ROWS, 2 ** (level + 1), WIDTH),)
            joined = pairs
    return joined[0]


@triton.jit
def last_sums(tile):
    """The sums (A, B) over the last axis of a tile (A, B, L), each of them made by one thread."""
    WIDTH: tl.constexpr = tile.shape[2]
    tl.static_assert(WIDTH <= 64)
    for level in tl.static_range(6):
        if 2**level < WIDTH:
            a, b = tl.split(tile.reshape(tile.shape[0], tile.shape[1], WIDTH // 2 ** (level + 1), 2))
            tile = a + b
    return tile.reshape(tile.shape[0], tile.shape[1])


@triton.jit
def row_sums(tiles, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """The sums of the rows of COUNT tiles (B, L) from number FIRST on, as the columns of one tile (B, COUNT).

    One exchange gives each thread whole rows of some of the tiles. Added up apart, each tile takes log2(L) exchanges
    between all threads of its rows.
    """
    if COUNT == 1:
        return tl.sum(tiles[FIRST], axis=1, keep_dims=True)
    else:
        return last_sums(stacked(tiles, FIRST, COUNT))


@triton.jit
def column_sums(tile):
    """The sums (C,) of the columns of a tile (B, C), with one exchange as well."""
    ROWS: tl.constexpr = tile.shape[0]
    WIDTH: tl.constexpr = tile.shape[1]
    tl.static_assert(ROWS <= 1024)
    rows = tile.permute((1, 0))
    for level in tl.static_range(10):
        if 2**level < ROWS:
            a, b = tl.split(rows.reshape(WIDTH, ROWS // 2 ** (level + 1), 2))
            rows = a + b
    return rows.reshape(WIDTH)
