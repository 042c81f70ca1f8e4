"""Imitation of demonstrations: a loss on top of an agent's own."""

import jax

from ssmrl.frames import Frames
from ssmrl.policy import Policy


def imitation_loss(policy: Policy, frames: Frames) -> jax.Array:
    """Divergence of the demonstrated actions from the policy, in nats a step, up to the demonstrator's entropy.

    ``frames`` are sequences ``[T, B, ...]``, each from its start. The policy reads what it would have seen, had it
    acted as was demonstrated; the action that led to a frame is what it should have done in the frame before.
    """
    memory = policy.network.initialize_carry(frames.reset.shape[1:])
    read = jax.tree.map(lambda x: x[:-1], (frames.obs, frames.reset, frames.action, frames.reward))
    dist = policy.sequence(memory, *read)[1]
    shown = ~frames.reset[1:]  # after the end of an episode nothing was done
    log_prob = dist.log_prob(dist.from_env(jax.tree.map(lambda x: x[1:], frames.action)))
    return -(log_prob * shown).sum() / shown.sum()
