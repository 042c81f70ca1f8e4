"""Sets of cells of a square board, kept as bits, from which cells are drawn.

Placing ships, laying mines and carving mazes are sequences of "draw one cell of this set". On bits a set operation
takes one instruction for 32 cells and a draw takes a few dozen; on arrays of booleans it takes a cumulative sum.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

_BITS = 32
_UP_TO = np.array([(2 << i) - 1 for i in range(_BITS)], np.uint32)


@struct.dataclass
class Cells:
    """A set of cells of a ``size x size`` board; :func:`constant`, :func:`full` and :func:`empty` make one.

    ``words`` are uint32 scalars and not one array, so that under ``vmap`` each is an array over the batch and vector
    instructions run across environments. The cells follow one another row by row.
    """

    words: tuple[jax.Array, ...]
    size: int = struct.field(pytree_node=False)

    def __or__(self, other: "Cells") -> "Cells":
        """Union."""
        return Cells(tuple(a | b for a, b in zip(self.words, other.words, strict=True)), self.size)

    def __and__(self, other: "Cells") -> "Cells":
        """Intersection."""
        return Cells(tuple(a & b for a, b in zip(self.words, other.words, strict=True)), self.size)

    def __sub__(self, other: "Cells") -> "Cells":
        """Difference."""
        return Cells(tuple(a & ~b for a, b in zip(self.words, other.words, strict=True)), self.size)

    def where(self, condition: jax.Array, other: "Cells") -> "Cells":
        """Return this set if ``condition``, a bool scalar, holds and ``other`` if not."""
        words = zip(self.words, other.words, strict=True)
        return Cells(tuple(jnp.where(condition, a, b) for a, b in words), self.size)

    def move(self, down: int, right: int) -> "Cells":
        """Return the cells moved by so many rows and columns; what leaves the board is lost."""
        by_words, by_bits = divmod(down * self.size + right, _BITS)

        def word(i: int) -> jax.Array:
            return self.words[i] if 0 <= i < len(self.words) else jnp.uint32(0)

        # A shift by a whole word gives 0 in XLA, so by_bits = 0 needs no case of its own.
        moved = tuple(
            (word(i - by_words) << by_bits) | (word(i - by_words - 1) >> (_BITS - by_bits))
            for i in range(len(self.words))
        )
        # What crosses a side appears in a neighbouring row, in a column that no cell of the board moves to.
        origin = np.arange(self.size) - right
        reached = np.tile((origin >= 0) & (origin < self.size), (self.size, 1))
        return Cells(moved, self.size) & constant(reached)

    def neighbours(self) -> "Cells":
        """Return the cells that share a side with one of these."""
        return self.move(0, -1) | self.move(0, 1) | self.move(-1, 0) | self.move(1, 0)

    def count(self) -> jax.Array:
        """Return the number of cells, int32."""
        return sum((_popcount(word) for word in self.words), start=jnp.int32(0))

    def any(self) -> jax.Array:
        """Return whether there is a cell, bool."""
        return self.count() > 0

    def draw(self, uniform: jax.Array) -> "Cells":
        """Draw one cell, each with the same probability; from an empty set, none.

        ``uniform`` is a float32 scalar from U[0, 1); its 23 bits bound the error of a probability by 1.2e-7. Draws that
        depend on one another belong into a ``lax.scan``: the compiler fuses the first into the second, and repeats it
        for each word of the result.
        """
        nth = (uniform * self.count()).astype(jnp.int32)
        word, nth_in_word, chosen = jnp.uint32(0), jnp.int32(0), []
        for candidate in self.words:
            count = _popcount(candidate)
            here = (nth >= 0) & (nth < count)
            word, nth_in_word = jnp.where(here, candidate, word), jnp.where(here, nth, nth_in_word)
            chosen.append(here)
            nth = nth - count
        position = jnp.sum(_popcount(word & _UP_TO) <= nth_in_word, dtype=jnp.int32)
        bit = jnp.uint32(1) << position.astype(jnp.uint32)
        return Cells(tuple(jnp.where(here, bit, jnp.uint32(0)) for here in chosen), self.size)

    def to_array(self) -> jax.Array:
        """Return the set as bool ``[size, size]``."""
        index = np.arange(self.size**2).reshape(self.size, self.size)
        return (jnp.stack(self.words)[index // _BITS] >> (index % _BITS).astype(np.uint32)) & 1 == 1


def constant(members: np.ndarray) -> Cells:
    """Return the set of the cells where ``members``, bool ``[size, size]``, is true."""
    size = len(members)
    bits = sum(1 << int(i) for i in np.flatnonzero(members))
    return Cells(tuple(jnp.uint32(bits >> i & 0xFFFFFFFF) for i in range(0, size**2, _BITS)), size)


def full(size: int) -> Cells:
    """Return the set of all cells of a board."""
    return constant(np.ones((size, size), bool))


def empty(size: int) -> Cells:
    """Return the set of no cells."""
    return constant(np.zeros((size, size), bool))


def _popcount(word: jax.Array) -> jax.Array:
    return jax.lax.population_count(word).astype(jnp.int32)
