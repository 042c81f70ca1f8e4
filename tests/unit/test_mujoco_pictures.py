"""Pictures of MuJoCo's models: everything is where a pinhole camera sees it, and what is nearer hides what is not."""

import mujoco
import numpy as np
import pytest

from ssmrl.envs.drawing import PAPER
from ssmrl.envs.mujoco_pictures import draw

# The first camera stands at (0, -2, 1) and looks along y; it sees 90 degrees: 1 m is 120 pixels at a distance of 1 m.
WORLD = """<mujoco><statistic extent="2"/><worldbody>
<camera pos="0 -2 1" xyaxes="1 0 0 0 0 1" fovy="90"/>
<camera pos="0 0 5" fovy="60"/>
{}
<body>
<joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
<geom type="{}" size="{}" rgba="1 0 0 1"/>
</body>
</worldbody></mujoco>"""


def picture(kind="sphere", size=".25", other="", camera=0, x=0.0, z=0.0):
    return draw(mujoco.MjModel.from_xml_string(WORLD.format(other, kind, size)), "", camera, qpos=np.array([x, z]))


def pixels(image, color):
    """Rows and columns ``[n, 2]`` of about this colour, in pixels from the middle."""
    return np.argwhere(abs(image.astype(int) - color).max(-1) < 60) - (120, 160)


@pytest.mark.parametrize(
    ("kind", "size", "height", "width", "near"),
    [
        ("sphere", ".25", 0.5, 0.5, 2),
        ("box", ".5 .25 .4", 0.8, 1, 1.75),
        ("capsule", ".2 .5", 1.4, 0.4, 2),
        ("cylinder", ".2 .5", 1 / 0.9, 0.4, 2),  # the edges of its ends come nearer than its sides
        ("ellipsoid", ".5 .2 .3", 0.6, 1, 2),
    ],
)
def test_shapes_have_their_size(kind, size, height, width, near):
    image = picture(kind, size, z=1)
    assert (image.shape, image.dtype) == ((240, 320, 3), np.uint8)
    seen = pixels(image, (255, 0, 0))
    np.testing.assert_allclose(seen.mean(0), 0, atol=1)
    np.testing.assert_allclose(np.ptp(seen, axis=0), np.array([height, width]) * 120 / near, atol=3)


def test_shapes_have_their_place():
    for x, z in (1, 0.5), (-1.5, 2):
        seen = pixels(picture(size=".1", x=x, z=z), (255, 0, 0))
        np.testing.assert_allclose(seen.mean(0), (60 * (1 - z), 60 * x), atol=1)


def test_what_is_nearer_hides_what_is_not():
    near, far = (f'<geom type="box" pos="0 {y} .2" size=".6 .1 .6" rgba="0 0 1 1"/>' for y in (-1, 1))
    assert len(pixels(picture(other=near), (255, 0, 0))) == 0
    assert len(pixels(picture(other=far), (255, 0, 0))) > 400
    assert len(pixels(picture(other=far), (0, 0, 255))) > 400


def test_what_is_behind_the_camera_or_transparent_is_not_seen():
    behind = '<geom size=".3" pos="0 -3 1" rgba="0 0 1 1"/><geom size=".3" pos="0 0 1" rgba="0 0 1 0"/>'
    np.testing.assert_array_equal(picture(other=behind), picture())


def test_the_ground_has_tiles():
    ground = '<geom type="plane" size="{} .1"/>'
    image = picture(size=".01", other=ground.format("0 0"))
    assert len(np.unique(image[200, :], axis=0)) >= 2
    assert (image[:115] == PAPER).all()  # above the horizon
    above = picture(size=".01", other=ground.format("1 .5"), camera=1)
    rows, columns = np.nonzero((above != PAPER).any(-1))
    scale = 120 / np.tan(np.pi / 6) / 5
    np.testing.assert_allclose((np.ptp(rows), np.ptp(columns)), (scale, 2 * scale), atol=3)
