"""Pictures that several environments share: the same task in two suites is drawn by one function.

All take numbers or arrays of one environment and return uint8 ``[240, 320, 3]``.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssmrl.envs.drawing import (
    BLUE,
    CHANNELS,
    FAINT,
    GREEN,
    GREY,
    INK,
    RED,
    WATER,
    WHITE,
    YELLOW,
    Canvas,
    bars,
    board,
    title,
)

Scalar = Any  # a number, or an array of one


def cart_pole(x: Scalar, theta: Scalar, x_limit: float, theta_limit: float) -> np.ndarray:
    """Draw a cart at ``x`` (m) with a pole at ``theta`` (rad, 0 is upright), and the limits of both."""
    canvas = Canvas()
    title(canvas, "Keep the pole upright", f"cart at {float(x):+.2f} m   pole at {math.degrees(theta):+.1f} degrees")
    scale, floor = 140 / x_limit / 1.1, 200
    middle = 160 + float(x) * scale
    for side in (-1, 1):
        canvas.line([(160 + side * x_limit * scale, floor - 12), (160 + side * x_limit * scale, floor + 12)], RED, 2)
        tip = middle + 120 * math.sin(side * theta_limit), floor - 22 - 120 * math.cos(theta_limit)
        canvas.line([(middle, floor - 22), tip], FAINT, 1.5)
    canvas.line([(10, floor), (310, floor)], GREY, 1.5)
    canvas.box(middle - 24, floor - 24, 48, 18, INK, radius=3)
    for wheel in (-14, 14):
        canvas.circle(middle + wheel, floor - 5, 5, GREY)
    top = middle + 120 * math.sin(theta), floor - 22 - 120 * math.cos(theta)
    canvas.line([(middle, floor - 22), top], (190, 130, 70), 6)
    canvas.circle(middle, floor - 22, 4, WHITE)
    return canvas.to_array()


def pendulum(theta: Scalar) -> np.ndarray:
    """Draw a pendulum at ``theta`` (rad, 0 is upright, anticlockwise)."""
    canvas, turn = Canvas(), (math.degrees(theta) + 180) % 360 - 180
    title(canvas, "Swing it up and hold it there", f"{turn:+.0f} degrees from upright")
    canvas.circle(160, 140, 85, outline=FAINT)
    canvas.circle(160, 55, 4, GREEN)
    chain(canvas, [(160, 140), (160 - 80 * math.sin(theta), 140 - 80 * math.cos(theta))], 10)
    return canvas.to_array()


def acrobot(first: Scalar, second: Scalar) -> np.ndarray:
    """Draw two links at ``first`` (rad, 0 hangs down) and ``second`` (relative to it), and the height to reach."""
    canvas, pivot = Canvas(), (160.0, 140.0)
    title(canvas, "Swing the tip above the line")
    canvas.line([(40, pivot[1] - 45), (280, pivot[1] - 45)], GREEN, 1.5)
    elbow = pivot[0] + 45 * math.sin(first), pivot[1] + 45 * math.cos(first)
    tip = elbow[0] + 45 * math.sin(first + second), elbow[1] + 45 * math.cos(first + second)
    chain(canvas, [pivot, elbow, tip], 8)
    return canvas.to_array()


def mountain_car(position: Scalar, low: float, high: float, goal: float) -> np.ndarray:
    """Draw a car at ``position`` in the valley ``sin(3 position)`` between ``low`` and ``high``, and the flag."""
    canvas = Canvas()
    title(canvas, "Drive up to the flag, gathering speed", f"position {float(position):+.2f}")

    def at(x: float, above: float = 0) -> tuple[float, float]:
        return 10 + 300 * (x - low) / (high - low), 140 - 70 * math.sin(3 * x) - above

    hill = [at(float(x)) for x in np.linspace(low, high, 80)]
    canvas.polygon([*hill, (310, 240), (10, 240)], FAINT)
    canvas.line(hill, GREY, 1.5)
    canvas.line([at(goal), at(goal, 30)], INK, 1.5)
    flag = at(goal, 30)
    canvas.polygon([flag, (flag[0] + 14, flag[1] + 5), (flag[0], flag[1] + 10)], YELLOW)
    canvas.circle(*at(float(position), 8), 8, RED)
    return canvas.to_array()


def arms(values: Any, task: str, note: str) -> np.ndarray:
    """Draw what each arm of a bandit pays, from 0 to the larger of 1 and the best; negative values show as none."""
    canvas, values = Canvas(), np.asarray(values, float).ravel()
    title(canvas, task, note)
    bars(canvas, values, range(len(values)), 70, 218, max(1.0, float(values.max())), GREEN)
    return canvas.to_array()


def memory(bits: Any, query: Scalar, time: Scalar, length: int) -> np.ndarray:
    """Draw a cue of ``bits`` (0 or 1), seen at ``time`` 0, of which number ``query`` is asked for at ``length``."""
    canvas, bits, query = Canvas(), np.asarray(bits).ravel(), int(np.asarray(query).ravel()[0])
    phase = "the cue is shown" if time == 0 else "answer" if time >= length else "wait"
    title(canvas, f"Remember the cue for {length} steps: {phase}", "yellow: the bit that will be asked for")
    pitch = min(60.0, 300 / len(bits))
    for i, bit in enumerate(bits):
        x = 160 + (i - (len(bits) - 1) / 2) * pitch
        canvas.circle(x, 105, 0.38 * pitch, INK if bit else WHITE, YELLOW if i == query else GREY, 4)
        canvas.text(x, 105, int(bit), 0.4 * pitch, WHITE if bit else INK, "mm")
    canvas.text(160, 150, "seen at the start" if time == 0 else "hidden now", 12, GREY, "mm")
    _progress(canvas, time, length, "question")
    return canvas.to_array()


def umbrella(need: Scalar, has: Scalar, time: Scalar, length: int) -> np.ndarray:
    """Draw the weather that will come, whether an umbrella was taken, and the way there."""
    canvas = Canvas()
    title(canvas, "Take the umbrella, if it will rain?", "the first action decides; the rest is noise")
    canvas.text(90, 60, "rain to come" if need else "sun to come", 12, anchor="mm")
    if need:
        for dx in (-22, 0, 22):
            canvas.circle(90 + dx, 95, 18, GREY)
            canvas.line([(90 + dx, 120), (84 + dx, 140)], BLUE, 2)
    else:
        canvas.circle(90, 105, 24, YELLOW)
    canvas.text(230, 60, "has an umbrella" if has else "has none", 12, anchor="mm")
    if has:
        canvas.polygon([(190, 112), (205, 90), (230, 80), (255, 90), (270, 112)], RED)
        canvas.line([(230, 82), (230, 145), (240, 145)], INK, 3)
    _progress(canvas, time, length, "reward")
    return canvas.to_array()


def delays(steps: Sequence[int], best: int, chosen: Scalar, time: Scalar) -> np.ndarray:
    """Draw chains that pay after ``steps``, the ``best`` of which pays more, and the way along the one ``chosen``."""
    canvas = Canvas()
    title(canvas, "Choose a delay: each pays once, one pays more", "green: pays 1.1; the choice is the first action")
    for i, delay in enumerate(steps):
        y = 65 + 36 * i
        end = 60 + 240 * delay / max(steps)
        canvas.text(10, y, "1 step" if delay == 1 else f"{delay} steps", 11, anchor="lm")
        canvas.line([(60, y), (300, y)], FAINT, 2)
        canvas.line([(60, y), (end, y)], GREEN if i == best else GREY, 4)
        canvas.circle(end, y, 5, GREEN if i == best else GREY)
        if i == chosen:
            canvas.circle(60 + 240 * min(float(time) / max(steps), 1), y, 8, RED)
    return canvas.to_array()


def maze(walls: Any, agent: Any, goal: Any, task: str, holes: Any = None) -> np.ndarray:
    """Draw a maze: bool ``walls`` and ``holes`` ``[rows, columns]``, agent and goal as ``(row, column)``."""
    canvas, walls = Canvas(), np.asarray(walls, bool)
    title(canvas, task, "red: agent   green: goal")
    squares = np.where(walls[..., None], INK, np.array(WHITE))
    if holes is not None:
        squares = np.where(np.asarray(holes, bool)[..., None], WATER, squares)
    squares[int(goal[0]), int(goal[1])] = GREEN
    left, top, side = board(canvas, squares, line=FAINT)
    canvas.circle(left + (int(agent[1]) + 0.5) * side, top + (int(agent[0]) + 0.5) * side, 0.36 * side, RED)
    return canvas.to_array()


def channels(image: Any, task: str = "") -> np.ndarray:
    """Draw an observation ``[H, W]`` (dark is high) or ``[H, W, C]`` (a colour for each channel, the last on top)."""
    canvas, image = Canvas(), np.asarray(image, float)
    title(canvas, task, "the observation, a colour for each channel" if image.ndim == 3 else "the observation")
    high = max(image.max(), 1e-6)
    if image.ndim == 2:
        squares = WHITE - (np.array(WHITE) - INK) * (image / high)[..., None]
    else:
        squares = np.full((*image.shape[:2], 3), 255.0)
        for channel in range(image.shape[-1]):
            squares[image[..., channel] > 0] = CHANNELS[channel % len(CHANNELS)]
    board(canvas, squares.round(), line=FAINT)
    return canvas.to_array()


def plane(
    task: str, size: float, path: Any, goal: Any, goal_radius: float = 0.1, obstacles: Any = (), arc: float = 0
) -> np.ndarray:
    """Draw points of the plane ``[-size, size]``: a chain of links ``path`` ``[n, 2]``, the goal, round obstacles.

    ``arc`` is the radius of a half circle on which goals lie.
    """
    canvas, scale = Canvas(), 95 / size

    def at(point: Any) -> tuple[float, float]:
        return 160 + float(point[0]) * scale, 140 - float(point[1]) * scale

    title(canvas, task)
    canvas.box(65, 45, 190, 190, WHITE, FAINT)
    if arc:
        canvas.line([at((arc * math.cos(a), arc * math.sin(a))) for a in np.linspace(0, math.pi, 40)], GREY)
    canvas.circle(*at(goal), max(goal_radius * scale, 4), GREEN)
    for obstacle in obstacles:
        canvas.circle(*at(obstacle), 0.1 * scale, INK)
    chain(canvas, [at(p) for p in path], 4)
    return canvas.to_array()


def chain(canvas: Canvas, points: Sequence[tuple[float, float]], width: float) -> None:
    """Links with joints; the last point is the tip."""
    if len(points) > 1:
        canvas.line(points, (190, 130, 70), width)
    for x, y in points[:-1]:
        canvas.circle(x, y, width / 2 + 1, INK)
    canvas.circle(*points[-1], width / 2 + 2, RED)


def _progress(canvas: Canvas, time: Scalar, length: int, end: str) -> None:
    x = 20 + 280 * min(float(time) / length, 1)
    canvas.line([(20, 195), (300, 195)], FAINT, 4)
    canvas.line([(20, 195), (x, 195)], BLUE, 4)
    canvas.circle(x, 195, 6, BLUE)
    canvas.text(20, 208, f"step {int(time)} of {length}", 11, GREY)
    canvas.text(300, 208, end, 11, GREY, "ra")
