"""Records 20 steps of every optimizer on a very small Llama, in f64 and f32.

usage: record_optimizers.py      writes recorded/optimizers.json beside this file

The update rules are those of torch.optim where it has them; Lion, Adafactor's first moment and the decay by the schedule alone
are written here from their papers. PyTorch's Muon iterates in bf16; its iteration is replaced by the same one in the dtype of the
parameter, and what the replacement gives in bf16 is compared with the original first.

Matrices are handed to the optimizers as [inputs, outputs] views of the parameters, to Muon transposed, as a PyTorch Linear lies.
"""
import json
import math
import os

import torch
import torch.optim._muon as torch_muon

import inputs
import record
import torch_llama

HERE = os.path.dirname(os.path.abspath(__file__))
C = inputs.MODELS["optimizers"]
OUTPUTS_FROM = {"wq": 1, "wk": 1, "wv": 1, "wo": 3, "gate": 1, "up": 1, "down": 1, "head": 1, "embed": 1}
DECAY = 0.1
torch.set_num_threads(1)


def rate(step):
    """Warm-up over 5 steps to lr, lr for 7, then 1 - sqrt to a tenth of lr at step 20."""
    if step < 5:
        return C["lr"] * (step + 1) / 5
    if step < 12:
        return C["lr"]
    to = C["lr"] / 10
    return to + (C["lr"] - to) * (1 - math.sqrt((step - 12) / 8))


def newton_schulz(grad, coefficients, steps, eps, dtype=None):
    a, b, c = coefficients
    x = grad.to(dtype or grad.dtype, copy=True)
    if grad.size(0) > grad.size(1):
        x = x.T
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.size(0) > grad.size(1) else x


def check_newton_schulz():
    original = torch_muon._zeropower_via_newtonschulz
    grad = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    ours = newton_schulz(grad, (3.4445, -4.775, 2.0315), 5, 1e-7, torch.bfloat16)
    theirs = original(grad, (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert (ours - theirs).abs().max() < 0.05, (ours - theirs).abs().max()
    torch_muon._zeropower_via_newtonschulz = newton_schulz


class Rule:
    """An optimizer of (name, tensor) pairs; `torch.optim` needs none of this, so `step` gets the rate."""

    def __init__(self, params):
        self.params, self.t, self.state = params, 0, {name: {} for name, _ in params}

    def step(self, lr):
        self.t += 1
        with torch.no_grad():
            for name, p in self.params:
                self.update(p, p.grad, self.state[name], lr)


class Lion(Rule):
    """Chen et al. 2023 (arXiv:2302.06675), algorithm 2."""

    def update(self, p, g, state, lr):
        m = state.setdefault("m", torch.zeros_like(p))
        c = 0.9 * m + 0.1 * g
        p.sub_(lr * (torch.sign(c) + DECAY * p))
        m.copy_(0.99 * m + 0.01 * g)


class DecoupledAdamW(Rule):
    """Loshchilov, Hutter 2019 (arXiv:1711.05101), algorithm 2: decay times the schedule multiplier alone."""

    def update(self, p, g, state, lr):
        m, v = state.setdefault("m", torch.zeros_like(p)), state.setdefault("v", torch.zeros_like(p))
        m.copy_(0.9 * m + 0.1 * g)
        v.copy_(0.95 * v + 0.05 * g * g)
        m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.95**self.t)
        eta = lr / C["lr"]
        p.sub_(eta * (C["lr"] * m_hat / (v_hat.sqrt() + 1e-8) + 0.01 * p))


class AdafactorWithMoment(Rule):
    """Shazeer, Stern 2018 (arXiv:1804.04235), algorithms 4 and 5, with sums as printed, a first moment of the steps, and
    steps that do not depend on the parameter's size."""

    def update(self, p, g, state, lr):
        beta2 = 1 - self.t**-0.8
        squares = g * g + 1e-30
        if g.dim() > 1:
            r, c = squares.sum(1), squares.sum(0)
            r = state["r"] = beta2 * state.get("r", torch.zeros_like(r)) + (1 - beta2) * r
            c = state["c"] = beta2 * state.get("c", torch.zeros_like(c)) + (1 - beta2) * c
            v = torch.outer(r, c) / r.sum()
        else:
            v = state["v"] = beta2 * state.get("v", torch.zeros_like(squares)) + (1 - beta2) * squares
        u = g / v.sqrt()
        u = u / max(1.0, u.square().mean().sqrt().item())
        m = state["m"] = 0.9 * state.get("m", torch.zeros_like(u)) + 0.1 * lr * u
        p.sub_(m)


class FromTorch:
    def __init__(self, *optimizers):
        self.optimizers = optimizers

    def step(self, lr):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("factor", 1.0)
            optimizer.step()


def muon(params, adjust):
    """Matrices by Muon, save the head; the rest by AdamW at a third of the rate."""
    matrix = lambda name: name.split(".")[-1] in OUTPUTS_FROM and name not in ("embed", "head")
    hidden = torch.optim.Muon(
        [p for n, p in params if matrix(n)], lr=1.0, weight_decay=DECAY, momentum=0.95, adjust_lr_fn=adjust
    )
    rest = [p for n, p in params if not matrix(n)]
    rest = torch.optim.AdamW([dict(params=rest, factor=1 / 3)], lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    return FromTorch(hidden, rest)


def optimizers():
    torch_adam = dict(lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    only = lambda params: [p for _, p in params]
    return {
        "adamw": lambda p: FromTorch(torch.optim.AdamW(only(p), weight_decay=DECAY, **torch_adam)),
        "adamw_schedule": DecoupledAdamW,
        "adam": lambda p: FromTorch(torch.optim.Adam(only(p), weight_decay=DECAY, **torch_adam)),
        "sgd": lambda p: FromTorch(
            torch.optim.SGD(only(p), lr=1.0, momentum=0.9, nesterov=True, weight_decay=DECAY)
        ),
        "lion": Lion,
        # Its first epsilon bounds √v from below, ours adds ε₁ to squares: 1e-15 and 1e-30 are the same size.
        "adafactor": lambda p: FromTorch(
            torch.optim.Adafactor(only(p), lr=1.0, eps=(1e-15, 1e-3), weight_decay=DECAY)
        ),
        "adafactor_moment": AdafactorWithMoment,
        "muon": lambda p: muon(p, "match_rms_adamw"),
        "muon_shape": lambda p: muon(p, "original"),
    }


def as_matrix(name, x, transposed):
    """x [inputs.., outputs..] as [inputs, outputs], or as [outputs, inputs]; vectors as they are."""
    at = OUTPUTS_FROM.get(name.split(".")[-1])
    if at is None:
        return x
    x = x.view(math.prod(x.shape[:at]), -1)
    return x.T if transposed else x


def train(name, make, dtype):
    model = torch_llama.Llama("optimizers", dtype)
    transposed = name.startswith("muon")
    views = {n: torch.nn.Parameter(as_matrix(n, p.data, transposed)) for n, p in model.params.items()}
    optimizer = make(list(views.items()))
    pairs = []
    for step in range(C["steps"]):
        at = [(step * C["batch"] + i) % C["records"] for i in range(C["batch"])]
        batch = model.tokens[at]
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.params.values()])
        pairs.append((loss.item(), norm.item()))
        for n, p in model.params.items():
            views[n].grad = as_matrix(n, p.grad, transposed)
        optimizer.step(rate(step))
        for p in model.params.values():
            p.grad = None
    return dict(dtype={torch.float32: "f32", torch.float64: "f64"}[dtype], threads=1, optimizer=name,
                loss=[p[0] for p in pairs], grad_norm=[p[1] for p in pairs])


if __name__ == "__main__":
    check_newton_schulz()
    runs = []
    for name, make in optimizers().items():
        for dtype in (torch.float64, torch.float32):
            runs.append(train(name, make, dtype))
            print(name, runs[-1]["dtype"], runs[-1]["loss"][0], "...", runs[-1]["loss"][-1])
    with open(f"{HERE}/recorded/optimizers.json", "w") as out:
        json.dump(dict(model="optimizers", versions=record.versions(), settings=C, runs=runs), out, indent=1)
        out.write("\n")
