"""S5 against the numbers of the paper's own code, and against what its formulas imply."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl.nn import make_model
from ssmrl.nn.s5 import S5
from ssmrl.nn.ssm import discretize, hippo_normal, initial_eigenvalues
from ssmrl.registry import ConfigError

# Parameters, inputs and outputs of the layer in github.com/lindermanlab/S5, and its HiPPO-N eigenvalues.
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "s5_reference.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files if name.endswith("/y")})
T, B, D, P = 9, 2, 3, 4


@partial(jax.jit, static_argnums=0)
def run(layer, params, carry, x, reset, dt=None):
    return layer.apply({"params": params}, carry, x, reset, *(() if dt is None else (dt,)))


def draw(layer, d_input=D, seed=0):
    carry = layer.initialize_carry((1,))
    x, reset = jnp.zeros((2, 1, d_input)), jnp.zeros((2, 1), bool)
    return jax.jit(layer.init)(jax.random.key(seed), carry, x, reset)["params"]


def sequence(seed=0):
    rng = np.random.default_rng(seed)
    carry = rng.normal(size=(B, P)) + 1j * rng.normal(size=(B, P))
    x = rng.normal(size=(T, B, D))
    return carry.astype(np.complex64), x.astype(np.float32), rng.random((T, B)) < 0.3


@pytest.mark.parametrize("method", ["sequential", "associative", "chunked"])
@pytest.mark.parametrize("case", CASES)
def test_matches_the_papers_code(case, method):
    data = {name.split("/")[1]: GOLDEN[name] for name in GOLDEN.files if name.startswith(f"{case}/")}
    layer = S5(
        d_model=data["u"].shape[1],
        d_state=2 * len(data["Lambda_re"]),
        discretization="bilinear" if case.startswith("bilinear") else "zoh",
        scan=method,
    )
    params = {name: data[name] for name in ("Lambda_re", "Lambda_im", "B", "C", "D")}
    params["log_step"] = data["log_step"][:, 0]
    h_last, y = run(layer, params, data["h0"], data["u"], data["reset"])
    np.testing.assert_allclose(y, data["y"], 1e-4, 1e-4)
    np.testing.assert_allclose(h_last, data["h_last"], 1e-4, 1e-4)


@pytest.mark.parametrize("n", [8, 16, 64])
def test_hippo_spectrum_matches_the_papers_code(n):
    golden = GOLDEN[f"hippo_{n}/Lambda"]
    Lambda, V = hippo_normal(n)
    scale = np.abs(golden).max()
    np.testing.assert_allclose(Lambda, golden[np.argsort(golden.imag)], 1e-4, 1e-5 * scale)
    np.testing.assert_allclose(V @ V.conj().T, np.eye(n), atol=1e-10)
    p = np.sqrt(1 + 2 * np.arange(n))  # the definition: HiPPO-LegS plus its low-rank correction, in its eigenbasis
    legs = -np.array([[p[i] * p[j] if i > j else i + 1 if i == j else 0 for j in range(n)] for i in range(n)])
    normal = legs + 0.5 * np.outer(p, p)
    np.testing.assert_allclose(V @ np.diag(Lambda) @ V.conj().T, normal, atol=1e-10 * scale)


def test_s4d_spectra():
    np.testing.assert_allclose(initial_eigenvalues("s4d-lin", 3), [-0.5, -0.5 + 1j * np.pi, -0.5 + 2j * np.pi])
    imag = [6 / np.pi * 5, 6 / np.pi * 1, 6 / np.pi * 0.2]  # N = 6: N/pi (N/(2n+1) - 1)
    np.testing.assert_allclose(initial_eigenvalues("s4d-inv", 3), -0.5 + 1j * np.array(imag))
    np.testing.assert_allclose(initial_eigenvalues("s4d-real", 3), [-1, -2, -3])
    with pytest.raises(ValueError, match="unknown initialisation 'legs': use hippo, s4d-lin, s4d-inv or s4d-real"):
        initial_eigenvalues("legs", 3)


@pytest.mark.parametrize("lambda_init", ["hippo", "s4d-lin", "s4d-inv", "s4d-real"])
@pytest.mark.parametrize("conj_sym", [True, False])
def test_blocks_tile_the_spectrum(lambda_init, conj_sym):
    one, four = (
        draw(S5(d_model=D, d_state=n, blocks=blocks, lambda_init=lambda_init, conj_sym=conj_sym))
        for n, blocks in ((4, 1), (16, 4))
    )
    for name in ("Lambda_re", "Lambda_im"):
        np.testing.assert_array_equal(four[name], np.tile(one[name], 4))
    if lambda_init == "hippo" and conj_sym:  # one of each conjugate pair, none on the real axis
        assert (one["Lambda_im"] < 0).all()


def test_blocks_have_eigenbases_of_their_own():
    """B is V^H times a real matrix: seen in its own basis, it is real block by block."""
    params = draw(S5(d_model=D, d_state=8, blocks=2, conj_sym=False))
    _, V = hippo_normal(4)
    B = params["B"][..., 0] + 1j * params["B"][..., 1]
    for block in (B[:4], B[4:]):
        np.testing.assert_allclose((V @ block).imag, 0, atol=1e-6)
        assert np.abs(block.imag).max() > 0.01


@pytest.mark.parametrize("stability", ["none", "clip", "exp", "softplus", "best"])
@pytest.mark.parametrize("lambda_init", ["hippo", "s4d-real"])
def test_stability_maps_start_at_the_initial_value_and_stay_negative(stability, lambda_init):
    layer = S5(d_model=1, d_state=8, lambda_init=lambda_init, stability=stability, dt_min=0.01, dt_max=0.01)
    params = draw(layer, d_input=1)

    def decay(re):  # |Lambda_bar| = exp(0.01 Re(Lambda)), read off the state that one step leaves of ones
        changed = {**params, "Lambda_re": jnp.asarray(re)}
        end, _ = run(layer, changed, jnp.ones(P, jnp.complex64), jnp.zeros((1, 1)), jnp.zeros(1, bool))
        return np.abs(end)

    start = [-0.5] * P if lambda_init == "hippo" else [-1, -2, -3, -4]
    np.testing.assert_allclose(np.log(decay(params["Lambda_re"])) / 0.01, start, 1e-4)
    if stability != "none":
        assert (decay([-5.0, -0.01, 0.01, 5.0]) < 1).all()


def test_parameters():
    layer = S5(d_model=D, d_state=200, dt_min=0.01, dt_max=0.5, learned_init=True, stability="exp")
    params = draw(layer)
    assert set(layer.ssm_parameters) < set(params)
    assert {name: p.dtype for name, p in params.items()} == dict.fromkeys(params, jnp.float32)
    step = np.exp(params["log_step"])
    assert step.min() >= 0.01 * (1 - 1e-6)
    assert step.max() <= 0.5 * (1 + 1e-6)
    assert step.max() / step.min() > 20  # log-uniform: 100 draws span most of a factor of 50
    assert np.mean(step < np.sqrt(0.01 * 0.5)) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("c_init", ["lecun", "complex_normal"])
@pytest.mark.parametrize("conj_sym", [True, False])
def test_scale_of_the_initial_matrices(c_init, conj_sym):
    n, d = 64, 50
    params = draw(S5(d_model=d, d_state=n, c_init=c_init, conj_sym=conj_sym), d_input=d)
    # lecun_normal: variance 1 / fan-in, which is d_state for both; V is unitary and keeps |.|^2
    assert np.mean(np.sum(params["B"] ** 2, -1)) == pytest.approx(1 / n, rel=0.1)
    power = np.mean(np.sum(params["C"] ** 2, -1))
    assert power == pytest.approx(1 if c_init == "complex_normal" else 2 / n, rel=0.1)


@pytest.mark.parametrize("learned_init", [False, True])
def test_init_does_not_grow_with_the_model(learned_init):
    def program(d):
        layer = S5(d_model=d, d_state=d, learned_init=learned_init)
        arguments = layer.initialize_carry(), jnp.zeros((2, d)), jnp.zeros(2, bool)
        return jax.make_jaxpr(layer.init)(jax.random.key(0), *arguments)

    assert str(program(8)).count(" = ") == str(program(64)).count(" = ")


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_impulse_response(discretization):
    """From rest, an impulse in feature i leaves 2 Re(C Lambda_bar^t B_bar) in the outputs, and D at once."""
    layer = S5(d_model=D, d_state=2 * P, discretization=discretization)
    params = draw(layer)
    impulse = np.zeros((T, D, D), np.float32)
    impulse[0] = np.eye(D)
    _, y = run(layer, params, layer.initialize_carry((D,)), impulse, np.zeros((T, D), bool))
    Lambda = np.asarray(params["Lambda_re"], float) + 1j * np.asarray(params["Lambda_im"])
    Delta = np.exp(np.asarray(params["log_step"], float))
    Bmat, C = (np.asarray(params[n][..., 0], float) + 1j * np.asarray(params[n][..., 1]) for n in "BC")
    if discretization == "zoh":
        Lambda_bar = np.exp(Lambda * Delta)
        B_bar = ((Lambda_bar - 1) / Lambda)[:, None] * Bmat
    else:
        Lambda_bar = (2 + Lambda * Delta) / (2 - Lambda * Delta)
        B_bar = (2 * Delta / (2 - Lambda * Delta))[:, None] * Bmat
    for t in range(T):
        response = 2 * (C @ np.diag(Lambda_bar**t) @ B_bar).real + (t == 0) * np.diag(params["D"])
        np.testing.assert_allclose(y[t].T, response, 1e-4, 1e-5)


def test_zero_order_hold_is_exact_near_zero():
    z = np.array([1e-8, 1e-5, 9e-5, 1.1e-4, 1e-3, 0.1, 1.0, 10.0]) * np.exp(2.5j)
    z = np.concatenate([z, [0], 1j * np.array([0.01, 1.0, 300.0])]).astype(np.complex64)
    factor = jax.jit(lambda z: discretize(z, jnp.float32(1), "zoh")[1])
    exact = np.where(z == 0, 1, np.expm1(z.astype(complex)) / np.where(z == 0, 1, z))
    np.testing.assert_allclose(factor(z), exact, 2e-6)
    slope = jax.jit(jax.vmap(jax.grad(lambda x: factor(x + 0j).real)))(jnp.float32([0, -1e-6, -1e-2]))
    np.testing.assert_allclose(slope, [0.5, 0.5, 0.5 - 1e-2 / 3], 1e-3)  # of (e^x - 1) / x


def test_variable_durations():
    carry, x, reset = sequence()
    params = draw(S5(d_model=D, d_state=2 * P))
    twice = run(S5(d_model=D, d_state=2 * P, step_rescale=2.0), params, carry, x, reset)
    given = run(S5(d_model=D, d_state=2 * P), params, carry, x, reset, np.full((T, B), 2, np.float32))
    for got, want in zip(given, twice, strict=True):
        np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def test_a_pause_is_one_long_step():
    """Without input, waiting for 0.5, 1 and 2.5 in turn is waiting for 4 at once."""
    layer = S5(d_model=D, d_state=2 * P)
    params, carry = draw(layer), sequence()[0]
    nothing, never = np.zeros((3, B, D), np.float32), np.zeros((3, B), bool)
    dt = np.broadcast_to(np.float32([0.5, 1, 2.5])[:, None], (3, B))
    apart, _ = run(layer, params, carry, nothing, never, dt)
    at_once, _ = run(layer, params, carry, nothing[:1], never[:1], np.full((1, B), 4, np.float32))
    np.testing.assert_allclose(apart, at_once, 1e-5)


@pytest.mark.parametrize("with_dt", [False, True])
def test_a_reset_leads_to_the_learned_state(with_dt):
    layer = S5(d_model=D, d_state=2 * P, learned_init=True)
    params = draw(layer)
    assert not params["h_init"].any()  # starts as a plain reset
    carry, x, _ = sequence()
    params["h_init"] = np.stack([carry[0].real, carry[0].imag], -1)
    dt = np.full((T, B), 0.7, np.float32) if with_dt else None
    at_reset, _ = run(layer, params, 9 * carry, x, np.arange(T)[:, None] == np.zeros((1, B), int), dt)
    given, _ = run(layer, params, np.broadcast_to(carry[0], (B, P)), x, np.zeros((T, B), bool), dt)
    np.testing.assert_allclose(at_reset, given, 1e-5, 1e-5)


def test_input_scale_norm_keeps_the_power_of_white_noise():
    """What decays in a step is what one step of input adds: a stationary state has the power of its input."""
    layer = S5(d_model=1, d_state=2 * P, input_scale="norm")
    params = draw(layer, d_input=1)
    params = {**params, "Lambda_re": jnp.float32([-1, -0.1, -0.01, -1e-3]), "log_step": jnp.zeros(P)}
    params["B"] = jnp.broadcast_to(jnp.float32([1, 0]), (P, 1, 2))
    states = np.stack([np.zeros(P), np.ones(P)]).astype(np.complex64)
    (added, kept), _ = run(layer, params, states, np.float32([[[1], [0]]]), np.zeros((1, 2), bool))
    np.testing.assert_allclose(np.abs(kept), np.exp([-1, -0.1, -0.01, -1e-3]), 1e-5)
    np.testing.assert_allclose(np.abs(added) ** 2 + np.abs(kept) ** 2, 1, 1e-5)


def test_rotating_states_follow_a_position():
    """What was put in at a place is read there again, whichever way one went: turns are by the way, not by the time."""
    places, steps = 5, np.float32([0, 1, 1, -1, 1, 1, 1, 1, -1, -1, 1])
    layer = S5(d_model=2, d_state=2 * places, rotation=1.0)
    params = {**draw(layer, d_input=2), "Lambda_re": jnp.full(places, -1e-6), "Lambda_im": jnp.zeros(places)}
    frequencies = 2 * np.pi * np.arange(places) / places
    params["W_phase"] = jnp.float32([frequencies, np.zeros(places)])  # the first input is the step, the second a mark
    params["B"] = jnp.zeros((places, 2, 2)).at[:, 1, 0].set(1 / jnp.exp(params["log_step"]))
    mark = np.float32([1, *np.zeros(len(steps) - 1)])  # at place 0
    x = np.stack([steps, mark], -1)[:, None]
    read = [
        run(layer, params, np.zeros((1, places), np.complex64), x[: t + 1], np.zeros((t + 1, 1), bool))[0].real.mean()
        for t in range(len(steps))
    ]
    np.testing.assert_allclose(read, np.cumsum(steps) % places == 0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 10, "blocks": 4}, "the state splits into equal blocks of conjugate pairs"),
        ({"d_state": 7}, "the state splits into equal blocks of conjugate pairs"),
        ({"d_state": 10, "blocks": 4, "conj_sym": False}, "the state splits into equal blocks of conjugate pairs"),
        ({"dt_min": 0.2, "dt_max": 0.1}, "the step sizes are drawn from an interval"),
    ],
)
def test_impossible_sizes(options, message):
    with pytest.raises(ConfigError, match=f"model 's5': .*{message}"):
        make_model("s5", **options)
