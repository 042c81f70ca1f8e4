"""Continual Dreamer: learn one task after another, without replay of the earlier ones, and measure what is forgotten.

Learns as :mod:`ssmrl.agents.dreamer` does. A task is the environment's ``EnvParams``; each has an equal share of the
updates. At a change of tasks the replay is emptied, the environments start anew, and so do Adam's moments and the
schedules. The model is told the number of the task: heads of the dynamics, actor and critic are made from it, by
:mod:`ssmrl.continual`. What is left is shared, and by default learned from the first task alone.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from ssmrl import continual, frames
from ssmrl.agents.dreamer import Dreamer, Learner, State
from ssmrl.envs.trials import Trials
from ssmrl.policy import Policy
from ssmrl.registry import agents, hp
from ssmrl.world_learner import Metrics

_LATE = 0.9  # what a task was worth is measured after this share of its updates


class ContinualLearner(Learner):
    """What a gradient step changes; ``params`` are those of the task that is being learned."""

    task: jax.Array  # int32
    source: Any  # what parameters of world, actor and critic are made of, see ssmrl.continual
    start: Any  # as their parts were initialised
    before: Any  # source when the task began
    late: jax.Array  # [2, K]: sum of returns, and number, of the episodes late in each task's learning


@agents.register("continual_dreamer")
class ContinualDreamer(Dreamer):
    """Dreamer that learns a sequence of tasks, with parameters for each task that it makes from the task's number."""

    tasks: int = hp(3, "tasks, each learned for an equal share of total_steps; the environment's own comes last", ge=1)
    adapter: Literal["none", "heads", "hyper"] = hp(
        "hyper", "parameters of a task: those of all, a set of its own, or what a hypernetwork makes"
    )
    parts: tuple[
        Literal[
            "encoder",
            "posterior_head",
            "input",
            "memory",
            "norm",
            "prior_head",
            "decoder",
            "reward_head",
            "continue_head",
        ],
        ...,
    ] = hp(("prior_head", "reward_head", "continue_head"), "parts of the world model that the task has a say in")
    features: int = hp(32, "width of the hypernetwork", ge=1)
    drift_weight: float = hp(0.1, "weight of how far a hypernetwork strays from what it made for earlier tasks", ge=0.0)
    shared_rate: float = hp(0.0, "step size of shared parts after the first task, relative to that in it", ge=0.0)

    learned: ClassVar[tuple[str, ...]] = ()  # of the last task alone
    requires: ClassVar[dict[str, str]] = {
        "normalize_obs == False": "statistics of the observations would change under the earlier tasks",
        "weight_decay == 0.0": "parameters of the earlier tasks would decay",
    }

    @property
    def task_params(self) -> Any:
        """``EnvParams`` of the tasks, ``[K, ...]``: the same ones in every run, and at last the environment's own."""
        keys = jax.random.split(jax.random.key(0), self.tasks)
        drawn = self.env.sample_tasks(keys, self.env_params)
        return jax.tree.map(lambda x, own: x.at[-1].set(own), drawn, self.env_params)

    @property
    def updates_per_task(self) -> jax.Array:
        """How many updates a task is learned for, float32."""
        return jnp.maximum(jnp.ceil(jnp.float32(self.total_updates) / self.tasks), 1.0)

    def init(self, key: jax.Array) -> State:
        """Initialise; ``key`` is consumed. Raises ``ValueError`` if there is no sequence of tasks to measure."""
        self._check_tasks()
        key, key_source = jax.random.split(key)
        state = super().init(key)
        made, groups = {}, _grouped(state.learner.params)
        keys = jax.random.split(key_source, len(groups))
        for (name, group), key_group in zip(groups.items(), keys, strict=True):
            parts = () if self.adapter == "none" else self.parts if name == "world" else (name,)
            width = self.features if self.adapter == "hyper" else 0
            made[name] = continual.create(group, parts, self.tasks, width, key_group)
        source, start = ({k: v[i] for k, v in made.items()} for i in range(2))
        learner = ContinualLearner(
            **{**vars(state.learner), "opt_state": {k: self.adam().init(v) for k, v in source.items()}},
            task=jnp.int32(0),
            source=source,
            start=start,
            before=source,
            late=jnp.zeros((2, self.tasks)),
        )
        return self._begin_task(state.replace(learner=learner), jnp.int32(0))

    def policy(self, state: State) -> Policy:
        """The policy as it stands for the last task, which is the environment's own."""
        return self._policy_of(state.learner, jnp.int32(self.tasks - 1))

    def update(self, state: State) -> tuple[State, Metrics]:
        """See :class:`Dreamer`. The metric ``drift`` is :func:`ssmrl.continual.drift`, since the task began."""
        task, position = jnp.divmod(state.updates, self.updates_per_task)
        task = jnp.minimum(task, self.tasks - 1).astype(jnp.int32)
        learner: Any = state.learner
        state = lax.cond(task != learner.task, self._begin_task, lambda state, _: state, state, task)
        state, metrics = super().update(state)
        learner = state.learner
        counted = (position >= jnp.floor(_LATE * self.updates_per_task)) & (metrics["episodes"] > 0)
        ended = jnp.stack([metrics["return_mean"] * metrics["episodes"], metrics["episodes"]])
        late = learner.late.at[:, task].add(jnp.where(counted, ended, 0.0))
        metrics["drift"] = sum(
            (continual.drift(v, learner.before[k], task) for k, v in learner.source.items()), start=jnp.float32(0)
        )
        metrics["task"] = task.astype(jnp.float32)
        return state.replace(learner=learner.replace(late=late)), metrics

    def evaluate(self, state: State, key: jax.Array, episodes: int) -> Metrics:
        """Act in every task with its parameters, for ``episodes`` episodes each; ``key`` is consumed.

        Returns ``return/task_<k>``; ``return_mean``, of all tasks, so that what is yet to be learned counts too; and
        ``forgetting``, the mean over earlier tasks of the return late in their learning minus that of now, 0 before
        there are any.
        """
        learner: Any = state.learner
        length = self.env.longest_episode(self.env_params)

        def measure(xs: tuple) -> jax.Array:
            number, env_params, key = xs
            key_open, key_record = jax.random.split(key)
            policy = self._policy_of(learner, number)
            stream = frames.open_stream(self.env, env_params, episodes, key_open, policy)
            found = frames.record(self.env, env_params, stream, length + 1, key_record, policy)[1]
            first = jnp.cumsum(found.reset, 0) == 1
            return (found.reward * first).sum(0).mean()

        numbers = jnp.arange(self.tasks)
        returns = lax.map(measure, (numbers, self.task_params, jax.random.split(key, self.tasks)))
        earlier = (numbers < learner.task) & (learner.late[1] > 0)
        lost = learner.late[0] / jnp.maximum(learner.late[1], 1) - returns
        return {
            "return_mean": returns.mean(),
            "forgetting": (lost * earlier).sum() / jnp.maximum(earlier.sum(), 1),
            **{f"return/task_{k}": returns[k] for k in range(self.tasks)},
        }

    def rate(self, base: Any, steps: jax.Array, updates: jax.Array) -> jax.Array:
        """The learning rate: its schedule runs anew with each task."""
        whole = self.updates_per_task
        return super(ContinualDreamer, self.replace(total_updates=whole)).rate(base, steps, updates % whole)

    def _check_tasks(self) -> None:
        name = self.env.name
        if self.env.longest_episode(self.env_params) is None:
            raise ValueError(f"tasks are measured by whole episodes: {name} has no time limit; use env.max_steps=1000")
        if isinstance(self.env, Trials):
            raise ValueError(
                "trials draw tasks of their own, a sequence of tasks has plain episodes: got trials of "
                f"{name}; use env.trial_episodes=0"
            )
        with jax.ensure_compile_time_eval():
            drawn = self.replace(env_params=self.env.default_params).task_params
            same = [bool((x == x[:1]).all()) for x in jax.tree.leaves(drawn)]
        if self.tasks > 1 and all(same):
            raise ValueError(f"a sequence needs tasks that differ: {name} has but one; use one of ssmrl list envs meta")

    def _environment(self, state: State) -> Any:
        learner: Any = state.learner
        return jax.tree.map(lambda x: x[learner.task], self.task_params)

    def _acting(self, state: State) -> Policy:
        return super().policy(state)

    def _policy_of(self, learner: Any, task: jax.Array) -> Policy:
        return Policy(self._generate(learner, task), None, self.reward_scale, self.network)

    def _generate(self, learner: Any, task: jax.Array) -> Any:
        groups = {k: continual.generate(learner.source[k], learner.start[k], task) for k in learner.source}
        return {k: v if k == "world" else v[k] for k, v in groups.items()}

    def _begin_task(self, state: State, task: jax.Array) -> State:
        """Go over to a task: nothing is left of the one before but what was learned."""
        learner: Any = state.learner.replace(task=task)
        params, ring = self._generate(learner, task), learner.replay
        learner = learner.replace(
            params=params,
            slow_critic=params["critic"],
            opt_state={k: self.adam().init(v) for k, v in learner.source.items()},
            returns=jnp.zeros(2),
            horizon=jnp.float32(self.horizon),
            replay=ring.replace(priority=jnp.full_like(ring.priority, jnp.inf), head=jnp.int32(0), size=jnp.int32(0)),
            steps=jnp.int32(0),  # learning rates rise anew
            before=learner.source,
        )
        key, key_stream = jax.random.split(state.key)
        state = state.replace(learner=learner, key=key, episode=jnp.zeros_like(state.episode))
        stream = frames.open_stream(self.env, self._environment(state), self.num_envs, key_stream, self._acting(state))
        return state.replace(stream=stream)

    def _move(self, learner: Any, gradients: Any, rates: dict[str, jax.Array]) -> Any:
        """Move what the parameters of the task are made of, against the gradients of these."""
        sources, opt_state = dict(learner.source), dict(learner.opt_state)
        pace = jnp.where((learner.task == 0) | (self.adapter == "none"), 1.0, self.shared_rate)
        for k, gradient in _grouped(gradients).items():
            source, start, before = sources[k], learner.start[k], learner.before[k]
            _, pull = jax.vjp(lambda s, start=start: continual.generate(s, start, learner.task), source)
            back = jax.grad(continual.drift)(source, before, learner.task)
            total = jax.tree.map(lambda x, y: x + self.drift_weight * y, pull(gradient)[0], back)
            moved, opt_state[k] = self.step(source, total, learner.opt_state[k], rates[k])
            shared = jax.tree.map(lambda new, old: old + pace * (new - old), moved["shared"], source["shared"])
            sources[k] = {**moved, "shared": shared}
        learner = learner.replace(source=sources, opt_state=opt_state)
        return learner.replace(params=self._generate(learner, learner.task))


def _grouped(params: Any) -> dict[str, dict[str, Any]]:
    """World, actor and critic as dicts of parts; the last two have but one."""
    return {k: v if k == "world" else {k: v} for k, v in params.items()}
