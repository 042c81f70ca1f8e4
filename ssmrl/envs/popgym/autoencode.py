"""Autoencode: watch a deck being dealt, then name its suits backwards."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import EnvParams, EnvState
from ssmrl.envs.popgym import deck
from ssmrl.registry import envs, hp
from ssmrl.spaces import Discrete, Tuple

SUITS = deck.TYPES["suits"]
PLAY, WATCH = 0, 1


@struct.dataclass
class State(EnvState):
    """The cards dealt so far, and what settles the others.

    ``key`` deals the episode's cards; ``remaining`` int32 ``[4]``: cards left of each suit; ``cards`` int32 ``[n]``:
    suits in the order dealt, zero where still to come.
    """

    key: jax.Array
    remaining: jax.Array
    cards: jax.Array


@envs.register(
    "popgym/Autoencode", variants={"Easy": {"num_decks": 1}, "Medium": {"num_decks": 2}, "Hard": {"num_decks": 3}}
)
@dataclasses.dataclass(frozen=True)
class Autoencode(deck.CardGame):
    """Watch a deck being dealt, then name the suits of its cards in reverse order.

    With ``n = 52 * num_decks`` cards the first ``n - 1`` steps deal (mode WATCH, actions ignored, no reward); the last
    card is shown with mode PLAY, so the next action is the first answer, and ``n`` answers are worth ``+1/n`` or
    ``-1/n`` each. While playing, the observed suit is 0.
    """

    num_decks: int = hp(1, "decks of 52 cards that are shuffled together", ge=1)

    action_names = drawing.SUITS

    @property
    def default_params(self) -> Any:
        """The time limit is the length of an episode, for information."""
        return EnvParams(max_steps_in_episode=2 * self.num_cards - 1)

    def _deal_next(self, state: State, time: jax.Array) -> tuple[jax.Array, State]:
        """Deal card number ``time``; when no card is left only the time changes."""
        # A key per card, fixed at reset: get_state can look at the cards to come, as in the original.
        card, remaining = self.deal(jax.random.fold_in(state.key, time), state.remaining)
        cards = state.cards.at[time].set(card, mode="drop")
        return card, State(time=time, key=state.key, remaining=remaining, cards=cards)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[tuple[jax.Array, jax.Array], State]:
        """See ``Environment``; the observation is ``(mode, suit)``, int32 scalars."""
        time, no_cards = jnp.int32(0), jnp.zeros((self.num_cards,), jnp.int32)
        card, state = self._deal_next(State(time, key, deck.full(SUITS, self.num_decks), no_cards), time)
        return (jnp.int32(WATCH), card), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[tuple[jax.Array, jax.Array], State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used, the cards follow from the reset's."""
        n, time = self.num_cards, state.time + 1
        asked = 2 * n - 1 - time  # number of the card to name; n or more while watching
        verdict = deck.verdict(action == state.cards[jnp.minimum(asked, n - 1)], 1 / n)
        reward = jnp.where(asked < n, verdict, jnp.float32(0))
        card, state = self._deal_next(state, time)
        suit = jnp.where(time < n, card, 0)
        return (self._mode(time), suit), state, reward, asked == 0, {}

    def _mode(self, time: jax.Array) -> jax.Array:
        return jnp.where(time < self.num_cards - 1, jnp.int32(WATCH), jnp.int32(PLAY))

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the cards dealt and not yet asked for; the one in view is framed blue, the one to name yellow."""
        canvas, n, time = drawing.Canvas(), self.num_cards, int(state.time)
        watching = time < n - 1
        hand = time + 1 if time < n else 2 * n - 1 - time
        task = "Watch the cards being dealt" if watching else "Name the suits backwards"
        drawing.title(canvas, task, "blue: in view" if watching else "yellow: to name; all are hidden")
        if hand:
            last = hand - 1
            shown = [*np.asarray(state.cards).tolist()[:hand], *[None] * (n - hand)]
            marks = {last: drawing.BLUE if watching else drawing.YELLOW}
            drawing.cards(canvas, 50, "suits", shown, 13 * min(self.num_decks, 2), marks)
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[n + 2]``.

        All suits, last card of the deck first, those to come included; the mode; and the number of cards that are dealt
        and not yet asked for, divided by ``n``. Costs a pass over the deck.
        """
        n = self.num_cards
        complete = jax.lax.fori_loop(state.time + 1, n, lambda time, state: self._deal_next(state, time)[1], state)
        hand = jnp.minimum(state.time + 1, 2 * n - 1 - state.time) / n
        return jnp.concatenate([complete.cards[::-1], jnp.stack([self._mode(state.time), hand])])

    def observation_space(self, params: Any) -> Tuple:
        """Mode (0 PLAY, 1 WATCH) and suit."""
        return Tuple((Discrete(2), Discrete(SUITS)))

    def action_space(self, params: Any) -> Discrete:
        """Suit."""
        return Discrete(SUITS)
