"""``ssmrl worldmodel imagine``: the truth beside what a world model imagines of it, as a film or as a table.

Each frame shows the observation, what the model makes of it in open loop (within the context: the reconstruction, for
it observes) and the reconstruction with all observations given. Wrong tiles are framed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import evaluation, film
from ssmrl.envs.drawing import BLUE, GREY, INK, PAPER, RED, WHITE, Canvas
from ssmrl.fields import UserError
from ssmrl.nn import observations
from ssmrl.world_evaluation import context_length, record_episodes
from ssmrl.world_model import Draw

_SIDE, _GAP, _TOP, _BOTTOM = 160, 12, 44, 64  # of a frame, in pixels
_PARTS = ("truth", "imagined", "reconstructed")
_SHEET = 6  # frames of an episode on a contact sheet


@dataclasses.dataclass(frozen=True)
class Imagined:
    """T frames of an episode: arrays ``[T, ...]`` by the names in ``_PARTS``, imagined ones after the ``context``."""

    obs: dict[str, np.ndarray]
    reward: dict[str, np.ndarray]
    actions: Any  # led to the frame
    context: int
    first: int = 0  # time of the first frame

    @property
    def length(self) -> int:
        """T."""
        return len(self.reward["truth"])


def imagine(
    run_dir: str | Path,
    output: str | Path | None = None,
    *,
    episodes: int = 2,
    seed: int = 0,
    draw: Draw = "mode",
    step: str | int = "best",
    seed_index: int = 0,
    max_frames: int = 300,
    fps: float | None = None,
) -> dict[str, Any]:
    """Show fresh ``episodes`` beside what the world model of a run imagines of them, and write that to ``output``.

    The suffix says what is written: ``.gif`` a film, ``.png`` its frames around the start of the query, ``.txt`` a
    table of all frames. By default it is a film in the run's ``media`` folder, and where observations are no pictures
    the table, and no file. What exceeds ``max_frames`` of an episode is left out, the beginning of its context first.
    Latents are the prior's mode or, with ``draw="sample"``, drawn from it. Returns ``output``, ``checkpoint``,
    ``context`` and ``frames`` of each episode and, where one was made, ``table``. Raises ``UserError`` for a run
    without a world model, a missing checkpoint or seed, for films of what cannot be shown, and for ``fps`` of what is
    no film.
    """
    run_dir, config = Path(run_dir), evaluation.read_config(run_dir)
    evaluation.check_world_model(run_dir, config)
    if not 0 <= seed_index < config.seeds:
        raise UserError(f"{run_dir} has {config.seeds} seed(s): seed_index={seed_index}; use 0 to {config.seeds - 1}")
    agent, state, path = evaluation.restore(run_dir, config, step)
    pictures = film.shows_pictures(agent.env, agent.world_model.observation_space)
    kind = Path(output).suffix if output else ".gif" if pictures else ".txt"
    if not pictures and kind != ".txt":
        raise UserError(f"output={output}: what {agent.env.name} shows is no picture; write a table, --output=x.txt")
    film.check_fps(fps, kind)
    params = evaluation.member(state.params, seed_index)
    shown = [_cut(e, max_frames) for e in _imagine(agent, params, jax.random.key(seed), episodes, draw)]
    written = Path(output) if output else None
    if output is None and pictures:
        written = run_dir / "media" / f"{int(path.name)}_seed_{seed_index}_imagined_{draw}.gif"
    facts: dict[str, Any] = {
        "output": str(written) if written else None,
        "checkpoint": int(path.name),
        "context": [e.context for e in shown],
        "frames": [e.length for e in shown],
    }
    if kind == ".txt":
        facts["table"] = table(agent, shown)
    if written:
        try:
            written.parent.mkdir(parents=True, exist_ok=True)
            _write(written, agent, config.task, shown, fps, facts.get("table", ""))
        except OSError as error:
            raise UserError(f"output={written}: cannot be written ({error.strerror})") from error
    return facts


def table(agent: Any, episodes: Sequence[Imagined]) -> str:
    """Write every frame of the episodes as a line of text."""
    rows = [("t", "", "action", *_PARTS, *(f"reward {p}" for p in _PARTS))]
    for e in episodes:
        for t in range(e.length):
            cells = [film.words(e.obs[p][t]) for p in _PARTS]
            rewards = [film.signed(e.reward[p][t], 3) for p in _PARTS]
            part = "IMAGINED" if t >= e.context else "context"
            rows.append((str(e.first + t), part, _action(agent, e, t), *cells, *rewards))
    return film.lay_out(rows)


def _imagine(agent: Any, params: Any, key: jax.Array, episodes: int, draw: Draw) -> list[Imagined]:
    network, context = agent.world_model, context_length(agent.env, agent.env_params)

    def apply(method: str, *args: Any) -> Any:
        return network.apply({"params": params}, *args, method=method)

    def predict(features: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = apply("predict", features)
        obs = observations.observation_mode(network.observation_space, found.obs)
        return obs, observations.two_hot_mean(found.reward)

    @jax.jit
    def run(key: jax.Array) -> tuple[tuple[dict, dict, Any], jax.Array]:
        key_record, key_observe, key_imagine = jax.random.split(key, 3)
        frames = record_episodes(agent.env, agent.env_params, episodes, key_record).frames
        everything = apply("observe", network.initial_state((episodes,)), frames, key_observe, draw)[1]
        past, future = apply("open_loop", frames, context, key_imagine, draw)
        reconstructed = predict(everything.features)
        imagined = predict(jnp.concatenate([past.features, future.features]))
        obs, reward = zip((frames.obs, frames.reward), imagined, reconstructed, strict=True)
        named = dict(zip(_PARTS, obs, strict=True)), dict(zip(_PARTS, reward, strict=True)), frames.action
        return named, frames.reset

    found, reset = jax.device_get(run(key))
    cut = []
    for i in range(episodes):
        start = np.flatnonzero(reset[:context, i])[-1]  # what comes before, and after the end, are other episodes
        end = next(iter(np.flatnonzero(reset[context:, i]) + context), len(reset))
        obs, reward, actions = jax.tree.map(lambda x, part=(slice(start, end), i): x[part], found)
        cut.append(Imagined(obs, reward, actions, int(context - start)))
    return cut


def _cut(episode: Imagined, most: int) -> Imagined:
    """The same without what of its context, and then of its end, is too much."""
    first = min(max(episode.length - most, 0), max(episode.context - most // 2, 0))
    whole = episode.obs, episode.reward, episode.actions
    obs, reward, actions = jax.tree.map(lambda x: x[first : first + most], whole)
    return Imagined(obs, reward, actions, episode.context - first, first)


def _action(agent: Any, episode: Imagined, t: int) -> str:
    names = getattr(agent.env, "action_names", ())
    return "" if episode.first + t == 0 else film.words(jax.tree.map(lambda x: x[t], episode.actions), names)


def _write(path: Path, agent: Any, name: str, episodes: Sequence[Imagined], fps: float | None, text: str) -> None:
    match path.suffix:
        case ".gif":
            film.write_gif(path, [[_frame(agent, name, e, t) for t in range(e.length)] for e in episodes], fps)
        case ".png":
            starts = [max(min(e.context - _SHEET // 2, e.length - _SHEET), 0) for e in episodes]
            sheet = [
                [_frame(agent, name, e, t) for t in range(start, min(start + _SHEET, e.length))]
                for e, start in zip(episodes, starts, strict=True)
            ]
            film.write_strip(path, sheet, sum(map(len, sheet)))
        case _:
            path.write_text(text + "\n", encoding="utf-8")


def _frame(agent: Any, name: str, episode: Imagined, t: int) -> np.ndarray:
    """Draw one frame: three pictures, what led there, and how far the episode is."""
    width = 3 * _SIDE + 4 * _GAP
    canvas, imagined = Canvas(width, _TOP + _SIDE + _BOTTOM), t >= episode.context
    canvas.text(_GAP, 7, f"{film.title(name, 48)}   t = {episode.first + t}", 12, bold=True)
    color = RED if imagined else BLUE
    canvas.box(width - _GAP - 92, 5, 92, 17, color, radius=4)
    canvas.text(width - _GAP - 46, 14, "IMAGINED" if imagined else "CONTEXT", 10, PAPER, "mm", bold=True)
    for i, part in enumerate(_PARTS):
        left = _GAP + i * (_SIDE + _GAP)
        label = "observed" if part == "imagined" and not imagined else part
        canvas.text(left, 27, label, 11, GREY)
        canvas.text(left + _SIDE, 27, f"reward {film.signed(episode.reward[part][t], 2)}", 10, GREY, "ra")
        space = agent.world_model.observation_space
        film.draw_observation(
            canvas, left, _TOP, _SIDE, agent.env, space, episode.obs[part][t], episode.obs["truth"][t]
        )
    below = _TOP + _SIDE + 10
    canvas.text(_GAP, below, f"action before: {_action(agent, episode, t) or '-'}", 11, INK)
    _timeline(canvas, below + 28, episode, t)
    return canvas.to_array()


def _timeline(canvas: Canvas, y: float, episode: Imagined, t: int) -> None:
    """Draw how much of the episode was observed, how much is imagined, and where this frame is."""
    length, width = episode.length, canvas.width - 2 * _GAP
    border = _GAP + width * min(episode.context, length) / length
    canvas.box(_GAP, y, border - _GAP, 8, BLUE)
    canvas.box(border, y, _GAP + width - border, 8, RED)
    canvas.circle(_GAP + width * (t + 0.5) / length, y + 4, 7, WHITE, INK, 2)
