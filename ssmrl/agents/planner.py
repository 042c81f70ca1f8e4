"""Planner: Dreamer's world model, used to search for the next actions instead of being asked for them.

Learns as :mod:`ssmrl.agents.dreamer` does, from what it collects by planning (:mod:`ssmrl.planning`); actor and critic
go on learning in imagination, propose plans and say what lies beyond their end (TD-MPC, Hansen et al. 2022).
``plan_value=false plan_proposals=0`` leaves them out of it, as PlaNet did (Hafner et al. 2019).
"""

from typing import ClassVar, Literal

from ssmrl.agents.dreamer import Dreamer, State
from ssmrl.planning import PlanningPolicy
from ssmrl.policy import Policy
from ssmrl.registry import agents, hp


@agents.register("planner")
class Planner(Dreamer):
    """Model-predictive control in the latent space of Dreamer's world model (CEM or MPPI)."""

    planner: Literal["cem", "mppi"] = hp("mppi", "cross-entropy method, or path integrals: better plans count more")
    plan_horizon: int = hp(10, "steps of a plan", ge=1)
    plan_samples: int = hp(32, "plans drawn in an iteration", ge=1)
    plan_elites: int = hp(8, "best plans, which the next ones are drawn around", ge=1)
    plan_iterations: int = hp(2, "rounds of drawing plans", ge=1)
    plan_proposals: int = hp(4, "plans that the actor adds to every round", ge=0)
    plan_draws: int = hp(1, "futures that each plan's return is averaged over, of worlds with chance", ge=1)
    plan_value: bool = hp(True, "add what the critic expects after a plan's end")
    plan_temperature: float = hp(0.5, "of mppi, in units of return: plans count by exp(return / temperature)", gt=0.0)
    plan_min_std: float = hp(0.1, "least deviation of continuous actions in a plan, before the squashing", gt=0.0)

    requires: ClassVar[dict[str, str]] = {
        "plan_elites <= plan_samples": "the best plans are some of those drawn",
        "held_out == 0": "plans have plan_horizon steps, however far imagination is trusted",
    }

    def policy(self, state: State) -> Policy:
        """The policy as it stands, which plans."""
        planning = PlanningPolicy(
            network=self.network,
            horizon=self.plan_horizon,
            samples=self.plan_samples,
            elites=self.plan_elites,
            iterations=self.plan_iterations,
            proposals=self.plan_proposals,
            draws=self.plan_draws,
            value=self.plan_value,
            gamma=self.gamma,
            temperature=self.plan_temperature if self.planner == "mppi" else None,
            min_std=self.plan_min_std,
        )
        return Policy(state.params, state.obs_stats, self.reward_scale, planning)
