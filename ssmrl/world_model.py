r"""S4WM: a latent world model that trains in parallel over time and imagines step by step (Deng, Park and Ahn 2023).

Legend: T time, B batch, H imagination horizon, Z latent size, D width; ``x_t`` observation, ``a_t`` the action *that
led to* it, ``z_t`` latent, ``h_t`` what the memory makes of the past.

.. math:: q(z_t | x_t), \qquad h_t = f(z_{<t}, a_{\le t}), \qquad p(z_t | h_t), \qquad p(x_t, r_t, c_t | h_t, z_t)

The posterior sees one observation and no history: all ``z`` are drawn at once, and one call of the memory gives all
``h``, whatever sequence model it is. Where ``reset_t``, the previous latent and the action are zero and the memory is
new, so that ``p(z_t | h_t)`` is the learned distribution of first observations.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from ssmrl import spaces
from ssmrl.frames import Frames
from ssmrl.nn import latents, observations
from ssmrl.nn.base import Carry, SequenceModel
from ssmrl.nn.observations import Decoder, Encoder, Hidden, TwoHot

Draw = Literal["sample", "mode"]


class WorldState(struct.PyTreeNode):
    """What a world model knows between two frames: the memory's carry and the last latent, leaves ``[*B, ...]``."""

    memory: Carry
    z: jax.Array


class Latents(struct.PyTreeNode):
    """A sequence as the model sees it: ``h`` ``[T, B, D]``, ``z`` ``[T, B, Z]`` and the distributions ``z`` is from.

    ``posterior`` is None in imagination. ``states`` are :class:`WorldState` after frames ``chunk - 1``,
    ``2 * chunk - 1``, ..., leaves ``[T // chunk, B, ...]``, where :meth:`WorldModel.observe` was asked for them.
    """

    h: jax.Array
    z: jax.Array
    prior: Any
    posterior: Any = None
    states: WorldState | None = None

    @property
    def features(self) -> jax.Array:
        """What decoder and heads read, ``[T, B, D + Z]``."""
        return jnp.concatenate([self.h, self.z], -1)


class Predictions(struct.PyTreeNode):
    """Decoded :class:`Latents`: see ``ssmrl.nn.observations`` for ``obs``; ``reward`` logits ``[..., bins]``."""

    obs: Any
    reward: jax.Array
    going_on: jax.Array  # logits [...] of the episode not being over


class WorldModel(nn.Module):
    """Encoder, posterior, memory, prior, decoder, reward head and continue head, around any sequence model.

    With ``posterior="rssm"`` the posterior sees ``h_t`` too (Hafner et al. 2019), and ``observe`` runs step by step;
    with ``read_reward`` it sees the reward that came with the observation, which is then a part of what is imagined.
    Raises ``ValueError`` for observations that it cannot decode.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    memory: SequenceModel
    posterior: Literal["obs", "rssm"] = "obs"
    latent: Literal["categorical", "gaussian"] = "categorical"
    groups: int = 8
    classes: int = 8
    unimix: float = 0.01
    hidden: tuple[int, ...] = (128,)
    channels: int = 32
    bins: int = 81
    read_reward: bool = False

    def setup(self) -> None:
        """Make the parts."""
        observations.check_space(self.observation_space)
        n = latents.num_parameters(self.latent, self.groups, self.classes)
        self.encoder = Encoder(self.observation_space, self.hidden, self.channels)
        self.posterior_head = nn.Dense(n)
        self.input = nn.Sequential([Hidden((self.memory.d_model,)), nn.Dense(self.memory.d_model)])
        self.norm = nn.LayerNorm()
        self.prior_head = nn.Sequential([Hidden((self.memory.d_model,)), nn.Dense(n)])
        self.decoder = Decoder(self.observation_space, self.hidden, self.channels)
        self.reward_head = TwoHot(self.hidden[:1], self.bins)
        self.continue_head = nn.Sequential([Hidden(self.hidden[:1]), nn.Dense(1)])

    @property
    def latent_size(self) -> int:
        """Z."""
        return self.groups * self.classes

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> WorldState:
        """The state of a model that has seen nothing."""
        z = jnp.zeros((*batch_shape, self.latent_size))
        return WorldState(self.memory.initialize_carry(batch_shape), z)

    def observe(
        self, state: WorldState, frames: Frames, key: jax.Array, draw: Draw = "sample", chunk: int = 0
    ) -> tuple[WorldState, Latents]:
        """Take in frames ``[T, B, ...]``; ``key`` is consumed. Returns the new state and the :class:`Latents`.

        In parallel over time, or step by step for an ``rssm``. With ``chunk`` the states after each so many frames are
        returned too, to imagine or to go on learning from.
        """
        embedding = self.encoder(frames.obs)
        if self.read_reward:
            reward = jnp.where(frames.reset, 0.0, observations.symlog(frames.reward))
            embedding = jnp.concatenate([embedding, reward[..., None]], -1)
        if self.posterior == "rssm":
            return self._observe_stepwise(state, frames, embedding, key, draw, chunk)
        posterior = self.make_latent(self.posterior_head(embedding))
        z = _draw(posterior, key, draw)
        return self.observe_latents(state, frames, z, chunk, posterior)

    def observe_latents(
        self, state: WorldState, frames: Frames, z: jax.Array, chunk: int = 0, posterior: Any = None
    ) -> tuple[WorldState, Latents]:
        """As :meth:`observe`, with the latents ``z`` ``[T, B, Z]`` given."""
        action = spaces.flatten(self.action_space, frames.action)
        g = self._inputs(jnp.concatenate([state.z[None], z[:-1]]), action, frames.reset)
        if not chunk:
            memory, h = self.memory(state.memory, g, frames.reset)
            after, states = WorldState(memory, z[-1]), None
        else:
            rest = g.shape[0] % chunk
            whole = jax.tree.map(lambda x: x[: x.shape[0] - rest], (g, frames.reset))
            parts = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), whole)

            def advance(module: WorldModel, carry: Carry, part: tuple) -> tuple[Carry, tuple[jax.Array, Carry]]:
                carry, h = module.memory(carry, *part)
                return carry, (h, carry)

            memory, (h, carries) = scan_time(advance)(self, state.memory, parts)
            h = h.reshape(-1, *h.shape[2:])
            if rest:
                memory, last = self.memory(memory, g[-rest:], frames.reset[-rest:])
                h = jnp.concatenate([h, last])
            after, states = WorldState(memory, z[-1]), WorldState(carries, z[chunk - 1 :: chunk])
        h = self.norm(h)
        return after, Latents(h, z, self.make_latent(self.prior_head(h)), posterior, states)

    def imagine(
        self, state: WorldState, actions: Any, key: jax.Array, draw: Draw = "sample"
    ) -> tuple[WorldState, Latents]:
        """Imagine what ``actions`` ``[H, B, ...]`` would lead to; ``key`` is consumed. See :meth:`observe`.

        Each latent is drawn from the prior, without its unimix, and fed back.
        """
        actions = spaces.flatten(self.action_space, actions)

        def step(module: WorldModel, state: WorldState, xs: tuple) -> tuple[WorldState, tuple]:
            action, key = xs
            state, h, prior = module.step(state, action)
            z = _draw(module.make_latent(prior).sharp(), key, draw)
            return state.replace(z=z), (h, z, prior)

        state, (h, z, prior) = scan_time(step)(self, state, (actions, jax.random.split(key, actions.shape[0])))
        return state, Latents(h, z, self.make_latent(prior))

    def step(
        self, state: WorldState, action: jax.Array, reset: jax.Array | None = None
    ) -> tuple[WorldState, jax.Array, jax.Array]:
        """Advance the memory by one flat ``action`` ``[B, A]``; the latent of the new frame is the caller's to draw.

        Returns the state, with the old latent, ``h`` ``[B, D]`` and the parameters of the new latent's prior
        (:meth:`make_latent`).
        """
        reset = jnp.zeros(state.z.shape[:-1], bool) if reset is None else reset
        g = self._inputs(state.z, action, reset)
        memory, h = self.memory(state.memory, g[None], reset[None])
        h = self.norm(h[0])
        return state.replace(memory=memory), h, self.prior_head(h)

    def open_loop(self, frames: Frames, context: int, key: jax.Array, draw: Draw = "sample") -> tuple[Latents, Latents]:
        """Observe ``context`` frames of ``[T, B, ...]`` and imagine the others under the recorded actions.

        Context latents are drawn likewise (S4WM, section 4). ``key`` is consumed. Returns the latents of both parts.
        """
        key_context, key_query = jax.random.split(key)
        past, future = (jax.tree.map(lambda x, s=s: x[s], frames) for s in (slice(context), slice(context, None)))
        state, seen = self.observe(self.initial_state(frames.reset.shape[1:]), past, key_context, draw)
        return seen, self.imagine(state, future.action, key_query, draw)[1]

    def predict(self, features: jax.Array) -> Predictions:
        """Decode features ``[..., D + Z]``."""
        return self.predict_outcome(features).replace(obs=self.decoder(features))

    def predict_outcome(self, features: jax.Array) -> Predictions:
        """As :meth:`predict`, without observations, whose ``obs`` is ``()``."""
        return Predictions((), self.reward_head(features), self.continue_head(features)[..., 0])

    def loss(
        self, state: WorldState, frames: Frames, key: jax.Array, chunk: int = 0
    ) -> tuple[dict[str, jax.Array], WorldState, Latents]:
        """Terms of the loss for frames ``[T, B, ...]``; ``key`` is consumed, for ``chunk`` see :meth:`observe`.

        Returns ``obs``, ``reward``, ``continue``, ``dyn`` (the divergence of posterior and prior, from which the prior
        learns) and ``rep`` (the same for the posterior), each ``[T, B]``, the state after the frames and the latents.
        """
        after, seen = self.observe(state, frames, key, chunk=chunk)
        terms = self._likelihoods(seen, frames)
        terms["dyn"] = lax.stop_gradient(seen.posterior).kl(seen.prior)
        terms["rep"] = seen.posterior.kl(lax.stop_gradient(seen.prior))
        return terms, after, seen

    def open_loop_loss(self, state: WorldState, frames: Frames, posterior: Any, key: jax.Array) -> dict[str, jax.Array]:
        """Terms of the loss for frames ``[H, B, ...]`` that are imagined from ``state``; ``key`` is consumed.

        As :meth:`loss`, without ``rep``, with the prior many frames ahead of what was observed instead of one: its
        ``dyn`` is the divergence of PlaNet's latent overshooting (Hafner et al. 2019, section 4) at the distance that
        each frame has. ``posterior`` is what was made of the frames themselves, and gets no gradient. Zero from the
        first reset on.
        """
        _, imagined = self.imagine(state, frames.action, key)
        terms = self._likelihoods(imagined, frames)
        terms["dyn"] = lax.stop_gradient(posterior).kl(imagined.prior)
        same_episode = jnp.cumsum(frames.reset, axis=0) == 0
        return {name: term * same_episode for name, term in terms.items()}

    def _likelihoods(self, seen: Latents, frames: Frames) -> dict[str, jax.Array]:
        """Negative logarithms of what ``seen`` gives to observations, rewards and ends."""
        predictions = self.predict(seen.features)
        return {
            "obs": observations.observation_loss(self.observation_space, predictions.obs, frames.obs),
            "reward": observations.two_hot_loss(predictions.reward, frames.reward),
            "continue": jax.nn.softplus(jnp.where(frames.terminated, 1.0, -1.0) * predictions.going_on),
        }

    def make_latent(self, parameters: jax.Array) -> Any:
        """The latent distribution that the output of a posterior's or prior's head describes."""
        return latents.make_latent(self.latent, parameters, self.classes, self.unimix)

    def _observe_stepwise(
        self, state: WorldState, frames: Frames, embedding: jax.Array, key: jax.Array, draw: Draw, chunk: int
    ) -> tuple[WorldState, Latents]:
        def step(module: WorldModel, state: WorldState, xs: tuple) -> tuple[WorldState, tuple]:
            action, reset, embedding, key = xs
            state, h, prior = module.step(state, action, reset)
            posterior = module.posterior_head(jnp.concatenate([h, embedding], -1))
            z = _draw(module.make_latent(posterior), key, draw)
            state = state.replace(z=z)
            return state, (h, z, prior, posterior, state if chunk else ())

        keys = jax.random.split(key, frames.reset.shape[0])
        xs = spaces.flatten(self.action_space, frames.action), frames.reset, embedding, keys
        state, (h, z, prior, posterior, states) = scan_time(step)(self, state, xs)
        kept = jax.tree.map(lambda x: x[chunk - 1 :: chunk], states) if chunk else None
        return state, Latents(h, z, self.make_latent(prior), self.make_latent(posterior), kept)

    def _inputs(self, z: jax.Array, action: jax.Array, reset: jax.Array) -> jax.Array:
        """The memory's input from the previous latents and the flat actions since, ``[..., D]``."""
        start = reset[..., None].astype(jnp.float32)
        return self.input(jnp.concatenate([z * (1 - start), action * (1 - start), start], -1))


def _draw(latent: Any, key: jax.Array, draw: Draw) -> jax.Array:
    return latent.mode() if draw == "mode" else latent.sample(key)


def scan_time(step: Any) -> Any:
    """Scan ``step(module, carry, xs)`` over time inside a module, all steps with the same parameters."""

    def run(module: nn.Module, carry: Any, xs: Any) -> tuple[Any, Any]:
        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            check_constancy_invariants=module.is_initializing(),  # traces twice, which making parameters needs
        )
        return scan(module, carry, xs)

    return run
