"""What the models of the parity tests share in PyTorch: parameters, learning rate, clipping and AdamW; a model adds its loss."""
import math

import torch

import inputs


class Training:
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
        decayed = [p for k, p in self.params.items() if c["decay_norms"] or not inputs.is_gain(k)]
        kept = [p for k, p in self.params.items() if not c["decay_norms"] and inputs.is_gain(k)]
        groups = [dict(params=decayed, weight_decay=c["decay"]), dict(params=kept, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=c["lr"], betas=c["betas"], eps=c["adam_eps"], fused=True
        )
        self.step_index = 0
        self.forward = self.loss

    def loss(self, x, y):
        """Mean cross-entropy in nats of targets y [batch, seq] given x [batch, seq]."""
        raise NotImplementedError

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
