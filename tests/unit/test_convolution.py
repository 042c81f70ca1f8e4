"""Convolutions as matrix products are those of flax: values, parameters and gradients."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from ssmrl.nn.convolution import Conv, ConvTranspose

LAYERS = [(4, 2), (3, 1), (3, 2), (8, 4)]  # of world models, and of policies
PAIRS = {f"Conv {k}/{s}": (Conv(5, k, s), nn.Conv(5, (k, k), (s, s))) for k, s in LAYERS}
PAIRS["ConvTranspose"] = ConvTranspose(5), nn.ConvTranspose(5, (4, 4), (2, 2))


@pytest.mark.parametrize("sides", [(8, 6), (9, 7)])
@pytest.mark.parametrize("name", PAIRS)
def test_convolutions_are_those_of_flax(name, sides):
    ours, theirs = PAIRS[name]
    key_x, key_w, key_params = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key_x, (2, *sides, 3))
    own, params = jax.device_get(jax.jit(lambda *a: (ours.init(*a), theirs.init(*a)))(key_params, x))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), own, params)
    assert jax.tree.all(same), "parameters are called, shaped and drawn alike"
    params = jax.tree.map(lambda p: p + np.float32(0.1), params)  # biases start at 0
    weights = jax.random.normal(key_w, jax.eval_shape(theirs.apply, params, x).shape)

    @functools.partial(jax.jit, static_argnums=0)
    def found(module):
        value, gradients = jax.value_and_grad(lambda p, x: (module.apply(p, x) * weights).sum(), (0, 1))(params, x)
        return module.apply(params, x), value, gradients

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found(ours), found(theirs))


@pytest.mark.parametrize("module", [Conv(5, 4, 2), ConvTranspose(5)], ids=["Conv", "ConvTranspose"])
def test_seeds_do_not_mix(module):
    xs = jax.random.normal(jax.random.key(0), (3, 1, 4, 4, 2))
    params = jax.jit(jax.vmap(module.init, (0, None)))(jax.random.split(jax.random.key(1), 3), xs[0])
    together, apply = jax.jit(jax.vmap(module.apply))(params, xs), jax.jit(module.apply)
    xs, params = jax.device_get((xs, params))
    alone = [apply(jax.tree.map(lambda p, i=i: p[i], params), xs[i]) for i in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)
