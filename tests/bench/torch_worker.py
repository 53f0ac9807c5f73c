"""PyTorch's side of the benchmark. usage: torch_worker.py eager|compile THREADS

Prints one JSON line when loaded; then, for every line K on standard input, runs K training steps of `t2` and prints
{"t": [seconds of each], "loss": [each before its update]}.
"""
import json
import os
import sys
import time

MODE, THREADS = sys.argv[1], int(sys.argv[2])
os.environ.update(OMP_NUM_THREADS=str(THREADS), MKL_NUM_THREADS=str(THREADS), CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../parity"))

import torch  # noqa: E402

import torch_llama  # noqa: E402

torch.set_num_threads(THREADS)
model = torch_llama.Llama("t2", torch.float32)
if MODE == "compile":
    model.forward = torch.compile(model.loss)
print(json.dumps(dict(name=f"PyTorch {MODE}", version=torch.__version__, threads=torch.get_num_threads())), flush=True)
for line in sys.stdin:
    seconds, losses = [], []
    for _ in range(int(line)):
        start = time.perf_counter()
        loss, _ = model.step(with_norm=False)
        seconds.append(time.perf_counter() - start)
        losses.append(loss)
    print(json.dumps(dict(t=seconds, loss=losses)), flush=True)
