"""The Llama of the parity tests in JAX with bf16 products, as one trains there: weights, norms, residuals, softmax, loss and
optimizer in f32; operands and results of matrix products in bf16."""
import math

import jax
import jax.numpy as jnp
import numpy as np

import inputs

SHORT, WIDE = jnp.bfloat16, jnp.float32


def product(x, w):
    """x [.., n] times w [n, ..]."""
    return jnp.einsum("...i,io->...o", x.astype(SHORT), w.reshape(w.shape[0], -1).astype(SHORT))


def norm(c, x, w):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + c["eps"]) * w


def rope(c, x):
    """Rotates pairs (2j, 2j + 1), or (j, j + hd / 2), of x [batch, seq, .., hd]."""
    frequency = 1.0 / c["theta"] ** (np.arange(0, c["hd"], 2) / c["hd"])
    angle = np.outer(np.arange(c["seq"]), frequency).reshape(c["seq"], *[1] * (x.ndim - 3), -1)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    x = x.astype(WIDE)
    if c["pairs"] == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape).astype(SHORT)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate((a * cos - b * sin, a * sin + b * cos), -1).astype(SHORT)


def attention(c, x, w, p):
    batch, seq, _ = x.shape
    q = rope(c, product(x, w[p + "wq"]).reshape(batch, seq, c["kv"], c["group"], c["hd"]))
    k = rope(c, product(x, w[p + "wk"]).reshape(batch, seq, c["kv"], c["hd"]))
    v = product(x, w[p + "wv"]).reshape(batch, seq, c["kv"], c["hd"])
    scores = jnp.einsum("bqkgh,bpkh->bkgqp", q, k).astype(WIDE) / math.sqrt(c["hd"])
    causal = jnp.tril(jnp.ones((seq, seq), bool))
    probabilities = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), -1).astype(SHORT)
    o = jnp.einsum("bkgqp,bpkh->bqkgh", probabilities, v).reshape(batch, seq, -1)
    return product(o, w[p + "wo"].reshape(o.shape[-1], -1))


def loss(c, w, x, y):
    """Mean cross-entropy in nats of targets y [batch, seq] given x [batch, seq]."""
    h = w["embed"][x]
    for i in range(c["layers"]):
        p = f"layer.{i}."
        h = h + attention(c, norm(c, h, w[p + "norm1.w"]), w, p + "attn.")
        a = norm(c, h, w[p + "norm2.w"])
        h = h + product(jax.nn.silu(product(a, w[p + "mlp.gate"])) * product(a, w[p + "mlp.up"]), w[p + "mlp.down"])
    head = w["embed"].T if c["tied"] else w["head"]
    logits = product(norm(c, h, w["norm.w"]), head).astype(WIDE)
    own = jnp.take_along_axis(logits, y[..., None], -1)[..., 0]
    return (jax.scipy.special.logsumexp(logits, -1) - own).mean()


def lr(c, step):
    """As `torch_llama.Llama.lr`."""
    warming = c["lr"] * (step + 1) / max(1, c["warmup"])
    done = (step - c["warmup"]) / max(1, c["steps"] - c["warmup"])
    cosine = c["lr_end"] + (c["lr"] - c["lr_end"]) * 0.5 * (1 + jnp.cos(math.pi * done))
    return jnp.where(step < c["warmup"], warming, cosine)


def train(name):
    """[(loss before the update, gradient norm before clipping)] of every step."""
    c = inputs.MODELS[name]
    weights, tokens = inputs.MAKERS[name](c)
    w = {k: jnp.asarray(v) for k, v in weights.items()}
    zeros = {k: jnp.zeros_like(v) for k, v in w.items()}
    (beta1, beta2), decayed = c["betas"], lambda k: c["decay_norms"] or not k.endswith(".w")

    @jax.jit
    def step(w, m, v, s, x, y):
        value, g = jax.value_and_grad(lambda w: loss(c, w, x, y))(w)
        size = jnp.sqrt(sum((t * t).sum() for t in g.values()))
        factor = 1.0 if c["clip"] is None else jnp.minimum(1.0, c["clip"] / (size + 1e-6))
        g = {k: t * factor for k, t in g.items()}
        rate, t = lr(c, s), s + 1.0
        m = {k: beta1 * m[k] + (1 - beta1) * g[k] for k in w}
        v = {k: beta2 * v[k] + (1 - beta2) * g[k] * g[k] for k in w}
        first, second = 1 - beta1**t, 1 - beta2**t
        kept = {k: w[k] * (1 - rate * c["decay"]) if decayed(k) else w[k] for k in w}
        move = {k: (m[k] / first) / (jnp.sqrt(v[k] / second) + c["adam_eps"]) for k in w}
        return {k: kept[k] - rate * move[k] for k in w}, m, v, value, size

    m, v, pairs = zeros, zeros, []
    for s in range(c["steps"]):
        rows = [(s * c["batch"] + i) % c["records"] for i in range(c["batch"])]
        batch = jnp.asarray(tokens[rows].astype(np.int32))
        w, m, v, value, size = step(w, m, v, jnp.float32(s), batch[:, :-1], batch[:, 1:])
        pairs.append((float(value), float(size)))
    return pairs
