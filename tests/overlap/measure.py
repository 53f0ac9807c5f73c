#!/usr/bin/env python3
"""Two ranks over a shaped link: how much of communication is hidden. See README.md. usage: measure.py BINARY [ROUNDS]"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SPACES = ["mlc-rank0", "mlc-rank1"]
LINK = "mlc-link"
ADDRESS = ["10.213.7.1/24", "10.213.7.2/24"]
# Blocking communication over computation.
WANTED = 0.75
WARM_UP = 1
STEPS = 6


def run(*command):
    subprocess.run(command, check=True)


def set_up():
    tear_down()
    for space in SPACES:
        run("ip", "netns", "add", space)
    run("ip", "link", "add", LINK, "netns", SPACES[0], "type", "veth", "peer", "name", LINK, "netns", SPACES[1])
    for space, address in zip(SPACES, ADDRESS):
        run("ip", "-n", space, "addr", "add", address, "dev", LINK)
        run("ip", "-n", space, "link", "set", LINK, "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
    # The kernel takes a moment to see that the other end is there; MPI passes over a link that is not up.
    while any(read(space, "operstate").strip() != "up" for space in SPACES):
        time.sleep(0.05)


def read(space, name):
    return subprocess.check_output(["ip", "netns", "exec", space, "cat", f"/sys/class/net/{LINK}/{name}"], text=True)


def tear_down():
    for space in SPACES:
        subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL)


def shape(bits_per_second):
    burst = max(65536, int(bits_per_second / 8 * 0.002))
    for space in SPACES:
        run("ip", "netns", "exec", space, "tc", "qdisc", "replace", "dev", LINK, "root", "tbf",
            "rate", f"{int(bits_per_second)}bit", "burst", str(burst), "latency", "200ms")


def sent():
    return int(read(SPACES[0], "statistics/tx_bytes"))


def train(binary, pace, steps):
    """Seconds of each step after the first ones, and bytes per step that one rank sent."""
    environment = dict(os.environ, MLC_COLLECTIVES=pace, UCX_TLS="tcp,self", UCX_NET_DEVICES=LINK,
                       UCX_TCP_BRIDGE_ENABLE="y", MPIR_CVAR_NOLOCAL="1", UCX_WARN_UNUSED_ENV_VARS="n")
    with tempfile.TemporaryDirectory() as folder:
        rank = ["-n", "1", "ip", "netns", "exec"]
        program = [binary, "train", "--out", folder, "--threads", "1", "--steps", str(steps),
                   "--checkpoint-every", "never"]
        before = sent()
        command = ["mpirun.mpich", *rank, SPACES[0], *program, ":", *rank, SPACES[1], *program]
        metrics = os.path.join(folder, "metrics.jsonl")
        with open(os.path.join(folder, "log"), "w+") as log:
            job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            times = []
            # MPICH over UCX may wait forever in MPI_Finalize here; everything is measured by then.
            while len(times) < steps and job.poll() is None:
                time.sleep(0.2)
                times = step_times(metrics)
            try:
                job.wait(5)
            except subprocess.TimeoutExpired:
                end_ranks()
                job.kill()
                job.wait()
            times = step_times(metrics)
            if len(times) < steps:
                log.seek(0)
                sys.exit(f"{' '.join(command)}\n{log.read()}")
        return times[WARM_UP:], (sent() - before) / steps


def end_ranks():
    for space in SPACES:
        for process in subprocess.check_output(["ip", "netns", "pids", space], text=True).split():
            os.kill(int(process), signal.SIGKILL)


def step_times(metrics):
    if not os.path.exists(metrics):
        return []
    with open(metrics) as lines:
        records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record["seconds"] for record in records if record["kind"] == "step"]


def main():
    binary = os.path.abspath(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    set_up()
    try:
        compute = statistics.median(train(binary, "absent", STEPS)[0])
        _, bytes_per_step = train(binary, "overlapped", STEPS)
        rate = 8 * bytes_per_step / (WANTED * compute)
        shape(rate)
        print(f"computation {compute:.3f} s a step; {bytes_per_step / 1e6:.1f} MB a step and rank; "
              f"link {rate / 1e6:.1f} Mbit/s", flush=True)
        times = {pace: [] for pace in ["absent", "blocking", "overlapped"]}
        for _ in range(rounds):
            for pace, all_times in times.items():
                all_times.extend(train(binary, pace, STEPS)[0])
        absent, blocking, overlapped = (statistics.median(times[pace]) for pace in times)
        for pace, all_times in times.items():
            print(f"{pace:>10}: median {statistics.median(all_times):.3f} s of {len(all_times)} steps, "
                  f"{min(all_times):.3f} to {max(all_times):.3f}")
        print(f"blocking communication / computation = {(blocking - absent) / absent:.2f}")
        print(f"exposed = {(overlapped - absent) / (blocking - absent):.2f}")
    finally:
        tear_down()


if __name__ == "__main__":
    main()
