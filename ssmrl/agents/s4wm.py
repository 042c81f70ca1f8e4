"""S4WM: learn a latent world model from what a scripted policy does (Deng, Park and Ahn 2023); there is no policy.

One ``update``: record ``num_steps`` frames of ``num_envs`` environments, or draw as many sequences from a fixed data
set, and make one step of Adam on the variational bound; with ``open_loop`` also on the same for the frames after the
context when they are imagined from it, all of them ahead of what was observed (multi-step prediction).
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ssmrl import datasets, frames, world_evaluation
from ssmrl.frames import Frames
from ssmrl.registry import agents, hp
from ssmrl.world_learner import Metrics, WorldLearner
from ssmrl.world_model import WorldState


class State(struct.PyTreeNode):
    """Everything that changes; saving it saves the run."""

    params: Any
    opt_state: optax.OptState
    stream: frames.Stream | tuple[()]  # (): learns from a data set
    carry: WorldState  # of the model after the last frame of the stream
    key: jax.Array
    updates: jax.Array  # int32


@agents.register("s4wm")
class S4WM(WorldLearner):
    """World model of an environment, learned from its scripted policy (random actions where it has none)."""

    # data
    num_envs: int = hp(32, "sequences per update", ge=1)
    num_steps: int = hp(0, "frames per sequence (0: whole episodes); shorter ones go on where the last ended", ge=0)
    data: str = hp("stream", "stream (fresh episodes), or a file of ssmrl record")
    open_loop: bool = hp(False, "learn what comes after the context imagined, too, as it is measured")
    requires: ClassVar[dict[str, str]] = {
        "data == 'stream' or num_steps == 0": "sequences of a data set are whole episodes",
        "num_steps == 0 or not open_loop": "an episode's context is in its first part",
    }

    @property
    def score(self) -> str:
        """What the environment is about, of the metrics of :meth:`evaluate`."""
        return world_evaluation.score(self.env, self.env_params)

    @property
    def sequence_length(self) -> int:
        """Frames in a sequence."""
        return self.num_steps or world_evaluation.episode_frames(self.env, self.env_params)

    @property
    def steps_per_update(self) -> int:
        """Frames that one update reads."""
        return self.num_envs * self.sequence_length

    def init(self, key: jax.Array) -> State:
        """Initialise parameters and environments; ``key`` is consumed."""
        world_evaluation.context_length(self.env, self.env_params)  # else it could not be evaluated
        key, key_stream, key_params = jax.random.split(key, 3)
        stream = frames.open_stream(self.env, self.env_params, self.num_envs, key_stream)
        network = self.world_model
        one = jax.tree.map(lambda x: x[None, :1], stream.frame)
        params = network.init(key_params, network.initial_state((1,)), one, key_params, method="loss")["params"]
        carry = network.initial_state((self.num_envs,))
        kept = stream if self.data == "stream" else ()
        return State(params, self.adam().init(params), kept, carry, key, jnp.int32(0))

    def update(self, state: State) -> tuple[State, Metrics]:
        """Record sequences, or draw recorded ones, and learn from them. Returns the new state and scalar metrics."""
        key, key_record, key_loss = jax.random.split(state.key, 3)
        stream, batch = self._sequences(state.stream, key_record)
        loss = self.open_loop_loss if self.open_loop else self.world_loss
        gradient, (_, carry, _, metrics) = jax.grad(loss, has_aux=True)(state.params, state.carry, batch, key_loss)
        rate = self.rate(self.learning_rate, state.updates, state.updates)
        params, opt_state = self.step(state.params, gradient, state.opt_state, rate)
        metrics |= {"grad_norm": optax.tree.norm(gradient), "learning_rate": rate}
        state = State(params, opt_state, stream, jax.lax.stop_gradient(carry), key, state.updates + 1)
        return state, metrics

    def open_loop_loss(self, params: Any, carry: WorldState, batch: Frames, key: jax.Array) -> tuple[jax.Array, Any]:
        """As :meth:`world_loss`, and the frames after the context once more, imagined: each counts as if observed."""
        key, key_imagine = jax.random.split(key)
        context = world_evaluation.context_length(self.env, self.env_params)
        loss, (terms, after, seen, metrics) = self.world_loss(params, carry, batch, key, context)
        state = jax.tree.map(lambda x: x[0], seen.states)
        query = jax.tree.map(lambda x: x[context:], batch)
        imagined: Any = self.world_model.apply(
            {"params": params}, state, query, seen.posterior[context:], key_imagine, method="open_loop_loss"
        )
        loss += self.weigh(imagined) * query.reset.shape[0] / batch.reset.shape[0]
        metrics |= {"loss": loss} | {f"imagined_{k}_loss": imagined[k].mean() for k in ("obs", "reward")}
        return loss, (terms, after, seen, metrics)

    def evaluate(self, state: State, key: jax.Array, *, episodes: int) -> Metrics:
        """Measure open-loop imagination over fresh episodes: ``ssmrl.world_evaluation``; ``key`` is consumed.

        What the environment is about is named ``score`` too, so that different tasks can be ranked alike.
        """
        network = self.world_model
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
