"""The environment checker: everything in which an environment violates the contract, with the remedy for each.

:func:`check_env` goes through stages: what the object is (``_identity``), what its functions return (``_types``,
evaluated abstractly), whether they compose (``_composes``), and what happens when it is played (``_plays``,
``_eager``). A stage that raises ends the check, since the later ones build on it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import spaces
from ssmrl.envs.base import Environment
from ssmrl.envs.gymnax import from_gymnax_space

HOOKS = ("reset_env", "step_env", "observation_space", "action_space")  # what an author writes
MEMBERS = (*HOOKS, "is_truncated", "default_params", "reset", "step")
COPIES = 8


def check_env(
    env: Any,
    params: Any = None,
    key: jax.Array | None = None,
    *,
    steps: int | None = None,
    eager: bool = True,
    strict: bool = False,
) -> list[str]:
    """Return everything in which an environment violates the contract; an empty list means that it is sound.

    ``env`` is an ``Environment`` or anything else with gymnax 1.x's protocol; ``params`` are its own by default. Eight
    copies of it play ``steps`` random actions (default: two episodes, at most 2000) under ``jit``, ``vmap`` and
    ``scan``; ``eager`` also runs three steps without ``jit``, which is slow for physics engines. ``key`` is consumed.
    Findings that begin with ``warning:`` are legal but seldom meant. ``strict`` raises ``ValueError`` with all the
    other findings.
    """
    found = [f"{name} is missing: {_remedy(name)}" for name in MEMBERS if _is_missing(env, name)]
    if not found:
        found = _run_stages(env, params, jax.random.key(0) if key is None else key, steps, eager)
    violations = [text for text in found if not text.startswith("warning:")]
    if strict and violations:
        raise ValueError(f"{type(env).__name__} violates the environment contract:\n- " + "\n- ".join(violations))
    return found


def _is_missing(env: Any, name: str) -> bool:
    inherited = name in HOOKS and getattr(type(env), name, None) is getattr(Environment, name)
    return inherited or not hasattr(env, name)


def _remedy(name: str) -> str:
    return "define it" if name in HOOKS else "inherit it from ssmrl.envs.Environment"


def _run_stages(env: Any, params: Any, key: jax.Array, steps: int | None, eager: bool) -> list[str]:
    params = env.default_params if params is None else params
    limit = _limit(env, params) or 1000
    steps = int(min(2 * limit + 2, 2000)) if steps is None else steps
    found = list(_identity(env))
    if any(text.startswith("not hashable") for text in found):
        stages = {"a space, reset_env or step_env": lambda: _types(env, params, key)}  # the others need jit
    else:
        stages = {
            "a space, reset_env or step_env": lambda: _types(env, params, key),
            "reset or step inside lax.scan": lambda: _composes(env, params, key),
            "step inside jit(vmap(lax.scan))": lambda: _plays(env, params, key, steps),
        }
        if eager:
            stages["reset_env or step_env outside jit"] = lambda: _eager(env, params, key)
    for what, stage in stages.items():
        try:
            found += list(stage())
        except Exception as error:  # whatever an author's code raises is a finding
            traced = isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError)
            remedy = ": branch and index with jnp.where, lax.cond and lax.scan, not on values" if traced else ""
            reason = str(error).strip().split("\n")[0]
            found.append(f"{what} raises {type(error).__name__}: {reason}{remedy}")
            break
    return found


def _limit(env: Any, params: Any) -> Any:
    return getattr(env, "longest_episode", lambda p: getattr(p, "max_steps_in_episode", None))(params)


def _identity(env: Any) -> Iterator[str]:
    """What makes two environments share compiled code."""
    remedy = "make it a frozen dataclass whose fields are numbers, strings and tuples"
    try:
        hash(env)
    except TypeError as error:
        yield f"not hashable, so that jit cannot take it ({error}): {remedy}"
        return
    other = copy.deepcopy(env)
    if other != env or hash(other) != hash(env):
        yield f"a copy of it is not equal to it, so that every new instance is compiled again: {remedy}"


def _types(env: Any, params: Any, key: jax.Array) -> Iterator[str]:
    """What reset_env and step_env return, by abstract evaluation."""
    obs_space, action_space = _space(env.observation_space(params)), _space(env.action_space(params))
    for name in ("observation_space", "action_space"):
        space = getattr(env, name)(params)
        if not isinstance(space, spaces.Space):
            yield f"{name} is a {type(space).__module__} {space!r}: return a space of ssmrl.spaces"
    obs, state = _returned(env, "reset_env", 2, key, params)
    action = jax.eval_shape(action_space.sample, key)
    next_obs, next_state, reward, terminated, _ = _returned(env, "step_env", 5, key, state, action, params)
    yield from _disagreements("obs", obs, next_obs)
    yield from _disagreements("state", state, next_state)
    yield from _form(obs_space, obs, "obs")
    truncated = jax.eval_shape(lambda s, p: env.is_truncated(s, p), next_state, params)
    for name, x, dtype in (
        ("the reward", reward, "float32"),
        ("terminated", terminated, "bool"),
        ("what is_truncated returns", truncated, "bool"),
        ("state.time", getattr(next_state, "time", None), "int32"),
    ):
        if x is None:
            yield f"{name} is missing: count the steps of the episode in it, from jnp.int32(0)"
        elif x.shape != () or x.dtype != dtype:
            yield f"{name} is {_show(x)}, not a {dtype} scalar: convert it with jnp.asarray(x, {dtype!r})"


def _returned(env: Any, name: str, count: int, *arguments: Any) -> tuple[Any, ...]:
    values = jax.eval_shape(lambda *args: getattr(env, name)(*args), *arguments)
    if not isinstance(values, tuple) or len(values) != count:
        contents = {2: "(obs, state)", 5: "(obs, state, reward, terminated, info)"}
        contents[6] = "(obs, state, reward, terminated, truncated, info)"
        got = f"{len(values)} values" if isinstance(values, tuple) else type(values).__name__
        raise ValueError(f"{name} returns {got}, not the {count} of gymnax 1.x: {contents[count]}")
    return values


def _space(space: Any) -> spaces.Space:
    return space if isinstance(space, spaces.Space) else from_gymnax_space(space)


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _show(x: Any) -> str:
    return f"{'weak ' if getattr(x, 'weak_type', False) else ''}{x.dtype}{list(x.shape)}"


def _disagreements(what: str, reset: Any, step: Any) -> Iterator[str]:
    """Compare what a reset returns with what a step returns, leaf by leaf."""
    before, after = _structure(reset), _structure(step)
    if before != after:
        yield f"{what} is {before} after a reset and {after} after a step: return the same structure"
        return
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(reset), jax.tree.leaves(step), strict=True):
        name = what + jax.tree_util.keystr(path)
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            yield f"{name} is {_show(x)} after a reset and {_show(y)} after a step: give both one shape and dtype"
        elif x.weak_type or y.weak_type:
            where = " and ".join(n for n, z in (("a reset", x), ("a step", y)) if z.weak_type)
            yield f"{name} is weakly typed after {where}, which compiles twice: use jnp.asarray(x, jnp.{x.dtype})"


def _form(space: spaces.Space, x: Any, path: str) -> Iterator[str]:
    """Structure, shape and dtype of an observation against its space."""
    match space:
        case spaces.Tuple(parts):
            if not isinstance(x, tuple) or len(x) != len(parts):
                yield f"{path} is not a tuple of {len(parts)}: return what observation_space declares"
                return
            for i, (part, value) in enumerate(zip(parts, x, strict=True)):
                yield from _form(part, value, f"{path}[{i}]")
        case spaces.Dict(items):
            if not isinstance(x, dict) or sorted(x) != [name for name, _ in items]:
                yield f"{path} is not a dict of {[n for n, _ in items]}: return what observation_space declares"
                return
            for name, part in items:
                yield from _form(part, x[name], f"{path}[{name!r}]")
        case _:
            if not hasattr(x, "dtype") or (x.shape, x.dtype) != (space.shape, space.dtype):
                declared = f"{np.dtype(space.dtype)}{list(space.shape)}"
                yield f"{path} is {_show(x)} but observation_space declares {declared}: change one of them"


def _composes(env: Any, params: Any, key: jax.Array) -> Iterator[str]:
    """What step returns, and whether it can be scanned."""
    obs, state = _returned(env, "reset", 2, key, params)
    action = jax.eval_shape(_space(env.action_space(params)).sample, key)
    *_, info = _returned(env, "step", 6, key, state, action, params)
    final = info.get("final_observation") if isinstance(info, dict) else None
    if final is None or _structure(final) != _structure(obs):
        yield "step's info has no 'final_observation' like obs: put the last observation before the auto-reset there"
    jax.eval_shape(lambda k: _play(env, params, k, 2), key)


def _play(env: Any, params: Any, key: jax.Array, steps: int) -> dict[str, Any]:
    """Play random actions with auto-reset; returns the start, the extremes of obs and one row of flags per step."""
    action_space = _space(env.action_space(params))
    key_reset, key_steps = jax.random.split(key)
    obs, state = env.reset(key_reset, params)

    def step(carry: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        state, low, high = carry
        key_action, key_step = jax.random.split(key)
        action = action_space.sample(key_action)
        obs, after, reward, terminated, truncated, info = env.step(key_step, state, action, params)
        final = info.get("final_observation", obs)
        done = terminated | truncated
        low = jax.tree.map(lambda *x: jnp.minimum(jnp.minimum(x[0], x[1]), x[2]), low, obs, final)
        high = jax.tree.map(lambda *x: jnp.maximum(jnp.maximum(x[0], x[1]), x[2]), high, obs, final)
        same = jax.tree.map(lambda a, b: jnp.array_equal(a, b, equal_nan=True), final, obs)
        row = {
            "done": done,
            "reward": reward,
            "clock": after.time == jnp.where(done, 0, state.time + 1),
            "final": done | jnp.all(jnp.stack(jax.tree.leaves(same))),
        }
        return (after, low, high), row

    (end, low, high), rows = jax.lax.scan(step, (state, obs, obs), jax.random.split(key_steps, steps))
    return {"start": (obs, state), "end": end, "low": low, "high": high, **rows}


def _plays(env: Any, params: Any, key: jax.Array, steps: int) -> Iterator[str]:
    """What happens in some episodes of random actions."""
    # This runs once: halve what it takes to compile. With no optimisation it would round otherwise than for users.
    options = {"xla_backend_optimization_level": 1}
    play = jax.jit(jax.vmap(lambda k: _play(env, params, k, steps)), compiler_options=options)
    played = play(jax.random.split(key, COPIES))
    yield from _pictures(
        env, params, *(jax.tree.map(lambda x: x[0], s) for s in (played["start"][1], played.pop("end")))
    )
    start_obs, start_state = jax.device_get(jax.tree.map(_plain, played.pop("start")))
    played = jax.device_get(played)
    low = jax.tree.map(lambda x: np.min(x, axis=0), played["low"])
    high = jax.tree.map(lambda x: np.max(x, axis=0), played["high"])
    yield from _range(_space(env.observation_space(params)), low, high, "obs")
    if not np.isfinite(played["reward"]).all():
        yield "the reward is not always finite: guard divisions, logarithms and roots"
    if np.any(start_state.time != 0) or not played["clock"].all():
        yield "state.time does not count: it is 0 after reset_env and grows by 1 in each step_env"
    if not played["final"].all():
        yield "info['final_observation'] differs from obs inside an episode: it is the observation of the step itself"
    limit = _limit(env, params) or np.inf
    if steps > limit and not played["done"].any():
        yield f"no episode ended in {steps} steps but the limit is {limit}: compare state.time with it in is_truncated"
    if all((x == x[:1]).all() for x in jax.tree.leaves((start_obs, start_state))):
        yield f"warning: {COPIES} keys gave the same start: does reset_env use its key?"


def _pictures(env: Any, params: Any, *states: Any) -> Iterator[str]:
    """What render returns, where there is one of ours."""
    if not isinstance(env, Environment):
        return
    shapes = set()
    for state in states:
        try:
            picture = env.render(jax.device_get(state), params)
        except NotImplementedError:
            return
        except Exception as error:  # whatever an author's code raises is a finding
            yield f"render raises {type(error).__name__}: {error}: it gets one state, with numpy leaves, outside jit"
            return
        if getattr(picture, "dtype", None) != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            got = _show(picture) if hasattr(picture, "dtype") else type(picture).__name__
            yield f"render returns {got}: return a picture, uint8 [H, W, 3]"
            return
        shapes.add(picture.shape)
    if len(shapes) > 1:
        yield f"render returns pictures of different shapes, {sorted(shapes)}: they are to be one film"


def _plain(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _range(space: spaces.Space, low: Any, high: Any, path: str) -> Iterator[str]:
    """The least and greatest values seen against those that the space allows."""
    match space:
        case spaces.Tuple(parts):
            for i, part in enumerate(parts):
                yield from _range(part, low[i], high[i], f"{path}[{i}]")
            return
        case spaces.Dict(items):
            for name, part in items:
                yield from _range(part, low[name], high[name], f"{path}[{name!r}]")
            return
        case spaces.Discrete(n):
            least, greatest = np.asarray(0), np.asarray(n - 1)
        case spaces.MultiDiscrete(nvec):
            least, greatest = np.zeros(len(nvec), np.int32), np.asarray(nvec) - 1
        case _:
            least, greatest = space.bounds()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        yield f"{path} is not always finite: guard divisions, logarithms and roots"
        return
    outside = np.atleast_1d((low < least) | (high > greatest))
    if outside.any():
        index = tuple(np.argwhere(outside)[0].tolist())
        seen_low, seen_high, least, greatest = (
            np.broadcast_to(x, outside.shape)[index] for x in (low, high, least, greatest)
        )
        yield (
            f"{path} leaves its space in {outside.sum()} of {outside.size} entries, as {list(index)}: seen "
            f"{seen_low}..{seen_high}, declared {least}..{greatest}: declare what it reaches"
        )


def _eager(env: Any, params: Any, key: jax.Array) -> Iterator[str]:
    """Whether jit changes the results: side effects and numpy's random numbers happen once, when it traces."""
    action_space = _space(env.action_space(params))
    jit_reset, jit_step = jax.jit(lambda *args: env.reset_env(*args)), jax.jit(lambda *args: env.step_env(*args))
    for key_step in jax.random.split(key, 3):
        obs_state = env.reset_env(key_step, params)
        if not _close(obs_state, jit_reset(key_step, params)):
            yield "reset_env gives something else under jit: let it depend on its arguments alone"
            return
        arguments = (key_step, obs_state[1], action_space.sample(key_step), params)
        if not _close(env.step_env(*arguments), jit_step(*arguments)):
            yield "step_env gives something else under jit: let it depend on its arguments alone"
            return


def _close(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    as_numpy = ((np.asarray(_plain(jnp.asarray(x))), np.asarray(_plain(jnp.asarray(y)))) for x, y in pairs)
    return all(np.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True) for x, y in as_numpy)
