"""What the agents that learn a world model share: its hyper-parameters, its loss, and a step of Adam on it."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ssmrl import optimizer
from ssmrl.frames import Frames
from ssmrl.nn.base import SequenceModel
from ssmrl.registry import hp
from ssmrl.world_model import Latents, WorldModel, WorldState

Metrics = dict[str, jax.Array]


class WorldLearner(struct.PyTreeNode):
    """An agent around a world model, whose backbone is ``model``. Float hyper-parameters are pytree leaves."""

    env: Any = struct.field(pytree_node=False)
    env_params: Any
    model: SequenceModel = struct.field(pytree_node=False)
    # floats, so that populations can differ in them
    learning_rate: float = hp(3e-3, "Adam's step size, of the world model", ge=0.0)
    ssm_learning_rate_scale: float = hp(1.0, "step size of state-space parameters relative to the others", ge=0.0)
    weight_decay: float = hp(0.0, "decoupled weight decay, not for state-space parameters, biases and norms", ge=0.0)
    max_grad_norm: float = hp(10.0, "clip gradients to this global norm", gt=0.0)
    adam_epsilon: float = hp(1e-8, "Adam's epsilon", gt=0.0)
    anneal_to: float = hp(0.0, "final learning rate relative to the first, for anneal other than none", ge=0.0)
    warmup: float = hp(200.0, "gradient steps over which the learning rate rises to its value", ge=0.0)
    dyn_weight: float = hp(0.8, "weight of the prior's divergence from the posterior", ge=0.0)
    rep_weight: float = hp(0.2, "weight of the posterior's divergence from the prior", ge=0.0)
    free_nats: float = hp(0.0, "divergences below this many nats a frame are not reduced", ge=0.0)
    obs_weight: float = hp(1.0, "weight of the observation's log-likelihood", ge=0.0)
    reward_weight: float = hp(1.0, "weight of the reward's; one reward at the end needs about the length", ge=0.0)
    continue_weight: float = hp(1.0, "weight of the end's", ge=0.0)
    unimix: float = hp(0.01, "share of the uniform distribution in categorical latents", ge=0.0, lt=1.0)
    anneal: Literal["none", "linear", "cosine"] = hp("cosine", "learning-rate schedule over total_steps")
    # network
    posterior: Literal["obs", "rssm"] = hp("obs", "posterior of the observation alone, or of the history too")
    latent: Literal["categorical", "gaussian"] = hp("categorical", "kind of latent")
    groups: int = hp(8, "categorical vectors in a latent", ge=1)
    classes: int = hp(8, "classes of each", ge=1)
    hidden: tuple[int, ...] = hp((128,), "widths of the hidden layers of encoder, decoder and heads")
    channels: int = hp(32, "channels of the encoder's first convolution, of pictures", ge=1)
    bins: int = hp(81, "bins of the reward head; few would blur rewards below 1", ge=3)
    read_reward: bool = hp(False, "the latent is of observation and reward: where only rewards tell of the task")
    total_updates: float = struct.field(default=0.0)  # the schedule's length, set by the trainer from total_steps

    requires: ClassVar[dict[str, str]] = {"hidden != ()": "the heads have hidden layers"}

    @property
    def world_model(self) -> WorldModel:
        """The module."""
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
            read_reward=self.read_reward,
        )

    def world_loss(
        self, params: Any, carry: WorldState, batch: Frames, key: jax.Array, chunk: int = 0
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], WorldState, Latents, Metrics]]:
        """The variational bound (S4WM, section 3; balanced as in Hafner et al. 2023, equation 5), per frame.

        ``key`` is consumed; for ``chunk`` see :meth:`WorldModel.observe`. Returns it with its terms ``[T, B]``, the
        state after the frames, the latents and metrics.
        """
        result: Any = self.world_model.apply({"params": params}, carry, batch, key, chunk, method="loss")
        terms, after, seen = result
        loss = self.weigh(terms)
        metrics = {f"{k}_loss": terms[k].mean() for k in ("obs", "reward", "continue")}
        metrics |= {"kl": terms["dyn"].mean(), "posterior_entropy": seen.posterior.entropy().mean(), "loss": loss}
        metrics["prior_entropy"] = seen.prior.entropy().mean()
        return loss, (terms, after, seen, metrics)

    def weigh(self, terms: dict[str, jax.Array]) -> jax.Array:
        """The weighted sum of the means of the ``terms`` of a loss, ``[T, B]`` each."""
        weights = {
            "obs": self.obs_weight,
            "reward": self.reward_weight,
            "continue": self.continue_weight,
            "dyn": self.dyn_weight,
            "rep": self.rep_weight,
        }
        divergences = {k: jnp.maximum(terms[k], self.free_nats) for k in ("dyn", "rep") if k in terms}
        means = {k: v.mean() for k, v in (terms | divergences).items()}
        return sum((weight * means[k] for k, weight in weights.items() if k in means), start=jnp.float32(0))

    def adam(self) -> optax.GradientTransformation:
        """The optimiser."""
        return optimizer.adam(self.max_grad_norm, self.adam_epsilon)

    def rate(self, base: Any, steps: jax.Array, updates: jax.Array) -> jax.Array:
        """The learning rate ``base`` after so many gradient steps, in which ``updates`` were made."""
        rate = optimizer.annealed(self.anneal, base, self.anneal_to, updates, self.total_updates)
        return rate * jnp.minimum((steps + 1) / jnp.maximum(self.warmup, 1.0), 1.0)

    def step(self, params: Any, gradient: Any, opt_state: Any, rate: jax.Array) -> tuple[Any, Any]:
        """Move parameters against their gradient; returns them and the optimiser's state."""
        direction, opt_state = self.adam().update(gradient, opt_state, params)
        ssm = optimizer.ssm_parameters(self.model)
        return optimizer.move(params, direction, rate, self.ssm_learning_rate_scale, self.weight_decay, ssm), opt_state
