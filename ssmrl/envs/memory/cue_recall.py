"""CueRecall: a cue is shown, then distractors, then the cue again."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import EnvState
from ssmrl.envs.memory import tiles
from ssmrl.envs.memory.scripted import Annotation, ScriptedEnvironment
from ssmrl.registry import envs, hp
from ssmrl.spaces import Discrete

WAIT, ASK = range(2)


@struct.dataclass
class State(EnvState):
    """``cue`` int32; ``distractors`` int32 ``[delay + 1]``: what a wait shows at each time; the cue ``shown`` now, and
    in the frame ``before``: bool.
    """

    cue: jax.Array
    distractors: jax.Array
    shown: jax.Array
    before: jax.Array


@envs.register("memory/CueRecall", variants={"-16": {"delay": 16}, "-64": {"delay": 64}, "-1024": {"delay": 1024}})
@dataclasses.dataclass(frozen=True)
class CueRecall(ScriptedEnvironment):
    """Know a cue again after a delay filled with distractors.

    The first frame shows a random cue, each later one a random distractor, unless the agent asks: then it is the cue
    again. A task of prediction: the reward is always 0. The scripted policy waits ``delay`` times and asks once, with
    the last action; the frame to imagine is the answer. Cues (full tiles) and distractors (balls) have the same
    colours.
    """

    delay: int = hp(16, "distractors between the cue and the question", ge=1)
    colors: int = hp(4, "cues, and as many distractors", ge=2, le=9)
    pixels: bool = hp(False, "observe a picture of 40x40 pixels")

    action_names = ("wait", "ask")

    @property
    def context(self) -> int:
        """The cue and the distractors."""
        return self.delay + 1

    @property
    def query(self) -> int:
        """The answer."""
        return 1

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """A cue of each colour, then a distractor of each."""
        return tuple((shape, i) for shape in ("wall", "ball") for i in range(self.colors))

    @property
    def num_tiles(self) -> int:
        """One tile."""
        return 1

    @property
    def fact_classes(self) -> dict[str, int]:
        """The cue."""
        return {"cue": self.colors}

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        tokens = jax.random.randint(key, (self.delay + 2,), 0, self.colors, jnp.int32)
        state = State(jnp.int32(0), tokens[0], tokens[1:], shown=jnp.bool_(True), before=jnp.bool_(False))
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        state = State(state.time + 1, state.cue, state.distractors, shown=action == ASK, before=state.shown)
        return self.observe(state), state, jnp.float32(0), jnp.bool_(False), {}

    def script(self, key: jax.Array, state: State, params: Any) -> jax.Array:
        """See ``ScriptedEnvironment``; nothing is random."""
        return jnp.full(self.num_steps, WAIT, jnp.int32).at[-1].set(ASK)

    def annotate(self, state: State, params: Any) -> Annotation:
        """See ``ScriptedEnvironment``; the cue is cell 0."""
        cell = jnp.where(state.shown & ~state.before, jnp.int32(0), -1)
        return Annotation(cell[None], {}, {"cue": state.cue[None]})

    def see(self, state: State) -> jax.Array:
        """The cue or a distractor, int32 ``[1]``."""
        distractor = state.distractors[jnp.clip(state.time - 1, 0, self.delay)]
        return jnp.where(state.shown, state.cue, self.colors + distractor)[None]

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the cue, what is shown, and the time until the question."""
        canvas = drawing.Canvas()
        drawing.title(canvas, f"Remember the cue for {self.delay} steps", f"step {int(state.time)} of {self.num_steps}")
        table, shown = tiles.pictures(self.kinds), int(np.asarray(self.see(state))[0])
        for x, label, kind in ((50, "the cue", int(state.cue)), (190, "in view", shown)):
            canvas.paste(table[kind].repeat(10, 0).repeat(10, 1), x, 72)
            canvas.text(x + 40, 165, label, 12, anchor="mt")
        canvas.line([(20, 205), (300, 205)], drawing.FAINT, 4)
        canvas.line([(20, 205), (20 + 280 * min(int(state.time) / self.num_steps, 1), 205)], drawing.BLUE, 4)
        return canvas.to_array()

    def action_space(self, params: Any) -> Discrete:
        """Wait, ask."""
        return Discrete(2)
