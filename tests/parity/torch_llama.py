"""The Llama of the parity tests in PyTorch, written from its equations; dtype and threads are the caller's choice."""
import torch
import torch.nn.functional as F

from torch_training import Training


class Llama(Training):
    """Touvron et al. 2023 (arXiv:2302.13971), with grouped queries if the settings have them."""

    def __init__(self, name, dtype, autocast=False):
        super().__init__(name, dtype, autocast)
        c = self.c
        position = torch.arange(c["seq"], dtype=dtype)
        frequency = 1.0 / c["theta"] ** (torch.arange(0, c["hd"], 2, dtype=dtype) / c["hd"])
        angle = torch.outer(position, frequency)
        self.cos, self.sin = angle.cos()[:, None, :], angle.sin()[:, None, :]

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
