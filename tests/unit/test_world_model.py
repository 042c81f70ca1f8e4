"""The world model: one model in parallel and step by step; its latents and heads by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import nn, spaces
from ssmrl.frames import Frames
from ssmrl.nn import latents, observations
from ssmrl.nn.latents import CategoricalLatent, GaussianLatent
from ssmrl.testing import check_sequence_model
from ssmrl.world_model import WorldModel

T, C, D = 8, 3, 8  # frames, context or chunk, width
ROWS = T + 2  # batch rows: a reset at each frame alone, none, one at every frame
BLOCK = {"norm": "pre", "memories": 2, "mlp": 2}  # S4WM's
BACKBONES = {
    "s5": {"d_state": 8, "learned_init": True, "stability": "clip", **BLOCK},
    "gru": {},
    "lstm": {},
    "transformer": {"num_heads": 2, "window": 5},
    "none": {},
    "rssm": {},
}
KEY = jax.random.key(0)
OBS, ACTIONS = spaces.Box(-10.0, 10.0, (3,)), spaces.Discrete(3)


def drawn(shapes):
    """Parameters of which none is zero, without the cost of an initialisation."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(p.dtype), shapes)


def make_network(backbone, space=OBS, latent="gaussian", **options):
    memory = nn.make_model("gru" if backbone == "rssm" else backbone, d_model=D, **BACKBONES[backbone])
    posterior = "rssm" if backbone == "rssm" else "obs"
    reads = backbone in ("gru", "rssm")
    sizes = {"groups": 2, "classes": 3, "hidden": (8,), "channels": 2, "bins": 5, "read_reward": reads} | options
    return WorldModel(space, ACTIONS, memory, posterior=posterior, latent=latent, **sizes)


def random_frames(seed, reset, space=OBS):
    rng, shape = np.random.default_rng(seed), reset.shape
    obs = rng.normal(size=(*shape, *space.shape)).astype(np.float32)
    if not isinstance(space, spaces.Box):
        obs = rng.integers(0, space.nvec, (*shape, *space.shape), np.int32)
    elif spaces.is_image(space):
        obs = rng.integers(0, 256, (*shape, *space.shape), np.uint8)
    action, reward = rng.integers(0, 3, shape, np.int32), rng.normal(size=shape).astype(np.float32)
    return Frames(obs, action, reward, reset, rng.random(shape) < 0.3)


def parameters(network, frames):
    state = jax.eval_shape(lambda: network.initial_state(frames.reset.shape[1:]))
    init = lambda *inputs: network.init(jax.random.key(0), *inputs, jax.random.key(0), method="loss")  # noqa: E731
    return drawn(jax.eval_shape(init, state, frames)["params"])


def cut(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, tolerance, tolerance)


def moments(latent):
    return latent.mean, latent.std


@pytest.fixture(scope="module", params=BACKBONES)
def model(request):
    """A model with its functions compiled, a state in use, frames with their resets, and what it makes of them."""
    rows = np.arange(T)[:, None] == np.arange(ROWS)
    rows[:, T + 1] = True
    network, frames = make_network(request.param), random_frames(0, rows)
    variables, key = {"params": parameters(network, frames)}, jax.random.key(0)

    def observe(state, frames, chunk=0):
        return network.apply(variables, state, frames, key, "mode", chunk, method="observe")

    compiled = jax.jit(observe, static_argnums=2)
    m = SimpleNamespace(network=network, variables=variables, frames=frames, traced=observe)
    m.observe = lambda *inputs: jax.device_get(compiled(*inputs))
    m.fresh = jax.device_get(network.initial_state((ROWS,)))
    m.state = m.observe(m.fresh, random_frames(1, rows & False))[0]
    m.after, m.seen = m.observe(m.state, frames)
    m.start = np.append(np.arange(T), [0, T - 1])  # where each row's last episode begins
    m.alive = np.arange(T)[:, None] >= m.start  # [T, B]: in it
    return m


def test_frame_by_frame_is_all_at_once(model):
    def step(state, frame):
        state, seen = model.traced(state, cut(frame, None))
        return state, cut(seen, 0)

    after, seen = jax.device_get(jax.jit(lambda *a: jax.lax.scan(step, *a))(model.state, model.frames))
    assert_close((seen.h, seen.z, moments(seen.prior)), (model.seen.h, model.seen.z, moments(model.seen.prior)))
    assert_close(moments(seen.posterior), moments(model.seen.posterior))
    assert_close(after, model.after)
    assert np.abs(np.diff(seen.h, axis=0)).max() > 0.1


def test_after_a_reset_the_model_is_new(model):
    """Each row's last episode, moved to the front, gives a fresh model the same outputs."""
    inside = np.arange(T)[:, None] + model.start < T
    source = np.where(inside, np.arange(T)[:, None] + model.start, 0), np.arange(ROWS)
    moved = cut(model.frames, *source)
    _, seen = model.observe(model.fresh, moved.replace(reset=moved.reset & inside))
    rows = np.arange(ROWS) != T  # the row without a reset goes on from a state
    assert_close((cut(model.seen.h, *source) - seen.h)[inside & rows], 0, 1e-5)
    assert np.abs(cut(model.seen.h, *source) - seen.h)[inside & ~rows].max() > 1e-3


def test_what_was_before_a_reset_does_not_matter_however_loud(model):
    scale = np.where(model.alive & (np.arange(ROWS) != T), 1, 1000)
    obs = (model.frames.obs * scale[..., None]).astype(np.float32)
    state = jax.tree.map(lambda x: 1000 * x, model.state)
    action = np.where((scale > 1) | model.frames.reset, 2 - model.frames.action, model.frames.action)
    assert (action != model.frames.action)[model.frames.reset].any()
    _, seen = model.observe(state, model.frames.replace(obs=obs, action=action))
    same = (seen.h == model.seen.h).all(-1)
    assert same[scale == 1].all()
    assert not same[:, T].any()


def test_no_gradient_crosses_a_reset(model):
    def output(obs, state):
        seen = model.traced(state, model.frames.replace(obs=obs))[1]
        weight = jnp.cos(jnp.arange(seen.features.size)).reshape(seen.features.shape)
        return (weight * seen.features * model.alive[..., None]).sum()

    of_obs, of_state = jax.device_get(jax.jit(jax.grad(output, (0, 1)))(model.frames.obs, model.state))
    assert not of_obs[~model.alive].any()
    assert (np.abs(of_obs[model.alive]).max(-1) > 1e-6).all()
    assert not any(leaf[np.arange(ROWS) != T].any() for leaf in jax.tree.leaves(of_state))
    assert of_state.z[T].any()
    memory = jax.tree.leaves(of_state.memory)
    assert any(leaf[T].any() for leaf in memory) == any(leaf.size for leaf in memory)


def test_imagining_is_observing_one_s_own_latents(model):
    """What is imagined step by step, taken in at once as latents that were observed, means the same."""
    frames = cut(model.frames, slice(C)).replace(reset=np.zeros((C, ROWS), bool))

    @jax.jit
    def both(state):
        inputs = state, frames.action, jax.random.key(7)
        after, dreamt = model.network.apply(model.variables, *inputs, method="imagine")
        return after, dreamt, model.network.apply(model.variables, state, frames, dreamt.z, method="observe_latents")

    after, dreamt, (state, seen) = jax.device_get(both(model.state))
    assert_close((after, dreamt.h, moments(dreamt.prior)), (state, seen.h, moments(seen.prior)))
    score = (dreamt.z - dreamt.prior.mean) / dreamt.prior.std
    assert abs(score.mean()) < 0.3
    assert abs(score.std() - 1) < 0.2


def test_imagining_with_the_posterior_s_latents_is_observing(model):
    """``observe(C)`` then steps with recorded latents equals ``observe(T)``, in the row without a reset."""
    state, _ = model.observe(model.state, cut(model.frames, slice(C)))
    step = jax.jit(lambda *inputs: model.network.apply(model.variables, *inputs, method="step"))
    for t in range(C, T):
        state, h, prior = jax.device_get(
            step(state, spaces.flatten(model.network.action_space, model.frames.action[t]))
        )
        assert_close((h[T], prior[T, : prior.shape[-1] // 2]), (model.seen.h[t, T], model.seen.prior.mean[t, T]))
        state = state.replace(z=model.seen.z[t])
    assert_close(cut(state, T), cut(model.after, T))


def test_chunks_return_the_states_at_their_ends(model):
    after, seen = model.observe(model.state, model.frames, C)
    state = model.state
    for i in range(T // C):
        state, _ = model.observe(state, cut(model.frames, slice(C * i, C * (i + 1))))
        assert_close(cut(seen.states, i), state)
    assert_close((after, seen.replace(states=None)), (model.after, model.seen))  # with the frames after the last chunk


@pytest.mark.parametrize("backbone", ["s5", "rssm"])
def test_imagining_the_last_frame_alone_is_predicting_it(backbone):
    space = spaces.MultiDiscrete((4, 2))
    network, frames = make_network(backbone, space, "categorical"), random_frames(2, np.zeros((T, 3), bool), space)
    variables, key = {"params": parameters(network, frames)}, jax.random.key(0)

    @jax.jit
    def run():
        _, seen = network.apply(variables, network.initial_state((3,)), frames, key, "mode", method="observe")
        return seen, network.apply(variables, frames, T - 1, key, "mode", method="open_loop")

    seen, (past, future) = jax.device_get(run())
    assert_close((past.h, past.z), (seen.h[:-1], seen.z[:-1]))
    assert_close((future.h, future.prior.logits), (seen.h[-1:], seen.prior.logits[-1:]))
    one_hot = future.z.reshape(1, 3, 2, 3)
    np.testing.assert_array_equal(one_hot.argmax(-1), seen.prior.logits[-1:].argmax(-1))
    np.testing.assert_array_equal(np.sort(one_hot), np.broadcast_to([0, 0, 1], one_hot.shape))


@pytest.mark.parametrize("backbone", ["s5", "rssm"])
def test_the_loss_of_imagined_frames(backbone):
    """One frame ahead it is that of observed ones; from a reset on it is nothing; posteriors learn nothing from it."""
    space, rows = spaces.MultiDiscrete((4, 2)), 3
    network = make_network(backbone, space, "categorical")
    reset = np.zeros((T, rows), bool)
    reset[C + 2, 1] = True
    frames, state = random_frames(2, reset, space), network.initial_state((rows,))
    params, key = parameters(network, frames), jax.random.key(0)

    def imagined(params):
        terms, _, seen = network.apply({"params": params}, state, frames, key, C, method="loss")
        start = jax.tree.map(lambda x: jax.lax.stop_gradient(x[0]), seen.states)
        query = start, cut(frames, slice(C, None)), seen.posterior[C:], key
        ahead = network.apply({"params": params}, *query, method="open_loop_loss")
        return sum(x.sum() for x in ahead.values()), (terms, ahead)

    gradient, (terms, ahead) = jax.device_get(jax.jit(jax.grad(imagined, has_aux=True))(params))
    assert set(ahead) == set(terms) - {"rep"}
    assert_close(ahead["dyn"][0], terms["dyn"][C])
    assert np.abs(ahead["dyn"][1:] - terms["dyn"][C + 1 :]).max() > 1e-3
    for term in ahead.values():
        assert not term[2:, 1].any()
        assert term[:2].all()
        assert term[:, 0].all()
    for part, moved in {"posterior_head": False, "encoder": False, "prior_head": True, "decoder": True}.items():
        assert any(leaf.any() for leaf in jax.tree.leaves(gradient[part])) == moved, part


def test_imagining_traces_a_step_once(monkeypatch):
    network, frames = make_network("s5"), random_frames(0, np.zeros((T, 2), bool))
    params, state, traced, step = parameters(network, frames), network.initial_state((2,)), [], WorldModel.step
    monkeypatch.setattr(WorldModel, "step", lambda *a: traced.append(1) or step(*a))
    jax.eval_shape(lambda *a: network.apply(*a, method="imagine"), {"params": params}, state, frames.action, KEY)
    assert len(traced) == 1


def test_the_block_of_s4wm_keeps_the_contract():
    check_sequence_model(nn.make_model("s5", d_model=D, d_state=8, num_layers=2, **BLOCK), length=8, long=64)


# Latents and heads, by hand


def test_categorical_latents_by_hand():
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    P, Q = (CategoricalLatent(np.log(x).astype(np.float32)) for x in (p, q))
    kl, none, entropy = jax.jit(lambda: (P.kl(Q), P.kl(P), P.entropy()))()
    assert kl == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)
    assert none == 0
    assert entropy == pytest.approx(np.log(2) - 0.9 * np.log(0.9) - 0.1 * np.log(0.1), abs=1e-6)
    logits = 5 * jax.random.normal(jax.random.key(0), (2, 1000, 4, 8))
    assert jax.jit(lambda x: CategoricalLatent(x[0], 0.01).kl(CategoricalLatent(x[1], 0.01)))(logits).min() > 0


def test_unimix_is_a_floor_that_imagination_does_not_have():
    latent = CategoricalLatent(jnp.array([[50.0, 0, 0, 0]]), 0.1)
    np.testing.assert_allclose(np.exp(latent.log_probs()), [[0.925, 0.025, 0.025, 0.025]], rtol=1e-5)
    np.testing.assert_allclose(np.exp(latent.sharp().log_probs()), [[1, 0, 0, 0]], atol=1e-6)
    impossible = CategoricalLatent(jnp.array([[0.0, 50, 0, 0]]), 0.1)  # without unimix: 50 nats
    assert latent.kl(impossible) == pytest.approx(0.9 * np.log(0.925 / 0.025), rel=1e-4)
    many = jnp.broadcast_to(latent.logits, (10_000, 1, 4))
    shares = jax.jit(lambda u: CategoricalLatent(many, u).sample(jax.random.key(0)).mean(0))
    np.testing.assert_allclose(shares(0.1), [0.925, 0.025, 0.025, 0.025], atol=0.008)
    np.testing.assert_allclose(shares(0.0), [1, 0, 0, 0])


def test_the_gradient_of_a_sample_is_that_of_the_probabilities():
    logits, weight = jnp.array([[1.0, -1.0, 0.5], [0.2, 0.1, 3.0]]), jnp.array([1.0, 2, 3, -1, 0, 1])

    def through(x):
        z = CategoricalLatent(x, 0.1).sample(jax.random.key(0))
        return (weight * z).sum(), z

    def probabilities(x):
        return (weight.reshape(2, 3) * (0.9 * jax.nn.softmax(x) + 0.1 / 3)).sum()

    gradient, z = jax.jit(jax.grad(through, has_aux=True))(logits)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(probabilities))(logits), rtol=1e-5)
    np.testing.assert_allclose(np.sort(np.reshape(z, (2, 3))), [[0, 0, 1]] * 2, atol=1e-6)


def test_gaussian_latents_by_hand():
    rng = np.random.default_rng(0)
    (m, n), (s, t) = rng.normal(size=(2, 3)), rng.uniform(0.5, 2, (2, 3))
    P, Q = (GaussianLatent(*(np.float32(x) for x in pair)) for pair in ((m, s), (n, t)))
    kl, none, entropy, draws = jax.jit(
        lambda: (P.kl(Q), P.kl(P), P.entropy(), jax.vmap(P.sample)(jax.random.split(jax.random.key(0), 20_000)))
    )()
    x = m + s * rng.normal(size=(400_000, 3))
    log_ratio = ((x - n) ** 2 / t**2 - (x - m) ** 2 / s**2).sum(1) / 2 + np.log(t / s).sum()
    assert kl == pytest.approx((np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(), rel=1e-5)
    assert kl == pytest.approx(log_ratio.mean(), abs=0.02)  # the formula above, by its definition
    assert none == 0
    assert entropy == pytest.approx(0.5 * np.log((2 * np.pi * np.e) ** 3 * (s**2).prod()), rel=1e-5)
    np.testing.assert_allclose((draws.mean(0), draws.std(0)), (m, s), atol=0.05)


def test_what_a_dense_layer_makes_of_latents():
    parameters = jnp.array([1.0, 2, 3, 4, 5, 6, -40, 0])
    gaussian = latents.make_latent("gaussian", parameters, 2, 0.0)
    np.testing.assert_allclose(gaussian.mean, [1, 2, 3, 4])
    np.testing.assert_allclose(gaussian.std, np.log1p(np.exp([5, 6, -40, 0])) + 0.1, rtol=1e-5)
    categorical = latents.make_latent("categorical", parameters, 2, 0.25)
    assert (categorical.logits.shape, categorical.unimix) == ((4, 2), 0.25)
    np.testing.assert_array_equal(categorical.mode(), [0, 1, 0, 1, 0, 1, 0, 1])
    assert [latents.num_parameters(kind, 4, 2) for kind in ("categorical", "gaussian")] == [8, 16]


def test_two_hot_by_hand_and_its_mean_inverts():
    values = np.array([-300.0, -1.5, 0, 0.3, 1, 7, 1e4], np.float32)
    squashed = np.sign(values) * np.log(1 + np.abs(values))
    bins = np.sign(np.linspace(-10, 10, 9)) * np.expm1(np.abs(np.linspace(-10, 10, 9)))
    lower = np.searchsorted(bins, values, side="right") - 1
    upper = (values - bins[lower]) / (bins[lower + 1] - bins[lower])
    weights = np.zeros((7, 9))
    weights[np.arange(7), lower], weights[np.arange(7), lower + 1] = 1 - upper, upper
    logits = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    expected = -(weights * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)
    beyond = np.array([-1e12, 1e12], np.float32)

    @jax.jit
    def run():
        loss, far = observations.two_hot_loss(logits, values), observations.two_hot_loss(logits[:2], beyond)
        mean = observations.two_hot_mean(np.log(weights + 1e-30).astype(np.float32))
        return loss, far, mean, observations.symlog(values), observations.symexp(observations.symlog(values))

    loss, far, mean, symlog, again = jax.device_get(run())
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(far, (np.log(np.exp(logits).sum(-1, keepdims=True)) - logits)[[0, 1], [0, 8]], rtol=1e-4)
    np.testing.assert_allclose(mean, values, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(symlog, squashed, rtol=1e-5)
    np.testing.assert_allclose(again, values, rtol=1e-4)


@pytest.mark.parametrize("bins", [81, 255])
def test_two_hot_learns_the_expectation_of_what_is_random(bins):
    """Least cross-entropy with coins and dice: their means, not the mean of their logarithms; 0 before learning."""
    outcomes = jnp.array([[0.0, 100.0], [-1.0, 10.0], [-3.0, 3.0], [47.0, 1e4]])
    chances = jnp.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.25, 0.75]])

    @jax.jit
    def learn(logits):
        def loss(logits):
            return (chances * observations.two_hot_loss(logits[:, None].repeat(2, 1), outcomes)).sum()

        return jax.lax.fori_loop(0, 3000, lambda _, x: x - jax.grad(loss)(x), logits)

    assert observations.two_hot_mean(jnp.zeros(bins)) == 0
    found = observations.two_hot_mean(learn(jnp.zeros((4, bins))))
    np.testing.assert_allclose(found, (outcomes * chances).sum(-1), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("reads", [True, False])
def test_rewards_are_read_with_their_observation_if_asked_and_never_where_an_episode_starts(reads):
    reset = np.zeros((T, 2), bool)
    reset[[0, 3]] = True
    network, frames = make_network("gru", read_reward=reads), random_frames(0, reset)
    variables = {"params": parameters(network, frames)}
    observe = jax.jit(lambda f: network.apply(variables, network.initial_state((2,)), f, KEY, "mode", method="observe"))
    alone, latent = np.arange(T) == 2, observe(frames)[1]
    louder = observe(frames.replace(reward=frames.reward + 3.0 * alone[:, None]))[1]
    assert np.any(louder.posterior.mean != latent.posterior.mean, (1, 2)).tolist() == (alone & reads).tolist()
    assert_close(louder.h[:3], latent.h[:3])  # what is not acted on yet
    at_start = observe(frames.replace(reward=frames.reward + 3.0 * reset))[1]
    assert_close(at_start, latent)


@pytest.mark.parametrize("side", [40, 64])
def test_pictures_are_encoded_and_decoded(side):
    space = spaces.Box(0, 255, (side, side, 3), np.uint8)
    network, frames = make_network("none", space), random_frames(3, np.zeros((1, 2), bool), space)
    variables, state = {"params": parameters(network, frames)}, network.initial_state((2,))

    @jax.jit
    def run(state):
        terms, _, seen = network.apply(variables, state, frames, jax.random.key(0), method="loss")
        return terms["obs"], network.apply(variables, seen.features, method="predict").obs

    loss, outputs = jax.device_get(run(state))
    assert outputs.shape == (1, 2, side, side, 3)
    np.testing.assert_allclose(loss, 0.5 * ((outputs - frames.obs / 255) ** 2).sum((2, 3, 4)), rtol=1e-4)
    guess = observations.observation_mode(space, jnp.array([0.5, -1.0, 2.0]).reshape(1, 1, 3))
    np.testing.assert_array_equal(guess, np.array([128, 0, 255], np.uint8).reshape(1, 1, 3))
    blurred = np.abs(outputs - outputs.mean((2, 3), keepdims=True)).max()
    assert blurred > 1e-2, "every pixel is the same"
    assert np.abs(outputs[:, 0] - outputs[:, 1]).max() > 1e-3, "every picture is the same"


def test_integers_that_do_not_exist_are_never_predicted():
    space = spaces.MultiDiscrete((2, 5, 3))
    decoder = observations.Decoder(space, (8,), 2)
    x = jax.random.normal(jax.random.key(0), (500, 4))
    params = jax.tree.map(lambda p: 5 * p, drawn(jax.eval_shape(decoder.init, jax.random.key(0), x)))

    @jax.jit
    def run(params, obs):
        outputs = decoder.apply(params, x)
        loss = lambda p: observations.observation_loss(space, decoder.apply(p, x), obs).mean()  # noqa: E731
        return outputs, observations.observation_mode(space, outputs), jax.value_and_grad(loss)(params)

    obs = np.random.default_rng(0).integers(0, space.nvec, (500, 3), np.int32)
    outputs, mode, (loss, gradient) = jax.device_get(run(params, obs))
    exists = np.arange(5) < np.array(space.nvec)[:, None]
    assert not np.exp(outputs)[:, ~exists].any()
    assert mode.dtype == np.int32
    assert (mode.max(0) < space.nvec).all()
    assert (mode.max(0) > 0).all()
    probs = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    chosen = probs[np.arange(500)[:, None], np.arange(3), obs]
    assert loss == pytest.approx(-np.log(chosen).sum(1).mean(), rel=1e-4)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict({"a": spaces.Discrete(2)}), "a world model reads Discrete, MultiDiscrete, vectors or pictures"),
        (spaces.Tuple((spaces.Discrete(2),)), "a world model reads Discrete"),
        (spaces.Box(0, 1, (4, 4)), "a world model reads Discrete"),
        (spaces.Box(0, 255, (30, 30, 3), np.uint8), "square, uint8, with a side divisible by 8"),
        (spaces.Box(0, 255, (40, 32, 3), np.uint8), "square, uint8"),
        (spaces.Box(0, 1, (40, 40, 3)), "square, uint8"),
    ],
)
def test_observations_that_cannot_be_decoded(space, message):
    with pytest.raises(ValueError, match=message):
        observations.check_space(space)
