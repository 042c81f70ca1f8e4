"""Pictures of MuJoCo's models without OpenGL: MuJoCo says what is where, numpy and PIL project and fill it."""

from typing import Any

import numpy as np

from ssmrl.envs.drawing import FAINT, INK, PAPER, Canvas, blend, title

_PLANE, _CAPSULE, _CYLINDER, _BOX = 0, 3, 5, 6  # of MuJoCo's types of geometry
_TILES = 12  # of the ground, to each side
_AROUND = np.linspace(0, 2 * np.pi, 16, endpoint=False)


def draw(model: Any, name: str, camera: int, **positions: np.ndarray) -> np.ndarray:
    """Draw a ``mujoco.MjModel`` as its own ``camera`` sees it, uint8 ``[240, 320, 3]``.

    ``positions`` are the fields of ``mujoco.MjData`` that say where everything is: ``qpos``, and what mocap bodies
    have. Shapes are filled from back to front by the depth of their middles; those that interlock may overlap wrongly.
    """
    import mujoco

    data, view = mujoco.MjData(model), mujoco.MjvCamera()
    for field, values in positions.items():
        getattr(data, field)[:] = values
    mujoco.mj_fwdPosition(model, data)
    view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
    scene = mujoco.MjvScene(model, maxgeom=1000)
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, view, mujoco.mjtCatBit.mjCAT_ALL, scene)
    eye, forward, up = np.mean([c.pos for c in scene.camera], 0), scene.camera[0].forward, scene.camera[0].up
    canvas = Canvas()
    scale = canvas.height / 2 * scene.camera[0].frustum_near / scene.camera[0].frustum_top

    def project(points: np.ndarray) -> np.ndarray:
        """Turn points ``[n, 3]`` into pixels ``[n, 2]``, NaN for what is behind us."""
        away = points - eye
        depth = np.where(away @ forward > 1e-3, away @ forward, np.nan)
        x, y = away @ np.cross(forward, up) / depth, away @ up / depth
        return np.stack([canvas.width / 2 + scale * x, canvas.height / 2 - scale * y], 1)

    shapes = [shape for shape in scene.geoms[: scene.ngeom] if shape.rgba[3] > 0]
    for shape in shapes:
        if shape.type == _PLANE:
            _ground(canvas, project, shape, eye, model.stat.extent)
    for shape in sorted(shapes, key=lambda s: -np.dot(s.pos - eye, forward)):
        outline = project(shape.pos + _surface(shape.type, shape.size) @ shape.mat.T)
        if shape.type != _PLANE and np.isfinite(outline).all():
            _fill(canvas, outline, shape.rgba)
    title(canvas, name)
    return canvas.to_array()


def _surface(kind: int, size: np.ndarray) -> np.ndarray:
    """Points ``[n, 3]`` on the surface of a convex shape, whose hull looks like it."""
    if kind == _BOX:
        return np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * size
    if kind == _CYLINDER:
        return np.array([(np.cos(a), np.sin(a), z) for a in _AROUND for z in (-1, 1)]) * size
    ball = [(np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b)) for a in _AROUND for b in _AROUND]
    if kind == _CAPSULE:
        return np.concatenate([np.array(ball) * size[0] + (0, 0, z) for z in (-size[2], size[2])])
    return np.array(ball) * size


def _fill(canvas: Canvas, points: np.ndarray, rgba: np.ndarray) -> None:
    from scipy.spatial import ConvexHull

    hull = points[ConvexHull(points, qhull_options="QJ").vertices]
    red, green, blue = (round(255 * float(c)) for c in rgba[:3])
    color = blend((red, green, blue), PAPER, 1 - float(rgba[3]))
    canvas.polygon(hull, color)
    canvas.line([*hull, hull[0]], blend(color, INK, 0.5))


def _ground(canvas: Canvas, project: Any, plane: Any, eye: np.ndarray, extent: float) -> None:
    """Tile the part of a plane that is below the eye; tiles stay where they are when the camera moves."""
    side = 2.0 ** np.round(np.log2(extent / 4))
    here = (eye - plane.pos) @ plane.mat
    size = np.where(plane.size[:2] > 0, plane.size[:2], np.inf)
    first = np.floor(here[:2] / side).astype(int) - _TILES
    ticks = [np.clip((start + np.arange(2 * _TILES + 1)) * side, -s, s) for start, s in zip(first, size, strict=True)]
    corners = np.stack([*np.meshgrid(*ticks, indexing="ij"), np.zeros([2 * _TILES + 1] * 2)], -1)
    pixels = project(plane.pos + corners.reshape(-1, 3) @ plane.mat.T).reshape(*corners.shape[:2], 2)
    for i in range(2 * _TILES):
        for j in range(2 * _TILES):
            tile = pixels[[i, i + 1, i + 1, i], [j, j, j + 1, j + 1]]
            if np.isfinite(tile).all():
                canvas.polygon(tile, blend(FAINT, PAPER, 0.3 if (i + j + sum(first)) % 2 else 0.7))
