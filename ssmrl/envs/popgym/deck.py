"""Decks of cards that are dealt from counts, and the rules that all games with such a deck share.

A game shows one field of its cards (color, suit or rank), so a shuffled deck is a uniformly random arrangement of a
multiset, and dealing it is drawing without replacement: whatever came before, the next card is of type ``i`` with
probability ``remaining[i] / sum(remaining)``. Counting the cards that are left is therefore the same game as
shuffling them at reset, and makes a reset almost free.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ssmrl.envs.base import Environment, EnvParams
from ssmrl.registry import check

CARDS = 52
TYPES = {"colors": 2, "suits": 4, "ranks": 13}


def full(num_types: int, num_decks: int) -> jax.Array:
    """Return the counts of an untouched deck, int32 ``[num_types]``."""
    return jnp.full((num_types,), CARDS // num_types * num_decks, jnp.int32)


def draw(key: jax.Array, remaining: jax.Array) -> jax.Array:
    """Draw the type of the next card, uniformly over the cards that are left; ``key`` is consumed.

    ``remaining`` int32 ``[..., num_types]`` counts the cards left of each type; returns int32 ``[...]``, one
    independent draw per deck. An empty deck gives ``num_types``, which is no card.
    """
    total = jnp.sum(remaining, axis=-1)
    nth = jax.random.randint(key, total.shape, 0, total)
    return jnp.sum(jnp.cumsum(remaining, axis=-1) <= nth[..., None], axis=-1, dtype=jnp.int32)


def lay_out(key: jax.Array, num_types: int, num_decks: int) -> jax.Array:
    """Shuffle a whole deck, where every place must be known from the start; ``key`` is consumed.

    Returns the card types by place, int32 ``[52 * num_decks]``. Cards are sorted by random words whose lowest bits are
    the card itself: one sort without an operand to carry along, three to four times faster on a CPU than
    ``jax.random.permutation``. An order is as likely as any other unless two of the words' random parts (28 bits or
    more) coincide, which has probability 5e-6 per deck of 52.
    """
    bits = (num_types - 1).bit_length()
    cards = jnp.arange(CARDS * num_decks, dtype=jnp.uint32) % num_types
    words = jax.random.bits(key, cards.shape) << bits | cards
    return (jnp.sort(words) & (2**bits - 1)).astype(jnp.int32)


def verdict(correct: jax.Array, scale: float) -> jax.Array:
    """Return the reward ``+scale`` for a correct answer and ``-scale`` for a wrong one, float32."""
    return jnp.where(correct, jnp.float32(scale), jnp.float32(-scale))


class CardGame(Environment):
    """A game whose episode ends when its deck is empty; the clock never cuts it short."""

    num_decks: int

    def __post_init__(self) -> None:
        check(self)

    @property
    def num_cards(self) -> int:
        """Cards in a full deck."""
        return CARDS * self.num_decks

    @property
    def default_params(self) -> Any:
        """The time limit is the length of an episode, for information."""
        return EnvParams(max_steps_in_episode=self.num_cards - 1)

    def draw(self, key: jax.Array, remaining: jax.Array) -> jax.Array:
        """Draw the next card, see :func:`draw`; to replay a known deck, override this method."""
        return draw(key, remaining)

    def deal(self, key: jax.Array, remaining: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Take one card off each deck; ``key`` is consumed. Returns the card types ``[...]`` and what remains."""
        card = self.draw(key, remaining)
        return card, remaining - jax.nn.one_hot(card, remaining.shape[-1], dtype=jnp.int32)

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """Never: a constant, so that the compiler can drop what depends on it."""
        return jnp.bool_(False)
