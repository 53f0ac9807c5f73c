"""The decoder with latent attention of the parity tests in PyTorch, written from its equations."""
import torch
import torch.nn.functional as F

from torch_training import Training


class Latent(Training):
    """DeepSeek-AI 2024 (DeepSeek-V2, arXiv:2405.04434), §2.1: pre-norm, SwiGLU, a head of its own."""

    def __init__(self, name, dtype, autocast=False):
        super().__init__(name, dtype, autocast)
        c = self.c
        frequency = 1.0 / c["theta"] ** (torch.arange(0, c["rot"], 2, dtype=dtype) / c["rot"])
        angle = torch.outer(torch.arange(c["seq"], dtype=dtype), frequency)
        self.turn = torch.polar(torch.ones_like(angle), angle)[:, None, :]

    def norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.params[name], self.c["eps"])

    def rope(self, x):
        """Rotates pairs (2j, 2j + 1) of x [batch, seq, heads, rot]."""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turn).flatten(-2)

    def attention(self, x, p):
        c, w = self.c, self.params

        def heads(y, name):
            return torch.einsum("bsr,rhn->bshn", y, w[p + name])

        queries = self.norm(x @ w[p + "q_down"], p + "q_norm")
        latent = self.norm(x @ w[p + "kv_down"], p + "kv_norm")
        shared = self.rope((x @ w[p + "k_turned"]).unsqueeze(2)).expand(-1, -1, c["heads"], -1)
        q = torch.cat((heads(queries, "q_up"), self.rope(heads(queries, "q_turned"))), -1)
        k = torch.cat((heads(latent, "k_up"), shared), -1)
        v = heads(latent, "v_up")
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bhsv,hvd->bsd", o, w[p + "wo"])

    def loss(self, x, y):
        w = self.params
        h = F.embedding(x, w["embed"])
        for i in range(self.c["layers"]):
            p = f"layer.{i}."
            h = h + self.attention(self.norm(h, p + "norm1.w"), p + "attn.")
            a = self.norm(h, p + "norm2.w")
            h = h + (F.silu(a @ w[p + "mlp.gate"]) * (a @ w[p + "mlp.up"])) @ w[p + "mlp.down"]
        logits = self.norm(h, "norm.w") @ w["head"]
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
