"""RepeatPrevious: name the suit of the k-th last card, at every step."""

import dataclasses
from typing import Any, ClassVar

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
    """``remaining`` int32 ``[4]``: cards left of each suit; ``recent`` int32 ``[k]``: card ``i`` in slot ``i % k``."""

    remaining: jax.Array
    recent: jax.Array


@envs.register(
    "popgym/RepeatPrevious",
    variants={
        "Easy": {"num_decks": 1, "k": 4},
        "Medium": {"num_decks": 2, "k": 32},
        "Hard": {"num_decks": 3, "k": 64},
    },
)
@dataclasses.dataclass(frozen=True)
class RepeatPrevious(deck.CardGame):
    """Name the suit of the k-th last card at every step, while the deck is dealt.

    ``k`` counts the current card: ``k=1`` asks for the card in view, ``k=4`` for the one of three steps ago. With
    ``n = 52 * num_decks`` cards an episode has ``n - 1`` steps; the first ``k - 1`` give no reward, the others
    ``+1/(n-k)`` or ``-1/(n-k)``. Raises ``ValueError`` unless ``k`` is below ``n``.
    """

    num_decks: int = hp(1, "decks of 52 cards that are shuffled together", ge=1)
    k: int = hp(4, "which of the last cards to name: 1 is the card in view, 2 the one before", ge=1)

    action_names = drawing.SUITS
    requires: ClassVar = {"k < 52 * num_decks": "the deck must have a card left when the first answer is given"}

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is the suit of the card dealt, int32."""
        card, remaining = self.deal(key, deck.full(SUITS, self.num_decks))
        recent = jnp.zeros((self.k,), jnp.int32).at[0].set(card)
        return card, State(time=jnp.int32(0), remaining=remaining, recent=recent)

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        time = state.time + 1
        slot = time % self.k  # of the oldest card in the ring, which the new one replaces
        verdict = deck.verdict(action == state.recent[slot], 1 / (self.num_cards - self.k))
        reward = jnp.where(time >= self.k, verdict, jnp.float32(0))
        card, remaining = self.deal(key, state.remaining)
        state = State(time=time, remaining=remaining, recent=state.recent.at[slot].set(card))
        return card, state, reward, time == self.num_cards - 1, {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the last ``k`` cards, oldest first: the one in view is framed blue, the one to name yellow."""
        canvas, shown = drawing.Canvas(), min(int(state.time) + 1, self.k)
        cards: list[int | None] = np.roll(state.recent, -(int(state.time) + 1)).tolist()
        cards[: self.k - shown] = [None] * (self.k - shown)
        drawing.title(
            canvas,
            f"Name the suit of {self.k - 1} cards ago",
            "blue: in view   yellow: to name   all others are hidden",
        )
        marks = {0: drawing.YELLOW} if shown == self.k else {}
        drawing.cards(canvas, 56, "suits", cards, min(self.k, 16), marks | {self.k - 1: drawing.BLUE})
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[k + 4]``.

        The last ``k`` suits, oldest first (zeros before the first card), and the fraction of each suit that is left.
        """
        oldest_first = jnp.roll(state.recent, -(state.time + 1))
        return jnp.append(oldest_first, state.remaining / (self.num_cards // SUITS))

    def observation_space(self, params: Any) -> Discrete:
        """Suit of the last card."""
        return Discrete(SUITS)

    def action_space(self, params: Any) -> Discrete:
        """Suit of the k-th last card."""
        return Discrete(SUITS)
