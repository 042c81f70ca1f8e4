"""Pictures of environments: what they show is where it should be, and every family has one."""

import dataclasses
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import envs
from ssmrl.envs import Environment, EnvParams, EnvState, check_env, drawing, scenes
from ssmrl.envs.drawing import BLUE, GREEN, INK, RED, WHITE, YELLOW, Canvas
from ssmrl.envs.popgym import (
    autoencode,
    battleship,
    concentration,
    count_recall,
    higher_lower,
    labyrinth,
    mine_sweeper,
    repeat_first,
    repeat_previous,
)
from ssmrl.registry import envs as registry
from ssmrl.spaces import Discrete

ZERO = np.int32(0)


def count(picture, color):
    """Pixels of exactly this colour."""
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    return int((picture == np.array(color)).all(-1).sum())


def middle(picture, color):
    """Row and column of the middle of what has this colour."""
    where = np.argwhere((picture == np.array(color)).all(-1))
    return (where.min(0) + where.max(0)) / 2


def test_a_canvas_puts_things_where_they_are_asked_for():
    canvas = Canvas(40, 30, WHITE)
    canvas.box(10, 5, 20, 10, RED)
    canvas.circle(20, 24, 3, BLUE)
    picture = canvas.to_array()
    assert picture.shape == (30, 40, 3)
    assert tuple(picture[10, 20]) == RED
    assert tuple(picture[24, 20]) == BLUE
    assert tuple(picture[2, 2]) == WHITE
    assert count(picture, RED) == pytest.approx(200, abs=35)
    pasted = Canvas(50, 40)
    pasted.paste(picture, 5, 5)
    np.testing.assert_array_equal(pasted.to_array()[5:35, 5:45], picture)


def test_suits_and_colours_can_be_told_apart():
    pictures = []
    for kind, n in (("suits", 4), ("colors", 2), ("ranks", 13)):
        for value in range(n):
            canvas = Canvas(60, 60)
            drawing.card(canvas, 10, 5, 34, kind, value)
            pictures.append(canvas.to_array())
    assert len({p.tobytes() for p in pictures}) == 4 + 2 + 13
    assert [count(p, RED) > 20 for p in pictures[:6]] == [False, True, False, True, False, True]  # s d c h, black red


def test_bars_are_as_high_as_their_values():
    canvas = Canvas(100, 100, WHITE)
    drawing.bars(canvas, [1.0, 0.5, 0.0], "abc", 10, 90, 1.0, BLUE)
    picture = (canvas.to_array() == np.array(BLUE)).all(-1)
    heights = [picture[:, int(10 + (i + 0.5) * 80 / 3)].sum() for i in range(3)]
    assert heights == pytest.approx([80, 40, 0], abs=2)


def test_repeat_previous_frames_the_card_to_name_once_there_is_one():
    env = repeat_previous.RepeatPrevious(num_decks=1, k=4)
    remaining = np.full(4, 12, np.int32)
    seen = [1, 0, 0, 0]  # slot of card i is i % k: a diamond, then three spades
    early = env.render(repeat_previous.State(np.int32(2), remaining, np.array(seen)), None)
    full = env.render(repeat_previous.State(np.int32(3), remaining, np.array(seen)), None)
    assert count(early, YELLOW) == 0
    assert count(full, YELLOW) > 100
    assert count(full, RED) == count(early, RED) > 0
    assert middle(full, RED)[1] == pytest.approx(middle(full, YELLOW)[1], abs=3)  # the diamond is the oldest of four
    assert middle(early, RED)[1] < middle(early, BLUE)[1]
    later = env.render(repeat_previous.State(np.int32(4), remaining, np.array([3, 0, 0, 0])), None)  # a heart comes
    assert middle(later, RED)[1] == pytest.approx(middle(later, BLUE)[1], abs=3)


def test_card_games_show_their_cards():
    first = repeat_first.RepeatFirst().render(repeat_first.State(ZERO, np.full(4, 12), np.int32(3), np.int32(0)), None)
    assert middle(first, RED)[1] == pytest.approx(middle(first, YELLOW)[1], abs=3)  # the heart is the one to name

    left = np.full(13, 4)
    left[5] = 0
    gone = higher_lower.HigherLower().render(higher_lower.State(ZERO, left, np.int32(0)), None)
    whole = higher_lower.HigherLower().render(higher_lower.State(ZERO, np.full(13, 4), np.int32(0)), None)
    assert count(gone, BLUE) < count(whole, BLUE)

    env = count_recall.CountRecall(num_decks=1, deck_type="colors")
    state = count_recall.State(ZERO, np.array([[26, 0], [26, 26]]), np.array([0, 1]))
    picture = env.render(state, None)
    assert middle(picture, RED)[1] == pytest.approx(middle(picture, YELLOW)[1], abs=3)  # red is queried

    env, key = autoencode.Autoencode(), jax.random.key(0)
    cards = np.tile(np.int32([0, 1]), 26)
    watch, play, over = (
        env.render(autoencode.State(np.int32(t), key, np.zeros(4), cards), None) for t in (10, 60, 103)
    )
    assert (count(watch, YELLOW), count(play, BLUE), count(over, YELLOW)) == (0, 0, 0)
    assert count(watch, BLUE) > 0
    assert count(play, YELLOW) > 0


def test_concentration_shows_what_is_found_and_what_was_flipped():
    env = concentration.Concentration(num_decks=1, deck_type="colors")
    cards, nothing = np.ones(52, np.int32), np.int32(-1)  # all red
    face_up = np.zeros(52, bool)
    state = concentration.State(ZERO, cards, face_up, nothing, nothing, np.bool_(False))
    hidden = env.render(state, None)
    one = env.render(state.replace(first=np.int32(7)), None)
    face_up = face_up.copy()
    face_up[:3] = True
    found = env.render(state.replace(face_up=face_up), None)
    assert (count(hidden, RED), count(hidden, BLUE)) == (0, 0)
    assert count(one, BLUE) > 0
    assert count(found, RED) == pytest.approx(3 * count(one, RED), rel=0.1)


def test_boards_show_where_things_are():
    env = battleship.Battleship(board_size=8)
    ships = np.zeros((8, 8), bool)
    ships[0, :4] = True
    guessed = np.zeros((8, 8), bool)
    guessed[[0, 7], [0, 7]] = True
    picture = env.render(battleship.State(np.int32(2), ships, guessed, np.int32(1), ZERO), None)
    assert middle(picture, RED) == pytest.approx([56, 78], abs=3)  # the hit in the upper left corner
    assert middle(picture[44:], WHITE) == pytest.approx([220 - 44, 242], abs=3)  # the miss in the lower right one

    env = mine_sweeper.MineSweeper()
    mines = np.zeros((4, 4), bool)
    mines[0, 0] = mines[3, 3] = True
    state = mine_sweeper.State(np.int32(1), mines, np.zeros((4, 4), bool), np.bool_(False))
    running, lost = env.render(state, None), env.render(state.replace(over=np.bool_(True)), None)
    won = env.render(state.replace(viewed=~mines, over=np.bool_(True)), None)
    assert (count(running, RED), count(won, RED)) == (0, 0)
    assert count(lost, RED) > 500
    assert count(won, BLUE) > count(running, BLUE) == 0  # numbers


def test_a_labyrinth_shows_the_agent_in_its_square():
    env = labyrinth.LabyrinthEscape(maze_dims=6)
    grid = np.ones((7, 7), np.int32)
    grid[1:6, 3] = labyrinth.FREE
    grid[0, 3], grid[6, 3] = labyrinth.START, labyrinth.GOAL
    explored = np.zeros((7, 7), bool)
    explored[0, 3] = True
    where = []
    for row in (2, 4):
        state = labyrinth.State(np.int32(1), grid, explored, np.array([row, 3]), ZERO)
        where.append(middle(env.render(state, None), RED))
    side = (240 - 44 - 8) / 7
    assert where[0] == pytest.approx([44 + 2.5 * side, 160], abs=2)
    assert where[1] == pytest.approx([44 + 4.5 * side, 160], abs=2)
    assert tuple(env.render(state, None)[int(44 + 6.5 * side), 160]) == GREEN


def test_physics_points_the_right_way():
    wood = (190, 130, 70)
    left, right = (middle(scenes.cart_pole(0, theta, 2.4, 0.2), wood)[1] for theta in (-0.15, 0.15))
    assert left < 159 < 161 < right
    assert middle(scenes.cart_pole(1.0, 0, 2.4, 0.2)[44:], INK)[1] == pytest.approx(160 + 140 / 2.4 / 1.1, abs=2)
    up, down, quarter = (middle(scenes.pendulum(theta), RED) for theta in (0, math.pi, math.pi / 2))
    assert up == pytest.approx([60, 160], abs=2)
    assert down == pytest.approx([220, 160], abs=2)
    assert quarter == pytest.approx([140, 80], abs=2)  # anticlockwise, as gymnasium draws it
    hanging, swung = middle(scenes.acrobot(0, 0), RED), middle(scenes.acrobot(math.pi / 2, 0), RED)
    assert hanging == pytest.approx([230, 160], abs=2)
    assert swung == pytest.approx([140, 250], abs=2)
    near, far = (middle(scenes.mountain_car(x, -1.2, 0.6, 0.5), RED)[1] for x in (-0.5, 0.4))
    assert near < far


def test_scenes_of_waiting_show_the_secret_and_the_time():
    early, late = (middle(scenes.memory([1], 0, t, 30)[180:], BLUE)[1] for t in (0, 20))
    assert early < late
    assert count(scenes.memory([1, 0], 1, 0, 30), YELLOW) > 50
    assert not np.array_equal(scenes.umbrella(0, 0, 1, 20), scenes.umbrella(1, 0, 1, 20))
    assert count(scenes.umbrella(0, 1, 1, 20), RED) > count(scenes.umbrella(0, 0, 1, 20), RED) == 0
    chosen = scenes.delays((1, 3, 10, 30, 100), 2, 4, 50)
    assert middle(chosen, RED) == pytest.approx([65 + 36 * 4, 60 + 120], abs=1)
    assert count(scenes.delays((1, 3), 0, -1, 0), RED) == 0


def test_images_have_a_colour_for_each_channel():
    image = np.zeros((4, 4, 3))
    image[1, 2, 1] = 1
    picture = scenes.channels(image)
    side = (240 - 44 - 8) / 4
    assert middle(picture, drawing.CHANNELS[1]) == pytest.approx([44 + 1.5 * side, 160 + 0.5 * side], abs=2)
    assert count(picture, drawing.CHANNELS[0]) == 0
    assert count(scenes.channels(np.eye(3)), INK) > 3 * 60**2


def test_every_family_has_a_picture():
    without = {e.name.split("/")[0] for e in registry.entries() if registry.load(e).render is Environment.render}
    assert without <= {"craftax", "dmc", "jumanji", "navix", "xminigrid"}  # other packages', shown as tables


@pytest.mark.parametrize(
    "id", ["popgym/MultiarmedBanditEasy", "bsuite/MemorySize/3", "gymnax/FourRooms-misc", "gymnax/Breakout-MinAtar"]
)
def test_a_played_state_has_a_picture(id):
    env, params = envs.make(id, max_steps=9)  # through the wrapper
    assert isinstance(env, envs.Wrapper)
    _, state = env.reset(jax.random.key(0), params)
    picture = env.render(state, params)
    assert (picture.dtype, picture.shape) == (np.uint8, (240, 320, 3))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3


def test_pictures_cost_nothing_until_they_are_drawn():
    code = (
        "import sys, ssmrl.envs, ssmrl.envs.popgym.repeat_previous, ssmrl.envs.gymnax; assert 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclasses.dataclass(frozen=True)
class Drawn(Environment):
    """One step of nothing, with a picture of any kind."""

    kind: str

    def reset_env(self, key, params):
        return jnp.int32(0), EnvState(jnp.int32(0))

    def step_env(self, key, state, action, params):
        return jnp.int32(0), EnvState(state.time + 1), jnp.float32(0), jnp.bool_(False), {}

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=3)

    def observation_space(self, params):
        return Discrete(2)

    def action_space(self, params):
        return Discrete(2)

    def render(self, state, params):
        match self.kind:
            case "missing":
                return super().render(state, params)
            case "broken":
                raise KeyError("colour")
            case "floats":
                return np.zeros((4, 4, 3))
            case "growing":
                return np.zeros((4 + int(state.time), 4, 3), np.uint8)
        return np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        ("good", []),
        ("missing", []),
        ("broken", ["render raises KeyError: 'colour': it gets one state, with numpy leaves, outside jit"]),
        ("floats", ["render returns float64[4, 4, 3]: return a picture, uint8 [H, W, 3]"]),
        (
            "growing",
            ["render returns pictures of different shapes, [(4, 4, 3), (5, 4, 3)]: they are to be one film"],
        ),
    ],
)
def test_the_contract_of_pictures_is_checked(kind, finding):
    found = check_env(Drawn(kind), steps=1, eager=False)
    assert [text for text in found if "render" in text] == finding


def test_an_environment_without_a_picture_says_so():
    with pytest.raises(NotImplementedError, match=r"Drawn has no picture: define render\(state, params\)"):
        Drawn("missing").render(None, None)
