"""The GPT of the parity tests in PyTorch, written from its equations; dtype and threads are the caller's choice."""
import torch
import torch.nn.functional as F

from torch_training import Training


class Gpt(Training):
    """GPT-2: Radford et al. 2019, with the tanh form of GELU and the embedding as the head."""

    def norm(self, x, name):
        return F.layer_norm(x, (self.c["d"],), self.params[name + ".w"], self.params[name + ".b"], self.c["eps"])

    def attention(self, x, p):
        c, w = self.c, self.params
        batch, seq, d = x.shape
        wide = torch.cat([w[p + name].view(d, -1) for name in ("wq", "wk", "wv")], 1)
        bias = torch.cat([w[p + name].view(-1) for name in ("bq", "bk", "bv")])
        q, k, v = torch.addmm(bias, x.view(-1, d), wide).view(batch, seq, 3, c["kv"], c["hd"]).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return o.transpose(1, 2).reshape(batch, seq, -1) @ w[p + "wo"].view(-1, d) + w[p + "bo"]

    def loss(self, x, y):
        w = self.params
        h = F.embedding(x, w["embed"]) + w["pos_embed"][: x.shape[1]]
        for i in range(self.c["layers"]):
            p = f"layer.{i}."
            h = h + self.attention(self.norm(h, p + "norm1"), p + "attn.")
            a = self.norm(h, p + "norm2") @ w[p + "mlp.up"] + w[p + "mlp.up_bias"]
            h = h + F.gelu(a, approximate="tanh") @ w[p + "mlp.down"] + w[p + "mlp.down_bias"]
        logits = self.norm(h, "norm") @ w["embed"].T
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
