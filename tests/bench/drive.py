"""Times one training step of several workers side by side.

usage: drive.py OUT.json OUT.md [--rounds R] [--seconds S] NAME=COMMAND...

A worker loads, prints one JSON line, and for every line K on standard input runs K steps and prints {"t": [seconds], "loss": [nats]}.
All stay alive and are stepped in turn, in forward and then in reverse order, so that a machine that drifts hits all alike. A round is
about S seconds of one worker. Needs the standard library alone.
"""
import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time

# Workload t2: 8 sequences of 256 tokens through 6 layers of width 288, 768 inside, vocabulary 32000 with a tied head.
TOKENS = 8 * 256
MATMUL_WEIGHTS = 32000 * 288 + 6 * (4 * 288 * 288 + 3 * 288 * 768)
# Six FLOPs per weight and token, and 12 · layers · d · seq per token for attention, without a discount for the causal mask.
FLOPS = TOKENS * (6 * MATMUL_WEIGHTS + 12 * 6 * 288 * 256)
WARM_STEPS = 5


class Worker:
    """One process that trains on demand."""

    def __init__(self, name, command):
        self.name, self.started = name, time.time()
        self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self.answer()
        self.ready_s = time.time() - self.started
        first = self.steps(1)
        self.first_step_s = time.time() - self.started
        warm = self.steps(WARM_STEPS)
        self.losses = first["loss"] + warm["loss"]
        self.warm_s = statistics.median(warm["t"])
        self.rounds = []

    def answer(self):
        """The next line of JSON; workers may print other lines before it."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended before it answered; its errors are above")

    def steps(self, n):
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return self.answer()

    def round(self, seconds):
        self.rounds.append(statistics.median(self.steps(max(1, round(seconds / self.warm_s)))["t"]))

    def peak_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

    def finish(self):
        peak = self.peak_mib()
        self.process.stdin.close()
        self.process.wait()
        step = statistics.median(self.rounds)
        return dict(
            name=self.name, version=self.hello.get("version"), threads=self.hello.get("threads"), step_ms=step * 1e3,
            low_ms=min(self.rounds) * 1e3, high_ms=max(self.rounds) * 1e3, tokens_per_s=TOKENS / step, gflop_per_s=FLOPS / step / 1e9,
            ready_s=self.ready_s, first_step_s=self.first_step_s, peak_mib=peak, losses=self.losses,
        )


def machine():
    """(processor, processors this process may use, GiB of memory, system)."""
    with open("/proc/cpuinfo") as info:
        lines = info.read().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    vectors = next((f for f in ("avx512f", "avx2", "avx") if f in flags), "sse2")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return dict(cpu=f"{model} with {vectors}", processors=len(os.sched_getaffinity(0)), memory_gib=round(gib), system=platform.system())


def markdown(result):
    host, peers = result["machine"], result["workers"]
    ours = peers[0]
    lines = [
        "# CPU training step beside PyTorch", "",
        "Made by `make bench`; every number on this page comes from one interleaved run of it. Workload `t2`: Llama with 15,191,712",
        "parameters, f32, 8 sequences of 256 tokens, forward, backward and AdamW; "
        f"{FLOPS / 1e9:.1f} GFLOP a step. Smaller is better but for GFLOP/s.", "",
        f"Machine: {host['cpu']}, {host['processors']} processors, {host['memory_gib']} GiB, {host['system']}. "
        f"Date: {result['date']}.", "",
        "| worker | threads | median step, ms | range of rounds | GFLOP/s | time of mlc ÷ its time | start to first step done, s | peak memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for w in peers:
        version = f" {w['version']}" if w["version"] else ""
        lines.append(
            f"| {w['name']}{version} | {w['threads']} | {w['step_ms']:.0f} | {w['low_ms']:.0f}–{w['high_ms']:.0f} | {w['gflop_per_s']:.1f} "
            f"| {ours['step_ms'] / w['step_ms']:.2f} | {w['first_step_s']:.2f} | {w['peak_mib']:.0f} |"
        )
    lines += ["", "Losses of the first steps, the same data for all:", ""]
    lines += [f"- {w['name']}: " + " ".join(f"{x:.5f}" for x in w["losses"]) for w in peers]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("json_out")
    parser.add_argument("markdown_out")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("workers", nargs="+")
    options = parser.parse_args()
    workers = []
    for text in options.workers:
        name, command = text.split("=", 1)
        workers.append(Worker(name, command))
        w = workers[-1]
        print(f"{name}: first step done after {w.first_step_s:.2f} s, warm step {w.warm_s * 1e3:.0f} ms", flush=True)
    for index in range(options.rounds):
        for w in workers if index % 2 == 0 else reversed(workers):
            w.round(options.seconds)
    result = dict(date=time.strftime("%Y-%m-%d"), machine=machine(), flops=FLOPS, workers=[w.finish() for w in workers])
    with open(options.json_out, "w") as out:
        json.dump(result, out, indent=1)
    with open(options.markdown_out, "w") as out:
        out.write(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    sys.exit(main())
