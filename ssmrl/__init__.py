"""ssmrl: reinforcement learning with long memory.

::

    import ssmrl
    run = ssmrl.train("demo", seeds=4)
    policy = ssmrl.load(run.dir)
    ssmrl.evaluate(policy, "popgym/RepeatPreviousEasy", episodes=512)

Everything is imported on first use, so ``import ssmrl`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssmrl.agents import make_agent as make_agent
    from ssmrl.config import Config as Config
    from ssmrl.config import resolve as resolve
    from ssmrl.envs import make as make_env  # noqa: F401
    from ssmrl.evaluation import evaluate as evaluate
    from ssmrl.evaluation import export as export
    from ssmrl.evaluation import load as load
    from ssmrl.gymnasium import to_gymnasium as to_gymnasium
    from ssmrl.gymnasium import to_gymnasium_single as to_gymnasium_single
    from ssmrl.nn import make_model as make_model
    from ssmrl.playing import play as play
    from ssmrl.policy import Policy as Policy
    from ssmrl.scan import linear_recurrence as linear_recurrence
    from ssmrl.training import Run as Run
    from ssmrl.training import make_train as make_train
    from ssmrl.training import resume as resume
    from ssmrl.training import train as train
    from ssmrl.training import train_population as train_population

_PUBLIC = {
    "Config": "config:Config",
    "Policy": "policy:Policy",
    "Run": "training:Run",
    "evaluate": "evaluation:evaluate",
    "export": "evaluation:export",
    "linear_recurrence": "scan:linear_recurrence",
    "load": "evaluation:load",
    "make_agent": "agents:make_agent",
    "make_env": "envs:make",
    "make_model": "nn:make_model",
    "make_train": "training:make_train",
    "play": "playing:play",
    "resolve": "config:resolve",
    "resume": "training:resume",
    "to_gymnasium": "gymnasium:to_gymnasium",
    "to_gymnasium_single": "gymnasium:to_gymnasium_single",
    "train": "training:train",
    "train_population": "training:train_population",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ssmrl' has no attribute '{name}': it has {', '.join(_PUBLIC)}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(f"ssmrl.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
