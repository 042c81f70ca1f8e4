"""S4WM: learn a latent world model from what a scripted policy does (Deng, Park and Ahn 2023); there is no policy.

One ``update``: record ``num_steps`` frames of ``num_envs`` environments, or draw as many sequences from a fixed data
set, and make one step of Adam on the variational bound.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ssmrl import datasets, frames, optimizer, world_evaluation
from ssmrl.frames import Frames
from ssmrl.nn.base import SequenceModel
from ssmrl.registry import agents, hp
from ssmrl.world_model import WorldModel, WorldState

Metrics = dict[str, jax.Array]


class State(struct.PyTreeNode):
    """Everything that changes; saving it saves the run."""

    params: Any
    opt_state: optax.OptState
    stream: frames.Stream | tuple[()]  # (): learns from a data set
    carry: WorldState  # of the model after the last frame of the stream
    key: jax.Array
    updates: jax.Array  # int32


@agents.register("s4wm")
class S4WM(struct.PyTreeNode):
    """World model of an environment, learned from its scripted policy (random actions where it has none).

    ``model`` is the backbone. Float hyper-parameters are pytree leaves, as PPO's.
    """

    env: Any = struct.field(pytree_node=False)
    env_params: Any
    model: SequenceModel = struct.field(pytree_node=False)
    # floats, so that populations can differ in them
    learning_rate: float = hp(3e-3, "Adam's step size", ge=0.0)
    ssm_learning_rate_scale: float = hp(1.0, "step size of state-space parameters relative to the others", ge=0.0)
    weight_decay: float = hp(0.0, "decoupled weight decay, not for state-space parameters, biases and norms", ge=0.0)
    max_grad_norm: float = hp(10.0, "clip gradients to this global norm", gt=0.0)
    adam_epsilon: float = hp(1e-8, "Adam's epsilon", gt=0.0)
    anneal_to: float = hp(0.0, "final learning rate relative to the first, for anneal other than none", ge=0.0)
    warmup: float = hp(200.0, "updates over which the learning rate rises to its value", ge=0.0)
    dyn_weight: float = hp(0.8, "weight of the prior's divergence from the posterior", ge=0.0)
    rep_weight: float = hp(0.2, "weight of the posterior's divergence from the prior", ge=0.0)
    free_nats: float = hp(0.0, "divergences below this many nats a frame are not reduced", ge=0.0)
    obs_weight: float = hp(1.0, "weight of the observation's log-likelihood", ge=0.0)
    reward_weight: float = hp(1.0, "weight of the reward's; one reward at the end needs about the length", ge=0.0)
    continue_weight: float = hp(1.0, "weight of the end's", ge=0.0)
    unimix: float = hp(0.01, "share of the uniform distribution in categorical latents", ge=0.0, lt=1.0)
    # data
    num_envs: int = hp(32, "sequences per update", ge=1)
    num_steps: int = hp(0, "frames per sequence (0: whole episodes); shorter ones go on where the last ended", ge=0)
    data: str = hp("stream", "stream (fresh episodes), or a file of ssmrl record")
    anneal: Literal["none", "linear", "cosine"] = hp("cosine", "learning-rate schedule over total_steps")
    # network
    posterior: Literal["obs", "rssm"] = hp("obs", "posterior of the observation alone, or of the history too")
    latent: Literal["categorical", "gaussian"] = hp("categorical", "kind of latent")
    groups: int = hp(8, "categorical vectors in a latent", ge=1)
    classes: int = hp(8, "classes of each", ge=1)
    hidden: tuple[int, ...] = hp((128,), "widths of the hidden layers of encoder, decoder and heads")
    channels: int = hp(32, "channels of the encoder's first convolution, of pictures", ge=1)
    bins: int = hp(81, "bins of the reward head; few would blur rewards below 1", ge=3)
    total_updates: float = struct.field(default=0.0)  # the schedule's length, set by the trainer from total_steps

    requires: ClassVar[dict[str, str]] = {
        "hidden != ()": "the heads have hidden layers",
        "data == 'stream' or num_steps == 0": "sequences of a data set are whole episodes",
    }

    @property
    def score(self) -> str:
        """What the environment is about, of the metrics of :meth:`evaluate`."""
        return world_evaluation.score(self.env, self.env_params)

    @property
    def sequence_length(self) -> int:
        """Frames in a sequence: an episode of n steps has n + 1."""
        return self.num_steps or self.env.longest_episode(self.env_params) + 1

    @property
    def steps_per_update(self) -> int:
        """Frames that one update reads."""
        return self.num_envs * self.sequence_length

    @property
    def network(self) -> WorldModel:
        """The world model."""
        return WorldModel(
            observation_space=self.env.observation_space(self.env_params),
            action_space=self.env.action_space(self.env_params),
            memory=self.model,
            posterior=self.posterior,
            latent=self.latent,
            groups=self.groups,
            classes=self.classes,
            unimix=self.unimix,
            hidden=self.hidden,
            channels=self.channels,
            bins=self.bins,
        )

    def init(self, key: jax.Array) -> State:
        """Initialise parameters and environments; ``key`` is consumed."""
        world_evaluation.context_length(self.env, self.env_params)  # else it could not be evaluated
        key, key_stream, key_params = jax.random.split(key, 3)
        stream = frames.open_stream(self.env, self.env_params, self.num_envs, key_stream)
        network = self.network
        one = jax.tree.map(lambda x: x[None, :1], stream.frame)
        params = network.init(key_params, network.initial_state((1,)), one, key_params, method="loss")["params"]
        carry = network.initial_state((self.num_envs,))
        kept = stream if self.data == "stream" else ()
        return State(params, self._adam().init(params), kept, carry, key, jnp.int32(0))

    def update(self, state: State) -> tuple[State, Metrics]:
        """Record sequences, or draw recorded ones, and learn from them. Returns the new state and scalar metrics."""
        key, key_record, key_loss = jax.random.split(state.key, 3)
        stream, batch = self._sequences(state.stream, key_record)
        gradient, (carry, metrics) = jax.grad(self._loss, has_aux=True)(state.params, state.carry, batch, key_loss)
        direction, opt_state = self._adam().update(gradient, state.opt_state, state.params)
        rate = optimizer.annealed(self.anneal, self.learning_rate, self.anneal_to, state.updates, self.total_updates)
        rate = rate * jnp.minimum((state.updates + 1) / jnp.maximum(self.warmup, 1.0), 1.0)
        ssm = optimizer.ssm_parameters(self.model)
        params = optimizer.move(state.params, direction, rate, self.ssm_learning_rate_scale, self.weight_decay, ssm)
        metrics |= {"grad_norm": optax.tree.norm(gradient), "learning_rate": rate}
        state = State(params, opt_state, stream, jax.lax.stop_gradient(carry), key, state.updates + 1)
        return state, metrics

    def evaluate(self, state: State, key: jax.Array, *, episodes: int) -> Metrics:
        """Measure open-loop imagination over fresh episodes: ``ssmrl.world_evaluation``; ``key`` is consumed.

        What the environment is about is named ``score`` too, so that different tasks can be ranked alike.
        """
        network = self.network
        found, _ = world_evaluation.evaluate_world_model(
            network, state.params, self.env, self.env_params, key, episodes
        )
        found["score"] = found[self.score]
        return {k: v for k, v in found.items() if not k.endswith("_se") or k == f"{self.score}_se"}

    def input_files(self) -> dict[str, str]:
        """What a result depends on besides configuration and code: the hash of the data set, if there is one."""
        return {} if self.data == "stream" else {"data_sha256": datasets.load(self.data).sha256}

    def _sequences(self, stream: Any, key: jax.Array) -> tuple[Any, Frames]:
        if self.data == "stream":
            stream, batch, _ = frames.record(self.env, self.env_params, stream, self.sequence_length, key)
            return stream, batch
        data = datasets.load_for(self.data, self.env, self.env_params)
        return stream, data.draw(self.env, self.env_params, self.num_envs, key)

    def _loss(
        self, params: Any, carry: WorldState, batch: Frames, key: jax.Array
    ) -> tuple[jax.Array, tuple[WorldState, Metrics]]:
        """The variational bound (S4WM, section 3; balanced as in Hafner et al. 2023, equation 5), per frame."""
        network = self.network
        result: Any = network.apply({"params": params}, carry, batch, key, method="loss")
        terms, carry, seen = result
        divergences = {k: jnp.maximum(terms[k], self.free_nats) for k in ("dyn", "rep")}
        weights = {
            "obs": self.obs_weight,
            "reward": self.reward_weight,
            "continue": self.continue_weight,
            "dyn": self.dyn_weight,
            "rep": self.rep_weight,
        }
        loss = sum(weight * (terms | divergences)[k].mean() for k, weight in weights.items())
        metrics = {f"{k}_loss": terms[k].mean() for k in ("obs", "reward", "continue")}
        metrics |= {"kl": terms["dyn"].mean(), "posterior_entropy": seen.posterior.entropy().mean(), "loss": loss}
        return loss, (carry, metrics | {"prior_entropy": seen.prior.entropy().mean()})

    def _adam(self) -> optax.GradientTransformation:
        return optimizer.adam(self.max_grad_norm, self.adam_epsilon)
