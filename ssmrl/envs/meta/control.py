"""Control tasks behind random projections: what a policy sees and does means something else in each trial.

The experiment of the S5 paper (Lu et al. 2023) on a pool of our own: which of the tasks it plays, and
through which projections, a policy finds out from what its actions do. The paper draws them for every episode of 1000
steps; here a trial has five episodes of 200 steps, so that the rise from episode to episode shows.
"""

import dataclasses
from collections.abc import Callable

import jax

from ssmrl.envs.base import Environment
from ssmrl.envs.control.control import Control
from ssmrl.envs.meta import references
from ssmrl.envs.meta.mixture import Mixture
from ssmrl.registry import envs, hp


@envs.register(
    "meta/Control",
    variants={
        "-Train": {
            "tasks": (
                "control/BallInCupCatch",
                "control/CartpoleSwingup",
                "control/FingerSpin",
                "control/FingerTurnHard",
                "control/PointMassEasy",
                "control/ReacherEasy",
            )
        },
        "-HeldOut": {
            "tasks": (
                "control/CartpoleBalance",
                "control/FingerTurnEasy",
                "control/PendulumSwingup",
                "control/PointMassHard",
                "control/ReacherHard",
            )
        },
    },
    defaults={"project_observations": 12, "project_actions": 2, "trial_episodes": 5},
)
@dataclasses.dataclass(frozen=True)
class ControlMixture(Mixture):
    """Any of the pool's tasks in each row of a batch, through random projections that a trial draws.

    The split is the paper's. The acrobot is in ``meta/Control`` alone.
    """

    tasks: tuple[str, ...] = hp(
        (
            "control/AcrobotSwingup",
            "control/BallInCupCatch",
            "control/CartpoleBalance",
            "control/CartpoleSwingup",
            "control/FingerSpin",
            "control/FingerTurnEasy",
            "control/FingerTurnHard",
            "control/PendulumSwingup",
            "control/PointMassEasy",
            "control/PointMassHard",
            "control/ReacherEasy",
            "control/ReacherHard",
        ),
        "ids of environments whose observations are vectors and whose actions are in [-1, 1]",
    )
    scaled: bool = hp(True, "observe control tasks in units of usual sizes: once projected, nothing can be normalised")

    def member(self, id: str) -> Environment:
        """The environment that ``id`` names, scaled if it can be."""
        env = super().member(id)
        return dataclasses.replace(env, scaled=self.scaled) if isinstance(env, Control) else env

    def references(self) -> dict[str, Callable[..., jax.Array]]:
        """See :mod:`ssmrl.envs.meta.references`."""
        return {"random": references.random}
