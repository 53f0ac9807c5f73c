"""The weights and tokens that mlc and PyTorch both start from, made without PyTorch.

usage: inputs.py DIR [MODEL..]            writes DIR/MODEL.safetensors (f32) and DIR/MODEL.bin (u16 tokens)
       inputs.py --checksum [MODEL..]     prints blake3 over names, values and tokens (needs the package blake3)

Weights carry mlc's logical names and lie in declared axis order: `wq[d -> kv, group, hd]` is stored [d, kv, group, hd], the
transpose of a PyTorch Linear. Tokens are fixed records of seq + 1 ids, little-endian u16, no header; a step of `batch` sequences
takes the next `batch` records, and starts over at the end of the file.
"""
import math
import sys

import numpy as np

MODELS = {
    # GPT-2 with 124 M parameters: every parameter decayed, one batch trained again and again.
    "t1": dict(
        family="gpt", layers=12, d=768, kv=12, group=1, hd=64, ff=3072, vocab=50257, positions=1024, seq=64, batch=4, records=4,
        tied=True, eps=1e-5, steps=10,
        lr=1e-3, betas=(0.9, 0.95), adam_eps=1e-8, decay=0.1, decay_norms=True, clip=None, warmup=0, lr_end=1e-3,
    ),
    # Llama with 15 M parameters: interleaved rotary pairs, tied head, every parameter decayed, one batch trained again and again.
    "t2": dict(
        layers=6, d=288, kv=6, group=1, hd=48, ff=768, vocab=32000, seq=256, batch=8, records=8,
        pairs="interleaved", tied=True, theta=1e4, eps=1e-5, steps=10,
        lr=1e-3, betas=(0.9, 0.95), adam_eps=1e-8, decay=0.1, decay_norms=True, clip=None, warmup=0, lr_end=1e-3,
    ),
    # Grouped-query Llama: half pairs, own head, norms not decayed, clipping, warmup and cosine; every step sees new tokens.
    "gqa": dict(
        layers=2, d=64, kv=2, group=2, hd=16, ff=160, vocab=256, seq=32, batch=4, records=400,
        pairs="half", tied=False, theta=1e4, eps=1e-5, steps=100,
        lr=3e-3, betas=(0.9, 0.95), adam_eps=1e-8, decay=0.1, decay_norms=False, clip=1.0, warmup=10, lr_end=3e-4,
    ),
    # Mixture of experts without dropping, every layer: two of four experts, gates normalised over the chosen two.
    "mixtral": dict(
        layers=2, d=32, kv=2, group=2, hd=8, ff=48, vocab=256, seq=32, batch=4, records=200, expert=4, k=2,
        pairs="half", tied=False, theta=1e4, eps=1e-5, steps=50, balance=0.02,
        lr=3e-3, betas=(0.9, 0.95), adam_eps=1e-8, decay=0.1, decay_norms=False, clip=1.0, warmup=10, lr_end=3e-4,
    ),
    # Mixture of experts with capacity in every other layer (`layers` counts pairs), relative positions in buckets.
    "glam": dict(
        layers=2, d=32, kv=4, group=1, hd=8, ff=48, vocab=256, seq=32, batch=4, records=200, expert=8, k=2,
        bucket=8, reach=24, capacity=2.0, tied=True, theta=1e4, eps=1e-6, steps=50, balance=0.01,
        lr=3e-3, betas=(0.9, 0.95), adam_eps=1e-8, decay=0.1, decay_norms=False, clip=1.0, warmup=10, lr_end=3e-4,
    ),
    # As gqa and smaller: what the optimizers are tried on. The optimizer's own settings are in record_optimizers.py.
    "optimizers": dict(
        layers=2, d=16, kv=2, group=2, hd=4, ff=24, vocab=256, seq=16, batch=2, records=40,
        pairs="half", tied=False, theta=1e4, eps=1e-5, steps=20,
        lr=6e-3, betas=(0.9, 0.95), adam_eps=1e-8, decay=0.0, decay_norms=True, clip=None, warmup=5, lr_end=6e-4,
    ),
    # Latent attention: low-rank queries, keys and values, a rotated key that all heads share; trained as `gqa`.
    "mla": dict(
        family="latent", layers=2, d=64, heads=4, q_rank=24, kv_rank=16, nope=12, rot=8, hv=20, ff=160, vocab=256, seq=32,
        batch=4, records=200, tied=False, theta=1e4, eps=1e-6, steps=50,
        lr=3e-3, betas=(0.9, 0.95), adam_eps=1e-8, decay=0.1, decay_norms=False, clip=1.0, warmup=10, lr_end=3e-4,
    ),
}


def parameters(c):
    """[(logical name, shape)] in the order in which the weights are drawn."""
    if "family" in c:
        return dict(gpt=gpt_parameters, latent=latent_parameters)[c["family"]](c)
    d, ff, heads = c["d"], c["ff"], [c["kv"], c["group"], c["hd"]]
    if c["group"] == 1:
        heads = [c["kv"], c["hd"]]
    kv_heads = [c["kv"], c["hd"]]
    if "bucket" in c:
        return glam_parameters(c, heads)
    experts = [c["expert"]] if "expert" in c else []
    table = [("embed", [c["vocab"], d])]
    for i in range(c["layers"]):
        p = f"layer.{i}."
        table += [
            (p + "norm1.w", [d]), (p + "attn.wq", [d, *heads]), (p + "attn.wk", [d, *kv_heads]),
            (p + "attn.wv", [d, *kv_heads]), (p + "attn.wo", [*heads, d]), (p + "norm2.w", [d]),
        ]
        mlp = p + ("moe." if experts else "mlp.")
        if experts:
            table += [(mlp + "router", [d, *experts])]
        table += [
            (mlp + "gate", [*experts, d, ff]), (mlp + "down", [*experts, ff, d]), (mlp + "up", [*experts, d, ff]),
        ]
    table += [("norm.w", [d])]
    if not c["tied"]:
        table += [("head", [d, c["vocab"]])]
    return table


def glam_parameters(c, heads):
    """As `parameters`, of pairs of a dense layer and one of experts."""
    d, ff, experts = c["d"], c["ff"], c["expert"]
    table = [("embed", [c["vocab"], d])]
    for i in range(c["layers"]):
        p = f"pair.{i}."
        for attn, norm in (("attn1.", "norm1.w"), ("attn2.", "norm3.w")):
            table += [(p + norm, [d])]
            table += [(p + attn + w, [d, *heads]) for w in ("wq", "wk", "wv")]
            table += [(p + attn + "wo", [*heads, d]), (p + attn + "rel", [c["bucket"], c["kv"]])]
        table += [
            (p + "norm2.w", [d]), (p + "mlp.gate", [d, ff]), (p + "mlp.down", [ff, d]), (p + "mlp.up", [d, ff]),
            (p + "norm4.w", [d]), (p + "moe.router", [d, experts]),
            (p + "moe.down", [experts, ff, d]), (p + "moe.up", [experts, d, ff]),
        ]
    return table + [("norm.w", [d])]


def gpt_parameters(c):
    d, ff, heads = c["d"], c["ff"], [c["kv"], c["hd"]]
    table = [("embed", [c["vocab"], d]), ("pos_embed", [c["positions"], d])]
    for i in range(c["layers"]):
        p = f"layer.{i}."
        table += [
            (p + "norm1.w", [d]), (p + "norm1.b", [d]),
            (p + "attn.wq", [d, *heads]), (p + "attn.wk", [d, *heads]), (p + "attn.wv", [d, *heads]),
            (p + "attn.bq", heads), (p + "attn.bk", heads), (p + "attn.bv", heads),
            (p + "attn.wo", [*heads, d]), (p + "attn.bo", [d]), (p + "norm2.w", [d]), (p + "norm2.b", [d]),
            (p + "mlp.up", [d, ff]), (p + "mlp.up_bias", [ff]), (p + "mlp.down", [ff, d]), (p + "mlp.down_bias", [d]),
        ]
    return table + [("norm.w", [d]), ("norm.b", [d])]


def latent_parameters(c):
    d, ff, heads, q, kv = c["d"], c["ff"], c["heads"], c["q_rank"], c["kv_rank"]
    table = [("embed", [c["vocab"], d]), ("head", [d, c["vocab"]])]
    for i in range(c["layers"]):
        p = f"layer.{i}."
        table += [
            (p + "norm1.w", [d]), (p + "attn.q_down", [d, q]), (p + "attn.kv_down", [d, kv]), (p + "attn.k_turned", [d, c["rot"]]),
            (p + "attn.q_norm", [q]), (p + "attn.kv_norm", [kv]),
            (p + "attn.q_up", [q, heads, c["nope"]]), (p + "attn.q_turned", [q, heads, c["rot"]]),
            (p + "attn.k_up", [kv, heads, c["nope"]]), (p + "attn.v_up", [kv, heads, c["hv"]]),
            (p + "attn.wo", [heads, c["hv"], d]), (p + "norm2.w", [d]),
            (p + "mlp.gate", [d, ff]), (p + "mlp.up", [d, ff]), (p + "mlp.down", [ff, d]),
        ]
    return table + [("norm.w", [d])]


def is_gain(name):
    return name.endswith((".w", "_norm"))


def is_bias(name):
    return name.endswith((".b", "_bias", ".bq", ".bk", ".bv", ".bo"))


def workload(c, seed):
    """Normal weights and uniform tokens from one PCG64 stream, each matrix drawn as [out, in] and then transposed.

    These are the weights behind published ten-step losses of the workloads t1 and t2, hence the layout they are drawn in.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = {}
    for name, shape in parameters(c):
        if is_gain(name) or is_bias(name):
            weights[name] = np.full(shape, is_gain(name), np.float32)
            continue
        is_output = name.endswith((".wo", ".down"))
        std = np.float32(0.02 / math.sqrt(2 * c["layers"]) if is_output else 0.02)
        if name.endswith("embed"):
            weights[name] = rng.standard_normal(shape, dtype=np.float32) * std
        else:
            inputs = c["ff"] if name.endswith(".down") else c["d"]
            out_in = rng.standard_normal((math.prod(shape) // inputs, inputs), dtype=np.float32) * std
            weights[name] = np.ascontiguousarray(out_in.T).reshape(shape)
    tokens = rng.integers(0, c["vocab"], size=(c["records"], c["seq"] + 1), dtype=np.int64)
    return weights, tokens


def splitmix64(seed, n):
    """The first n outputs of SplitMix64 (Steele, Lea, Flood 2014) started at `seed`, as u64."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def gqa(c):
    """Uniform weights on a dyadic grid, so that any language makes the same f32 bits, and tokens with two bits of surprise each.

    A weight is (u - 2^23) * 2^-23 * 2^-5 with u the top 24 bits of its own SplitMix64 output (standard deviation 0.018); output
    projections are halved, routers and tables of relative positions are 16 times that, so that they matter; norm gains are 1 plus
    that, rounded once. A token is 5 * previous + 17 + (0..3) modulo 256.
    """
    table = parameters(c)
    total = sum(math.prod(shape) for _, shape in table)
    draws = splitmix64(20, total) >> np.uint64(40)
    uniform = ((draws.astype(np.int64) - 2**23).astype(np.float64) * 2.0**-28).astype(np.float32)
    weights, at = {}, 0
    for name, shape in table:
        n = math.prod(shape)
        w = uniform[at : at + n].reshape(shape)
        at += n
        if is_gain(name):
            w = np.float32(1) + w
        elif name.endswith((".wo", ".down")):
            w = w * np.float32(0.5)
        elif name.endswith((".router", ".rel")):
            w = w * np.float32(16)
        weights[name] = np.ascontiguousarray(w)
    draws = splitmix64(21, c["records"] * (c["seq"] + 1)).reshape(c["records"], c["seq"] + 1)
    tokens = np.zeros(draws.shape, np.int64)
    tokens[:, 0] = draws[:, 0] & np.uint64(255)
    for j in range(c["seq"]):
        tokens[:, j + 1] = (5 * tokens[:, j] + 17 + (draws[:, j + 1] & np.uint64(3)).astype(np.int64)) % c["vocab"]
    return weights, tokens


MAKERS = {
    "t1": lambda c: workload(c, 1), "t2": lambda c: workload(c, 2), "mla": gqa,
    "gqa": gqa, "mixtral": gqa, "glam": gqa, "optimizers": gqa,
}


def write(name, directory):
    from safetensors.numpy import save_file

    weights, tokens = MAKERS[name](MODELS[name])
    save_file(weights, f"{directory}/{name}.safetensors")
    tokens.astype("<u2").tofile(f"{directory}/{name}.bin")
    print(name, sum(w.size for w in weights.values()), "parameters,", tokens.size, "tokens")


def checksum(name):
    import blake3

    weights, tokens = MAKERS[name](MODELS[name])
    hasher = blake3.blake3()
    for key in sorted(weights):
        hasher.update(key.encode())
        hasher.update(weights[key].astype("<f4").tobytes())
    hasher.update(tokens.astype("<u2").tobytes())
    print(name, hasher.hexdigest())


if __name__ == "__main__":
    for name in sys.argv[2:] or MODELS:
        checksum(name) if sys.argv[1] == "--checksum" else write(name, sys.argv[1])
