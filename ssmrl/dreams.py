"""``ssmrl play --dream``: what a policy lives through, beside what its world model imagined of it on the way.

Every ``steps`` steps the model dreams anew: from its state at that moment it imagines, in open loop and with the most
likely latents, what follows from the actions that are really taken. A film shows a dream whole from its beginning, and
how reality then goes along it: vectors as curves, tokens as numbers, tiles and pixels as pictures.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import film, spaces
from ssmrl.envs.drawing import BLUE, FAINT, GREEN, GREY, INK, PAPER, RED, WHITE, Canvas, blend
from ssmrl.fields import UserError
from ssmrl.film import Episode
from ssmrl.frames import Frames
from ssmrl.nn import observations
from ssmrl.policy import Policy
from ssmrl.world_model import WorldModel

SUFFIXES = [".gif", ".png", ".txt"]  # what dreams are shown as, the best first
_SIDE, _GAP, _TOP, _BOTTOM = 160, 12, 46, 44  # of pictures of observations, and around them, in pixels
_WIDE = 2 * _SIDE + _GAP
_TRACK = 58  # least height of a curve, or of two rows of numbers
_PALE = blend(RED, WHITE, 0.7)
_MOST = 8  # elements of an observation that are shown; the first ones


@dataclasses.dataclass(frozen=True)
class Dreams:
    """An episode of T steps and the dreams in it, number ``j`` from frame ``j * steps`` on.

    ``obs`` ``[T + 1, ...]`` and ``reward`` ``[T + 1]`` are real, by frames (frame 0 has no reward). ``dreamt_obs``
    ``[J, steps + 1, ...]``, ``dreamt_reward`` and ``going_on``, the predicted probability that the episode is not over
    in a frame, are the model's; the first of each dream is the reconstruction of the frame that it starts from.
    """

    episode: Episode
    obs: np.ndarray
    reward: np.ndarray
    dreamt_obs: np.ndarray
    dreamt_reward: np.ndarray
    going_on: np.ndarray

    @property
    def steps(self) -> int:
        """Steps of a dream."""
        return self.going_on.shape[1] - 1

    def place(self, t: int) -> tuple[int, int]:
        """The dream that frame ``t`` is compared with, and the step of it: 1 to ``steps``; 0 in frame 0."""
        return ((t - 1) // self.steps, (t - 1) % self.steps + 1) if t else (0, 0)

    def begins(self, t: int) -> bool:
        """Whether frame ``t`` is the first that is compared with its dream."""
        return t == 0 or (t > 1 and self.place(t)[1] == 1)


def dream(policy: Policy, episodes: Sequence[Episode], steps: int) -> list[Dreams]:
    """Let the world model of a policy dream through ``episodes`` that were played, ``steps`` steps at a time.

    Raises ``UserError`` for a policy without a world model.
    """
    if not hasattr(policy.network, "world"):
        raise UserError("--dream: this policy has no world model; train one with agent=dreamer")
    count = -(-max(e.length for e in episodes) // steps)
    obs, reward, going_on = jax.device_get(_dream(policy, _frames(policy, episodes, count * steps + 1), steps))
    reward = reward / float(policy.reward_scale)
    if policy.obs_stats is not None:
        stats = jax.device_get(policy.obs_stats)
        obs = obs * np.sqrt(stats.var + 1e-8) + stats.mean
    dreams = []
    for i, e in enumerate(episodes):
        own = [x[i, : -(-e.length // steps)] for x in (obs, reward, going_on)]
        real = np.stack([*e.obs, e.final_obs]), np.concatenate([[0.0], e.rewards])
        dreams.append(Dreams(e, *real, *own))
    return dreams


def _frames(policy: Policy, episodes: Sequence[Episode], length: int) -> Frames:
    """The episodes as ``length`` frames ``[T, B, ...]``, zeros after their ends."""

    def pad(rows: Sequence[Any]) -> np.ndarray:
        x = np.stack(rows)
        return np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])

    def columns(each: list[Any]) -> Any:
        return jax.tree.map(lambda *xs: jax.device_put(np.stack(xs, 1)), *each)

    none = spaces.zeros(policy.network.action_space)
    obs = columns([pad([*e.obs, e.final_obs]) for e in episodes])
    if policy.obs_stats is not None:
        obs = policy.obs_stats.normalize(jnp.asarray(obs, jnp.float32))
    actions = columns([jax.tree.map(lambda *rows: pad(rows), none, *e.actions) for e in episodes])
    start = jnp.zeros((length, len(episodes)), bool).at[0].set(True)
    reward = columns([pad([0.0, *e.rewards]) for e in episodes])
    return Frames(obs, actions, reward * policy.reward_scale, start, jnp.zeros_like(start))


def _dream(policy: Policy, frames: Frames, steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Observations (as the model reads them), rewards, chances to go on ``[B, J, steps + 1, ...]`` that it imagines."""
    world: WorldModel = policy.network.world  # type: ignore[attr-defined]
    space: Any = world.observation_space
    key = jax.random.key(0)  # the mode needs no randomness
    if policy.obs_stats is not None:
        space = dataclasses.replace(space, dtype=np.float32)

    @jax.jit
    def run(params: Any, frames: Frames) -> tuple[jax.Array, jax.Array, jax.Array]:
        def apply(method: str, *args: Any) -> Any:
            return world.apply({"params": params}, *args, method=method)

        first, rest = (jax.tree.map(lambda x, s=s: x[s], frames) for s in (slice(1), slice(1, None)))
        begun, seen = apply("observe", world.initial_state(first.reset.shape[1:]), first, key, "mode")
        after = apply("observe", begun, rest, key, "mode", steps)[1]
        starts = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), begun, after.states)  # [J, B, ...]
        count, batch = starts.z.shape[:2]
        actions = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(count, steps, *x.shape[1:]), 1, 0).reshape(steps, -1, *x.shape[2:]),
            rest.action,
        )
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), starts)
        imagined = apply("imagine", flat, actions, key, "mode")[1].features
        known = jnp.concatenate([seen.features, after.features[steps - 1 : -1 : steps]]).reshape(1, count * batch, -1)
        told = apply("predict", jnp.concatenate([known, imagined]))
        obs, reward = observations.observation_mode(space, told.obs), observations.two_hot_mean(told.reward)
        found = obs, reward, jax.nn.sigmoid(told.going_on)
        return jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(steps + 1, count, batch, *x.shape[2:]), (2, 1), (0, 1)), found
        )

    return run(policy.params["world"], frames)


def table(dreams: Sequence[Dreams], names: tuple[str, ...] = ()) -> str:
    """Write every frame of the episodes as a line of text; ``names`` are those of discrete actions."""
    rows = [["t", "dream", "step", "action before", "observation", "dreamt", "reward", "dreamt", "goes on"]]
    for d in dreams:
        for t, obs in enumerate(d.obs):
            j, k = d.place(t)
            begin = f"DREAM {j + 1}" if d.begins(t) else ""
            action = film.words(d.episode.actions[t - 1], names) if t else "-"
            rewards = film.signed(d.reward[t], 3), film.signed(d.dreamt_reward[j, k], 3)
            seen = film.words(obs), _compare(d.dreamt_obs[j, k], obs)
            rows.append([str(t), begin, f"{k}/{d.steps}", action, *seen, *rewards, f"{d.going_on[j, k]:.3f}"])
        rows.append(["", "", "", f"{d.episode.ending} after {d.episode.length} steps", *[""] * 5])
    return film.lay_out(rows)


def _compare(dreamt: np.ndarray, real: np.ndarray) -> str:
    """Write what was dreamt, or where that is long, how it differs from what is real."""
    if real.size <= 12:
        return film.words(dreamt)
    if np.issubdtype(real.dtype, np.integer) and real.ndim == 1:
        return f"{(dreamt != real).sum()} wrong"
    return f"off by {np.abs(np.subtract(dreamt, real, dtype=float)).mean():.2f}"


def frames(env: Any, params: Any, name: str, dreams: Sequence[Dreams]) -> list[list[np.ndarray]]:
    """Draw all frames of all episodes, uint8 ``[H, W, 3]``, with the environment's own picture if it has one."""
    return [
        [_frame(env, params, name, f"episode {i}/{len(dreams)}", d, t) for t in range(d.episode.length + 1)]
        for i, d in enumerate(dreams, 1)
    ]


def _frame(env: Any, params: Any, name: str, part: str, d: Dreams, t: int) -> np.ndarray:
    """Draw where the environment is, what is real and what is imagined of it, and how far the episode is."""
    try:
        scene = env.render(d.episode.states[t], params)
    except NotImplementedError:
        scene = np.zeros((0, 0, 3), np.uint8)
    space, left = env.observation_space(params), _GAP + (scene.shape[1] + _GAP if scene.size else 0)
    pictures = film.shows_pictures(env, space)
    elements = [] if pictures else _elements(d, space)
    columns = 1 if len(elements) < 3 else 2
    rows = 1 + -(-len(elements) // columns)
    above = _SIDE + 28 if pictures else 0
    height = max(above + rows * _TRACK, scene.shape[0])
    canvas = Canvas(left + _WIDE + _GAP, _TOP + height + _BOTTOM)
    if scene.size:
        canvas.paste(scene, _GAP, _TOP)
    if pictures:
        _pictures(canvas, left, env, space, d, t)
    pitch = (height - above) / rows
    for i, track in enumerate(elements):
        row, column = divmod(i, columns)
        where = left + column * (_SIDE + _GAP), _TOP + row * pitch, _WIDE if columns == 1 else _SIDE, pitch
        (_curve if isinstance(space, spaces.Box) else _numbers)(canvas, *where, track, *d.place(t))
    over = np.arange(d.episode.length + 1) == d.episode.length
    going_on = 1.0 - over * (d.episode.ending == "terminated")
    outcome = Track("reward", d.reward, d.dreamt_reward), Track("goes on", going_on, d.going_on, (0.0, 1.0))
    for i, track in enumerate(outcome):
        where = left + i * (_SIDE + _GAP), _TOP + above + (rows - 1) * pitch, _SIDE, pitch
        _curve(canvas, *where, track, *d.place(t))
    _caption(canvas, name, part, getattr(env, "action_names", ()), d, t)
    return canvas.to_array()


@dataclasses.dataclass(frozen=True)
class Track:
    """One number in reality, ``[T + 1]`` by frames, and in all dreams ``[J, steps + 1]``; ``span``: its range."""

    label: str
    real: np.ndarray
    dreamt: np.ndarray
    span: tuple[float, float] | None = None

    @property
    def length(self) -> int:
        """Frames of a dream, with that from which it starts."""
        return self.dreamt.shape[1]

    def window(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Reality and dream ``j`` beside one another, up to the end of the dream or of the episode."""
        start = j * (self.length - 1)
        real = self.real[start : start + self.length]
        return real, self.dreamt[j, : len(real)]

    def scale(self) -> tuple[float, float]:
        """Lowest and highest value of the picture, with a margin: a dream that is nearly right has to look so."""
        shown = [self.real, *(self.window(j)[1] for j in range(len(self.dreamt)))]
        low, high = self.span or (float(min(x.min() for x in shown)), float(max(x.max() for x in shown)))
        margin = max(0.2 * (high - low), 0.01 * max(-low, high), 0.05)
        return low - margin, high + margin


def _elements(d: Dreams, space: Any) -> list[Track]:
    real, dreamt = d.obs.reshape(len(d.obs), -1), d.dreamt_obs.reshape(*d.going_on.shape, -1)
    shown, count = min(real.shape[1], _MOST), real.shape[1]
    labels = ["observation" + f" {i}" * (count > 1) + f" of {count}" * (count > _MOST) for i in range(shown)]
    return [Track(label, real[:, i], dreamt[..., i]) for i, label in enumerate(labels)]


def _pictures(canvas: Canvas, left: int, env: Any, space: Any, d: Dreams, t: int) -> None:
    j, k = d.place(t)
    for i, (label, obs) in enumerate((("real", d.obs[t]), ("imagined" if k else "reconstructed", d.dreamt_obs[j, k]))):
        x = left + i * (_SIDE + _GAP)
        canvas.text(x, _TOP, label, 10, (BLUE, RED)[i])
        film.draw_observation(canvas, x, _TOP + 16, _SIDE, env, space, obs, d.obs[t])


def _curve(canvas: Canvas, x: float, y: float, width: float, height: float, track: Track, j: int, k: int) -> None:
    """Draw dream ``j`` as dots, pale after its step ``k``, and reality as a line up to there."""
    real, dreamt = track.window(j)
    (low, high), bottom = track.scale(), y + height - 8

    def at(i: int, value: float) -> tuple[float, float]:
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return x + 5 + (width - 10) * i / (track.length - 1), bottom - 4 - (height - 31) * share

    canvas.text(x, y, track.label, 10, GREY)
    canvas.text(x + width - 40, y, f"{real[k]:.2f}", 10, BLUE, "ra")
    canvas.text(x + width, y, f"{dreamt[k]:.2f}", 10, RED, "ra")
    canvas.box(x, y + 15, width, height - 23, WHITE, FAINT)
    for i, value in enumerate(dreamt.tolist()):
        canvas.circle(*at(i, value), 2.5, RED if i <= k else _PALE)
    if k:
        canvas.line([at(i, value) for i, value in enumerate(real[: k + 1].tolist())], BLUE, 1.5)


def _numbers(canvas: Canvas, x: float, y: float, width: float, height: float, track: Track, j: int, k: int) -> None:
    """Draw whole numbers: reality up to step ``k``, and below it dream ``j``, green where it is right, else red."""
    pitch, side = width / track.length, min((height - 22) / 2, 24)
    canvas.text(x, y, track.label, 10, GREY)
    for i, (real, dreamt) in enumerate(zip(*map(np.ndarray.tolist, track.window(j)), strict=True)):
        verdict = blend(GREEN if real == dreamt else RED, WHITE, 0.5) if i <= k else WHITE
        cells = [(dreamt, verdict, INK if i <= k else _PALE)] + [(real, WHITE, BLUE)] * (i <= k)
        for row, (value, color, ink) in zip((1, 0), cells, strict=False):
            left, top, size = x + i * pitch, y + 15 + row * side, min(11, 1.5 * pitch / len(str(value)))
            canvas.box(left, top, pitch - 1, side - 1, color, FAINT)
            canvas.text(left + pitch / 2, top + side / 2, value, size, ink, "mm")


def _caption(canvas: Canvas, name: str, part: str, action_names: Sequence[str], d: Dreams, t: int) -> None:
    """Write what is seen, and draw below it how dreams divide the episode and where this frame is."""
    (j, k), right = d.place(t), canvas.width - _GAP
    action = film.words(d.episode.actions[t - 1], action_names) if t else "-"
    canvas.text(_GAP, 7, film.title(name, 48), 12, bold=True)
    canvas.text(
        _GAP, 25, f"{part}   t = {t}   dream {j + 1}, step {k} of {d.steps}   action before: {action}", 10, GREY
    )
    badge = "NEW DREAM" if d.begins(t) else d.episode.ending.upper() if t == d.episode.length else ""
    if badge:
        canvas.box(right - 104, 5, 104, 17, RED if d.begins(t) else INK, radius=4)
        canvas.text(right - 52, 14, badge, 10, PAPER, "mm", bold=True)
    below, scale = canvas.height - 20, (right - _GAP) / d.episode.length
    canvas.text(right, below - 20, "imagined", 10, RED, "ra")
    canvas.text(right - 56, below - 20, "real", 10, BLUE, "ra")
    for i in range(len(d.going_on)):
        start, end = i * d.steps, min((i + 1) * d.steps, d.episode.length)
        canvas.box(_GAP + start * scale, below, (end - start) * scale - 2, 8, RED if i == j else _PALE)
    canvas.circle(_GAP + t * scale, below + 4, 7, WHITE, INK, 2)
