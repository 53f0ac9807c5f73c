"""Records what PyTorch computes, and JAX in bf16, with the versions that computed it.

usage: record.py [MODEL..]      writes recorded/MODEL.json beside this file

Losses are means in nats before each update, gradient norms are before clipping; both to full precision. Each run is a process of
its own, because the number of threads is fixed when the libraries load.
"""
import json
import os
import platform
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# (dtype, threads, attention, instruction set). The f32 runs of one model differ in nothing but the order and fusing of their
# roundings, so their distance from f64 is what a correct f32 training step may be off by.
RUNS = {
    "t1": [("f64", 2, "fused", "native"), ("f32", 1, "fused", "native"), ("f32", 2, "fused", "native")],
    "mla": [
        ("f64", 1, "fused", "native"), ("f64", 2, "fused", "native"),
        ("f32", 1, "fused", "native"), ("f32", 2, "fused", "native"),
        ("f32", 2, "math", "native"), ("f32", 2, "fused", "avx2"), ("f32", 2, "math", "avx2"),
    ],
    "t2": [
        ("f64", 2, "fused", "native"), ("f32", 1, "fused", "native"), ("f32", 2, "fused", "native"),
        ("bf16", 2, "fused", "native"), ("bf16", 2, "jax", "native"),
    ],
    "gqa": [
        ("f64", 1, "fused", "native"), ("f64", 2, "fused", "native"),
        ("f32", 1, "fused", "native"), ("f32", 2, "fused", "native"),
        ("f32", 2, "math", "native"), ("f32", 2, "fused", "avx2"), ("f32", 2, "math", "avx2"),
        ("bf16", 2, "fused", "native"), ("bf16", 2, "math", "native"), ("bf16", 2, "jax", "native"),
    ],
}
RUNS["mixtral"] = RUNS["glam"] = [run for run in RUNS["gqa"] if run[0] != "bf16"]


def train(name, dtype, threads, attention, isa):
    """One run; `jax` in place of an attention kernel is the same training in JAX."""
    pairs = train_jax(name) if attention == "jax" else train_torch(name, dtype, threads, attention)
    run = dict(dtype=dtype, threads=threads, attention=attention, isa=isa)
    print(json.dumps(dict(**run, loss=[p[0] for p in pairs], grad_norm=[p[1] for p in pairs])))


def train_jax(name):
    import jax_llama

    return jax_llama.train(name)


def train_torch(name, dtype, threads, attention):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    import torch_gpt
    import torch_latent
    import torch_llama
    import torch_moe

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    backends = [SDPBackend.MATH] if attention == "math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends):
        held_in = torch.float64 if dtype == "f64" else torch.float32
        kinds = dict(mixtral=torch_moe.Mixtral, glam=torch_moe.Glam, t1=torch_gpt.Gpt, mla=torch_latent.Latent)
        kind = kinds.get(name, torch_llama.Llama)
        model = kind(name, held_in, autocast=dtype == "bf16")
        return [model.step() for _ in range(model.c["steps"])]


def versions():
    import jax
    import numpy
    import torch

    return dict(
        jax=jax.__version__, torch=torch.__version__, numpy=numpy.__version__, python=platform.python_version(),
        cpu=torch.backends.cpu.get_cpu_capability(), platform=f"{platform.system()} {platform.machine()}",
    )


def record(name):
    runs = []
    for dtype, threads, attention, isa in RUNS[name]:
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), CUDA_VISIBLE_DEVICES="")
        if isa == "avx2":
            env.update(ATEN_CPU_CAPABILITY="avx2", MKL_ENABLE_INSTRUCTIONS="AVX2", ONEDNN_MAX_CPU_ISA="AVX2")
        command = [sys.executable, __file__, "--train", name, dtype, str(threads), attention, isa]
        runs.append(json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout))
        print(name, dtype, threads, "threads", attention, isa, "loss", runs[-1]["loss"][0], "...", runs[-1]["loss"][-1])
    import inputs

    path = f"{HERE}/recorded/{name}.json"
    with open(path, "w") as out:
        json.dump(dict(model=name, versions=versions(), settings=inputs.MODELS[name], runs=runs), out, indent=1)
        out.write("\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:7])
    else:
        for name in sys.argv[1:] or RUNS:
            record(name)
