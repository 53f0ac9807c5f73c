"""The Llama of the parity tests in PyTorch, written from its equations; dtype and threads are the caller's choice."""
import math

import torch
import torch.nn.functional as F

import inputs


class Llama:
    """Parameters under mlc's logical names, and one training step.

    params     {logical name: parameter, in declared axis order}
    tokens     [records, seq + 1] integers
    forward    what computes the loss; may be replaced by a compiled `loss`
    autocast   products and attention take and give bf16, as `torch.autocast` has it; all else stays in `dtype`
    """

    def __init__(self, name, dtype, autocast=False):
        self.autocast = autocast
        self.c = c = inputs.MODELS[name]
        weights, tokens = inputs.MAKERS[name](c)
        self.params = {k: torch.nn.Parameter(torch.from_numpy(w).to(dtype)) for k, w in weights.items()}
        self.tokens = torch.from_numpy(tokens)
        decayed = [p for k, p in self.params.items() if c["decay_norms"] or not k.endswith(".w")]
        kept = [p for k, p in self.params.items() if not (c["decay_norms"] or not k.endswith(".w"))]
        groups = [dict(params=decayed, weight_decay=c["decay"]), dict(params=kept, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=c["lr"], betas=c["betas"], eps=c["adam_eps"], fused=True
        )
        position = torch.arange(c["seq"], dtype=dtype)
        frequency = 1.0 / c["theta"] ** (torch.arange(0, c["hd"], 2, dtype=dtype) / c["hd"])
        angle = torch.outer(position, frequency)
        self.cos, self.sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
        self.step_index = 0
        self.forward = self.loss

    def rope(self, x):
        """Rotates pairs (2j, 2j + 1), or (j, j + hd / 2), of x [batch, seq, heads, hd]."""
        if self.c["pairs"] == "interleaved":
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack((a * self.cos - b * self.sin, a * self.sin + b * self.cos), -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, a * self.sin + b * self.cos), -1)

    def norm(self, x, name):
        return F.rms_norm(x, (self.c["d"],), self.params[name], self.c["eps"])

    def attention(self, x, p):
        c, w = self.c, self.params
        batch, seq, d = x.shape
        heads = c["kv"] * c["group"]
        q = self.rope((x @ w[p + "wq"].view(d, -1)).view(batch, seq, heads, c["hd"])).transpose(1, 2)
        k = self.rope((x @ w[p + "wk"].view(d, -1)).view(batch, seq, c["kv"], c["hd"])).transpose(1, 2)
        v = (x @ w[p + "wv"].view(d, -1)).view(batch, seq, c["kv"], c["hd"]).transpose(1, 2)
        q, k = q.to(v.dtype), k.to(v.dtype)  # rotated in the type of the angles
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c["group"] > 1)
        return o.transpose(1, 2).reshape(batch, seq, -1) @ w[p + "wo"].view(-1, d)

    def loss(self, x, y):
        """Mean cross-entropy in nats of targets y [batch, seq] given x [batch, seq]."""
        w = self.params
        h = F.embedding(x, w["embed"])
        for i in range(self.c["layers"]):
            p = f"layer.{i}."
            h = h + self.attention(self.norm(h, p + "norm1.w"), p + "attn.")
            a = self.norm(h, p + "norm2.w")
            h = h + (F.silu(a @ w[p + "mlp.gate"]) * (a @ w[p + "mlp.up"])) @ w[p + "mlp.down"]
        h = self.norm(h, "norm.w")
        logits = h @ (w["embed"].T if self.c["tied"] else w["head"])
        return F.cross_entropy(logits.flatten(0, 1).to(h.dtype), y.flatten())

    def lr(self, step):
        """The learning rate of the 0-based `step`: linear from lr / warmup up to lr, then half a cosine down to lr_end.

        The cosine starts at lr on step `warmup` and would reach lr_end on step `steps`, one after the last.
        """
        c = self.c
        if step < c["warmup"]:
            return c["lr"] * (step + 1) / c["warmup"]
        done = (step - c["warmup"]) / max(1, c["steps"] - c["warmup"])
        return c["lr_end"] + (c["lr"] - c["lr_end"]) * 0.5 * (1 + math.cos(math.pi * done))

    def step(self, with_norm=True):
        """Trains on the next batch of records. Returns (loss before the update, gradient norm before clipping or None)."""
        c = self.c
        rows = [(self.step_index * c["batch"] + i) % c["records"] for i in range(c["batch"])]
        batch = self.tokens[rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.forward(batch[:, :-1], batch[:, 1:])
        loss.backward()
        norm = None
        if c["clip"] is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.params.values(), c["clip"])
        elif with_norm:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.params.values()])
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.step_index)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_index += 1
        return loss.item(), None if norm is None else norm.item()
