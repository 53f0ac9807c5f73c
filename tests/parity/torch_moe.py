"""The mixtures of experts of the parity tests in PyTorch, written from the papers' equations, not from mlc's graphs.

Mixtral loops over the experts and gives each its tokens; GLaM multiplies by one-hot masks over experts and slots. mlc does neither.
"""
import math

import torch
import torch.nn.functional as F

from torch_llama import Llama


class Mixtral(Llama):
    """Jiang et al. 2024 (arXiv:2401.04088), §2.1; balance: Fedus et al. 2021 (arXiv:2101.03961), eq. 4-6, all choices counted."""

    def experts(self, x, p):
        """x [batch, seq, d] -> (y [batch, seq, d], balance)."""
        c, w = self.c, self.params
        flat = x.flatten(0, 1)
        logits = flat @ w[p + "router"]
        top, chosen = logits.topk(c["k"], dim=-1)
        weight = top.softmax(-1)
        y = torch.zeros_like(flat)
        for e in range(c["expert"]):
            token, choice = torch.where(chosen == e)
            rows = flat[token]
            h = F.silu(rows @ w[p + "gate"][e]) * (rows @ w[p + "up"][e])
            y = y.index_add(0, token, (h @ w[p + "down"][e]) * weight[token, choice][:, None])
        share = F.one_hot(chosen, c["expert"]).to(x.dtype).mean(0)
        balance = c["expert"] * (share * logits.softmax(-1).mean(0)).sum()
        return y.view_as(x), balance

    def loss(self, x, y):
        w = self.params
        h = F.embedding(x, w["embed"])
        balance = 0.0
        for i in range(self.c["layers"]):
            p = f"layer.{i}."
            h = h + self.attention(self.norm(h, p + "norm1.w"), p + "attn.")
            out, uneven = self.experts(self.norm(h, p + "norm2.w"), p + "moe.")
            h, balance = h + out, balance + uneven
        logits = self.norm(h, "norm.w") @ w["head"]
        balance = self.c["balance"] * balance / self.c["layers"]
        return F.cross_entropy(logits.flatten(0, 1), y.flatten()) + balance


class Glam(Llama):
    """Du et al. 2021 (arXiv:2112.06905); routing as GShard, Lepikhin et al. 2020 (arXiv:2006.16668), algorithm 1, groups being
    sequences; relative positions as Raffel et al. 2019 (arXiv:1910.10683), §2.1."""

    def bias(self, table):
        """table [bucket, heads] -> [heads, seq, seq]: the bucket of each distance back."""
        c = self.c
        position = torch.arange(c["seq"])
        back = (position[:, None] - position[None, :]).clamp(min=0)
        near = c["bucket"] // 2
        grown = torch.log(back.clamp(min=1).double() / near) / math.log(c["reach"] / near) * (c["bucket"] - near)
        far = (near + grown.floor().long()).clamp(max=c["bucket"] - 1)
        return table[torch.where(back < near, back, far)].permute(2, 0, 1)

    def attention(self, x, p):
        c, w = self.c, self.params
        q, k, v = (torch.einsum("bsd,dhe->bhse", x, w[p + n]) for n in ("wq", "wk", "wv"))
        scores = q @ k.transpose(-1, -2) / math.sqrt(c["hd"]) + self.bias(w[p + "rel"])
        later = torch.ones(c["seq"], c["seq"], dtype=torch.bool).triu(1)
        o = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        return torch.einsum("bhse,hed->bsd", o, w[p + "wo"])

    def experts(self, x, p):
        """x [batch, seq, d] -> (y [batch, seq, d], balance), with GShard's masks [batch, seq, expert, slot]."""
        c, w = self.c, self.params
        slots = math.ceil(c["capacity"] * c["seq"] / c["expert"])
        gates = (x @ w[p + "router"]).softmax(-1)
        masks, left = [], gates
        for _ in range(c["k"]):
            masks.append(F.one_hot(left.argmax(-1), c["expert"]))
            left = left.masked_fill(masks[-1].bool(), -1.0)
        kept = [(gates * m).sum(-1) for m in masks]
        total = sum(kept)
        combine, before = 0.0, torch.zeros(x.shape[0], 1, c["expert"], dtype=torch.long)
        for mask, gate in zip(masks, kept):
            place = ((mask.cumsum(1) - mask + before) * mask).sum(-1)
            before = before + mask.sum(1, keepdim=True)
            # A place beyond the last slot has no one-hot: the token is dropped.
            slot = F.one_hot(place.clamp(max=slots), slots + 1)[..., :slots].to(x.dtype)
            combine = combine + (gate / total)[..., None, None] * mask.to(x.dtype)[..., None] * slot[..., None, :]
        dispatch = (combine > 0).to(x.dtype)
        h = torch.einsum("bsec,bsd->becd", dispatch, x)
        h = F.gelu(torch.einsum("becd,edf->becf", h, w[p + "up"]), approximate="tanh")
        y = torch.einsum("bsec,becd->bsd", combine, torch.einsum("becf,efd->becd", h, w[p + "down"]))
        share = masks[0].to(x.dtype).mean(1)
        balance = c["expert"] * (share * gates.mean(1)).sum(-1).mean()
        return y, balance

    def loss(self, x, y):
        w = self.params
        h = F.embedding(x, w["embed"])
        balance = 0.0
        for i in range(self.c["layers"]):
            p = f"pair.{i}."
            h = h + self.attention(self.norm(h, p + "norm1.w"), p + "attn1.")
            a = self.norm(h, p + "norm2.w")
            a = F.gelu(a @ w[p + "mlp.gate"], approximate="tanh") * (a @ w[p + "mlp.up"])
            h = h + a @ w[p + "mlp.down"]
            h = h + self.attention(self.norm(h, p + "norm3.w"), p + "attn2.")
            out, uneven = self.experts(self.norm(h, p + "norm4.w"), p + "moe.")
            h, balance = h + out, balance + uneven
        logits = self.norm(h, "norm.w") @ w["embed"].T
        balance = self.c["balance"] * balance / self.c["layers"]
        return F.cross_entropy(logits.flatten(0, 1), y.flatten()) + balance
