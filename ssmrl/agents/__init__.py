"""Agents, one file each. ``ssmrl list agents`` shows them.

An agent is a frozen pytree of hyper-parameters with ``env``, ``env_params``, ``model``, ``num_envs``, ``num_steps`` and
``total_updates``, with ``steps_per_update``, and with pure functions ``init(key) -> State``,
``update(state) -> (State, metrics)`` and ``policy(state) -> Policy``. Its State has ``params``.
Metrics are scalars; ``loss`` and ``grad_norm`` must be there, others are logged as they are; ``return_mean`` and
``length_mean`` are over the ``episodes`` that ended (NaN if none did). One that learns something else than a policy has
``evaluate(state, key, episodes=...) -> metrics`` instead of ``policy``, and ``score``, which names the metric that its
runs are judged by (the higher the better; ``return_mean`` where there is none). One that reads files has
``input_files() -> {name: hash}``, which must not change in a run. One whose ``params`` are not all that another run
should start with (``init_from``) has ``learned``, the paths of those parts of its State.
"""

if __name__ != "ssmrl.agents":
    raise ImportError("import ssmrl.agents, not agents: the folder at the top of the repository is a link to it")

from typing import Any

from ssmrl import envs, nn
from ssmrl.config import Config
from ssmrl.registry import agents as _registry

register = _registry.register


def make_agent(config: Config) -> Any:
    """Build the agent that a configuration describes, with its environment and sequence model.

    Raises ``ValueError`` or ``TypeError`` for what only the classes themselves can check.
    """
    env, env_params = envs.make(config.env, **config.env_parameters)
    model = nn.make_model(config.model, **config.model_parameters)
    entry = _registry.find(config.agent)
    cls = _registry.load(entry)
    agent = cls(env=env, env_params=env_params, model=model, **config.agent_parameters)
    return agent.replace(total_updates=float(num_updates(config, agent)))


def score_of(agent: Any) -> str:
    """Name of the metric that an agent's runs are judged by."""
    return getattr(agent, "score", "return_mean")


def learned_of(agent: Any) -> tuple[str, ...]:
    """Paths of the parts of an agent's State that another run can start with."""
    return getattr(agent, "learned", ("params",))


def num_updates(config: Config, agent: Any) -> int:
    """How many updates ``total_steps`` makes, rounded up."""
    return -(-config.total_steps // agent.steps_per_update)


__all__ = ["learned_of", "make_agent", "num_updates", "register", "score_of"]
