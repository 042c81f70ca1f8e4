"""Draws ``reset.png``: the reset convention, with memories that the library computed."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

import ssmrl
from ssmrl.envs.drawing import BLUE, FAINT, GREEN, GREY, INK, PAPER, RED, YELLOW, Canvas

LENGTHS = (4, 3, 2)  # of the episodes
COLORS = (BLUE, GREEN, YELLOW)
LEFT, SIDE = 130, 58


def contents() -> tuple[np.ndarray, list[list[int]]]:
    """The reset flags ``[T]``, and for each step the observations that the memory holds."""
    total = sum(LENGTHS)
    reset = np.zeros(total, bool)
    reset[np.cumsum((0, *LENGTHS[:-1]))] = True
    ones = jnp.ones((total,))
    held = ssmrl.linear_recurrence(ones, jnp.eye(total), reset=jnp.asarray(reset))  # adds up what it has seen
    return reset, [np.flatnonzero(row).tolist() for row in np.asarray(held)]


def draw() -> np.ndarray:
    """The picture, uint8 ``[H, W, 3]``."""
    reset, held = contents()
    total = len(reset)
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    names = [f"{'abc'[e]}{t}" for e, n in enumerate(LENGTHS) for t in range(n)]
    canvas = Canvas(LEFT + total * SIDE + 20, 300)
    rows = {"t": 20, "observation": 52, "done": 92, "reset": 122, "memory holds": 165}
    for label, y in rows.items():
        canvas.text(12, y, label, 13, GREY, "lm")
    for t in range(total):
        x = LEFT + t * SIDE
        last = t + 1 == total or reset[t + 1]
        canvas.text(x + 24, rows["t"], t, 12, GREY, "mm")
        _cell(canvas, x, rows["observation"], names[t], COLORS[episode[t]])
        for label, on in (("done", last), ("reset", reset[t])):
            canvas.text(x + 24, rows[label], "T" if on else ".", 13, RED if on else GREY, "mm", bold=bool(on))
        if reset[t]:
            canvas.line([(x - 5, 36), (x - 5, 285)], RED, 1.5)
        for i, j in enumerate(held[t]):
            _cell(canvas, x, rows["memory holds"] + 30 * i, names[j], COLORS[episode[j]])
    canvas.line([(12, 140), (canvas.width - 12, 140)], FAINT)
    canvas.text(12, 190, "after step t", 11, GREY, "lm")
    return canvas.to_array()


def _cell(canvas: Canvas, x: float, y: float, text: str, color: tuple[int, int, int]) -> None:
    canvas.box(x, y - 12, 48, 24, color, radius=4)
    canvas.text(x + 24, y, text, 12, INK if color == YELLOW else PAPER, "mm")


if __name__ == "__main__":
    from PIL import Image

    Image.fromarray(draw()).save(Path(__file__).with_name("reset.png"), optimize=True)
