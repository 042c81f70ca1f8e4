"""Concentration: find the pairs among cards that lie face down."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.popgym import deck
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete, MultiDiscrete

NOTHING = -1


@struct.dataclass
class State(EnvState):
    """The table.

    ``cards`` int32 ``[n]``: type of the card at each place; ``face_up`` bool ``[n]``: found for good; ``first`` and
    ``second`` int32: the places flipped last, -1 if none; ``half_open`` bool: whether ``first`` awaits its second.
    """

    cards: jax.Array
    face_up: jax.Array
    first: jax.Array
    second: jax.Array
    half_open: jax.Array


@envs.register(
    "popgym/Concentration",
    variants={
        "Easy": {"num_decks": 1, "deck_type": "colors"},
        "Medium": {"num_decks": 2, "deck_type": "colors"},
        "Hard": {"num_decks": 1, "deck_type": "ranks"},
    },
)
@dataclasses.dataclass(frozen=True)
class Concentration(Environment):
    """Flip cards two at a time; two of the same type stay face up.

    With ``n = 52 * num_decks`` cards and ``T`` the time limit, a pair found is worth ``+2/n`` and a pair missed
    ``-2/T``; so is flipping the same place twice. Flipping a card that is face up already costs ``-1/T`` for every card
    in play, and ends the turn. A missed pair is in view once, right after its second flip. The episode terminates when
    all cards are face up and is truncated after ``T``, about ``2 n``, steps.
    """

    num_decks: int = hp(1, "decks of 52 cards that are shuffled together", ge=1)
    # No suits: a deck has 13 cards of each, which do not all pair up.
    deck_type: Literal["colors", "ranks"] = hp("ranks", "what makes two cards a pair")

    def __post_init__(self) -> None:
        check(self)

    @property
    def num_cards(self) -> int:
        """Cards on the table."""
        return deck.CARDS * self.num_decks

    @property
    def num_types(self) -> int:
        """Distinct cards; also the symbol of a card that lies face down."""
        return deck.TYPES[self.deck_type]

    @property
    def episode_length(self) -> int:
        """Steps in which a player with perfect memory is expected to finish."""
        n = self.num_cards
        return math.ceil(2 * n - n / (2 * n - 1))

    @property
    def default_params(self) -> Any:
        """The time limit is ``episode_length``."""
        return EnvParams(max_steps_in_episode=self.episode_length)

    def lay_out(self, key: jax.Array) -> jax.Array:
        """Shuffle the cards onto the table, see ``deck.lay_out``; to replay a known deck, override this method."""
        return deck.lay_out(key, self.num_types, self.num_decks)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is the type in view at each place, int32 ``[n]``."""
        face_up = jnp.zeros((self.num_cards,), bool)
        nothing, no = jnp.int32(NOTHING), jnp.bool_(False)
        state = State(jnp.int32(0), self.lay_out(key), face_up, first=nothing, second=nothing, half_open=no)
        return jnp.full((self.num_cards,), self.num_types, jnp.int32), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used, the cards lie where the reset put them."""
        places = jnp.arange(self.num_cards, dtype=jnp.int32)
        first = jnp.where(state.half_open, state.first, action)
        second = jnp.where(state.half_open, action, jnp.int32(NOTHING))
        shown = state.face_up | (places == first) | (places == action)
        obs = jnp.where(shown, state.cards, self.num_types)

        foul = state.face_up[action]
        turn_ends = state.half_open & ~foul
        found = turn_ends & (state.cards[first] == state.cards[action]) & (first != action)
        in_play = 1 + state.half_open
        penalty = -in_play / self.episode_length
        reward = jnp.where(found, 2 / self.num_cards, jnp.where(foul | turn_ends, penalty, 0.0)).astype(jnp.float32)

        face_up = jnp.where(found, shown, state.face_up)
        half_open = ~state.half_open & ~foul
        state = State(state.time + 1, state.cards, face_up, first, second, half_open)
        return obs, state, reward, jnp.all(face_up), {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the table: cards found lie open, the last two flipped are framed blue."""
        canvas, flipped = drawing.Canvas(), {int(state.first), int(state.second)} - {NOTHING}
        shown = [
            int(card) if up or place in flipped else None
            for place, (card, up) in enumerate(zip(state.cards, state.face_up, strict=True))
        ]
        note = f"found: {int(np.sum(state.face_up))} of {self.num_cards} cards   blue: flipped last"
        drawing.title(canvas, "Find the pairs", note)
        drawing.cards(canvas, 50, self.deck_type, shown, 13 * self.num_decks, dict.fromkeys(flipped, drawing.BLUE))
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[2 * n + 2]``.

        The type at each place, whether it is face up (0 or 1), and the places of the first and second card of the last
        flip, with the face-down symbol where there is none (as in the original, although that is also a place).
        """
        flipped = jnp.stack([state.first, state.second])
        flipped = jnp.where(flipped == NOTHING, self.num_types, flipped)
        return jnp.concatenate([state.cards, state.face_up, flipped]).astype(jnp.float32)

    def observation_space(self, params: Any) -> MultiDiscrete:
        """Type in view at each place, or the face-down symbol."""
        return MultiDiscrete((self.num_types + 1,) * self.num_cards)

    def action_space(self, params: Any) -> Discrete:
        """Place to flip."""
        return Discrete(self.num_cards)
