"""Films of episodes: each frame is the environment's picture beside what the policy was told and what it made of it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmrl import spaces
from ssmrl.envs.drawing import BLUE, FAINT, GREEN, GREY, INK, PAPER, RED, WHITE, Canvas
from ssmrl.envs.memory import tiles
from ssmrl.registry import UserError

_PANEL = 200  # pixels
_HOLD_MS = 1500  # how long the end of an episode stays
_SHORT, _SECONDS = 4, 20  # frames per second at least; the length of a film, where nothing else was asked for


@dataclasses.dataclass(frozen=True)
class Episode:
    """What happened in one episode of ``T`` steps.

    ``states`` has ``T + 1`` entries, the last one is where it ended; the others have one for each step: observations
    and actions (leaves of numpy), rewards ``[T]`` that the actions earned, value estimates ``[T]`` in the units in
    which they were learned. ``ending`` is ``terminated``, ``truncated`` or ``still running``.
    """

    states: list[Any]
    obs: list[Any]
    actions: list[Any]
    rewards: np.ndarray
    values: np.ndarray
    final_obs: Any
    ending: str

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.actions)

    @property
    def returns(self) -> np.ndarray:
        """Return so far before each step and at the end, ``[T + 1]``."""
        return np.concatenate([[0.0], np.cumsum(self.rewards)])


def frames(env: Any, params: Any, name: str, episodes: Sequence[Episode]) -> list[list[np.ndarray]]:
    """Draw all steps of all episodes: for each its ``T + 1`` frames, uint8 ``[H, W, 3]``."""
    return [
        [_frame(env, params, name, f"episode {i}/{len(episodes)}", e, t) for t in range(e.length + 1)]
        for i, e in enumerate(episodes, 1)
    ]


def check_fps(fps: float | None, kind: str) -> None:
    """Raise ``UserError`` if ``fps`` is given for a file of a ``kind``, a suffix, that is no film."""
    if fps is not None and kind != ".gif":
        raise UserError(
            f"--fps={fps:g}: a {kind} has no frames per second; write a film, --output=x.gif, or leave it out"
        )


def write_gif(path: Path, film: Sequence[Sequence[np.ndarray]], fps: float | None = None) -> None:
    """Write an endless animation; without ``fps`` it lasts about 20 seconds, and the end of each part stays longer."""
    from PIL import Image

    images = [Image.fromarray(frame) for part in film for frame in part]
    fps = fps or min(max(len(images) / _SECONDS, _SHORT), 30)
    durations = [1000 / fps if frame is not part[-1] else _HOLD_MS for part in film for frame in part]
    palette = Image.fromarray(np.concatenate(_sample(film, 6))).quantize(256)  # one for all: smaller, and no flicker
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


def write_strip(path: Path, film: Sequence[Sequence[np.ndarray]], most: int = 6) -> None:
    """Write up to ``most`` frames, evenly spaced, as one picture with two columns."""
    from PIL import Image

    chosen = _sample(film, most)
    chosen += [np.full_like(chosen[0], 255)] * (len(chosen) % 2)
    rows = [np.concatenate(chosen[i : i + 2], 1) for i in range(0, len(chosen), 2)]
    Image.fromarray(np.concatenate(rows)).save(path)


def title(name: str, characters: int) -> str:
    """As much of a task's name and settings as there is room for."""
    return name if len(name) <= characters else f"{name[: characters - 3].rstrip()}..."


def words(x: Any, names: Sequence[str] = ()) -> str:
    """Write an observation or action in few characters; ``names`` are those of discrete actions."""
    if isinstance(x, dict):
        return ", ".join(f"{k}: {words(v)}" for k, v in x.items())
    if isinstance(x, tuple):
        return ", ".join(words(v) for v in x)
    x = np.asarray(x)
    if x.ndim == 0 and np.issubdtype(x.dtype, np.integer):
        return f"{x}" + (f" {names[int(x)]}" if int(x) < len(names) else "")
    if x.size > 12:
        return f"{'x'.join(map(str, x.shape))} numbers"
    shown = " ".join(f"{v}" if np.issubdtype(x.dtype, np.integer) else f"{v:.2f}" for v in x.ravel())
    return shown if x.ndim == 0 else f"[{shown}]"


def signed(value: float, digits: int) -> str:
    """Write a number with its sign, and no -0.00."""
    return f"{round(float(value), digits) + 0.0:+.{digits}f}"


def lay_out(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of cells as a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def shows_pictures(env: Any, space: Any) -> bool:
    """Whether observations of ``env``, in ``space``, can be drawn as pictures: pixels, or tiles."""
    return spaces.is_image(space) or (hasattr(env, "kinds") and isinstance(space, spaces.MultiDiscrete))


def draw_observation(
    canvas: Canvas, x: int, y: int, side: int, env: Any, space: Any, obs: np.ndarray, truth: np.ndarray
) -> None:
    """Draw an observation that is a picture into a square; tiles that are not the truth's are framed."""
    wrong = np.zeros((1, 1), bool)
    if not spaces.is_image(space):
        order = np.asarray(env.lay_out(np.arange(env.num_tiles)))
        order = order if env.num_tiles > 1 else order[:1, :1]
        obs, wrong = np.asarray(tiles.assemble(tiles.pictures(env.kinds), obs[order])), (obs != truth)[order]
    scale = max(side // obs.shape[0], 1)
    canvas.box(x - 1, y - 1, side + 2, side + 2, outline=FAINT)
    canvas.paste(obs.repeat(scale, 0).repeat(scale, 1), x, y)
    length = obs.shape[0] * scale / wrong.shape[0]
    for row, column in zip(*np.nonzero(wrong), strict=True):
        canvas.box(x + column * length + 1, y + row * length + 1, length - 2, length - 2, outline=RED, line=3)


def _sample(film: Sequence[Sequence[np.ndarray]], most: int) -> list[np.ndarray]:
    everything = [frame for part in film for frame in part]
    return [everything[i] for i in np.unique(np.linspace(0, len(everything) - 1, most).round().astype(int))]


def _frame(env: Any, params: Any, name: str, part: str, episode: Episode, t: int) -> np.ndarray:
    picture, names = env.render(episode.states[t], params), getattr(env, "action_names", ())
    height = max(picture.shape[0], 240)
    canvas, over = Canvas(picture.shape[1] + _PANEL, height), t == episode.length
    canvas.paste(picture, 0, 0)
    left, right = picture.shape[1] + 12, picture.shape[1] + _PANEL - 12
    canvas.box(left - 12, 0, _PANEL, height, WHITE)
    canvas.text(left, 7, title(name, 34), 10, GREY)
    canvas.text(left, 21, f"t = {t}", 14, bold=True)
    canvas.text(left, 40, part, 10, GREY)
    badge = "RESET" if t == 0 else episode.ending.upper() if over else ""
    if badge:
        canvas.box(right - 84, 22, 84, 17, RED if t == 0 else INK, radius=4)
        canvas.text(right - 42, 31, badge, 10, PAPER, "mm", bold=True)
    lines = {
        "observation": "-" if over else words(episode.obs[t]),
        "previous action": "-" if t == 0 else words(episode.actions[t - 1], names),
        "reward": "-" if t == 0 else f"{episode.rewards[t - 1]:+.3f}",
        "action": "-" if over else words(episode.actions[t], names),
    }
    for i, (label, value) in enumerate(lines.items()):
        y = 56 + 15 * i
        canvas.text(left, y, label, 10, GREY)
        size = 11 if len(value) < 18 else 8
        canvas.text(right, y, value if len(value) < 30 else f"{value[:28]}...", size, anchor="ra")
    _curve(canvas, left, right, height - 118, "value", episode.values, min(t, episode.length - 1), BLUE)
    _curve(canvas, left, right, height - 58, "return so far", episode.returns, t, GREEN)
    return canvas.to_array()


def _curve(
    canvas: Canvas, left: float, right: float, top: float, label: str, values: np.ndarray, t: int, color: Any
) -> None:
    """Draw a number and its course up to now, in the range of the whole episode."""
    canvas.text(left, top, label, 10, GREY)
    canvas.text(right, top, f"{values[t]:.3f}", 11, anchor="ra")
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1
    canvas.box(left, top + 15, right - left, 36, outline=FAINT)
    points = [
        (left + (right - left) * i / max(len(values) - 1, 1), top + 49 - 32 * (v - low) / (high - low))
        for i, v in enumerate(values[: t + 1].tolist())
    ]
    if len(points) > 1:
        canvas.line(points, color, 1.5)
    canvas.circle(*points[-1], 2.5, color)
