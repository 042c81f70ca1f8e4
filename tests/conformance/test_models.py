"""Every registered sequence model keeps the contract, and computes what its paper says.

A new model is found by itself; ``REFERENCES`` then asks for its formula, written again in numpy from the paper.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl.nn import Stack, make_model
from ssmrl.nn.initializers import orthogonal
from ssmrl.nn.stack import Block
from ssmrl.registry import models
from ssmrl.testing import check_sequence_model

NAMES = [entry.name for entry in models.entries()]
D, T, B = 8, 9, 3

# What S5 and the blocks around a memory offer; each choice occurs at least once.
VARIANTS = [
    {"blocks": 2, "discretization": "bilinear", "lambda_init": "s4d-lin", "norm": "pre", "glu": "half1"},
    {"conj_sym": False, "lambda_init": "s4d-inv", "c_init": "complex_normal", "norm": "gtrxl", "skip": "gru"},
    {"lambda_init": "s4d-real", "stability": "softplus", "input_scale": "norm", "learned_init": True, "glu": "none"},
    {"stability": "best", "glu": "half2", "skip": "none", "activation": "silu", "norm": "post", "num_layers": 2},
    {"stability": "clip", "scan": "associative", "step_rescale": 2.0, "activation": "none", "num_layers": 2},
    {"stability": "exp", "scan": "chunked", "conj_sym": False, "blocks": 2, "activation": "relu", "skip": "gru"},
    {"learned_init": True, "scan": "sequential", "activation": "tanh", "norm": "pre", "glu": "half2", "num_layers": 3},
    {"norm": "post", "mlp": 2},
    {"rotation": 0.5, "input_scale": "norm", "learned_init": True},
    {"rotation": 1.0, "scan": "associative", "num_layers": 2},
    {"norm": "gtrxl", "skip": "gru", "mlp": 1, "num_layers": 2},
]
OTHERS = [
    ("s4d", {"d_state": 4, "lambda_init": "s4d-inv", "discretization": "bilinear", "stability": "best"}),
    ("s4d", {"lambda_init": "s4d-real", "input_scale": "norm", "stability": "none", "scan": "associative"}),
    ("lru", {"d_state": 5, "r_min": 0.9, "r_max": 0.99, "max_phase": 0.3, "scan": "chunked"}),
    ("mingru", {"scan": "associative", "glu": "none", "activation": "none"}),
    ("transformer", {"window": 3, "num_heads": 2}),  # several blocks of queries, the last one not full
    ("transformer", {"window": 1, "norm": "gtrxl", "skip": "gru"}),
    ("deltanet", {"scan": "chunked", "num_heads": 2, "head_dim": 5, "conv": 2}),
    ("deltanet", {"gate": False, "negative_eigenvalues": True, "conv": 1, "num_heads": 3, "head_dim": 3}),
    ("deltanet", {"rotation": 0.5, "num_heads": 2, "head_dim": 5}),
    ("mamba2", {"scan": "chunked", "num_heads": 2, "head_dim": 3, "d_state": 5, "conv": 1}),
]
MODELS = [
    *((name, {"num_layers": 2}) for name in NAMES),
    *(("s5", {"d_state": 8, **variant}) for variant in VARIANTS),
    *OTHERS,
]
AROUND = [(name, {"norm": "pre", "glu": "full", "skip": "gru", "activation": "gelu"}) for name in NAMES if name != "s5"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *MODELS[: len(NAMES)],
        *(("s5", VARIANTS[i]) for i in (5, 6, 9)),
        ("transformer", {"window": 3}),
        ("deltanet", {"scan": "chunked", "num_heads": 1, "head_dim": 4, "conv": 1, "rotation": 1.0}),
    ],
)
def test_contract(name, options):
    check_sequence_model(make_model(name, d_model=D, **options))


# ---------------------------------------------------------------------------------------------------------------------
# The formulas in numpy: every function maps (settings, parameters, carry, x [T, B, D], reset) to (carry, y).


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def s5(layer, p, h, x, reset):
    """Smith et al. 2023, equations 2, 6 and 7; bilinear rule: appendix B; maps of Re(Lambda): Wang and Li 2024."""
    w = p["Lambda_re"]
    re = {
        "none": w,
        "clip": np.minimum(w, -1e-4),
        "exp": -np.exp(w),
        "softplus": -np.log(1 + np.exp(w)),
        "best": -1 / (w**2 + 0.1),
    }[layer.stability]
    B_, C, h_init = (p[n][..., 0] + 1j * p[n][..., 1] if n in p else 0 for n in ("B", "C", "h_init"))
    Lambda, Delta = re + 1j * p["Lambda_im"], layer.step_rescale * np.exp(p["log_step"])
    if layer.discretization == "zoh":
        Lambda_bar, scale = np.exp(Lambda * Delta), (np.exp(Lambda * Delta) - 1) / Lambda
    else:
        Lambda_bar, scale = (1 + Lambda * Delta / 2) / (1 - Lambda * Delta / 2), Delta / (1 - Lambda * Delta / 2)
    if layer.input_scale == "norm":
        scale = np.sqrt(1 - np.abs(Lambda_bar) ** 2)
    y = []
    n = round(layer.rotation * len(w))  # states that the input turns
    for u, r in zip(x, reset, strict=True):
        turn = np.exp(1j * np.concatenate([u @ p["W_phase"], np.zeros((len(u), len(w) - n))], -1)) if n else 1
        h = turn * Lambda_bar * np.where(r[:, None], h_init, h) + scale * (u @ B_.T)
        y.append((2 if layer.conj_sym else 1) * (h @ C.T).real + p["D"] * u)
    return h, np.stack(y)


def s4d(layer, p, h, x, reset):
    """Gu et al. 2022, equations 2 and 4 to 6, feature by feature."""
    w, Lambda_im, D = p["Lambda_re"], p["Lambda_im"], p["D"]
    Lambda = {"none": w, "exp": -np.exp(w), "best": -1 / (w**2 + 0.1)}[layer.stability] + 1j * Lambda_im
    z = Lambda * np.exp(p["log_step"])[:, None]
    if layer.discretization == "zoh":
        Lambda_bar, scale = np.exp(z), (np.exp(z) - 1) / Lambda
    else:
        Lambda_bar, scale = (1 + z / 2) / (1 - z / 2), z / Lambda / (1 - z / 2)
    if layer.input_scale == "norm":
        scale = np.sqrt(1 - np.abs(Lambda_bar) ** 2)
    h, y = h.reshape(len(h), *w.shape), []
    for u, r in zip(x, reset, strict=True):
        h = Lambda_bar * np.where(r[:, None, None], 0, h) + scale * u[:, :, None]
        y.append(2 * (h * (p["C"][..., 0] + 1j * p["C"][..., 1])).real.sum(-1) + D * u)
    return h.reshape(len(h), -1), np.stack(y)


def lru(layer, p, h, x, reset):
    """Orvieto et al. 2023, appendix A."""
    Lambda = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    B_, C = (p[n][..., 0] + 1j * p[n][..., 1] for n in ("B", "C"))
    y = []
    for u, r in zip(x, reset, strict=True):
        h = Lambda * np.where(r[:, None], 0, h) + np.exp(p["gamma_log"]) * (u @ B_.T)
        y.append((h @ C.T).real + p["D"] * u)
    return h, np.stack(y)


def mingru(layer, p, h, x, reset):
    """Feng et al. 2024, section 3.1 and appendix B."""
    W_z, W_h = np.split(p["input"]["kernel"], 2, axis=1)
    b_z, b_h = np.split(p["input"]["bias"], 2)
    y = []
    for u, r in zip(x, reset, strict=True):
        z, candidate = sigmoid(u @ W_z + b_z), u @ W_h + b_h
        h = (1 - z) * np.where(r[:, None], 0, h) + z * np.where(candidate >= 0, candidate + 0.5, sigmoid(candidate))
        y.append(h)
    return h, np.stack(y)


def transformer(layer, p, carry, x, reset):
    """Vaswani et al. 2017, equation 1, head by head, with pairs of features as complex numbers turned by their age."""
    W, E = layer.window, layer.d_model // layer.num_heads
    keys, values, seen = ([*np.moveaxis(c, 1, 0)] for c in carry)
    seen, y = [s > 0.5 for s in seen], []
    turn = np.exp(1j * 10_000.0 ** (-np.arange(E // 2) / (E // 2)))
    for u, r in zip(x, reset, strict=True):
        q, k, v = np.split(u @ p["qkv"]["kernel"], 3, axis=1)
        keys, values = [*keys, k][-W:], [*values, v][-W:]
        seen = [*(s & ~r for s in seen), np.ones(len(u), bool)][-W:]
        out = np.zeros_like(u)
        for head in range(layer.num_heads):
            part = slice(head * E, (head + 1) * E)
            pairs = [m[:, part][:, : E // 2] + 1j * m[:, part][:, E // 2 :] for m in (q, *keys)]
            ages = range(W - 1, -1, -1)
            logits = [(pairs[0] * turn**age * k.conj()).real.sum(1) for k, age in zip(pairs[1:], ages, strict=True)]
            weights = np.where(seen, np.exp(np.array(logits) / np.sqrt(E)), 0)
            weights = weights / weights.sum(0)
            out[:, part] = sum(w[:, None] * v[:, part] for w, v in zip(weights, values, strict=True))
        y.append(out @ p["out"]["kernel"])
    return (np.stack(keys, 1), np.stack(values, 1), np.stack(seen, 1).astype(float)), np.stack(y)


def silu(x):
    return x * sigmoid(x)


def short_convolution(kernel, buffer, x, reset):
    """Each feature's last few values, weighted; ``buffer`` ``[B, W - 1, F]`` holds those before ``x``."""
    last, y = np.moveaxis(buffer, 1, 0), []
    for u, r in zip(x, reset, strict=True):
        last = np.concatenate([np.where(r[:, None], 0, last), u[None]])
        y.append((last * kernel[::-1, None]).sum(0))
        last = last[1:]
    return np.moveaxis(last, 0, 1), np.stack(y)


def deltanet(layer, p, carry, x, reset):
    """Yang et al. 2025, section 3.1; strengths up to 2: Grazzi et al. 2025; step by step and head by head."""
    (S, *rest), qkv = carry, x @ p["qkv"]["kernel"]
    if layer.conv > 1:
        rest[-1], qkv = short_convolution(p["conv"], rest[-1], qkv, reset)
    heads = (*x.shape[:2], 3, layer.num_heads, layer.head_dim)
    q, k, v = np.moveaxis(silu(qkv).reshape(heads), 2, 0)
    if layer.rotation:  # of pairs of features, as complex numbers
        angle, n = np.array(rest[0]), round(layer.rotation * (layer.head_dim // 2))
        moves, ahead = np.split(x @ p["turn"]["kernel"], 2, axis=-1)
        for t, (move, r) in enumerate(zip(moves, reset, strict=True)):
            angle = np.where(r[:, None], 0, angle) + move
            for z, turn in ((q, angle), (k, angle + ahead[t])):
                pair = (z[t, ..., :n] + 1j * z[t, ..., n : 2 * n]) * np.exp(1j * turn.reshape(*z.shape[1:3], n))
                z[t, ..., :n], z[t, ..., n : 2 * n] = pair.real, pair.imag
        rest[0] = angle % (2 * np.pi)
    q, k = (z / np.sqrt((z**2).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    beta, alpha, g = sigmoid(x @ p["beta"]["kernel"]) * (1 + layer.negative_eigenvalues), np.ones_like(q[..., 0]), None
    if layer.gate:
        dt = np.log(1 + np.exp(x @ p["dt"]["kernel"] + p["dt_bias"]))
        alpha, g = np.exp(-np.exp(p["A_log"]) * dt), silu(x @ p["gate"]["kernel"]).reshape(q.shape)
    S, o = np.array(S).swapaxes(-1, -2), np.zeros_like(v)  # [B, H, values, keys]
    for t, b, h in np.ndindex(*beta.shape):
        forget = alpha[t, b, h] * (np.eye(layer.head_dim) - beta[t, b, h] * np.outer(k[t, b, h], k[t, b, h]))
        write = beta[t, b, h] * np.outer(v[t, b, h], k[t, b, h])
        S[b, h] = write if reset[t, b] else S[b, h] @ forget + write
        o[t, b, h] = S[b, h] @ q[t, b, h]
    o = p["norm"]["scale"] * o / np.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
    y = (o if g is None else o * g).reshape(*x.shape[:2], -1) @ p["out"]["kernel"]
    return (S.swapaxes(-1, -2), *rest), y


def mamba2(layer, p, carry, x, reset):
    """Dao and Gu 2024, section 7, as a state-space model of its own per head and feature."""
    (S, *buffer), inner = carry, layer.num_heads * layer.head_dim
    z, xBC = np.split(x @ p["input"]["kernel"], [inner], -1)
    if buffer:
        buffer[0], xBC = short_convolution(p["conv"], buffer[0], xBC, reset)
        xBC = xBC + p["conv_bias"]
    u, B_, C = np.split(silu(xBC), [inner, inner + layer.d_state], -1)
    u = u.reshape(*x.shape[:2], layer.num_heads, layer.head_dim)
    dt = np.log(1 + np.exp(x @ p["dt"]["kernel"] + p["dt_bias"]))
    S, y = np.array(S), p["D"][:, None] * u  # S: [B, H, states, features]
    for t, b, h, e in np.ndindex(*u.shape):
        old = 0 if reset[t, b] else np.exp(-np.exp(p["A_log"][h]) * dt[t, b, h]) * S[b, h, :, e]
        S[b, h, :, e] = old + dt[t, b, h] * u[t, b, h, e] * B_[t, b]
        y[t, b, h, e] += S[b, h, :, e] @ C[t, b]
    y = y.reshape(z.shape) * silu(z)
    y = p["norm"]["scale"] * y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    return (S, *buffer), y @ p["out"]["kernel"]


def gru(layer, p, h, x, reset):
    """Cho et al. 2014, with the reset gate after the recurrent product, as in cuDNN."""
    W_r, W_z, W_n = np.split(p["input"]["kernel"], 3, axis=1)
    b_r, b_z, b_n = np.split(p["input"]["bias"], 3)
    U_r, U_z, U_n = np.split(p["recurrent"], 3, axis=1)
    y = []
    for u, done in zip(x, reset, strict=True):
        h = np.where(done[:, None], 0, h)
        r, z = sigmoid(u @ W_r + b_r + h @ U_r), sigmoid(u @ W_z + b_z + h @ U_z)
        n = np.tanh(u @ W_n + b_n + r * (h @ U_n + p["recurrent_bias"]))
        h = (1 - z) * n + z * h
        y.append(h)
    return h, np.stack(y)


def lstm(layer, p, carry, x, reset):
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000."""
    c, h = carry
    W, U, b = (np.split(m, 4, axis=-1) for m in (p["input"]["kernel"], p["recurrent"], p["bias"]))
    y = []
    for u, done in zip(x, reset, strict=True):
        c, h = np.where(done[:, None], 0, c), np.where(done[:, None], 0, h)
        i, f, g, o = (u @ W[k] + h @ U[k] + b[k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y.append(h)
    return (c, h), np.stack(y)


def none(layer, p, carry, x, reset):
    return carry, x


REFERENCES = {
    "s5": s5,
    "s4d": s4d,
    "lru": lru,
    "mingru": mingru,
    "transformer": transformer,
    "deltanet": deltanet,
    "mamba2": mamba2,
    "gru": gru,
    "lstm": lstm,
    "none": none,
}


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return p["scale"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + p["bias"]


def activate(name, x):
    return {
        "none": lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "tanh": lambda: np.tanh(x),
        "silu": lambda: x * sigmoid(x),
        "gelu": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    }[name]()


def block(stack, memory, p, carry, x, reset):
    """Norm, memory, activation, gated linear unit, skip; GTrXL's gate: Parisotto et al. 2020, section 3.2."""
    carry, memorised = memory(stack.layer, p.get("layer", {}), carry, enter(stack, p, "norm", x), reset)
    y = activate(stack.activation, memorised)
    if stack.glu != "none":
        gate = y @ p["glu"]["kernel"] + p["glu"]["bias"]
        gated = {"full": gate[..., :D], "half1": y, "half2": memorised}[stack.glu]
        y = gated * sigmoid(gate[..., -D:])
    x = join(stack, p, "norm", "gate", x, y)
    if stack.mlp:
        y = activate("gelu", enter(stack, p, "mlp_norm", x) @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"])
        x = join(stack, p, "mlp_norm", "mlp_gate", x, y @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"])
    return carry, x


def enter(stack, p, norm, x):
    return layer_norm(p[norm], x) if stack.norm in ("pre", "gtrxl") else x


def join(stack, p, norm, gate, x, y):
    if stack.norm == "gtrxl":
        y = np.maximum(y, 0)
    if stack.skip == "residual":
        y = x + y
    if stack.skip == "gru":
        W_r, W_z, W_g = np.split(p[gate]["branch"]["kernel"], 3, axis=1)
        U_r, U_z = np.split(p[gate]["stream"]["kernel"], 2, axis=1)
        r, z = sigmoid(y @ W_r + x @ U_r), sigmoid(y @ W_z + x @ U_z - 2)
        y = (1 - z) * x + z * np.tanh(y @ W_g + (r * x) @ p[gate]["candidate"]["kernel"])
    return layer_norm(p[norm], y) if stack.norm == "post" else y


def reference(stack, memory, params, carry, x, reset):
    carries = []
    for i in range(stack.num_layers):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        below = jax.tree.map(lambda leaf, i=i: leaf[:, i], carry)
        above, x = block(stack, memory, p, below, x, reset)
        carries.append(above)
    return jax.tree.map(lambda *leaves: np.stack(leaves, 1), *carries), x


# ---------------------------------------------------------------------------------------------------------------------


def problem(model, seed=0):
    """Parameters away from their initial values, a carry, inputs and resets, in double precision."""
    rng = np.random.default_rng(seed)

    def normal(like):
        x = rng.normal(size=like.shape)
        return x + 1j * rng.normal(size=like.shape) if np.iscomplexobj(like) else x

    x, reset = rng.normal(size=(T, B, D)), rng.random((T, B)) < 0.3
    fresh = model.initialize_carry((B,))
    drawn = jax.jit(model.init)(jax.random.key(seed), fresh, jnp.float32(x), jnp.asarray(reset)).get("params", {})
    params = jax.tree.map(lambda p: np.asarray(p, np.float64) + 0.1 * normal(p), drawn)
    return params, jax.tree.map(normal, fresh), x, reset, normal


@pytest.mark.parametrize(("name", "options"), [*MODELS, *AROUND])
def test_formula(name, options):
    """Values, and the derivative in a random direction of everything that a model depends on."""
    memory = REFERENCES.get(name)
    assert memory is not None, f"'{name}' needs its formula in numpy in REFERENCES of {__file__}"
    model = make_model(name, d_model=D, **options)
    *at, reset, normal = problem(model)
    exact = partial(reference, model, memory)
    towards = jax.tree.map(normal, at)

    @jax.jit
    def run(params, carry, x):
        return model.apply({"params": params}, carry, x, jnp.asarray(reset))

    with jax.enable_x64(True):
        got, slope = jax.jit(lambda at, towards: derivative(run, at, towards))(at, towards)
    want = exact(*at, reset)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, 1e-9, 1e-9)
    eps = 1e-6
    ahead, behind = (exact(*jax.tree.map(lambda x, d, s=s: x + s * d, at, towards), reset) for s in (eps, -eps))
    rise = jax.tree.map(lambda a, b: (a - b) / (2 * eps), ahead, behind)
    want = sum(np.sum(cotangent(a) * b).real for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(rise), strict=True))
    np.testing.assert_allclose(slope, want, 1e-5, 1e-5)


def cotangent(output):
    """Fixed pseudo-random weights of the outputs."""
    weights = np.cos(np.arange(output.size)).reshape(output.shape)
    return weights * (1 + 0.5j) if np.iscomplexobj(output) else weights


def derivative(run, at, towards):
    """Outputs, and the derivative of their weighted sum towards a direction, by reverse mode."""
    outputs, vjp = jax.vjp(run, *at)
    found = vjp(jax.tree.map(lambda o: jnp.asarray(cotangent(o), o.dtype), outputs))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(tuple(towards)), strict=True)
    return outputs, sum(jnp.sum(g * d).real for g, d in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_named_options_reach_the_model(name):
    model = make_model(name, d_model=D, num_layers=3, norm="pre")
    assert isinstance(model, Stack)
    assert (model.num_layers, model.norm, model.d_model, model.layer.d_model) == (3, "pre", D, D)


def draw(layer):
    arguments = layer.initialize_carry(), jnp.zeros((1, layer.d_model)), jnp.zeros(1, bool)
    return jax.jit(layer.init)(jax.random.key(0), *arguments)["params"]


def test_blocks_start_different():
    blocks = draw(make_model("gru", d_model=D, num_layers=2, glu="full"))["blocks"]
    for kernel in (blocks["layer"]["recurrent"], blocks["layer"]["input"]["kernel"], blocks["glu"]["kernel"]):
        assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize(("name", "gates"), [("gru", 3), ("lstm", 4)])
def test_recurrent_matrices_start_orthogonal(name, gates):
    params = draw(make_model(name, d_model=64).layer)
    for matrix in np.split(np.asarray(params["recurrent"]), gates, axis=1):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(64), atol=1e-4)
    if name == "lstm":
        np.testing.assert_array_equal(params["bias"], np.repeat([0, 1, 0, 0], 64))  # the forget gate starts open


@pytest.mark.parametrize("shape", [(64, 64), (40, 10), (10, 40)])
def test_orthogonal(shape):
    matrix = np.asarray(jax.jit(partial(orthogonal(2.0), shape=shape))(jax.random.key(0)))
    tall = matrix if shape[0] >= shape[1] else matrix.T
    np.testing.assert_allclose(tall.T @ tall, 4 * np.eye(min(shape)), atol=1e-4)


def test_depth_does_not_grow_the_program():
    def equations(num_layers):
        model = make_model("s5", d_model=D, d_state=8, num_layers=num_layers)
        arguments = model.initialize_carry((B,)), jnp.zeros((T, B, D)), jnp.zeros((T, B), bool)
        variables = jax.eval_shape(model.init, jax.random.key(0), *arguments)
        return str(jax.make_jaxpr(model.apply)(variables, *arguments)).count(" = ")

    assert equations(2) == equations(8)


@pytest.mark.parametrize("steps", [1, T])
def test_applying_traces_a_block_once(steps, monkeypatch):
    """Tracing is half of what a short run waits for, and a check of flax doubles it."""
    model, traced = make_model("gru", d_model=D, num_layers=1), []
    arguments = model.initialize_carry((B,)), jnp.zeros((steps, B, D)), jnp.zeros((steps, B), bool)
    variables = jax.eval_shape(model.init, jax.random.key(0), *arguments)
    activate = Block._activate
    monkeypatch.setattr(Block, "_activate", lambda *a: traced.append(1) or activate(*a))
    jax.eval_shape(model.apply, variables, *arguments)
    assert len(traced) == 1


def test_durations_pass_through_a_stack():
    once, twice = (make_model("s5", d_model=D, d_state=8, num_layers=2, step_rescale=rate) for rate in (1.0, 2.0))
    variables = {"params": draw(once)}
    x, never = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32), np.zeros(T, bool)
    given = jax.jit(once.apply)(variables, once.initialize_carry(), x, never, jnp.full(T, 2.0))
    want = jax.jit(twice.apply)(variables, once.initialize_carry(), x, never)
    for a, b in zip(given, want, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)
