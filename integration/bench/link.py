#!/usr/bin/env python3
"""A slow line between two network namespaces, for kernels without sch_netem. Needs root, ip and /dev/net/tun.

Two TUN devices (MTU 1500) are joined by one process a direction, which delays each packet by half the round trip, drops a seeded
share at random, and lets packets leave at a rate if one is given; what waits longer than 400 ms for its turn is dropped, as a
router would. Packets keep their order.

    with Link(rtt_ms=100, loss_percent=1, mbit=100) as link:
        subprocess.run([*link.near, "curl", f"http://{link.FAR}:…"])     # near and far prefix a command
        link.sent()                                                    # bytes (near to far, far to near)
"""

import collections
import fcntl
import multiprocessing
import os
import random
import select
import signal
import struct
import subprocess
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 1500
LONGEST_WAIT = 0.4  # seconds that a packet may wait for a limited line


def open_tun(name):
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def carry(source, target, delay, loss, rate, seed, sent):
    """One direction, for ever: rate in bytes a second, 0 for no limit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    chance = random.Random(seed).random
    line = collections.deque()
    free = 0.0
    while True:
        now = time.monotonic()
        while line and line[0][0] <= now:
            try:
                os.write(target, line[0][1])
            except BlockingIOError:
                break
            line.popleft()
        wait = max(0.0, line[0][0] - time.monotonic()) if line else 1.0
        if not select.select([source], [], [], wait)[0]:
            continue
        for _ in range(64):
            try:
                packet = os.read(source, MTU)
            except BlockingIOError:
                break
            sent.value += len(packet)
            if loss and chance() < loss:
                continue
            leaves = time.monotonic()
            if rate:
                start = max(free, leaves)
                if start - leaves > LONGEST_WAIT:
                    continue
                free = leaves = start + len(packet) / rate
            line.append((leaves + delay, packet))


class Link:
    NEAR, FAR = "10.77.0.1", "10.77.0.2"

    def __init__(self, rtt_ms=0.0, loss_percent=0.0, mbit=0.0):
        self.delay, self.loss, self.rate = rtt_ms / 2000, loss_percent / 100, mbit * 125_000
        self.names = [f"nipfs-{os.getpid()}-{end}" for end in ("near", "far")]
        self.near, self.far = (["ip", "netns", "exec", name] for name in self.names)
        self.carriers, self.tuns = [], []
        self.counts = [multiprocessing.Value("Q", 0, lock=False) for _ in range(2)]

    def __enter__(self):
        try:
            for number, (name, address) in enumerate(zip(self.names, (self.NEAR, self.FAR))):
                device = f"nipfs{os.getpid()}{'nf'[number]}"
                self.tuns.append(open_tun(device))
                subprocess.check_call(["ip", "netns", "add", name])
                subprocess.check_call(["ip", "link", "set", device, "netns", name])
                inside = ["ip", "-n", name]
                subprocess.check_call([*inside, "addr", "add", f"{address}/24", "dev", device])
                subprocess.check_call([*inside, "link", "set", device, "up", "mtu", str(MTU), "txqueuelen", "10000"])
                subprocess.check_call([*inside, "link", "set", "lo", "up"])
            for number in range(2):
                ends = self.tuns[number], self.tuns[1 - number]
                arguments = (*ends, self.delay, self.loss, self.rate, number + 1, self.counts[number])
                carrier = multiprocessing.Process(target=carry, args=arguments, daemon=True)
                carrier.start()
                self.carriers.append(carrier)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for carrier in self.carriers:
            carrier.kill()
            carrier.join()
        for tun in self.tuns:
            os.close(tun)
        for name in self.names:
            subprocess.call(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)

    def sent(self):
        """Bytes of packets so far: (near to far, far to near)."""
        return tuple(count.value for count in self.counts)
