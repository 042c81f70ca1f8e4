"""HigherLower: guess whether the next card is higher or lower."""

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

RANKS = deck.TYPES["ranks"]
HIGHER, LOWER = 0, 1


@struct.dataclass
class State(EnvState):
    """``remaining`` int32 ``[13]``: cards left of each rank; ``card`` int32: the rank in view."""

    remaining: jax.Array
    card: jax.Array


@envs.register(
    "popgym/HigherLower", variants={"Easy": {"num_decks": 1}, "Medium": {"num_decks": 2}, "Hard": {"num_decks": 3}}
)
@dataclasses.dataclass(frozen=True)
class HigherLower(deck.CardGame):
    """Guess whether the next card's rank is higher (action 0) or lower (1) than the one in view.

    With ``n = 52 * num_decks`` cards an episode has ``n - 1`` steps; a guess is worth ``+1/n`` or ``-1/n``, and
    nothing when the ranks are equal.
    """

    num_decks: int = hp(1, "decks of 52 cards that are shuffled together", ge=1)

    action_names = ("higher", "lower")

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is the rank of the card dealt, int32."""
        card, remaining = self.deal(key, deck.full(RANKS, self.num_decks))
        return card, State(time=jnp.int32(0), remaining=remaining, card=card)

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        card, remaining = self.deal(key, state.remaining)
        verdict = deck.verdict((card > state.card) == (action == HIGHER), 1 / self.num_cards)
        reward = jnp.where(card == state.card, jnp.float32(0), verdict)
        state = State(time=state.time + 1, remaining=remaining, card=card)
        return card, state, reward, state.time == self.num_cards - 1, {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the card in view, and how many cards of each rank are left."""
        canvas = drawing.Canvas()
        drawing.title(canvas, "Is the next card higher or lower?", "bars: cards left of each rank, hidden")
        drawing.card(canvas, 130, 52, 58, "ranks", int(state.card), drawing.BLUE)
        drawing.bars(canvas, np.asarray(state.remaining), drawing.RANKS, 160, 218, 4 * self.num_decks)
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return what the original calls the Markov state: the fraction of each rank that was dealt, float32 ``[13]``.

        The card in view is not part of it.
        """
        return 1 - state.remaining / (self.num_cards // RANKS)

    def observation_space(self, params: Any) -> Discrete:
        """Rank of the card in view."""
        return Discrete(RANKS)

    def action_space(self, params: Any) -> Discrete:
        """0 higher, 1 lower."""
        return Discrete(2)
