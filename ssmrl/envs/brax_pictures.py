"""Pictures of brax's robots: a simple side view by numpy, and brax's own three-dimensional page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssmrl.envs.drawing import FAINT, GREEN, GREY, INK, PAPER, RED, Canvas, blend, title

_PLANE, _CAPSULE = 0, 3  # of MuJoCo's geometry types
_SEEN_FROM_ABOVE = {"reacher": 300.0, "pusher": 90.0}  # pixels per metre
_SCALE = 80.0


def draw(id: str, system: Any, state: Any) -> np.ndarray:
    """Draw the links of a robot, uint8 ``[240, 320, 3]``: from the side, following it, or from above.

    ``system`` is brax's, ``state`` the state of its physics with numpy leaves. Capsules are thick lines, everything
    else is a circle; what is farther away is paler.
    """
    canvas, above = Canvas(), id in _SEEN_FROM_ABOVE
    scale = _SEEN_FROM_ABOVE.get(id, _SCALE)
    follow = 0.0 if above else float(state.x.pos[0, 0])
    if not above:
        _ground(canvas, follow, scale)

    def at(point: np.ndarray) -> tuple[float, float]:
        x, y, z = point.tolist()
        if above:
            return 160 + x * scale, 130 - y * scale
        return 160 + (x - follow + 0.3 * y) * scale, 205 - (z + 0.25 * y) * scale

    parts = []
    for kind, body, size, pos, quat in zip(
        *(np.asarray(getattr(system, f"geom_{k}")) for k in ("type", "bodyid", "size", "pos", "quat")), strict=True
    ):
        if kind == _PLANE:
            continue
        centre, half = pos, np.array([0, 0, size[1] if kind == _CAPSULE else 0.0])
        half = _rotate(quat, half)
        if body:  # geometry of the world stands still
            link = state.x.pos[body - 1], state.x.rot[body - 1]
            centre, half = link[0] + _rotate(link[1], centre), _rotate(link[1], half)
        parts.append((centre, half, float(size[0]), int(body)))
    depths = [float(centre[2] if above else -centre[1]) for centre, *_ in parts]
    nearest, farthest, last = max(depths), min(depths), parts[-1][3]  # the goal comes last, where there is one
    for depth, (centre, half, radius, body) in sorted(zip(depths, parts, strict=True), key=lambda pair: pair[0]):
        share = 0.5 * (nearest - depth) / max(nearest - farthest, 1e-3)
        color = FAINT if body == 0 else RED if body == 1 else GREEN if above and body == last else INK
        color = blend(color, PAPER, share if body and not above else 0)
        r = max(radius * scale, 1.5)
        ends = [at(centre - half), at(centre + half)]
        canvas.line(ends, color, 2 * r)
        for end in ends:
            canvas.circle(*end, r, color)
    title(canvas, id, "from above   green: the goal" if above else f"{follow:+.1f} m along the way")
    return canvas.to_array()


def page(system: Any, states: Sequence[Any]) -> str:
    """Return brax's HTML page that plays ``states`` of the physics; a browser loads its viewer from the network."""
    from brax.io import html

    return html.render(system, list(states), height="100vh", colab=False)


def _ground(canvas: Canvas, follow: float, scale: float) -> None:
    canvas.line([(0, 205), (320, 205)], FAINT, 2)
    for metre in range(int(follow) - 3, int(follow) + 4):
        x = 160 + (metre - follow) * scale
        canvas.line([(x, 205), (x, 213)], GREY)
        canvas.text(x, 215, metre, 10, GREY, "ma")


def _rotate(quaternion: Any, vector: np.ndarray) -> np.ndarray:
    """Rotate ``vector`` ``[3]`` by a unit quaternion ``(w, x, y, z)``."""
    w, axis = float(quaternion[0]), np.asarray(quaternion[1:])
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * vector)
