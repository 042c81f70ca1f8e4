"""CountRecall: how often has this card been dealt so far?"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import EnvState
from ssmrl.envs.popgym import deck
from ssmrl.registry import envs, hp
from ssmrl.spaces import Discrete, MultiDiscrete


@struct.dataclass
class State(EnvState):
    """``remaining`` int32 ``[2, m]``: cards left in the value and the query deck; ``cards`` int32 ``[2]``: in view."""

    remaining: jax.Array
    cards: jax.Array


@envs.register(
    "popgym/CountRecall",
    variants={
        "Easy": {"num_decks": 1, "deck_type": "colors"},
        "Medium": {"num_decks": 2, "deck_type": "suits"},
        "Hard": {"num_decks": 4, "deck_type": "ranks"},
    },
)
@dataclasses.dataclass(frozen=True)
class CountRecall(deck.CardGame):
    """Answer how often the queried card has been dealt so far, the current card included.

    A value card and a query card are dealt at every step, from two decks of ``n = 52 * num_decks`` cards that are
    shuffled apart. An episode has ``n - 1`` steps, each worth ``+1/(n-1)`` or ``-1/(n-1)``.
    """

    num_decks: int = hp(1, "decks of 52 cards that are shuffled together", ge=1)
    deck_type: Literal["colors", "suits", "ranks"] = hp("colors", "what distinguishes cards")

    @property
    def num_types(self) -> int:
        """Distinct cards."""
        return deck.TYPES[self.deck_type]

    @property
    def copies(self) -> int:
        """Cards of each type in a full deck."""
        return self.num_cards // self.num_types

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is ``[value, query]``, int32."""
        decks = jnp.tile(deck.full(self.num_types, self.num_decks), (2, 1))
        cards, remaining = self.deal(key, decks)
        return cards, State(time=jnp.int32(0), remaining=remaining, cards=cards)

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        count = self.copies - state.remaining[0, state.cards[1]]
        reward = deck.verdict(action == count, 1 / (self.num_cards - 1))
        cards, remaining = self.deal(key, state.remaining)
        state = State(time=state.time + 1, remaining=remaining, cards=cards)
        return cards, state, reward, state.time == self.num_cards - 1, {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the two cards in view, and how many cards of each type have been dealt."""
        canvas = drawing.Canvas()
        value, query = (int(card) for card in state.cards)
        dealt = self.copies - np.asarray(state.remaining[0])
        drawing.title(canvas, "How many cards like the queried one were dealt?", f"answer, hidden: {dealt[query]}")
        for x, label, card, mark in ((80, "dealt", value, drawing.BLUE), (190, "queried", query, drawing.YELLOW)):
            drawing.card(canvas, x, 48, 50, self.deck_type, card, mark)
            canvas.text(x + 25, 122, label, 11, anchor="mt")
        names = {"colors": drawing.COLORS, "suits": drawing.SUITS, "ranks": drawing.RANKS}[self.deck_type]
        drawing.bars(canvas, dealt, names, 160, 218, self.copies)
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[2 * m + 2]``.

        The fraction dealt of each of the ``m`` types, of the value deck and of the query deck; then the cards in view.
        """
        return jnp.append(1 - state.remaining / self.copies, state.cards)

    def observation_space(self, params: Any) -> MultiDiscrete:
        """Value and query card."""
        return MultiDiscrete((self.num_types, self.num_types))

    def action_space(self, params: Any) -> Discrete:
        """Count, zero included."""
        return Discrete(self.copies + 1)
