"""Tasks of the DeepMind Control Suite behind random projections: the S5 paper's experiment, where playground is.

A trial is one episode of 1000 steps, as in the paper (Lu et al. 2023). playground has no hard point mass,
which the paper held out; the split is the paper's but for that.
"""

import dataclasses

from ssmrl.envs.meta.mixture import Mixture
from ssmrl.registry import envs, hp


@envs.register(
    "meta/DMC",
    variants={
        "-Train": {
            "tasks": (
                "dmc/BallInCup",
                "dmc/CartpoleSwingup",
                "dmc/FingerSpin",
                "dmc/FingerTurnHard",
                "dmc/PointMass",
                "dmc/ReacherEasy",
            )
        },
        "-HeldOut": {"tasks": ("dmc/CartpoleBalance", "dmc/FingerTurnEasy", "dmc/PendulumSwingup", "dmc/ReacherHard")},
    },
    defaults={"project_observations": 12, "project_actions": 2, "trial_episodes": 1},
)
@dataclasses.dataclass(frozen=True)
class DMCMixture(Mixture):
    """A task of the suite in each row of a batch, through random projections that a trial draws.

    Raises ``UserError`` if playground is not installed.
    """

    tasks: tuple[str, ...] = hp(
        ("dmc/CartpoleBalance", "dmc/CartpoleSwingup", "dmc/PendulumSwingup"),
        "ids of environments whose observations are vectors and whose actions are in [-1, 1]",
    )
