"""Convolutions as matrix products are those of flax: values, parameters and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssmrl.nn import convolution

PAIRS = [
    (convolution.Conv(5), nn.Conv(5, (4, 4), (2, 2)), (2, 4, 3, 5)),
    (convolution.ConvTranspose(5), nn.ConvTranspose(5, (4, 4), (2, 2)), (2, 16, 12, 5)),
]


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS, ids=["Conv", "ConvTranspose"])
def test_convolutions_are_those_of_flax(ours, theirs, shape):
    key_x, key_w, key_params = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key_x, (2, 8, 6, 3))
    params = theirs.init(key_params, x)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), ours.init(key_params, x), params)
    assert jax.tree.all(same), "parameters are called, shaped and drawn alike"
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases start at 0
    weights = jax.random.normal(key_w, shape)

    def found(module):
        value, gradients = jax.value_and_grad(lambda p, x: (module.apply(p, x) * weights).sum(), (0, 1))(params, x)
        return module.apply(params, x), value, gradients

    assert found(ours)[0].shape == shape
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found(ours), found(theirs))


@pytest.mark.parametrize("module", [pair[0] for pair in PAIRS], ids=["Conv", "ConvTranspose"])
def test_seeds_do_not_mix(module):
    xs = jax.random.normal(jax.random.key(0), (3, 1, 4, 4, 2))
    params = jax.vmap(module.init, (0, None))(jax.random.split(jax.random.key(1), 3), xs[0])
    together = jax.vmap(module.apply)(params, xs)
    alone = [module.apply(jax.tree.map(lambda p, i=i: p[i], params), xs[i]) for i in range(3)]
    np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-5)
