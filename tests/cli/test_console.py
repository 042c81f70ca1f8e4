"""What is printed of a run while it trains, and when it is done."""

import dataclasses
from pathlib import Path

from ssmrl import config
from ssmrl.agents import make_agent
from ssmrl.console import Console
from ssmrl.envs import Wrapper
from tests.cli.runs import DREAMER, TINY


@dataclasses.dataclass(frozen=True)
class Endless(Wrapper):
    """Nothing limits its episodes."""

    def longest_episode(self, params):
        return None


def shown(capsys, settings, *, endless=False, episodes=8):
    """What the console prints of a run from its beginning to its end, line by line."""
    resolved, names = config.resolve([], settings), ("return_mean", "return_mean/seed_0", "env_steps", "steps_per_s")
    agent = make_agent(resolved)
    agent = agent.replace(env=Endless(agent.env)) if endless else agent
    with Console(Path("run"), resolved, agent, False, 9) as console:
        console.done(
            dict.fromkeys(names, 1) | {"seeds": 1, "episodes": episodes, "wall_s": 1, "compile_s": 1}, Path("x")
        )
    return capsys.readouterr().err.splitlines()


def test_without_a_time_limit_the_console_says_what_would_do(capsys):
    plain, endless = shown(capsys, TINY), shown(capsys, TINY, endless=True, episodes=0)
    note, final = (line for line in endless if line not in plain)
    assert note == (
        "note: popgym/RepeatPreviousEasy has no time limit, and an episode that does not end has no return:"
        " env.max_steps=1000 cuts episodes off"
    )
    assert final.startswith("no final return: no episode ended within 100,000 steps, train with env.max_steps=1000; tr")
    assert any(line.startswith("final return 1.000 (8 episodes); trained 1 steps in 1.0 s") for line in plain)


def test_the_environment_is_shown_with_what_is_not_its_own(capsys):
    (line,) = (line for line in shown(capsys, TINY) if line.startswith("    env  "))
    assert line.startswith("    env  popgym/RepeatPreviousEasy env.max_steps=6  ")


def test_what_to_type_next(capsys):
    steps = config.resolve([], TINY).total_steps
    commands = ["  ssmrl eval run", f"  ssmrl resume run total_steps={2 * steps}", "  ssmrl play run"]
    assert shown(capsys, TINY)[-3:] == commands
    assert shown(capsys, DREAMER)[-4:] == [*commands, "  ssmrl play run --dream"]
