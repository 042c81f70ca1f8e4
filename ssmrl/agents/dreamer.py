"""Dreamer: learn a world model from replay, and an actor and a critic in what it imagines.

The actor-critic is DreamerV3's (Hafner et al. 2023), around S4WM, with inputs as in R2I (Samsami et al. 2024). One
``update``: act for ``num_steps`` steps in ``num_envs`` environments and write the frames into a ring on the device;
then ``gradient_steps`` times: replay sequences from the states stored with them, learn the model, imagine ``horizon``
steps from states of these sequences, and learn from that. Frames are those of :mod:`ssmrl.frames`: the action is the
one that led to the observation, terminal observations are there, and the reward belongs to the frame that it came with.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from ssmrl import frames, replay, spaces
from ssmrl.envs.trials import Trials
from ssmrl.frames import Frames, Stream
from ssmrl.nn import observations
from ssmrl.policy import Policy, RunningStats
from ssmrl.registry import agents, hp
from ssmrl.replay import Replay
from ssmrl.returns import lambda_returns
from ssmrl.world_learner import Metrics, WorldLearner
from ssmrl.world_model import Latents, WorldState
from ssmrl.world_policy import Dream, WorldActorCritic


class Learner(struct.PyTreeNode):
    """What a gradient step changes."""

    params: Any  # world, actor, critic
    slow_critic: Any
    opt_state: dict[str, optax.OptState]
    returns: jax.Array  # [2]: running 5th and 95th percentile of imagined returns
    horizon: jax.Array  # float32: steps that imagination is trusted for
    replay: Replay
    steps: jax.Array  # int32: gradient steps made


class State(struct.PyTreeNode):
    """Everything that changes; saving it saves the run, its replay too."""

    learner: Learner
    obs_stats: RunningStats | None
    stream: Stream
    episode: jax.Array  # [2, N]: return and length of the running episodes
    key: jax.Array
    updates: jax.Array  # int32

    @property
    def params(self) -> Any:
        """Of world model, actor and critic."""
        return self.learner.params


@agents.register("dreamer")
class Dreamer(WorldLearner):
    """Actor and critic trained in the imagination of a world model (DreamerV3 around S4WM, with R2I's inputs)."""

    gamma: float = hp(0.99, "discount", ge=0.0, le=1.0)
    return_lambda: float = hp(0.95, "lambda of the returns in imagination", ge=0.0, le=1.0)
    actor_learning_rate: float = hp(3e-4, "Adam's step size, of the actor", ge=0.0)
    critic_learning_rate: float = hp(3e-4, "Adam's step size, of the critic", ge=0.0)
    entropy_coef: float = hp(3e-4, "weight of the actor's entropy, in units of the spread of returns", ge=0.0)
    reward_scale: float = hp(1.0, "rewards are multiplied by this, for learning; returns are reported raw")
    return_floor: float = hp(1.0, "returns are not divided by less than this", gt=0.0)
    return_rate: float = hp(0.01, "how fast the spread of returns is followed", ge=0.0, le=1.0)
    slow_rate: float = hp(0.02, "how fast the slow critic follows the critic", ge=0.0, le=1.0)
    slow_weight: float = hp(1.0, "weight of the critic's distance from the slow one", ge=0.0)
    actor_unimix: float = hp(0.01, "share of the uniform distribution in discrete actions", ge=0.0, lt=1.0)
    priority: float = hp(0.0, "replay sequences by their model error to the power of this (0: all alike)", ge=0.0)
    horizon_error: float = hp(1.0, "imagination is trusted while its open-loop loss is within so many nats", ge=0.0)
    horizon_rate: float = hp(0.1, "how fast the trusted horizon is followed", ge=0.0, le=1.0)
    # data
    num_envs: int = hp(16, "environments stepped in parallel", ge=1)
    num_steps: int = hp(16, "steps per environment and update; a block of the replay", ge=1)
    replay_size: int = hp(100_000, "frames that the replay holds", ge=1)
    replay_ratio: int = hp(64, "times that a frame is replayed", ge=1)
    prefill: int = hp(1000, "frames before the first gradient step", ge=0)
    batch_size: int = hp(16, "sequences per gradient step", ge=1)
    batch_length: int = hp(64, "frames per sequence, some blocks", ge=1)
    state_init: Literal["stored", "zero", "burn_in"] = hp(
        "stored", "state that a sequence is replayed from; burn_in: zero, and the first block is only for warming up"
    )
    normalize_obs: bool = hp(False, "normalise Box observations by running mean and deviation")
    held_out: int = hp(
        0, "environments that are not learned from, but show how far imagination is to be trusted (0: always)", ge=0
    )
    # imagination
    horizon: int = hp(15, "steps imagined, at most", ge=1)
    dream_every: int = hp(8, "frames of a sequence between those that imagination starts from", ge=1)
    inputs: tuple[Literal["z", "h", "x"], ...] = hp(
        ("z", "h", "x"), "what actor and critic read: latent, memory, its carry"
    )
    heads: tuple[int, ...] = hp((128,), "widths of the hidden layers of actor and critic")
    actor_gradient: Literal["reinforce", "dynamics"] = hp(
        "reinforce", "gradient of the actor: by log-probabilities, or through the model"
    )

    learned: ClassVar[tuple[str, ...]] = ("learner/params", "learner/slow_critic", "obs_stats")
    requires: ClassVar[dict[str, str]] = {
        "batch_length % num_steps == 0": "a replayed sequence is made of blocks",
        "num_steps % dream_every == 0": "imagination starts at the same frames of every block",
        "replay_ratio * (num_envs - held_out) * num_steps % (batch_size * batch_length) == 0": (
            "gradient steps are whole"
        ),
        "replay_size >= num_envs * batch_length": "the replay holds a sequence of every environment",
        "state_init != 'burn_in' or batch_length > num_steps": "something is left to learn from after the first block",
        "inputs != ()": "a policy reads something",
        "held_out < num_envs": "something is left to learn from",
        "held_out == 0 or horizon + num_steps <= batch_length": "imagination is compared with what follows a block",
    }

    @property
    def steps_per_update(self) -> int:
        """Frames that one update collects."""
        return self.num_envs * self.num_steps

    @property
    def gradient_steps(self) -> int:
        """Gradient steps that one update makes."""
        replayed = self.steps_per_update - self.held_out * self.num_steps
        return self.replay_ratio * replayed // (self.batch_size * self.batch_length)

    @property
    def network(self) -> WorldActorCritic:
        """World model, actor and critic."""
        return WorldActorCritic(self.world_model, self.inputs, self.heads, self.actor_unimix, self.bins)

    def init(self, key: jax.Array) -> State:
        """Initialise parameters, environments and an empty replay; ``key`` is consumed.

        Raises ``ValueError`` for settings with which nothing could be learned.
        """
        self._check_learnable()
        key, key_stream, key_params = jax.random.split(key, 3)
        obs_space = self.env.observation_space(self.env_params)
        normalizes = self.normalize_obs and isinstance(obs_space, spaces.Box) and not spaces.is_image(obs_space)
        obs_stats = RunningStats.create(obs_space.shape) if normalizes else None
        network = self.network
        carry = network.initialize_carry((self.num_envs,))
        # the policy's carry is all that opening a stream needs of it
        policy = Policy({}, obs_stats, jnp.float32(1), network)
        stream = frames.open_stream(self.env, self.env_params, self.num_envs, key_stream, policy)
        one = jax.tree.map(lambda x: x[None, :1], stream.frame)
        inputs = one.obs, one.reset, one.action, one.reward
        params = network.init(key_params, jax.tree.map(lambda x: x[:1], carry), *inputs)["params"]
        ring = replay.create(
            stream.frame,
            carry,
            self.replay_size // self.steps_per_update,
            self.num_steps,
            (obs_space, self.env.action_space(self.env_params)),
        )
        learner = Learner(
            params=params,
            slow_critic=params["critic"],
            opt_state={k: self.adam().init(params[k]) for k in params},
            returns=jnp.zeros(2),
            horizon=jnp.float32(self.horizon),
            replay=ring,
            steps=jnp.int32(0),
        )
        return State(learner, obs_stats, stream, jnp.zeros((2, self.num_envs)), key, jnp.int32(0))

    def policy(self, state: State) -> Policy:
        """The policy as it stands."""
        return Policy(state.params, state.obs_stats, self.reward_scale, self.network)

    def update(self, state: State) -> tuple[State, Metrics]:
        """Collect frames and learn from replayed ones. Returns the new state and scalar metrics.

        ``return_mean`` and ``length_mean`` are over the ``episodes`` that ended (NaN if none did). Before ``prefill``
        frames are collected nothing is learned, and losses are 0.
        """
        key, key_record, key_learn = jax.random.split(state.key, 3)
        before = state.stream.carry.memory
        stream, block, _ = frames.record(
            self.env, self._environment(state), state.stream, self.num_steps, key_record, self._acting(state)
        )
        episode, metrics = _episodes(state.episode, block, stream.frame.reset)
        learner = state.learner.replace(replay=replay.add(state.learner.replay, block, before))
        obs_stats = state.obs_stats
        if obs_stats is not None:
            obs_stats = obs_stats.update(jnp.asarray(block.obs, jnp.float32))

        @partial(jax.jit, inline=True)  # traced once, here and for the shapes of its metrics below
        def learn(learner: Learner) -> tuple[Learner, Metrics]:
            def step(learner: Learner, key: jax.Array) -> tuple[Learner, Metrics]:
                return self._gradient_step(learner, block, obs_stats, state.updates, key)

            keys = jax.random.split(key_learn, self.gradient_steps + 1)
            learner, measured = lax.scan(step, learner, keys[:-1])
            measured = jax.tree.map(lambda x: x.mean(0), measured)
            if self.held_out:
                trusted, ring = self._trusted_horizon(learner, block, obs_stats, keys[-1])
                horizon = optax.incremental_update(trusted, learner.horizon, self.horizon_rate)
                learner = learner.replace(horizon=horizon, replay=ring)
                measured["trusted_horizon"] = learner.horizon
            return learner, measured

        def wait(learner: Learner) -> tuple[Learner, Metrics]:
            shapes = jax.eval_shape(learn, learner)[1]
            return learner, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        begun = learner.replay.size >= self._blocks_before_learning
        learner, learned = lax.cond(begun, learn, wait, learner)
        state = State(learner, obs_stats, stream, episode, key, state.updates + 1)
        return state, metrics | learned

    def _gradient_step(
        self, learner: Learner, like: Frames, obs_stats: RunningStats | None, updates: jax.Array, key: jax.Array
    ) -> tuple[Learner, Metrics]:
        """Learn once from replayed sequences: the model from them, actor and critic from what it imagines."""
        key_sample, key_model, key_dream = jax.random.split(key, 3)
        batch, start, place = self._replay(learner.replay, like, obs_stats, slice(self.held_out, None), key_sample)
        params, rates = learner.params, self._rates(learner.steps, updates)
        start, batch = self._begin(params["world"], start, batch, key_model)
        gradient, (terms, _, seen, metrics) = jax.grad(self.world_loss, has_aux=True)(
            params["world"], start, batch, key_model, self.dream_every
        )
        seen, each = lax.stop_gradient(seen), self.num_steps // self.dream_every
        ends = jax.tree.map(lambda x: x[each - 1 :: each], seen.states)
        error = (terms["obs"] + terms["reward"] + terms["dyn"]).mean(0)

        behaviour = {k: params[k] for k in ("actor", "critic")}
        gradients, (returns, more) = jax.grad(self._behaviour_loss, has_aux=True)(
            behaviour, learner, seen, batch.terminated, key_dream
        )
        gradients["world"] = gradient
        metrics |= {"grad_norm": optax.tree.norm(gradients), "learning_rate": rates["world"]} | more
        metrics["loss"] += more["actor_loss"] + more["critic_loss"]
        learner = self._move(learner, gradients, rates)
        learner = learner.replace(
            slow_critic=optax.incremental_update(learner.params["critic"], learner.slow_critic, self.slow_rate),
            returns=returns,
            replay=replay.refresh(learner.replay, place, ends, error),
            steps=learner.steps + 1,
        )
        return learner, metrics

    @property
    def _blocks_before_learning(self) -> int:
        """Updates, each of which collects a block, until there is enough to replay."""
        wanted = -(-max(self.prefill, self.num_envs * self.batch_length) // self.steps_per_update)
        return min(wanted, self.replay_size // self.steps_per_update)

    def _check_learnable(self) -> None:
        if isinstance(self.env, Trials) and not self.read_reward:
            raise ValueError(
                "in trials it is rewards that tell of the task, and a world model does not read them by itself: "
                f"got trials of {self.env.name}; use agent.read_reward=true"
            )
        if self.inputs == ("x",) and not jax.tree.leaves(self.model.initialize_carry(())):
            raise ValueError("a policy reads something: got agent.inputs=[x] of a model without memory; add z or h")
        planned, first = self.total_updates, self._blocks_before_learning
        if isinstance(planned, float) and 0 < planned < first:
            planned, first = int(planned) * self.steps_per_update, first * self.steps_per_update
            raise ValueError(
                "learning begins when prefill and num_envs * batch_length frames are collected, "
                f"after {first:,} steps: got {planned:,} steps in all; use total_steps={2 * first}"
            )

    def _environment(self, state: State) -> Any:
        """``EnvParams`` of the environments that frames are from."""
        del state
        return self.env_params

    def _acting(self, state: State) -> Policy:
        """The policy that collects them."""
        return self.policy(state)

    def _move(self, learner: Learner, gradients: dict[str, Any], rates: dict[str, jax.Array]) -> Learner:
        """Move the parameters against their gradients."""
        moved = {k: self.step(p, gradients[k], learner.opt_state[k], rates[k]) for k, p in learner.params.items()}
        return learner.replace(
            params={k: v[0] for k, v in moved.items()}, opt_state={k: v[1] for k, v in moved.items()}
        )

    def _replay(
        self, ring: Replay, like: Frames, obs_stats: RunningStats | None, envs: slice, key: jax.Array
    ) -> tuple[Frames, WorldState, replay.Place]:
        """Sequences as the model reads them, the states before them, and where they are from."""
        blocks = self.batch_length // self.num_steps
        batch, start, place = replay.sample(ring, like, blocks, self.batch_size, self.priority, key, envs)
        batch = batch.replace(reward=batch.reward * self.reward_scale)
        if obs_stats is not None:
            batch = batch.replace(obs=obs_stats.normalize(jnp.asarray(batch.obs, jnp.float32)))
        return batch, start, place

    def _trusted_horizon(
        self, learner: Learner, like: Frames, obs_stats: RunningStats | None, key: jax.Array
    ) -> tuple[jax.Array, Replay]:
        """For how many steps open-loop imagination of held-out frames is about as good as that of the first step.

        That is while the loss of observations and rewards exceeds the first step's by less than ``horizon_error``.
        Imagination starts after as many blocks as leave ``horizon`` frames to compare with. These are observed anew,
        as those learned from are, and the stored states renewed: returns the replay too.
        """
        key_sample, key_observe, key_imagine = jax.random.split(key, 3)
        ring, model, params = learner.replay, self.world_model, {"params": learner.params["world"]}
        batch, start, place = self._replay(ring, like, obs_stats, slice(self.held_out), key_sample)
        if self.state_init != "stored":  # a burn-in is no more than context here
            start = model.initial_state((self.batch_size,))
        observed: Any = model.apply(params, start, batch, key_observe, chunk=self.num_steps, method="observe")
        states = observed[1].states
        ring = replay.refresh(ring, place, states, ring.priority[place.blocks[0], place.env])
        blocks = (self.batch_length - self.horizon) // self.num_steps
        begin = blocks * self.num_steps
        state = jax.tree.map(lambda x: x[blocks - 1], states)
        future = jax.tree.map(lambda x: x[begin : begin + self.horizon], batch)
        dream: Any = model.apply(params, state, future.action, key_imagine, method="imagine")[1]
        found: Any = model.apply(params, dream.features, method="predict")
        loss = observations.observation_loss(model.observation_space, found.obs, future.obs)
        loss += observations.two_hot_loss(found.reward, future.reward)
        known = jnp.cumsum(future.reset, 0) == 0  # another episode cannot be foreseen
        loss = (loss * known).sum(-1) / jnp.maximum(known.sum(-1), 1)
        trusted = (loss - loss[0] <= self.horizon_error) & known.any(-1)
        return jnp.cumprod(trusted).sum().astype(jnp.float32), ring

    def _begin(self, params: Any, start: WorldState, batch: Frames, key: jax.Array) -> tuple[WorldState, Frames]:
        """The state that learning from ``batch`` begins with, and what of the batch is left to learn from."""
        if self.state_init == "stored":
            return start, batch
        zero = self.world_model.initial_state((self.batch_size,))
        if self.state_init == "zero":
            return zero, batch
        first, rest = (
            jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(self.num_steps), slice(self.num_steps, None))
        )
        warm = self.world_model.apply({"params": params}, zero, first, jax.random.fold_in(key, 1), method="observe")[0]
        return lax.stop_gradient(warm), rest

    def _rates(self, steps: jax.Array, updates: jax.Array) -> dict[str, jax.Array]:
        base = {"world": self.learning_rate, "actor": self.actor_learning_rate, "critic": self.critic_learning_rate}
        return {k: self.rate(rate, steps, updates) for k, rate in base.items()}

    def _behaviour_loss(
        self, params: Any, learner: Learner, seen: Latents, terminated: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
        """The loss of actor and critic in imagination (Hafner et al. 2023, equations 7 to 12)."""
        network, every = self.network, self.dream_every
        fixed = learner.params

        def apply(own: Any, *args: Any, method: str) -> Any:
            return network.apply({"params": {**fixed, **own}}, *args, method=method)

        start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (seen.states, seen.h[every - 1 :: every]))
        through = params if self.actor_gradient == "dynamics" else {}
        dream: Dream = apply(
            {k: through[k] for k in through if k == "actor"}, *start, self.horizon, key, method="dream"
        )
        reward = observations.two_hot_mean(dream.predictions.reward)
        going_on = jax.nn.sigmoid(dream.predictions.going_on)
        value = apply({}, dream.inputs, method="value")
        left = jnp.maximum(jnp.round(learner.horizon), 1) - jnp.arange(self.horizon)[:, None]  # steps still trusted
        cut = jnp.broadcast_to(left == 1, reward.shape)
        target = lambda_returns(reward, value[1:], 1 - going_on, cut, self.gamma, self.return_lambda)
        alive = 1.0 - terminated[every - 1 :: every].reshape(-1)
        weight = jnp.cumprod(jnp.concatenate([alive[None], self.gamma * going_on[:-1]]), 0) * (left > 0)
        weight = lax.stop_gradient(weight)

        ends = jnp.array([5.0, 95.0])
        if self.held_out:
            seen_returns = jnp.nanpercentile(jnp.where(left > 0, target, jnp.nan), ends)
        else:
            seen_returns = jnp.percentile(target, ends)
        first = learner.steps == 0
        returns = jnp.where(
            first, seen_returns, optax.incremental_update(seen_returns, learner.returns, self.return_rate)
        )
        returns = lax.stop_gradient(returns)
        scale = jnp.maximum(returns[1] - returns[0], self.return_floor)
        inputs = lax.stop_gradient(dream.inputs)
        dist = apply({"actor": params["actor"]}, inputs[:-1], method="act")
        entropy = dist.entropy()
        if self.actor_gradient == "reinforce":
            advantage = lax.stop_gradient((target - value[:-1]) / scale)
            gain = advantage * dist.log_prob(lax.stop_gradient(dream.raw_action))
        else:
            gain = target / scale
        actor_loss = -(weight * (gain + self.entropy_coef * entropy)).mean()

        logits = apply({"critic": params["critic"]}, inputs[:-1], method="value_logits")
        slow = apply({"critic": learner.slow_critic}, inputs[:-1], method="value")
        critic_loss = observations.two_hot_loss(logits, lax.stop_gradient(target))
        critic_loss += self.slow_weight * observations.two_hot_loss(logits, lax.stop_gradient(slow))
        critic_loss = (weight * critic_loss).mean()
        metrics = {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "entropy": entropy.mean(),
            "imagined_return": target.mean(),
            "imagined_reward": reward.mean(),
            "value_mean": value.mean(),
            "return_spread": returns[1] - returns[0],
        }
        return actor_loss + critic_loss, (returns, metrics)


def _episodes(running: jax.Array, block: Frames, next_reset: jax.Array) -> tuple[jax.Array, Metrics]:
    """Returns and lengths of the episodes that end in a block, and of those ``[2, N]`` that go on.

    ``next_reset`` says which environments start anew in the frame after it.
    """
    last = jnp.concatenate([block.reset[1:], next_reset[None]])

    def step(running: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        reward, reset, last = xs
        running = jnp.where(reset, 0.0, running + jnp.stack([reward, jnp.ones_like(reward)]))
        return running, jnp.where(last, running, 0.0).sum(-1)

    running, totals = lax.scan(step, running, (block.reward, block.reset, last))
    episodes = last.sum().astype(jnp.float32)
    return_mean, length_mean = totals.sum(0) / episodes
    return running, {"return_mean": return_mean, "length_mean": length_mean, "episodes": episodes}
