"""Replay of the original POPGym: same hidden draws, same actions, hence the same episode.

A family of ours is proved equal to the original's in three steps.

1. ``record`` plays whole episodes of the original. Right after the reset, ``dump(game)`` copies what its generator has
   decided: the deck's order, the board, the mines, the physical state.
2. Our environments keep their randomness in small methods that take a key and return what was drawn and nothing else
   (``CardGame.draw``, ``Concentration.lay_out``, ``MultiarmedBandit.pull``). ``scripted`` copies an environment with
   such methods replaced by ones that return the dump; everything else is the production code.
3. ``replay`` runs the recorded actions through it, all episodes of a task in one jitted scan, and ``compare`` checks
   observations, rewards, both end flags, the length and ``get_state``.

A family's test thus consists of ``dump``, ``script`` (from the dump to the methods that replace the draws) and players.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import popgym.envs

Player = Callable[[Any, np.random.Generator], Any]  # (original game, generator) -> action
Script = Callable[[Any], dict[str, Callable]]  # dump -> replacements of the methods that draw


class Episode(NamedTuple):
    """One episode of ``T`` steps; observations and states ``[T + 1, ...]`` include the reset's."""

    dump: Any
    actions: Any
    observations: Any
    rewards: Any
    terminated: Any
    truncated: Any
    states: Any


def original(id: str, **parameters: Any) -> Any:
    """Build the original of one of our ids."""
    return getattr(popgym.envs, id.removeprefix("popgym/"))(**parameters)


def _markov_state(game: Any) -> np.ndarray:
    parts = game.get_state()
    parts = parts if isinstance(parts, tuple) else (parts,)
    return np.concatenate([np.ravel(part).astype(np.float32) for part in parts])


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def record(game: Any, player: Player, dump: Callable[[Any], Any], seed: int) -> Episode:
    """Play one episode of the original."""
    rng = np.random.default_rng(seed)
    obs, _ = game.reset(seed=seed)
    hidden, observations, states, steps = dump(game), [obs], [_markov_state(game)], []
    ended = False
    while not ended:
        action = player(game, rng)
        obs, reward, terminated, truncated, _ = game.step(action)
        ended = terminated or truncated
        observations.append(obs)
        states.append(_markov_state(game))
        steps.append((np.asarray(action), np.float32(reward), bool(terminated), bool(truncated)))
    actions, rewards, terminations, truncations = _stack(steps)
    return Episode(hidden, actions, _stack(observations), rewards, terminations, truncations, np.stack(states))


def scripted(env: Any, **draws: Callable) -> Any:
    """Copy an environment, with the given methods (``self`` included in their arguments) in place of its own."""
    subclass = type(type(env).__name__, (type(env),), draws)
    return subclass(**{f.name: getattr(env, f.name) for f in dataclasses.fields(env)})


def replay(env: Any, params: Any, script: Script, episodes: list[Episode]) -> list[Episode]:
    """Run the actions of recorded episodes through our environment; an episode is cut where its recording ends."""
    longest = max(len(e.rewards) for e in episodes)

    def pad(actions: np.ndarray) -> np.ndarray:
        return np.pad(actions, [(0, longest - len(actions))] + [(0, 0)] * (actions.ndim - 1))

    def run(dump: Any, actions: jax.Array) -> Episode:
        game = scripted(env, **script(dump))
        key = jax.random.key(0)

        def step(state: Any, action: jax.Array) -> tuple[Any, Any]:
            obs, state, reward, terminated, _ = game.step_env(key, state, action, params)
            return state, (obs, reward, terminated, game.is_truncated(state, params), game.get_state(state))

        obs, state = game.reset_env(key, params)
        _, (observations, rewards, terminated, truncated, states) = jax.lax.scan(step, state, actions)
        observations, states = jax.tree.map(
            lambda first, rest: jnp.concatenate([first[None], rest]),
            (obs, game.get_state(state)),
            (observations, states),
        )
        return Episode(dump, actions, observations, rewards, terminated, truncated, states)

    actions = np.stack([pad(e.actions) for e in episodes])
    actions = actions.astype(np.float32 if actions.dtype.kind == "f" else np.int32)
    ours = jax.device_get(jax.jit(jax.vmap(run))(_stack([e.dump for e in episodes]), actions))
    cut = []
    for i, theirs in enumerate(episodes):
        length = len(theirs.rewards)
        mine = jax.tree.map(lambda x, i=i: x[i], ours)
        steps = {f: getattr(mine, f)[:length] for f in ("actions", "rewards", "terminated", "truncated")}
        observations, states = jax.tree.map(lambda x, n=length: x[: n + 1], (mine.observations, mine.states))
        cut.append(mine._replace(observations=observations, states=states, **steps))
    return cut


def compare(ours: Episode, theirs: Episode, atol: float = 0.0) -> None:
    """Assert that two episodes are equal; ``atol`` is for real-valued observations, integers should be exact."""
    ended = ours.terminated | ours.truncated
    assert not ended[:-1].any(), f"ours ends after {ended.argmax() + 1} steps, the original after {len(ended)}"
    np.testing.assert_array_equal(ours.terminated, theirs.terminated, "terminated")
    np.testing.assert_array_equal(ours.truncated, theirs.truncated, "truncated")
    np.testing.assert_allclose(ours.rewards, theirs.rewards, rtol=0, atol=1e-6, err_msg="rewards")
    np.testing.assert_allclose(ours.states, theirs.states, rtol=0, atol=max(atol, 1e-6), err_msg="get_state")
    assert jax.tree.structure(ours.observations) == jax.tree.structure(theirs.observations)
    for mine, other in zip(*map(jax.tree.leaves, (ours.observations, theirs.observations)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=atol, err_msg="observations")


def check(
    env: Any,
    params: Any,
    game: Any,
    *,
    players: dict[str, Player],
    dump: Callable[[Any], Any],
    script: Script,
    seeds: Iterable[int] = range(3),
    atol: float = 0.0,
) -> dict[str, list[Episode]]:
    """Record, replay and compare: every player with every seed. Returns our episodes by player."""
    plan = [(name, seed) for name in players for seed in seeds]
    theirs = [record(game, players[name], dump, seed) for name, seed in plan]
    ours = replay(env, params, script, theirs)
    for mine, other in zip(ours, theirs, strict=True):
        compare(mine, other, atol)
    return {name: [e for e, (who, _) in zip(ours, plan, strict=True) if who == name] for name in players}
