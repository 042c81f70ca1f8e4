"""The card games and the bandit of POPGym, against the original and against the published numbers."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl.envs import make
from ssmrl.envs.popgym import deck
from ssmrl.spaces import flat_size
from tests.conformance.popgym_replay import check, original


class Row(NamedTuple):
    flat: int  # size of the observation, one-hot
    actions: int
    length: int  # steps of a full-length episode
    random: float  # mean return of random play, 100 episodes of the original ...
    se: float  # ... and its standard error


TABLE = {
    "popgym/AutoencodeEasy": Row(6, 4, 103, -0.503, 0.014),
    "popgym/AutoencodeMedium": Row(6, 4, 207, -0.507, 0.008),
    "popgym/AutoencodeHard": Row(6, 4, 311, -0.497, 0.007),
    "popgym/RepeatFirstEasy": Row(4, 4, 51, -0.488, 0.013),
    "popgym/RepeatFirstMedium": Row(4, 4, 415, -0.493, 0.004),
    "popgym/RepeatFirstHard": Row(4, 4, 831, -0.506, 0.003),
    "popgym/RepeatPreviousEasy": Row(4, 4, 51, -0.527, 0.011),
    "popgym/RepeatPreviousMedium": Row(4, 4, 103, -0.506, 0.011),
    "popgym/RepeatPreviousHard": Row(4, 4, 155, -0.508, 0.009),
    "popgym/CountRecallEasy": Row(4, 27, 51, -0.930, 0.006),
    "popgym/CountRecallMedium": Row(8, 27, 103, -0.920, 0.004),
    "popgym/CountRecallHard": Row(26, 17, 207, -0.884, 0.003),
    "popgym/HigherLowerEasy": Row(13, 2, 51, 0.007, 0.013),
    "popgym/HigherLowerMedium": Row(13, 2, 103, 0.000, 0.011),
    "popgym/HigherLowerHard": Row(13, 2, 155, -0.005, 0.008),
    "popgym/ConcentrationEasy": Row(156, 52, 104, -0.192, 0.009),
    "popgym/ConcentrationMedium": Row(312, 104, 208, -0.170, 0.008),
    "popgym/ConcentrationHard": Row(728, 52, 104, -0.846, 0.009),
    "popgym/MultiarmedBanditEasy": Row(2, 10, 200, 0.006, 0.016),
    "popgym/MultiarmedBanditMedium": Row(2, 20, 400, -0.007, 0.014),
    "popgym/MultiarmedBanditHard": Row(2, 30, 600, -0.020, 0.012),
}
# Players: what the original hides is theirs to read.


def autoencode_oracle(game, rng):
    return int(game.deck.suits_idx[game.deck["system"][-1]])


def repeat_first_oracle(game, rng):
    return int(game.card)


def repeat_previous_oracle(game, rng):
    hand = game.deck["player"]
    return int(game.deck.suits_idx[hand[-game.k]]) if len(hand) >= game.k else 0


def count_recall_oracle(game, rng):
    return int(game.counts[game.query])


def higher_lower_oracle(game, rng):
    rank = game.deck.ranks_idx
    return int(rank[game.deck.idx[len(game.deck) - 1]] < rank[game.deck["player"][-1]])


def concentration_oracle(game, rng):
    closed = [p for p in range(len(game.deck)) if p not in game.deck["face_up_idx"]]
    in_play = game.deck["in_play_idx"]
    wanted = [p for p in closed if p not in in_play and game.state[p] == game.state[in_play[0]]] if in_play else closed
    return int(rng.choice(wanted))


def bandit_oracle(game, rng):
    return int(np.argmax(game.bandits))


def random_player(game, rng):
    return int(rng.integers(game.action_space.n))


def stubborn_player(game, rng):
    return 1


def clumsy_concentration(game, rng):
    """Flip a place twice, flip cards that are face up (as first and as second), find pairs in between."""
    face_up, last = game.deck["face_up_idx"], game.last_in_play_idx
    moves = [concentration_oracle(game, rng), concentration_oracle(game, rng), random_player(game, rng)]
    moves += [last[-1]] if last else []
    moves += [int(rng.choice(face_up))] if face_up else []
    return int(rng.choice(moves))


def adversary(oracle):
    """Always wrong, wherever an oracle is always right."""
    return lambda game, rng: (oracle(game, rng) + 1) % game.action_space.n


# What the original drew, and how ours is made to draw the same.


def dump_suits(game):
    return game.deck.suits_idx[game.deck.idx[::-1]].astype(np.int32)  # dealt from the end


def dump_ranks(game):
    return game.deck.ranks_idx[game.deck.idx[::-1]].astype(np.int32)


def dump_two_decks(game):
    decks = (game.value_deck, game.query_deck)
    return np.stack([game.deck_idx_type[d.idx[::-1]] for d in decks], axis=-1).astype(np.int32)


def dump_table(game):
    return game.deck_idx_type[game.deck.idx].astype(np.int32)


def dump_bandit(game):
    payouts = copy.deepcopy(game.np_random).random(game.max_episode_length)
    return game.bandits.copy(), payouts.astype(np.float32)


def script_deck(dealt):
    """``dealt`` int32 ``[n]`` or ``[n, 2]``: the cards of one or two decks in the order they are dealt."""

    def draw(self, key, remaining):
        left = jnp.sum(remaining, axis=-1).reshape(-1)[0]  # two decks are dealt in step
        return dealt.at[len(dealt) - left].get(mode="fill", fill_value=remaining.shape[-1])

    return {"draw": draw}


def script_table(cards):
    return {"lay_out": lambda self, key: cards}


def script_bandit(hidden):
    arms, payouts = hidden
    return {
        "draw_arms": lambda self, key: arms,
        "pull": lambda self, key, state, action: payouts[state.time] < state.arms[action],
    }


class Proof(NamedTuple):
    oracle: Callable
    clumsy: Callable  # a player who provokes what random play rarely meets
    dump: Callable
    script: Callable
    oracle_return: float | None = 1.0  # None where luck has a part in it


def _proof(oracle, dump, **kwargs):
    return Proof(oracle, adversary(oracle), dump, script_deck, **kwargs)


PROOFS = {
    "Autoencode": _proof(autoencode_oracle, dump_suits),
    "RepeatFirst": _proof(repeat_first_oracle, dump_suits),
    "RepeatPrevious": _proof(repeat_previous_oracle, dump_suits),
    "CountRecall": _proof(count_recall_oracle, dump_two_decks),
    "HigherLower": _proof(higher_lower_oracle, dump_ranks, oracle_return=None),
    "Concentration": Proof(concentration_oracle, clumsy_concentration, dump_table, script_table),
    "MultiarmedBandit": Proof(bandit_oracle, adversary(bandit_oracle), dump_bandit, script_bandit, None),
}


def family(id):
    return next(name for name in PROOFS if id.startswith(f"popgym/{name}"))


CASES = [
    *((id, {}) for id in TABLE),
    ("popgym/Autoencode", {"num_decks": 4}),
    ("popgym/RepeatFirst", {}),
    ("popgym/RepeatPrevious", {"num_decks": 2, "k": 10}),
    ("popgym/RepeatPrevious", {"k": 1}),
    ("popgym/RepeatPrevious", {"k": 51}),
    ("popgym/CountRecall", {"deck_type": "ranks"}),
    ("popgym/HigherLower", {"num_decks": 5}),
    ("popgym/Concentration", {"num_decks": 2}),
    ("popgym/MultiarmedBandit", {"num_bandits": 3, "episode_length": 7}),
]


@pytest.mark.parametrize(("id", "parameters"), CASES, ids=lambda v: v if isinstance(v, str) else str(v or ""))
def test_replays_the_original(id, parameters):
    env, params = make(id, **parameters)
    proof = PROOFS[family(id)]
    players = {"oracle": proof.oracle, "clumsy": proof.clumsy, "random": random_player, "stubborn": stubborn_player}
    episodes = check(
        env, params, original(id, **parameters), players=players, dump=proof.dump, script=proof.script, seeds=range(3)
    )
    if proof.oracle_return is not None:
        returns = [e.rewards.sum(dtype=np.float64) for e in episodes["oracle"]]
        np.testing.assert_allclose(returns, proof.oracle_return, atol=1e-5)
    if family(id) != "Concentration":
        assert {len(e.rewards) for name in players for e in episodes[name]} == {params.max_steps_in_episode}


@pytest.mark.parametrize("id", TABLE)
def test_spaces_and_length_are_the_originals(id):
    env, params = make(id)
    row, game = TABLE[id], original(id)
    assert flat_size(env.observation_space(params)) == row.flat == gymnasium.spaces.flatdim(game.observation_space)
    assert env.num_actions == row.actions == game.action_space.n
    assert params.max_steps_in_episode == row.length == getattr(game, "max_episode_length", row.length)


@pytest.mark.parametrize("id", TABLE)
def test_random_play_scores_as_in_the_original(id):
    (env, params), row, batch = make(id), TABLE[id], 256
    space = env.action_space(params)

    def episode(key):
        def step(carry, key):
            state, alive = carry
            key_action, key_step = jax.random.split(key)
            _, state, reward, terminated, _ = env.step_env(key_step, state, space.sample(key_action), params)
            truncated = env.is_truncated(state, params)
            return (state, alive & ~terminated & ~truncated), (reward * alive, alive, terminated, truncated)

        key_reset, key_steps = jax.random.split(key)
        _, state = env.reset_env(key_reset, params)
        keys = jax.random.split(key_steps, row.length)
        _, (rewards, alive, terminated, truncated) = jax.lax.scan(step, (state, jnp.bool_(True)), keys)
        return jnp.sum(rewards), jnp.sum(alive), terminated[-1], truncated[-1]

    returns, lengths, terminated, truncated = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), batch))
    se = math.hypot(row.se, float(returns.std()) / math.sqrt(batch))
    assert abs(float(returns.mean()) - row.random) < 4 * se
    assert (lengths == row.length).all()
    ends = family(id) in ("Concentration", "MultiarmedBandit")
    assert (truncated == ends).all()
    assert (terminated != ends).all()


# Cards dealt from counts are a shuffled deck.


def chi_square(observed, expected):
    """Standard scores of the statistic, which is about normal: below 5 unless the counts are not as expected."""
    observed = np.asarray(observed, np.float64)
    degrees = observed.size - 1
    return (((observed - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def deal_all(key, remaining):
    """All cards of a deck in the order dealt, ``[n]``."""
    game = deck.CardGame()

    def step(remaining, key):
        card, remaining = game.deal(key, remaining)
        return remaining, card

    return jax.lax.scan(step, jnp.asarray(remaining, jnp.int32), jax.random.split(key, sum(remaining)))[1]


def test_every_order_of_a_small_deck_is_equally_likely():
    keys = jax.random.split(jax.random.key(1), 30_000)
    orders = jax.jit(jax.vmap(lambda key: deal_all(key, (2, 1, 2))))(keys)
    distinct, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(distinct) == math.factorial(5) // (2 * 2)
    assert (np.sort(distinct, axis=1) == [0, 0, 1, 2, 2]).all()
    assert chi_square(counts, len(keys) / len(distinct)) < 5


@pytest.mark.parametrize("shuffle", ["dealt", "laid out"])
@pytest.mark.parametrize(("num_types", "num_decks"), [(4, 1), (13, 1), (2, 2)])
def test_marginals_of_a_full_deck(shuffle, num_types, num_decks):
    n, copies = 52 * num_decks, 52 * num_decks // num_types
    keys = jax.random.split(jax.random.key(2), 4_000)
    if shuffle == "dealt":
        decks = jax.jit(jax.vmap(lambda key: deal_all(key, (copies,) * num_types)))(keys)
    else:
        decks = jax.jit(jax.vmap(lambda key: deck.lay_out(key, num_types, num_decks)))(keys)
    decks = np.asarray(decks)
    assert (np.sort(decks, axis=1) == np.repeat(np.arange(num_types), copies)).all()  # a whole deck, always
    for place in (0, 1, n // 2, n - 1):
        assert chi_square(np.bincount(decks[:, place], minlength=num_types), len(keys) / num_types) < 5
    # Neighbours and far places are of one type with probability (copies - 1) / (n - 1), as in any shuffled deck.
    for a, b in ((0, 1), (n - 2, n - 1), (0, n - 1)):
        p = (copies - 1) / (n - 1)
        same = (decks[:, a] == decks[:, b]).mean()
        assert abs(same - p) < 5 * math.sqrt(p * (1 - p) / len(keys))


def test_two_decks_are_dealt_apart():
    keys = jax.random.split(jax.random.key(3), 20_000)
    cards = jax.jit(jax.vmap(lambda key: deck.draw(key, jnp.full((2, 4), 13, jnp.int32))))(keys)
    assert chi_square(np.bincount(cards[:, 0] * 4 + cards[:, 1], minlength=16), len(keys) / 16) < 5


def test_an_empty_deck_deals_no_card():
    card, remaining = deck.CardGame().deal(jax.random.key(0), jnp.zeros((4,), jnp.int32))
    assert card == 4
    assert (remaining == 0).all()


def test_the_cards_to_come_are_settled_at_reset():
    env, params = make("popgym/AutoencodeEasy")
    _, state = env.reset_env(jax.random.key(4), params)
    foreseen = env.get_state(state)[:52]
    seen = []
    for i in range(51):
        (_, suit), state, *_ = env.step(jax.random.key(100 + i), state, jnp.int32(0), params)
        seen.append(int(suit))
    np.testing.assert_array_equal(foreseen[::-1][1:], seen)


@pytest.mark.parametrize(
    ("id", "parameters", "message"),
    [
        ("popgym/RepeatPrevious", {"k": 52}, "k=52, num_decks=1: the deck must have a card left"),
        ("popgym/RepeatPrevious", {"k": 0}, "k=0: expected integer >= 1"),
        ("popgym/CountRecall", {"deck_type": "rank"}, r"deck_type=rank: expected colors\|suits\|ranks"),
        ("popgym/Concentration", {"deck_type": "suits"}, r"deck_type=suits: expected colors\|ranks"),
        ("popgym/MultiarmedBandit", {"num_bandits": 0}, "num_bandits=0: expected integer >= 1"),
    ],
)
def test_impossible_parameters(id, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(id, **parameters)
    with pytest.raises(ValueError, match=message):
        type(make(id)[0])(**parameters)


def test_every_bandit_pays_with_its_own_probability():
    env, params = make("popgym/MultiarmedBanditEasy")
    _, state = env.reset_env(jax.random.key(5), params)
    pulls = 2_000

    def pull(key, action):
        return env.step_env(key, state, action, params)[0]

    keys = jax.random.split(jax.random.key(6), (pulls, 10))
    paid = jax.jit(jax.vmap(jax.vmap(pull), (0, None)))(keys, jnp.arange(10, dtype=jnp.int32))
    p = np.asarray(state.arms)
    assert p.min() >= 0
    assert p.max() - p.min() > 0.5  # the arms differ
    np.testing.assert_array_less(np.abs(paid.mean(axis=0) - p), 5 * np.sqrt(p * (1 - p) / pulls))


def test_older_names():
    assert make("popgym/MultiArmedBanditHard")[0] == make("popgym/MultiarmedBanditHard")[0]
