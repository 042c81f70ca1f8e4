"""Environments: the contract, the registry and the families. ``ssmrl list envs`` shows all ids."""

if __name__ != "ssmrl.envs":
    raise ImportError("import ssmrl.envs, not envs: the folder at the top of the repository is a link to it")

from typing import Any

from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.check import check_env
from ssmrl.envs.wrappers import Options, Wrapper, wrap
from ssmrl.registry import ConfigError
from ssmrl.registry import envs as _registry

register = _registry.register


def make(id: str, /, **parameters: Any) -> tuple[Environment, Any]:
    """Build an environment: ``env, params = make("popgym/RepeatPrevious", num_decks=2, k=10)``.

    Ids are case-insensitive. ``parameters`` are the family's own (``ssmrl list envs ID`` shows them) and those of
    :class:`ssmrl.envs.wrappers.Options`. Returns the environment and its default ``EnvParams``. Raises
    ``UnknownNameError`` with suggestions, ``TypeError`` for an unknown parameter and ``ValueError`` for a bad value.
    """
    env, shared = _registry.create(id, **parameters)
    try:
        env = wrap(env, Options(**shared))
    except ValueError as error:
        raise ConfigError([f"env '{id}': {error}"]) from error
    return env, env.default_params


__all__ = ["EnvParams", "EnvState", "Environment", "Wrapper", "check_env", "make", "register"]
