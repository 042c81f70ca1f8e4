"""Sweep files: what they draw, what is wrong with them, what stops a trial, and what survives a kill."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ssmrl.fields import ConfigError, UserError
from ssmrl.sweep import search, spec
from ssmrl.sweep.distributions import DISTRIBUTIONS, Parameter
from ssmrl.sweep.hyperband import Hyperband, from_max_iter, from_min_iter
from ssmrl.sweep.ledger import Ledger, Trial


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(content, overrides=()):
    """Read and check a sweep given as YAML or as a mapping of parameters."""
    if not isinstance(content, str):
        content = yaml.safe_dump({"method": "random", "run_cap": 3, "parameters": content})
    Path("sweep.yaml").write_text(content)
    return spec.read_sweep("sweep.yaml", dict(overrides))


def errors_of(content, overrides=()):
    """Everything that is said about a sweep file."""
    try:
        sweep = read(content, overrides)
        count = search.trial_count(sweep, None)
        trials = search.known_trials(sweep, count, 0)
        spec.check(sweep, [t.parameters for t in trials], search.cannot_search(sweep, count))
    except ConfigError as error:
        return error.errors
    return []


# --- distributions

QUARTILES = {  # name: numbers, values at u = 0, .25, .5, 1
    "uniform": ({"min": 2.0, "max": 6.0}, (2, 3, 4, 6)),
    "q_uniform": ({"min": 0.0, "max": 1.0, "q": 0.1}, (0, 0.2, 0.5, 1)),  # .25 / .1 rounds to the even 2
    "int_uniform": ({"min": 1, "max": 4}, (1, 2, 3, 4)),
    "log_uniform": ({"min": -2.0, "max": 2.0}, (math.exp(-2), math.exp(-1), 1, math.exp(2))),  # exponents
    "q_log_uniform": ({"min": 0.0, "max": math.log(16), "q": 1}, (1, 2, 4, 16)),
    "log_uniform_values": ({"min": 1e-4, "max": 1.0}, (1e-4, 1e-3, 1e-2, 1)),
    "q_log_uniform_values": ({"min": 16.0, "max": 256.0, "q": 8}, (16, 32, 64, 256)),
    "inv_log_uniform": ({"min": -2.0, "max": 2.0}, (math.exp(-2), math.exp(-1), 1, math.exp(2))),
    "inv_log_uniform_values": ({"min": 1e-4, "max": 1.0}, (1e-4, 1e-3, 1e-2, 1)),
    "normal": ({"mu": 5.0, "sigma": 2.0}, (None, 5 - 2 * 0.67449, 5, None)),
    "q_normal": ({"mu": 5.0, "sigma": 2.0, "q": 1.0}, (None, 4, 5, None)),
    "log_normal": ({"mu": 1.0, "sigma": 2.0}, (None, math.exp(1 - 2 * 0.67449), math.e, None)),
    "q_log_normal": ({"mu": 1.0, "sigma": 2.0, "q": 0.5}, (None, 0.5, 2.5, None)),
    "beta": ({"a": 1.0, "b": 2.0}, (0, 1 - math.sqrt(0.75), 1 - math.sqrt(0.5), 1)),  # cdf 1 - (1 - x)^2
    "q_beta": ({"a": 1.0, "b": 2.0, "q": 0.25}, (0, 0.25, 0.25, 1)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles(name):
    numbers, expected = QUARTILES[name]
    parameter = Parameter("x", name, numbers=numbers)
    for u, value in zip((0.0, 0.25, 0.5, 1.0), expected, strict=True):
        if value is not None:
            assert parameter.at(u) == pytest.approx(value, rel=1e-5, abs=1e-12), u
    ladder = [parameter.at(u / 100) for u in range(101)]
    assert ladder == sorted(ladder)
    assert all(math.isfinite(v) for v in ladder)
    if "min" in numbers:
        assert parameter.extremes() == (pytest.approx(expected[0], rel=1e-5), pytest.approx(expected[-1], rel=1e-5))
    if "q" in numbers:
        assert all(v / numbers["q"] == pytest.approx(round(v / numbers["q"])) for v in ladder)
        assert all(isinstance(v, type(numbers["q"])) for v in ladder)


def test_values_are_short_and_numbers_of_their_kind():
    assert str(Parameter("x", "log_uniform_values", numbers={"min": 1e-5, "max": 1e-3}).at(0.0)) == "1e-05"
    assert str(Parameter("x", "q_uniform", numbers={"min": 0.0, "max": 1.0, "q": 0.1}).at(0.3)) == "0.3"
    assert len(str(Parameter("x", "uniform", numbers={"min": 0.0, "max": 1.0}).at(1 / 3))) == 8


def test_choices():
    plain = Parameter("x", "categorical", values=("a", "b", "c", "d"))
    assert [plain.at(u) for u in (0, 0.24, 0.25, 0.6, 0.99, 1)] == ["a", "a", "b", "c", "d", "d"]
    weighted = Parameter("x", "categorical_w_probabilities", ("a", "b", "c"), (6, 0, 2))
    assert [weighted.at(u) for u in (0, 0.74, 0.76, 1)] == ["a", "a", "c", "c"]


def test_random_trials_depend_on_seed_and_number_alone():
    given = {"agent.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}}
    sweep = read({**given, "model": {"values": ["s5", "gru"]}})
    many = search.known_trials(sweep, 400, seed=1)
    assert [t.parameters for t in search.known_trials(sweep, 3, seed=1)] == [t.parameters for t in many[:3]]
    assert many[0].parameters != search.known_trials(sweep, 1, seed=2)[0].parameters
    rates = [t.parameters["agent.learning_rate"] for t in many]
    assert 1e-4 <= min(rates) < 1.2e-4
    assert 0.9e-2 < max(rates) <= 1e-2
    assert statistics.median(rates) == pytest.approx(1e-3, rel=0.35)
    assert 160 < sum(t.parameters["model"] == "gru" for t in many) < 240


def test_a_grid_is_in_the_order_of_the_file():
    sweep = read(
        """
method: grid
parameters:
  model: {values: [s5, gru]}
  seeds: {value: 2}
  agent.gamma: {distribution: q_uniform, min: 0.0, max: 0.5, q: 0.25}
  agent.epochs: {min: 1, max: 2}
"""
    )
    assert search.trial_count(sweep, None) == 12
    assert search.trial_count(sweep, 5) == 5
    drawn = [tuple(t.parameters.values()) for t in search.known_trials(sweep, 12, 0)]
    assert drawn[:4] == [("s5", 0.0, 1), ("s5", 0.0, 2), ("s5", 0.25, 1), ("s5", 0.25, 2)]
    assert drawn[-1] == ("gru", 0.5, 2)
    assert len(set(drawn)) == 12
    config = sweep.resolve(search.known_trials(sweep, 12, 0)[6].parameters)
    assert (config.model, config.seeds, config.agent_parameters["epochs"]) == ("gru", 2, 1)


def test_bayes_finds_the_optimum_and_repeats_itself():
    pytest.importorskip("optuna")
    sweep = read(
        """
method: bayes
run_cap: 40
metric: {name: eval/return_mean, goal: maximize}
parameters:
  agent.learning_rate: {distribution: log_uniform_values, min: 0.00001, max: 1.0}
  model: {values: [s5, gru, none]}
"""
    )

    def value(p):
        return -abs(math.log10(p["agent.learning_rate"]) + 2) - (p["model"] != "gru")

    def run():
        trials = {}
        while len(trials) < 40:
            for trial in search.suggest_trials(sweep, trials, 4, seed=0):
                trial.status, trial.value = "done", value(trial.parameters)
                trials[trial.number] = trial
        return trials

    trials = run()
    values = [t.value for t in trials.values()]
    assert statistics.mean(values[20:]) > statistics.mean(values[:10]) + 0.5
    assert max(values) > -0.2
    assert {n: t.parameters for n, t in run().items()} == {n: t.parameters for n, t in trials.items()}
    trials[3].status, trials[3].value = "failed", None
    assert len(search.suggest_trials(sweep, trials, 2, seed=0)) == 2


# --- hyperband


def test_bands():
    assert from_min_iter(3, 3)[:4] == (3, 9, 27, 81)
    assert from_max_iter(27, 2, 3) == (3, 9)
    assert from_max_iter(10, 5, 2) == (1, 2, 5)
    assert from_min_iter(1, 1.5)[:5] == (1, 2, 3, 5, 7)


def test_the_best_third_goes_on():
    hyperband = Hyperband((1,), eta=3)
    values = [0.1, 0.9, 0.5, 0.7, 0.3, 0.8]  # the threshold is the one at rank 6 / 3 = 2: 0.7
    assert [v for v in values if not hyperband.stops(v, values)] == [0.9, 0.7, 0.8]
    assert not hyperband.stops(0.1, [0.1]), "the first to come goes on"
    assert hyperband.stops(0.1, [0.9, 0.1])
    assert not hyperband.stops(0.5, [0.5] * 9), "ties go on"
    assert [v for v in values if not Hyperband((1,), eta=2).stops(v, values)] == [0.9, 0.5, 0.7, 0.8]


# --- the file


def test_a_file_as_wandb_reads_it(monkeypatch):
    monkeypatch.setenv("WIDTH", "16")
    sweep = read(
        """
program: ssmrl
name: my sweep
method: bayes
metric: {name: eval/return_mean, goal: maximize, target: 0.5}
run_cap: 7
early_terminate: {type: hyperband, max_iter: 27, s: 2, strict: false}
parameters:
  preset: {value: demo}
  total_steps: {value: 7}
  agent.learning_rate: {distribution: log_uniform_values, min: '1e-5', max: 1.0e-3}
  agent: {parameters: {gamma: {min: 0.5, max: 0.9}, epochs: {min: 1, max: 4}}}
  agent.entropy_coef: {values: [0.0, 0.1], probabilities: [0.9, 0.1]}
  agent.heads: {values: [[8], [8, 8]]}
command: ["${env}", ssmrl, train, paper/s5_popgym, "model.d_model=${envvar:WIDTH}", "${args_no_hyphens}"]
""",
        {"total_steps": "100"},
    )
    assert (sweep.name, sweep.method, sweep.run_cap) == ("my sweep", "bayes", 7)
    assert (sweep.metric.target, sweep.hyperband) == (0.5, Hyperband((3, 9), 3, False))
    assert [(p.name, p.distribution) for p in sweep.searched] == [
        ("agent.learning_rate", "log_uniform_values"),
        ("agent.gamma", "uniform"),
        ("agent.epochs", "int_uniform"),
        ("agent.entropy_coef", "categorical_w_probabilities"),
        ("agent.heads", "categorical"),
    ]
    assert sweep.searched[0].at(0.5) == pytest.approx(1e-4)
    config = sweep.resolve({"agent.heads": [8, 8], "agent.epochs": 2}, Path("there"))
    assert (config.agent_parameters["heads"], config.agent_parameters["epochs"]) == ((8, 8), 2)
    assert (config.model_parameters["d_model"], config.total_steps, config.run.dir) == (16, 100, "there")
    assert config.env == "popgym/RepeatPreviousEasy", "the preset of the command, then that of the parameters"
    assert config.wandb.mode == "off"
    assert sweep.notes == (
        "parameters.agent.learning_rate.min: YAML reads 1e-5 as text, which wandb refuses: write 1.0e-05",
        "parameters.agent is nested, which wandb passes as one argument: write agent.NAME for wandb",
    )


def test_exponents_that_look_like_values_are_noted():
    sweep = read({"agent.learning_rate": {"distribution": "log_uniform", "min": 1e-5, "max": 1e-3}})
    (note,) = sweep.notes
    assert note.endswith("1e-05 to 0.001: log_uniform takes exponents of e; did you mean log_uniform_values?")


def test_trials_log_to_wandb_if_asked():
    values = {"wandb": {"value": "offline"}, "agent.gamma": {"values": [0.5, 0.9]}}
    assert read(values).resolve({}).wandb.mode == "offline"


WRONG = """
name: a/b
method: gird
metrik: {}
scheduler: {engine: optuna}
metric: {name: eval/return_men, target: high}
early_terminate: {type: hyperband, eta: 1, min_iter: 0, foo: 1}
run_cap: 0
parameters:
  agent.learning_rate: {distribution: log_uniform, min: 0.001, max: 100}
  agent.gamma: {min: 0, max: 1.0}
  agent.clip: 0.3
  agent.entropy_coef: {distribution: log_unifrm, min: 0.1, max: 0.2}
  agent.value_coef: {distribution: uniform, min: 0.1, mu: 3}
  agent.weight_decay: {distribution: log_uniform_values, min: 0.0, max: 1.0}
  agent.epochs: {min: 4, max: 1}
  seeds: {values: []}
  agent.heads: {values: [[64], [32]], probabilities: [0.5]}
  run.dir: {value: x}
command: ["${env}", python, train.py, "${args_no_hypens}"]
"""


def test_all_that_is_wrong_with_a_file_at_once():
    errors = errors_of(WRONG)
    expected = [
        "unknown key 'metrik': did you mean metric?",
        "scheduler: ssmrl sweep has no such thing",
        "method: gird: did you mean grid?",
        "name: 'a/b' names a folder too",
        "run_cap: 0: expected integer >= 1",
        "agent.learning_rate.max: 100: log_uniform takes exponents of e; did you mean log_uniform_values?",
        "agent.gamma: min is an integer and max is not",
        "agent.clip: 0.3: write agent.clip: {value: 0.3}",
        "unknown distribution 'log_unifrm': did you mean log_uniform?",
        "agent.value_coef.mu: uniform takes min, max only",
        "agent.value_coef.max: missing",
        "agent.weight_decay.min: 0.0: the logarithm needs min > 0",
        "agent.epochs: min=4 is not below max=1",
        "seeds.values: []: expected a list",
        "agent.heads.probabilities: [0.5]: expected 2 numbers",
        "command: ${args_no_hypens}: did you mean ${args_no_hyphens}?",
        "command: runs 'python train.py': ssmrl sweep runs ssmrl train only",
        "parameters.run.dir: trials get folders of their own",
        "early_terminate.foo: unknown",
        "early_terminate.eta=1: expected number > 1",
        "early_terminate.min_iter=0: expected integer >= 1",
        "metric.target: high: expected number",
        "metric.goal: wandb minimizes where none is given",
        "metric.name: no run logs 'eval/return_men': did you mean eval/return_mean?",
    ]
    for text in expected:
        assert sum(text in e for e in errors) == 1, (text, errors)
    assert len(errors) == len(expected), errors


def test_all_values_that_no_trial_could_have_at_once():
    errors = errors_of(
        {
            "model": {"values": ["s5", "grv"]},
            "agent.learning_rat": {"values": [1, 2]},
            "agent.learning_rate": {"distribution": "uniform", "min": -1.0, "max": "1e-3"},
            "agent.num_envs": {"values": [64, 63]},
            "agent.gamma": {"distribution": "q_uniform", "min": 0.5, "max": 1.5, "q": 0.25},
            "agent.clip": {"value": "0,2"},
        }
    )
    expected = [
        "unknown model 'grv': did you mean gru?",
        "unknown key 'agent.learning_rat': did you mean agent.learning_rate",
        "agent.learning_rate=-1.0: expected number >= 0",
        "agent.num_envs=63, agent.num_minibatches=4: minibatches split environments",
        "agent.gamma=1.5: expected number >= 0 and <= 1",
        "agent.clip=0,2: expected number > 0",
    ]
    for text in expected:
        assert sum(text in e for e in errors) == 1, (text, errors)
    assert len(errors) == len(expected), errors


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("method: grid\nparameters: {}", {}, "'sweep.yaml' is no sweep file: it needs method: and parameters:"),
        ("method: [", {}, "sweep file 'sweep.yaml' cannot be read: while parsing"),
        (
            "method: grid\nparameters: {agent.gamma: {min: 0.0, max: 1.0}}",
            {},
            "agent.gamma: a grid cannot list uniform: give values:, q_uniform or int_uniform, or use method: random",
        ),
        (
            "method: random\nparameters: {agent.gamma: {min: 0.0, max: 1.0}}",
            {},
            "method: random never ends: give --count=20, or run_cap: 20 in the file",
        ),
        (
            "method: grid\nearly_terminate: {type: hyperband, min_iter: 1}\nparameters: {agent.gamma: {values: [0.1]}}",
            {},
            "early_terminate needs evaluations during training: add eval.every: {value: 1}",
        ),
        (
            "method: grid\nparameters: {agent.gamma: {values: [0.1, 0.2]}}",
            {"agent.gamma": "0.3"},
            "agent.gamma=0.3: the sweep file searches it: remove it here or there",
        ),
        (
            "method: grid\nparameters: {agent.gamma: {values: [0.1]}}\ncommand: [ssmrl, train]",
            {},
            "command: no parameter reaches it: add ${args_no_hyphens}",
        ),
        (
            "method: grid\nparameters: {agent.gamma: {values: [0.1]}}\ncommand: [ssmrl, train, '${args_json}']",
            {},
            "(wandb drops what it does not know, silently)",
        ),
    ],
)
def test_error(content, overrides, message):
    errors = errors_of(content, overrides)
    assert any(message in e for e in errors), errors
    assert len(errors) == 1


def test_bayes_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    errors = errors_of("method: bayes\nrun_cap: 2\nparameters: {agent.gamma: {min: 0.0, max: 1.0}}")
    assert errors == ["method: bayes searches with Optuna, which is not installed: pip install 'ssmrl[sweep]'"]


def test_an_unknown_file_suggests_a_built_in_one():
    with pytest.raises(ConfigError, match=r"no sweep file 'model': did you mean models\?"):
        spec.read_sweep("model", {})


# --- the ledger


def test_the_ledger_continues_after_a_torn_line():
    folder, header = Path("runs/lr"), {"method": "grid", "seed": 0, "parameters": [{"values": (1, 2)}]}
    ledger = Ledger(folder, header)
    ledger.draw(Trial(0, {"x": 1}, {"x": 0.5}))
    ledger.record({"trial": 0, "band": 3, "value": 0.25})
    ledger.record({"trial": 0, "status": "done", "value": 0.75, "reason": ""})
    ledger.draw(Trial(1, {"x": 2}))
    ledger.close()
    whole = ledger.path.read_text()
    ledger.path.write_text(whole + '{"trial": 1, "stat')
    ledger = Ledger(folder, header)
    assert ledger.trials == {
        0: Trial(0, {"x": 1}, {"x": 0.5}, "done", 0.75, "", {3: 0.25}),
        1: Trial(1, {"x": 2}),
    }
    assert (ledger.trials[0].ended, ledger.trials[1].ended) == (True, False)
    ledger.record({"trial": 1, "status": "failed", "value": None, "reason": "why"})
    with pytest.raises(UserError, match="is in use by another ssmrl sweep"):
        Ledger(folder, header)
    ledger.close()
    lines = ledger.path.read_text()
    assert lines.startswith(whole)
    assert json.loads(lines.splitlines()[-1])["reason"] == "why"


def test_a_ledger_of_another_sweep_is_refused():
    Ledger(Path("lr"), {"method": "grid", "seed": 0}).close()
    with pytest.raises(UserError, match="lr holds another sweep: its seed differs from what you ask for"):
        Ledger(Path("lr"), {"method": "grid", "seed": 1})
    with pytest.raises(UserError, match="its method and seed differ from"):
        Ledger(Path("lr"), {"method": "random", "seed": 1})
    Path("lr/0000").mkdir()
    Path("lr/ledger.jsonl").unlink()
    with pytest.raises(UserError, match="lr holds 0000 but no ledger: move it away"):
        Ledger(Path("lr"), {"method": "grid", "seed": 0})
    Path("lr/ledger.jsonl").write_text('{"method": "grid", "seed": 0}\n{torn\n{"trial": 0}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl:2: damaged line; delete it"):
        Ledger(Path("lr"), {"method": "grid", "seed": 0})
    Path("file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to file/x: .*; set --root"):
        Ledger(Path("file/x"), {})


def test_reading_a_sweep_does_not_import_jax():
    """In a process of its own."""
    code = "from ssmrl.sweep import search, spec; spec.read_sweep('models', {}); sys.exit('jax' in sys.modules)"
    code = f"import sys; {code}"
    subprocess.run([sys.executable, "-c", code], check=True)
