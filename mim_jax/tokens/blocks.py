"""BEiT-style masks of rectangular blocks, sampled on the device with static shapes."""

import math

import jax
import jax.numpy as jnp

# A block's height / width is log-uniform between this and its inverse.
NARROWEST = 0.3
# Blocks proposed at once. The first that fits is taken and the rest forgotten, so this changes the speed, not the
# distribution: one by one, the slowest of 256 released masks takes about 90 turns, so about 15.
PROPOSALS = 16


def sample_blocks(key: jax.Array, rows: int, columns: int, masked: int, smallest: int, largest: int) -> jax.Array:
    """A key -> bool[rows,columns] with exactly `masked` True, a union of blocks. vmap it over keys for a batch.

    Blocks are proposed until enough is masked: area uniform between `smallest` and limit = min(largest, patches still to
    be masked), whichever is larger; aspect as NARROWEST says; sides rounded; place uniform. A proposal is accepted when
    both sides are shorter than the grid's and it masks 1 to `limit` new patches; else it is drawn anew, without limit.
    Source: LightDXY/BootMAE masking_generator.py (120 of 14 x 14, blocks of 16 to 60; BEiT's stops after ten tries).

    It ends, with probability 1, whenever check_blocks raises nothing (call it first; here it could only fail in a
    trace): at every moment some block of positive probability is accepted, so the chance to wait n proposals longer
    falls geometrically.
    """
    places = jnp.arange(rows)[:, None], jnp.arange(columns)[None, :]

    def unfinished(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[1].sum() < masked

    def propose(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        turn, mask = carry
        limit = jnp.minimum(largest, masked - mask.sum())
        draws = jax.random.uniform(jax.random.fold_in(key, turn), (4, PROPOSALS, 1, 1))
        area = smallest + (limit - smallest) * draws[0]
        aspect = jnp.exp((2.0 * draws[1] - 1.0) * math.log(NARROWEST))
        height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top = jnp.floor(draws[2] * (rows - height + 1))
        left = jnp.floor(draws[3] * (columns - width + 1))
        row, column = places
        blocks = (top <= row) & (row < top + height) & (left <= column) & (column < left + width)
        new = jnp.sum(blocks & ~mask, axis=(1, 2), keepdims=True)
        fits = ((height < rows) & (width < columns) & (new > 0) & (new <= limit)).ravel()
        return turn + 1, mask | (blocks[jnp.argmax(fits)] & fits.any())

    return jax.lax.while_loop(unfinished, propose, (jnp.zeros((), jnp.int32), jnp.zeros((rows, columns), bool)))[1]


def check_blocks(rows: int, columns: int, masked: int, smallest: int, largest: int) -> None:
    """Raise ValueError when sample_blocks might never end.

    With r patches left and a = min(smallest, r), the block of h = floor(sqrt a) by floor(a / h) patches has positive
    probability: areas near a are drawn, and the line height * width = a crosses the cell of sides that round to it. Put
    over any patch that is not yet masked, it adds 1 to a <= limit. So it only has to be shorter than the grid both ways.
    """
    if not (0 < masked <= rows * columns and 1 <= smallest <= largest):
        raise ValueError(f'cannot mask {masked} of {rows} x {columns} patches by blocks of {smallest} to {largest}')
    for area in range(1, min(smallest, masked) + 1):
        longest = area // math.isqrt(area)
        if longest >= min(rows, columns):
            raise ValueError(
                f'blocks of {smallest} patches do not fit in {rows} x {columns}: a side of {longest} must be shorter'
            )
