"""Playing tasks by given actions, for tests that compare them with an account of their rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import envs

EPISODES = 48


@functools.cache
def _player(env, params):
    def episode(key, actions):
        obs, state = env.reset_env(key, params)

        def step(state, action):
            obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
            return state, (obs, state, reward, terminated)

        _, (seen, states, reward, terminated) = jax.lax.scan(step, state, actions)
        first = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), (obs, state), (seen, states))
        return *first, reward, terminated

    return jax.jit(jax.vmap(episode))


def play(id, actions, **fields):
    """Episodes of given actions ``[episodes, T]``: observations and states ``[episodes, T + 1]``, rewards, ends."""
    env, params = envs.make(id, **fields)
    keys = jax.random.split(jax.random.key(3), len(actions))
    return jax.device_get(_player(env, params)(keys, np.asarray(actions, np.int32)))


def starts(id, num=2000, **fields):
    """Many start states."""
    env, params = envs.make(id, **fields)
    return jax.device_get(
        jax.jit(jax.vmap(lambda key: env.reset_env(key, params)[1]))(jax.random.split(jax.random.key(0), num))
    )


def rows(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def random_actions(num, length, p, seed=0):
    """Uniform among all actions, or with the probabilities ``p``."""
    return np.random.default_rng(seed).choice(len(p), (num, length), p=np.asarray(p) / np.sum(p))
