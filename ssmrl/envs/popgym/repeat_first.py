"""RepeatFirst: name the suit of the episode's first card, at every step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import EnvState
from ssmrl.envs.popgym import deck
from ssmrl.registry import envs, hp
from ssmrl.spaces import Discrete

SUITS = deck.TYPES["suits"]


@struct.dataclass
class State(EnvState):
    """``remaining`` int32 ``[4]``: cards left of each suit; ``first`` and ``card`` int32: suits to name and in view."""

    remaining: jax.Array
    first: jax.Array
    card: jax.Array


@envs.register(
    "popgym/RepeatFirst", variants={"Easy": {"num_decks": 1}, "Medium": {"num_decks": 8}, "Hard": {"num_decks": 16}}
)
@dataclasses.dataclass(frozen=True)
class RepeatFirst(deck.CardGame):
    """Name the suit of the first card at every step, while the deck is dealt.

    With ``n = 52 * num_decks`` cards an episode has ``n - 1`` steps, each worth ``+1/(n-1)`` or ``-1/(n-1)``.
    """

    num_decks: int = hp(1, "decks of 52 cards that are shuffled together", ge=1)

    action_names = drawing.SUITS

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is the suit of the card dealt, int32."""
        first, remaining = self.deal(key, deck.full(SUITS, self.num_decks))
        return first, State(time=jnp.int32(0), remaining=remaining, first=first, card=first)

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        reward = deck.verdict(action == state.first, 1 / (self.num_cards - 1))
        card, remaining = self.deal(key, state.remaining)
        state = State(time=state.time + 1, remaining=remaining, first=state.first, card=card)
        return card, state, reward, state.time == self.num_cards - 1, {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the first card, which is to be named, and the one in view."""
        canvas = drawing.Canvas()
        drawing.title(canvas, "Name the suit of the first card", f"cards left: {int(np.sum(state.remaining))}")
        for x, label, suit, mark in (
            (50, "first, to name", state.first, drawing.YELLOW),
            (190, "in view", state.card, drawing.BLUE),
        ):
            drawing.card(canvas, x, 72, 80, "suits", int(suit), mark)
            canvas.text(x + 40, 198, label, 12, anchor="mt")
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state: the first suit, and the fraction of each suit that is left; float32 ``[5]``."""
        return jnp.append(state.first, state.remaining / (self.num_cards // SUITS))

    def observation_space(self, params: Any) -> Discrete:
        """Suit of the last card."""
        return Discrete(SUITS)

    def action_space(self, params: Any) -> Discrete:
        """Suit of the first card."""
        return Discrete(SUITS)
