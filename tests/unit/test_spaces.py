"""Spaces: equality by value, membership, samples, and their encoding as vectors."""

import json

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import spaces
from ssmrl.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

NESTED = Dict({"b": Tuple((Discrete(3), Box(-1, 1, (2, 2)))), "a": MultiDiscrete((2, 3))})
EVERY = [
    Discrete(4),
    MultiDiscrete((2, 5)),
    Box(-2.0, 3.0, ()),
    Box((0.0, -1.0), (1.0, np.inf), (2,)),
    Box(0, 255, (4, 4, 3), jnp.uint8),
    NESTED,
]


def draw(space, count):
    """Independent samples ``[count, ...]`` as numpy arrays."""
    keys = jax.random.split(jax.random.key(0), count)
    return jax.device_get(jax.jit(jax.vmap(space.sample))(keys))


@pytest.mark.parametrize("space", EVERY, ids=lambda s: type(s).__name__)
def test_samples_are_elements_and_differ(space):
    samples = draw(space, 50)
    assert jax.jit(jax.vmap(space.contains))(samples).all()
    assert any(len(np.unique(leaf, axis=0)) > 1 for leaf in jax.tree.leaves(samples))
    assert jax.tree.all(jax.tree.map(np.array_equal, samples, draw(space, 50)))
    for sampled, zero in zip(jax.tree.leaves(samples), jax.tree.leaves(spaces.zeros(space, (50,))), strict=True):
        assert (sampled.shape, sampled.dtype) == (zero.shape, zero.dtype)


def test_samples_cover_their_space():
    assert set(draw(Discrete(3), 300).tolist()) == {0, 1, 2}
    assert len(np.unique(draw(MultiDiscrete((2, 3)), 300), axis=0)) == 6
    assert set(draw(Box(-1, 2, (), jnp.int32), 300).tolist()) == {-1, 0, 1, 2}
    bounded, unbounded = draw(Box((0.0, -np.inf), (4.0, np.inf), (2,)), 300).T
    assert abs(bounded.mean() - 2) < 0.3
    assert abs(unbounded.std() - 1) < 0.2
    assert draw(Box(0.5, np.inf, ()), 300).min() >= 0.5


@pytest.mark.parametrize(
    ("space", "inside", "outside"),
    [
        (Discrete(3), [0, 2], [-1, 3]),
        (MultiDiscrete((2, 3)), [[0, 0], [1, 2]], [[2, 0], [0, 3], [-1, 0]]),
        (Box((0.0, -1.0), 1.0, (2,)), [[0, -1], [1, 1]], [[-0.1, 0], [0, 1.1]]),
        (Tuple((Discrete(2), Box(0, 1, ()))), [(1, 0.5)], [(2, 0.5), (1, 1.5)]),
        (Dict({"a": Discrete(2)}), [{"a": 1}], [{"a": 2}]),
    ],
)
def test_contains(space, inside, outside):
    as_arrays = lambda x: jax.tree.map(jnp.asarray, x, is_leaf=lambda y: isinstance(y, list))  # noqa: E731
    assert all(space.contains(as_arrays(x)) for x in inside)
    assert not any(space.contains(as_arrays(x)) for x in outside)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (Discrete(3), Discrete(3), Discrete(4)),
        (MultiDiscrete((2, 3)), MultiDiscrete(np.array([2, 3])), MultiDiscrete((3, 2))),
        (Box(0, 1, (2,)), Box(0.0, 1.0, [2], np.float32), Box(0, 1, (3,))),
        (Box((0, 1), 2, (2,)), Box(np.array([0.0, 1.0]), jnp.array(2), (2,)), Box((0, 2), 2, (2,))),
        (Box(0, 1, (2,)), Box(0, 1, (2,), jnp.dtype("float32")), Box(0, 1, (2,), jnp.int32)),
        (Tuple((Discrete(2),)), Tuple([Discrete(2)]), Tuple((Discrete(3),))),
        (Dict({"a": Discrete(2), "b": Discrete(3)}), Dict((("b", Discrete(3)), ("a", Discrete(2)))), Dict({})),
    ],
)
def test_spaces_compare_and_hash_by_value(one, same, other):
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    traces = []
    traced = jax.jit(lambda space: traces.append(space), static_argnums=0)
    for space in (one, same):
        traced(space)
    assert len(traces) == 1


def test_box_bounds():
    low, high = Box((1, 2, 3, 4), 9, (2, 2)).bounds()
    np.testing.assert_array_equal(low, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(high, [[9, 9], [9, 9]])
    assert low.dtype == high.dtype == np.float32
    with pytest.raises(ValueError, match=r"Box low has 3 numbers: give one, or one for each entry of \(2,\)"):
        Box((1, 2, 3), 9, (2,))


def test_flat_sizes():
    assert [spaces.flat_size(s) for s in EVERY] == [4, 7, 1, 2, 48, 5 + 3 + 4]


def test_integers_become_one_hot_in_order():
    np.testing.assert_array_equal(spaces.flatten(Discrete(3), jnp.int32(1)), [0, 1, 0])
    np.testing.assert_array_equal(spaces.flatten(MultiDiscrete((2, 3)), jnp.array([1, 0])), [0, 1, 1, 0, 0])


def test_parts_are_concatenated_in_order():
    x = {"a": jnp.array([0, 2]), "b": (jnp.int32(2), jnp.arange(4.0).reshape(2, 2))}
    np.testing.assert_array_equal(spaces.flatten(NESTED, x), [1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 2, 3])


@pytest.mark.parametrize("space", EVERY, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("batch", [(), (3,), (5, 2)])
def test_flatten_takes_any_leading_axes(space, batch):
    count = int(np.prod(batch))
    one_by_one = draw(space, count)
    x = jax.tree.map(lambda leaf: leaf.reshape((*batch, *leaf.shape[1:])), one_by_one)
    flatten = jax.jit(lambda element: spaces.flatten(space, element))
    flat = flatten(x)
    assert (flat.shape, flat.dtype) == ((*batch, spaces.flat_size(space)), jnp.float32)
    rows = [flatten(jax.tree.map(lambda leaf: leaf[i], one_by_one)) for i in range(count)]  # noqa: B023
    np.testing.assert_array_equal(flat.reshape(count, -1), np.stack(rows))


def test_zeros_is_the_null_element():
    zero = spaces.zeros(NESTED, (7,))
    assert jax.tree.map(jnp.shape, zero) == {"a": (7, 2), "b": ((7,), (7, 2, 2))}
    assert not any(leaf.any() for leaf in jax.tree.leaves(zero))
    assert spaces.zeros(Box(0, 1, (2,), jnp.uint8)).dtype == jnp.uint8


def test_cast_gives_the_declared_dtypes():
    x = spaces.cast(NESTED, {"a": jnp.array([1.0, 2.0]), "b": (2, np.ones((2, 2), np.int64))})
    assert jax.tree.map(lambda leaf: leaf.dtype.name, x) == {"a": "int32", "b": ("int32", "float32")}
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(x))


def test_images_are_told_apart():
    assert spaces.is_image(Box(0, 1, (8, 8, 3)))
    assert not spaces.is_image(Box(0, 1, (8, 8)))
    assert not spaces.is_image(NESTED)


@pytest.mark.parametrize("space", EVERY, ids=lambda s: type(s).__name__)
def test_spaces_survive_json_and_gymnasium(space):
    assert spaces.from_json(json.loads(json.dumps(spaces.to_json(space)))) == space
    there = spaces.to_gymnasium(space)
    assert jax.tree.map(lambda x: x.shape, there.sample()) == jax.tree.map(lambda x: x.shape, spaces.zeros(space))
    back = spaces.from_gymnasium(there)
    assert str(spaces.to_gymnasium(back)) == str(there)
    assert spaces.flat_size(back) == spaces.flat_size(space)


def test_descriptions_of_no_space():
    with pytest.raises(ValueError, match=r"no space is described by \{'n': 3\}"):
        spaces.from_json({"n": 3})
    with pytest.raises(ValueError, match="unknown kind of space 'Text': use Discrete"):
        spaces.from_json({"kind": "Text"})
    assert spaces.from_json(
        {"kind": "Box", "low": "-inf", "high": [1, "inf"], "shape": [2], "dtype": "float32"}
    ) == Box(-np.inf, (1, np.inf), (2,))


def test_from_gymnasium():
    assert spaces.from_gymnasium(gymnasium.spaces.Discrete(3, start=5)) == Discrete(3)
    assert spaces.from_gymnasium(gymnasium.spaces.MultiBinary(3)) == MultiDiscrete((2, 2, 2))
    assert spaces.from_gymnasium(gymnasium.spaces.Box(-1, 1, (2, 3))) == Box([-1] * 6, [1] * 6, (2, 3))
    for space in (gymnasium.spaces.Text(4), gymnasium.spaces.MultiDiscrete([[2, 3]])):
        with pytest.raises(TypeError, match=r"no counterpart of .*: use vectors of Discrete"):
            spaces.from_gymnasium(space)
