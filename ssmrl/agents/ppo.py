"""Recurrent PPO: proximal policy optimisation over whole sequences (Schulman et al. 2017).

One ``update``: unroll ``num_steps`` steps in ``num_envs`` environments from where the last update stopped; estimate
advantages; then ``epochs`` passes over minibatches of *environments*, each a parallel pass over ``[T, b]`` from the
carry that the rollout started with, resets inside. Time is never shuffled, so the first ratio of each update is exactly
1 up to rounding; the metric ``ratio_error`` shows it.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from ssmrl import datasets, optimizer, spaces
from ssmrl.imitation import imitation_loss
from ssmrl.nn.actor_critic import ActorCritic
from ssmrl.nn.base import Carry, SequenceModel
from ssmrl.policy import Policy, PolicyCarry, RunningStats
from ssmrl.registry import agents, hp
from ssmrl.returns import gae
from ssmrl.rollout import EnvBatch, Transition, reset_batch, returns_by_episode, unroll

Metrics = dict[str, jax.Array]


class State(struct.PyTreeNode):
    """Everything that changes; saving it saves the run."""

    params: Any
    opt_state: optax.OptState
    obs_stats: RunningStats | None
    value_stats: RunningStats | None
    env: EnvBatch
    carry: PolicyCarry
    key: jax.Array
    updates: jax.Array  # int32


class Batch(struct.PyTreeNode):
    """What the loss reads: transitions ``[T, b, ...]``, advantages and value targets ``[T, b]``, carry ``[b, ...]``."""

    transitions: Transition
    advantage: jax.Array
    target: jax.Array
    memory: Carry


@agents.register("ppo")
class PPO(struct.PyTreeNode):
    """Recurrent proximal policy optimisation.

    Float hyper-parameters are pytree leaves: ``vmap`` over them, and over seeds, trains a population.
    """

    env: Any = struct.field(pytree_node=False)
    env_params: Any
    model: SequenceModel = struct.field(pytree_node=False)
    # floats, so that populations can differ in them
    learning_rate: float = hp(5e-4, "Adam's step size", ge=0.0)
    ssm_learning_rate_scale: float = hp(1.0, "step size of state-space parameters relative to the others", ge=0.0)
    weight_decay: float = hp(0.0, "decoupled weight decay, not for state-space parameters, biases and norms", ge=0.0)
    max_grad_norm: float = hp(0.5, "clip gradients to this global norm", gt=0.0)
    adam_epsilon: float = hp(1e-5, "Adam's epsilon", gt=0.0)
    gamma: float = hp(0.99, "discount", ge=0.0, le=1.0)
    gae_lambda: float = hp(0.95, "lambda of the advantage estimates", ge=0.0, le=1.0)
    clip: float = hp(0.2, "clip the probability ratio to 1 +- this", gt=0.0)
    value_clip: float = hp(0.0, "clip the change of the value to +- this (0: not at all)", ge=0.0)
    entropy_coef: float = hp(0.0, "weight of the entropy bonus")
    value_coef: float = hp(0.5, "weight of the value loss", ge=0.0)
    reward_scale: float = hp(1.0, "rewards are multiplied by this, for learning and as input; returns are reported raw")
    demo_weight: float = hp(0.1, "weight of the imitation of demos, if there are some", ge=0.0)
    anneal_to: float = hp(0.0, "final learning rate relative to the first, for anneal other than none", ge=0.0)
    # rollout and optimisation
    num_envs: int = hp(64, "environments stepped in parallel", ge=1)
    num_steps: int = hp(128, "steps per environment and update", ge=1)
    epochs: int = hp(4, "passes over each rollout", ge=1)
    num_minibatches: int = hp(4, "minibatches per pass; they split the environments", ge=1)
    anneal: Literal["none", "linear", "cosine"] = hp("none", "learning-rate schedule over total_steps")
    normalize_advantage: bool = hp(True, "normalise advantages per minibatch")
    normalize_value: bool = hp(False, "learn values in units of the running deviation of the returns")
    normalize_obs: bool = hp(False, "normalise Box observations by running mean and deviation")
    truncation: Literal["bootstrap", "terminate"] = hp(
        "bootstrap",
        "at a time limit, value the final observation, or treat it as a terminal state (as older code does)",
    )
    demos: str = hp("none", "file of ssmrl record whose actions are imitated beside what is learned (none: no file)")
    demo_sequences: int = hp(16, "sequences of demos per minibatch", ge=1)
    # network
    inputs: tuple[Literal["obs", "action", "reward", "start"], ...] = hp(
        ("obs", "action", "reward", "start"), "what the policy reads"
    )
    encoder: tuple[int, ...] = hp((), "widths of hidden layers before the memory")
    heads: tuple[int, ...] = hp((64,), "widths of hidden layers of the actor's and the critic's head")
    activation: Literal["relu", "tanh", "gelu", "silu"] = hp("relu", "activation of encoder and heads")
    shared: bool = hp(True, "actor and critic share encoder and memory")
    total_updates: float = struct.field(default=0.0)  # the schedule's length, set by the trainer from total_steps

    learned: ClassVar[tuple[str, ...]] = ("params", "obs_stats", "value_stats")
    requires: ClassVar[dict[str, str]] = {
        "num_envs % num_minibatches == 0": "minibatches split environments, never time",
        "inputs != ()": "a policy reads something",
    }

    @property
    def steps_per_update(self) -> int:
        """Environment steps that one update takes."""
        return self.num_envs * self.num_steps

    @property
    def network(self) -> ActorCritic:
        """The actor-critic module."""
        return ActorCritic(
            observation_space=self.env.observation_space(self.env_params),
            action_space=self.env.action_space(self.env_params),
            memory=self.model,
            inputs=self.inputs,
            encoder=self.encoder,
            heads=self.heads,
            activation=self.activation,
            shared=self.shared,
        )

    def init(self, key: jax.Array) -> State:
        """Initialise parameters, environments and memory; ``key`` is consumed."""
        key, key_env, key_params = jax.random.split(key, 3)
        env = reset_batch(self.env, self.env_params, self.num_envs, key_env)
        obs_space = self.env.observation_space(self.env_params)
        normalizes = self.normalize_obs and isinstance(obs_space, spaces.Box)
        network = self.network
        carry = PolicyCarry(
            network.initialize_carry((self.num_envs,)), spaces.zeros(network.action_space, (self.num_envs,))
        )
        inputs = jax.tree.map(lambda x: x[None, :1], (env.obs, env.reset, carry.action, env.reward))
        one = jax.tree.map(lambda x: x[:1], carry.memory)
        params = network.init(key_params, one, *inputs)["params"]
        return State(
            params=params,
            opt_state=self._adam().init(params),
            obs_stats=RunningStats.create(obs_space.shape) if normalizes else None,
            value_stats=RunningStats.create() if self.normalize_value else None,
            env=env,
            carry=carry,
            key=key,
            updates=jnp.int32(0),
        )

    def policy(self, state: State) -> Policy:
        """The policy as it stands."""
        return Policy(state.params, state.obs_stats, self.reward_scale, self.network)

    def update(self, state: State) -> tuple[State, Metrics]:
        """Collect one rollout and learn from it. Returns the new state and scalar metrics.

        ``return_mean`` and ``length_mean`` are over the ``episodes`` that ended in this rollout (NaN if none did).
        """
        key, key_rollout, key_shuffle = jax.random.split(state.key, 3)
        policy = self.policy(state)
        carry, env, transitions = unroll(
            self.env,
            self.env_params,
            policy,
            state.carry,
            state.env,
            self.num_steps,
            key_rollout,
            bootstrap=self.truncation == "bootstrap",
        )
        last_value = policy.step(carry, env.obs, env.reset, env.reward)[2]
        batch, value_stats = self._advantages(state, transitions, last_value)
        state, losses = self._optimize(state, policy, batch, key_shuffle)

        obs_stats = state.obs_stats
        if obs_stats is not None:
            obs_stats = obs_stats.update(jnp.asarray(transitions.obs, jnp.float32))
        ended = transitions.outcome.terminated | transitions.outcome.truncated
        episodes = ended.sum()
        metrics = {
            **losses,
            "return_mean": (transitions.outcome.episode_return * ended).sum() / episodes,
            "length_mean": (transitions.outcome.episode_length * ended).sum() / episodes,
            "episodes": episodes.astype(jnp.float32),
        }
        if transitions.outcome.trial is not None:
            metrics |= returns_by_episode(transitions.outcome.trial, self.env.episodes or 10)
        state = state.replace(
            obs_stats=obs_stats, value_stats=value_stats, env=env, carry=carry, key=key, updates=state.updates + 1
        )
        return state, metrics

    def _advantages(
        self, state: State, transitions: Transition, last_value: jax.Array
    ) -> tuple[Batch, RunningStats | None]:
        """Advantages and value targets, in units in which the network predicts values."""
        mean, std = jnp.float32(0), jnp.float32(1)
        if state.value_stats is not None:
            mean, std = state.value_stats.mean, jnp.sqrt(state.value_stats.var + 1e-8)
        outcome = transitions.outcome
        value = transitions.value * std + mean
        next_value = jnp.concatenate([value[1:], (last_value * std + mean)[None]])
        next_value = jnp.where(outcome.truncated, transitions.final_value * std + mean, next_value)
        terminated = outcome.terminated
        if self.truncation == "terminate":
            terminated = terminated | outcome.truncated
        reward = outcome.reward * self.reward_scale
        advantage = gae(reward, value, next_value, terminated, outcome.truncated, self.gamma, self.gae_lambda)
        target = advantage + value
        stats = None if state.value_stats is None else state.value_stats.update(target)
        return Batch(transitions, advantage / std, (target - mean) / std, state.carry.memory), stats

    def extra_loss(self, policy: Policy, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """A loss on top of PPO's, and its metrics; ``key`` is consumed. A subclass may add its own.

        This one imitates demonstrations, as a divergence of theirs from the policy.
        """
        if self.demos == "none":
            return jnp.float32(0), {}
        data = datasets.load_for(self.demos, self.env, self.env_params, "agent.demos")
        loss = imitation_loss(policy, data.draw(self.env, self.env_params, self.demo_sequences, key))
        return self.demo_weight * loss, {"imitation_loss": loss}

    def input_files(self) -> dict[str, str]:
        """What a result depends on besides configuration and code: the hash of the demonstrations, if there are."""
        return {} if self.demos == "none" else {"demos_sha256": datasets.load(self.demos).sha256}

    def _optimize(self, state: State, policy: Policy, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        """Run all epochs of minibatches as one scan over the rows of a table of environment indices."""
        keys = jax.random.split(key, self.epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, self.num_envs))(keys)
        rows = order.reshape(self.epochs * self.num_minibatches, -1)
        keys_extra = jax.random.split(jax.random.fold_in(key, 1), rows.shape[0])

        def step(carry: tuple[Any, Any], xs: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, Any], Metrics]:
            (params, opt_state), (row, key_extra) = carry, xs
            transitions, advantage, target = jax.tree.map(
                lambda x: jnp.take(x, row, axis=1), (batch.transitions, batch.advantage, batch.target)
            )
            memory = jax.tree.map(lambda x: jnp.take(x, row, axis=0), batch.memory)
            part = Batch(transitions, advantage, target, memory)

            def total(params: Any) -> tuple[jax.Array, Metrics]:
                loss, metrics = self._loss(params, policy, part)
                extra, more = self.extra_loss(policy.replace(params=params), key_extra)
                return loss + extra, {**metrics, **more, "loss": loss + extra}

            gradient, metrics = jax.grad(total, has_aux=True)(params)
            params, opt_state, norm = self._apply_gradient(params, opt_state, gradient, state.updates)
            return (params, opt_state), {**metrics, "grad_norm": norm}

        (params, opt_state), metrics = lax.scan(step, (state.params, state.opt_state), (rows, keys_extra))
        ratio_error = metrics.pop("ratio_error")[0]
        metrics = {name: value.mean() for name, value in metrics.items()}
        metrics["ratio_error"] = ratio_error
        metrics["learning_rate"] = self._learning_rate(state.updates)
        metrics["value_mean"] = batch.transitions.value.mean()
        metrics["explained_variance"] = 1 - (batch.target - batch.transitions.value).var() / (batch.target.var() + 1e-8)
        return state.replace(params=params, opt_state=opt_state), metrics

    def _loss(self, params: Any, policy: Policy, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Clipped surrogate, squared value error and entropy (Schulman et al. 2017, equation 9)."""
        t = batch.transitions
        _, dist, value = policy.replace(params=params).sequence(
            batch.memory, t.obs, t.reset, t.prev_action, t.prev_reward
        )
        log_ratio = dist.log_prob(t.raw_action) - t.log_prob
        ratio = jnp.exp(log_ratio)
        advantage = batch.advantage
        if self.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - self.clip, 1 + self.clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        error = (value - batch.target) ** 2
        moved = t.value + jnp.clip(value - t.value, -self.value_clip, self.value_clip)
        error = jnp.where(self.value_clip > 0, jnp.maximum(error, (moved - batch.target) ** 2), error)
        value_loss = 0.5 * error.mean()
        entropy = dist.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),
            "clip_fraction": (jnp.abs(ratio - 1) > self.clip).mean(),
            "ratio_error": jnp.abs(ratio - 1).max(),
        }

    def _adam(self) -> optax.GradientTransformation:
        return optimizer.adam(self.max_grad_norm, self.adam_epsilon)

    def _learning_rate(self, updates: jax.Array) -> jax.Array:
        return optimizer.annealed(self.anneal, self.learning_rate, self.anneal_to, updates, self.total_updates)

    def _apply_gradient(
        self, params: Any, opt_state: Any, gradient: Any, updates: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        """One Adam step, with a step size of their own and no decay for the memory's state-space parameters."""
        norm = optax.tree.norm(gradient)
        direction, opt_state = self._adam().update(gradient, opt_state, params)
        ssm, rate = optimizer.ssm_parameters(self.model), self._learning_rate(updates)
        params = optimizer.move(params, direction, rate, self.ssm_learning_rate_scale, self.weight_decay, ssm)
        return params, opt_state, norm
