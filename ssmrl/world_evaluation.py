"""How well a world model remembers: open-loop imagination after a context that it has observed.

Protocol (S4WM, Deng, Park and Ahn 2023, section 5): observe the first ``context`` frames of an episode, which the
environment names, or else the first half of each episode, then imagine the others, the *query*, under the recorded
actions, each latent drawn from the prior and fed back. A tile of the query is *seen* if the context has shown the same
piece of the layout. Numbers are over fresh episodes; legend: Q frames in the query, E episodes, N tiles or integers in
an observation.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ssmrl import spaces
from ssmrl.envs.memory import tiles
from ssmrl.fields import UserError
from ssmrl.frames import Frames, open_stream, record
from ssmrl.nn import observations
from ssmrl.world_model import Latents, Predictions, WorldModel

_BATCH = 64  # episodes at a time: decoded queries are large

Ratio = tuple[jax.Array, jax.Array]  # numerator and denominator of each episode, [E]; of curves [Q], summed over them


class Recording(struct.PyTreeNode):
    """Whole episodes with what the environment says about them; ``frames`` ``[T, E, ...]``."""

    frames: Frames
    cells: jax.Array  # int32 [T, E, N]: which piece of the layout a tile shows; -1: none that could be recalled
    events: dict[str, jax.Array]  # bool [T, E, N]
    facts: dict[str, jax.Array]  # int32 [T, E, k]


def episode_frames(env: Any, env_params: Any) -> int:
    """Frames of the longest episode: one of n steps has n + 1. Raises ``UserError`` if there is no longest one."""
    longest = env.longest_episode(env_params)
    if longest is None:
        raise UserError(
            f"a world model is measured on whole episodes: {env.name} has no time limit; use env.max_steps=1000"
        )
    return int(longest) + 1


def context_length(env: Any, env_params: Any) -> int:
    """Frames to observe before the query: the environment's own number, or half of the longest episode.

    Raises ``UserError`` if an episode has no frame after them, or ends before the reward that is to be imagined.
    """
    frames = episode_frames(env, env_params)
    context = getattr(env, "context", frames // 2)
    if not 0 < context < frames:
        raise UserError(
            f"a world model observes {context} of an episode's {frames} frames, and imagines the others:"
            f" there is none; use env.max_steps={max(context, 2)} or more"
        )
    script = getattr(env, "num_steps", 0)
    if getattr(env, "has_reward", False) and frames <= script:
        raise UserError(
            f"the reward that a world model imagines comes after {script} steps: env.max_steps={frames - 1} ends"
            f" episodes before it; use env.max_steps={script} or more"
        )
    return context


def measured_episodes(episodes: int) -> int:
    """How many are measured where ``episodes`` are asked for: whole batches."""
    size = min(episodes, _BATCH)
    return -(-episodes // size) * size


def score(env: Any, env_params: Any) -> str:
    """The metric of :func:`evaluate_world_model` that the environment is about; the higher the better."""
    if getattr(env, "has_reward", False):
        return "reward_acc_imagine"
    if not hasattr(env, "annotate"):
        return "gen_r2" if isinstance(env.observation_space(env_params), spaces.Box) else "tile_acc"
    state = jax.eval_shape(lambda: env.reset_env(jax.random.key(0), env_params))[1]
    events: list[str] = []  # as declared: what leaves eval_shape has its keys sorted
    jax.eval_shape(lambda s: events.extend(env.annotate(s, env_params).events), state)
    return f"{events[0]}_acc" if events else "tile_acc_seen"


def record_episodes(env: Any, env_params: Any, episodes: int, key: jax.Array) -> Recording:
    """Whole episodes of the scripted policy (random actions where there is none); ``key`` is consumed.

    Frame :func:`context_length` is the first of the query. An environment that names no context of its own may end
    episodes early: each is then moved in time so that its second half begins there.
    """
    key_open, key_record = jax.random.split(key)
    stream = open_stream(env, env_params, episodes, key_open)
    _, frames, states = record(env, env_params, stream, episode_frames(env, env_params), key_record)
    if hasattr(env, "annotate"):
        notes = jax.vmap(jax.vmap(lambda s: env.annotate(s, env_params)))(states)
        recording = Recording(frames, notes.cells, notes.events, notes.facts)
    else:
        space = env.observation_space(env_params)
        n = 0 if isinstance(space, spaces.Box) else len(observations.num_classes(space))
        recording = Recording(frames, jnp.full((*frames.reset.shape, n), -1), {}, {})
    if hasattr(env, "context"):
        return recording
    length = (jnp.cumsum(frames.reset, axis=0) == 1).sum(0)
    later = context_length(env, env_params) - length // 2
    roll = jax.vmap(lambda x, n: jnp.roll(x, n, axis=0), in_axes=(1, 0), out_axes=1)
    return jax.tree.map(lambda x: roll(x, later), recording)  # what is now before the episode, its reset forgets


def evaluate_world_model(
    network: WorldModel, params: Any, env: Any, env_params: Any, key: jax.Array, episodes: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Measure a world model over :func:`measured_episodes` fresh episodes; pure, ``key`` is consumed.

    Returns scalars by name, with their standard errors over episodes (``<name>_se``), and curves ``[Q]`` over the
    horizon. Latents are the prior's mode, or drawn from it where a name ends in ``_sampled``; in ``_shuffled`` the
    context was another episode's, the control that no memory of the layout can pass; ``_next`` predicts each frame
    from all true ones before it, and ``_recon`` decodes its own posterior. ``tile_acc*`` are shares of tiles predicted
    right, ``chance`` that of the most frequent tile among those that count as seen; ``recon_mse`` and ``gen_mse`` are
    squared errors summed over a frame's pixels (colours in [0, 1]; of tiles, those of their pictures), ``gen_r2`` the
    explained variance of vectors or pictures; ``reward_acc_infer`` and ``reward_acc_imagine`` whether the last frame's
    reward is 1 rather than 0, after all frames and after the context, ``reward_chance`` the share of the more frequent
    one; ``<event>_acc`` and ``<event>_chance`` as ``tile_acc`` and ``chance`` at the environment's events; ``kl_seen``
    and ``prior_entropy_seen`` nats per frame of the query that shows something seen, observations given.
    """
    size = min(episodes, _BATCH)

    def batch(key: jax.Array) -> tuple[dict[str, Ratio], dict[str, Ratio]]:
        key_record, key_score = jax.random.split(key)
        recording = record_episodes(env, env_params, size, key_record)
        return _Batch(network, params, env, env_params, recording).ratios(key_score)

    sums = lax.map(batch, jax.random.split(key, measured_episodes(episodes) // size))
    scalars = {k: n.sum((0, 1)) / d.sum() for k, (n, d) in sums[0].items()}
    errors = {f"{k}_se": standard_error(*sums[0][k]) for k, v in scalars.items() if not v.ndim}
    scalars = {k: v.max() for k, v in scalars.items()}  # chances are so far the frequency of each class
    return scalars | errors, {k: n.sum(0) / d.sum(0) for k, (n, d) in sums[1].items()}


def standard_error(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Of the ratio of sums, with episodes as what is drawn independently: tiles of one episode share its layout."""
    rest = numerator - numerator.sum() / denominator.sum() * denominator
    return jnp.sqrt((rest**2).sum()) / denominator.sum()


class _Batch:
    """One batch of episodes, and the numerators and denominators that it contributes."""

    def __init__(self, network: WorldModel, params: Any, env: Any, env_params: Any, recording: Recording):
        self.network, self.params, self.env = network, params, env
        self.space, self.recording = network.observation_space, recording
        self.context = context_length(env, env_params)
        self.query = jax.tree.map(lambda x: x[self.context :], recording)
        self.valid = jnp.cumsum(self.query.frames.reset, axis=0) == 0  # a next episode is not this query's
        self.pictures: Any = tiles.pictures(env.kinds) if hasattr(env, "kinds") else None

    def ratios(self, key: jax.Array) -> tuple[dict[str, Ratio], dict[str, Ratio]]:
        key_infer, key_mode, key_sample, key_shuffled = jax.random.split(key, 4)
        frames, count = self.recording.frames, self.valid.sum(0)
        scalars: dict[str, Ratio] = {}
        curves: dict[str, Ratio] = {}

        start = self.network.initial_state(frames.reset.shape[1:])
        everything = self._apply("observe", start, frames, key_infer, "mode")[1]
        inferred = self._apply("predict", everything.features[self.context :])
        expected = everything.replace(z=everything.prior.mode())
        expected = self._apply("predict", expected.features[self.context :])
        imagined = self._open_loop(frames, key_mode, "mode")
        others = self._open_loop(self._shuffled(), key_shuffled, "mode")
        sampled = self._open_loop(frames, key_sample, "sample")

        scalars["recon_mse"] = self._squared_error(inferred).sum(0), count
        scalars["gen_mse"] = self._squared_error(imagined).sum(0), count
        curves["gen_mse"] = self._squared_error(imagined).sum(1), self.valid.sum(1)
        if isinstance(self.space, spaces.Box):
            scalars["gen_r2"] = self._explained(imagined)
        if self.query.cells.shape[-1]:
            parts = {"": imagined, "_sampled": sampled, "_shuffled": others, "_next": expected, "_recon": inferred}
            masks = self._masks()
            for suffix, predictions in parts.items():
                right = self._tiles(predictions.obs) == self._truth()
                for name, mask in masks.items():
                    scalars[f"{name}{suffix}"] = (right & mask).sum((0, 2)), mask.sum((0, 2))
                    curves[f"{name}{suffix}"] = (right & mask).sum((1, 2)), mask.sum((1, 2))
            if "tile_acc_seen" in masks:
                scalars["chance"] = self._frequencies(masks["tile_acc_seen"])
                scalars |= self._divergence(everything, masks["tile_acc_seen"])
            for name in self.query.events:
                scalars[f"{name}_chance"] = self._frequencies(masks[f"{name}_acc"])
        if getattr(self.env, "has_reward", False):
            episodes = self.valid[0].astype(jnp.float32)
            for name, predictions in (("infer", inferred), ("imagine", imagined), ("imagine_sampled", sampled)):
                scalars[f"reward_acc_{name}"] = self._reward_right(predictions), episodes
            scalars["reward_acc_imagine_shuffled"] = self._reward_right(others), episodes
            truth = jax.nn.one_hot(self._reward().astype(jnp.int32), 2)
            scalars["reward_chance"] = truth * episodes[:, None], episodes
        return scalars, curves

    def _apply(self, method: str, *args: Any) -> Any:
        return self.network.apply({"params": self.params}, *args, method=method)

    def _open_loop(self, frames: Frames, key: jax.Array, draw: Literal["sample", "mode"]) -> Predictions:
        return self._apply("predict", self._apply("open_loop", frames, self.context, key, draw)[1].features)

    def _shuffled(self) -> Frames:
        """Each query after the context of another episode."""
        early = jnp.arange(self.recording.frames.reset.shape[0]) < self.context

        def mix(x: jax.Array) -> jax.Array:
            return jnp.where(early.reshape(-1, *(1,) * (x.ndim - 1)), jnp.roll(x, 1, axis=1), x)

        return jax.tree.map(mix, self.recording.frames)

    def _masks(self) -> dict[str, jax.Array]:
        """Which tiles count for which metric, bool ``[Q, E, N]``."""
        masks = {"tile_acc": jnp.broadcast_to(self.valid[..., None], self.query.cells.shape)}
        if hasattr(self.env, "annotate"):
            shown = _contains(self.recording.cells[: self.context], self.query.cells)
            named = (self.query.cells >= 0) & self.valid[..., None]
            masks |= {"tile_acc_seen": named & shown, "tile_acc_unseen": named & ~shown}
        return masks | {f"{k}_acc": v & self.valid[..., None] for k, v in self.query.events.items()}

    def _truth(self) -> jax.Array:
        return self._tiles(None)

    def _tiles(self, outputs: jax.Array | None) -> jax.Array:
        """Predicted tiles ``[Q, E, N]``, or the true ones; of pictures, the nearest tile at each place."""
        obs = self.query.frames.obs if outputs is None else observations.observation_mode(self.space, outputs)
        if not spaces.is_image(self.space):
            return obs[..., None] if isinstance(self.space, spaces.Discrete) else obs
        assert self.pictures is not None
        side = self.pictures.shape[1]
        rows = obs.shape[-3] // side
        patches = obs.reshape(*obs.shape[:-3], rows, side, rows, side, 3).swapaxes(-4, -3)
        patches = patches.reshape(*obs.shape[:-3], rows * rows, -1).astype(jnp.float32)
        known = jnp.asarray(self.pictures, jnp.float32).reshape(len(self.pictures), -1)
        distance = (known**2).sum(-1).reshape((1,) * (patches.ndim - 1) + (-1,)) - 2 * patches @ known.T
        board = self._board()
        places = [int(np.argmax(board == i)) for i in range(self.env.num_tiles)]
        return jnp.argmin(distance, -1)[..., places]

    def _board(self) -> np.ndarray:
        """Which tile the picture shows at each place."""
        with jax.ensure_compile_time_eval():
            return np.asarray(self.env.lay_out(jnp.arange(self.env.num_tiles))).ravel()

    def _squared_error(self, predictions: Predictions) -> jax.Array:
        """Summed over the pixels (or entries) of each frame of the query, ``[Q, E]``."""
        obs = self.query.frames.obs
        if isinstance(self.space, spaces.Box):
            scale = 255.0 if spaces.is_image(self.space) else 1.0
            guess = observations.observation_mode(self.space, predictions.obs)
            error = ((guess.astype(jnp.float32) - obs.astype(jnp.float32)) / scale) ** 2
            return error.sum(tuple(range(2, error.ndim))) * self.valid
        guess, truth = self._tiles(predictions.obs), self._truth()
        if self.pictures is None:
            return (guess != truth).sum(-1) * self.valid.astype(jnp.float32)
        flat = jnp.asarray(self.pictures, jnp.float32).reshape(len(self.pictures), -1) / 255
        distances = ((flat[:, None] - flat[None]) ** 2).sum(-1)
        times = jnp.asarray(np.bincount(self._board(), minlength=self.env.num_tiles), jnp.float32)
        return distances[guess, truth] @ times * self.valid

    def _explained(self, predictions: Predictions) -> Ratio:
        obs = self.query.frames.obs.astype(jnp.float32) / (255.0 if spaces.is_image(self.space) else 1.0)
        counted = self.valid.reshape(*self.valid.shape, *(1,) * (obs.ndim - 2))
        mean = (obs * counted).sum((0, 1), keepdims=True) / counted.sum()
        spread = ((obs - mean) ** 2).sum(tuple(range(2, obs.ndim))) * self.valid
        return spread.sum(0) - self._squared_error(predictions).sum(0), spread.sum(0)

    def _frequencies(self, mask: jax.Array) -> Ratio:
        classes = len(self.pictures) if spaces.is_image(self.space) else max(observations.num_classes(self.space))
        counts = (jax.nn.one_hot(self._truth(), classes) * mask[..., None]).sum((0, 2))
        return counts, counts.sum(-1)

    def _divergence(self, everything: Latents, seen: jax.Array) -> dict[str, Ratio]:
        shows = seen.any(-1)
        kl = everything.posterior.kl(everything.prior)[self.context :]
        entropy = everything.prior.entropy()[self.context :]
        return {
            "kl_seen": ((kl * shows).sum(0), shows.sum(0)),
            "prior_entropy_seen": ((entropy * shows).sum(0), shows.sum(0)),
        }

    def _reward_right(self, predictions: Predictions) -> jax.Array:
        guess = observations.two_hot_mean(jnp.take_along_axis(predictions.reward, self._last()[..., None], 0)[0]) > 0.5
        return ((guess == self._reward()) & self.valid[0]).astype(jnp.float32)

    def _reward(self) -> jax.Array:
        """Whether the last frame's reward is 1, bool ``[E]``."""
        return jnp.take_along_axis(self.query.frames.reward, self._last(), 0)[0] > 0.5

    def _last(self) -> jax.Array:
        """The last frame of each query, ``[1, E]``: the limit on steps may be longer than the episode."""
        return jnp.maximum(self.valid.sum(0) - 1, 0)[None]


def _contains(pool: jax.Array, items: jax.Array) -> jax.Array:
    """Whether each of ``items`` ``[Q, E, N]`` is among its episode's ``pool`` ``[C, E, N]``."""

    def one(pool: jax.Array, items: jax.Array) -> jax.Array:
        ordered = jnp.sort(pool.ravel())
        place = jnp.clip(jnp.searchsorted(ordered, items.ravel()), 0, ordered.size - 1)
        return (ordered[place] == items.ravel()).reshape(items.shape)

    return jax.vmap(one, in_axes=1, out_axes=1)(pool, items)
