"""What the benches compare: each peer publishes a set of files on one machine and fetches all of them on another.

A peer has `publish(files)`, outside or inside the clock as a row wants, `start()`, which ends when both sides are ready, and
`fetch()`, which ends when all is there and checked as far as that peer checks. `near` and `far` are command prefixes: the machine that
fetches and the one that has the content (empty: both are this machine). A peer is used as a context and leaves nothing behind.
"""

import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LONGEST = 300  # seconds that anything may take
STUCK = 60  # seconds after which Kubo hangs: it does now and then, and its longest transfer here takes ten


class Hung(Exception):
    """A peer did not end what it was asked for."""


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait_for(condition, what):
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.01)


def peak_mib(pid):
    """The largest resident set of a process so far, in MiB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


class Peer:
    def __init__(self, setup, work, ip="127.0.0.1", near=(), far=()):
        self.setup, self.work, self.ip, self.near, self.far = setup, work, ip, near, far
        self.processes, self.seconds, self.cpu, self.peak = [], 0.0, 0.0, 0.0
        os.makedirs(work)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.send_signal(signal.SIGTERM if isinstance(self, Nipfs) else signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.work, ignore_errors=True)

    def at(self, name):
        return os.path.join(self.work, name)

    def started(self, command, **more):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(self.at("log"), "a"), cwd=self.work, text=True, **more)
        self.processes.append(process)
        return process

    def timed(self, command, **more):
        """Runs a command to its end; leaves its seconds by the clock and of the processors, and its peak memory in MiB."""
        with open(self.at("errors"), "w") as errors:
            start = time.perf_counter()
            running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, **more)
            late = threading.Timer(LONGEST, running.kill)
            late.start()
            out = running.stdout.read()
            _, status, usage = os.wait4(running.pid, 0)
            self.seconds = time.perf_counter() - start
            late.cancel()
        running.returncode = os.waitstatus_to_exitcode(status)
        self.peak = usage.ru_maxrss / 1024
        self.cpu = usage.ru_utime + usage.ru_stime
        if status:
            with open(self.at("errors")) as errors:
                sys.exit(f"{command[:8]}…: exit {running.returncode}\n{errors.read()[-2000:]}")
        return out


class Nipfs(Peer):
    """Publishes signed paths; fetches them with a fresh process (start, dial, narinfos, blocks, unpacked tree)."""

    mirror = None

    def environment(self, machine):
        return dict(os.environ, NIPFS_STATE=self.at(machine), HOME=self.work)

    def run(self, machine, *args, prefix=()):
        return self.timed([*prefix, self.setup.nipfs, *args], env=self.environment(machine))

    def publish(self, files, *args):
        self.run("a", "key", "generate", "bench-1")
        self.key = self.run("a", "key", "public").strip()
        names = self.at("names")
        with open(names, "w") as listed:
            listed.write("\n".join(files))
        start = time.perf_counter()
        with open(names) as listed:
            out = self.timed([self.setup.nipfs, "publish", "--stdin", "--json", *args], env=self.environment("a"), stdin=listed)
        self.seconds = time.perf_counter() - start
        self.published = [json.loads(line) for line in out.splitlines()]
        self.paths = [path["path"] for path in self.published]

    def serve(self, machine, prefix, *args, ip=None):
        ip = ip or self.ip
        command = [*prefix, self.setup.nipfs, "serve", "--http", f"{ip}:0", "--listen", f"/ip4/{ip}/tcp/0", *args]
        serving = self.started(command, env=self.environment(machine))
        return serving, dict(word.split("=", 1) for word in serving.stdout.readline().split()[1:])

    def start(self):
        self.source, self.ready = self.serve("a", self.far)

    def start_with_mirror(self):
        """A second source beside the first, that holds the same."""
        self.start()
        _, self.mirror = self.serve("b", self.far)
        self.run("b", "mirror", "pull", self.ready["http"], "--trusted-public-key", self.key, prefix=self.far)

    def fetch(self):
        to = self.at("out")
        os.mkdir(to)
        source = ["--from", self.ready["http"], "--peer", self.ready["peer"], "--trusted-public-key", self.key]
        if self.mirror:
            source += ["--peer", self.mirror["peer"]]
        command = [self.setup.nipfs, "fetch", "--json", "--no-closure", *source, "--out", to, *self.paths]
        out = self.timed([*self.near, *command], env=self.environment("c"))
        for line in out.splitlines():
            moved = json.loads(line)["bytes"]
            assert moved["http"] == 0 and moved["bitswap"] > 0, moved

    def fetch_together(self, count):
        """Starts `count` nodes on the near machine that share what they fetch; then a fetch through each, which names the source and all
        others, all at the same time. The wall seconds until the last has ended; leaves the largest peak of a node."""
        names = [f"together-{number}" for number in range(count)]
        sharing = ["--profile", "lan", "--share-signed-by", "bench-1"]
        served = [self.serve(name, self.near, *sharing, ip="127.0.0.1") for name in names]
        nodes = {name: ready["peer"] for name, (_, ready) in zip(names, served)}
        commands = {}
        for name in names:
            peers = [self.ready["peer"], *(peer for other, peer in nodes.items() if other != name)]
            named = [word for peer in peers for word in ("--peer", peer)]
            source = ["--from", self.ready["http"], "--trusted-public-key", self.key, *named]
            commands[name] = [*self.near, self.setup.nipfs, "fetch", "--json", "--no-closure", *source, "--out", self.at(f"{name}.out"), *self.paths]
            os.mkdir(self.at(f"{name}.out"))
        start = time.perf_counter()
        fetching = [self.started(command, env=self.environment(name)) for name, command in commands.items()]
        for process in fetching:
            out, _ = process.communicate(timeout=LONGEST)
            assert process.returncode == 0, open(self.at("log")).read()[-2000:]
            moved = [json.loads(line)["bytes"] for line in out.splitlines()]
            assert moved and all(each["http"] == 0 and each["bitswap"] > 0 for each in moved), moved
            self.processes.remove(process)
        seconds = time.perf_counter() - start
        self.peak = max(peak_mib(serving.pid) for serving, _ in served)
        return seconds


class Kubo(Peer):
    """Two nodes that are started and connected before the clock starts. `pin` brings the blocks, `get` files too."""

    verb = "pin"

    def node(self, name, prefix, ip):
        node = self.started([*prefix, self.setup.kubo, os.path.join(HERE, "..", "kubo.py")])
        return node, self.ask(node, op="start", repo=self.at(name), ip=ip, port=free_port())["peer"]

    @staticmethod
    def ask(node, **command):
        node.stdin.write(json.dumps(command) + "\n")
        node.stdin.flush()
        late = threading.Timer(STUCK, node.kill)
        late.start()
        line = node.stdout.readline()
        late.cancel()
        if not line:
            raise Hung(f"Kubo did not {command['op']} within {STUCK} s")
        answer = json.loads(line)
        assert "error" not in answer, answer
        return answer

    def publish(self, files):
        self.source, self.peer = self.node("source", self.far, self.ip)
        start = time.perf_counter()
        self.cids = [self.ask(self.source, op="add", file=file)["cid"] for file in files]
        self.seconds = time.perf_counter() - start

    def start(self):
        self.target, _ = self.node("target", self.near, "127.0.0.1")
        assert self.ask(self.target, op="connect", addr=self.peer)["connected"]

    def fetch(self):
        start = time.perf_counter()
        if len(self.cids) == 1:
            assert self.ask(self.target, op=self.verb, cid=self.cids[0])["ok"]
        else:
            os.mkdir(self.at("out"))
            items = [[cid, self.at(f"out/{number}")] for number, cid in enumerate(self.cids)]
            assert self.ask(self.target, op="get_all", items=items, at_once=16)["ok"]
        self.seconds = time.perf_counter() - start


class Nginx(Nipfs):
    """A static cache directory behind nginx. Fetched by `nix copy`, which checks the NarHash and writes the tree."""

    def publish(self, files):
        super().publish(files, "--write-nars")
        os.chmod(self.work, 0o755)

    def start(self):
        config, port = self.at("nginx.conf"), free_port()
        bodies = " ".join(f"{kind}_temp_path {self.at(kind)};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        with open(config, "w") as file:
            file.write(
                f"daemon off; worker_processes 2; pid {self.at('pid')}; error_log {self.at('error.log')}; user root;\n"
                "events { worker_connections 1024; }\n"
                f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; {bodies}\n"
                f"server {{ listen {self.ip}:{port}; root {self.at('a/cache')}; }} }}\n"
            )
        self.url = f"http://{self.ip}:{port}"
        nginx = self.started([*self.far, "nginx", "-c", config, "-p", self.work])
        answers = [*self.near, "curl", "-sfo", "/dev/null", f"{self.url}/nix-cache-info"]
        wait_for(lambda: nginx.poll() is None and subprocess.call(answers) == 0, "nginx does not answer")

    def fetch(self):
        home = self.at("home")
        environment = dict(os.environ, HOME=home, XDG_CACHE_HOME=home, NIX_REMOTE="local")
        environment["NIX_CONFIG"] = "experimental-features = nix-command\nsandbox = false\nsubstituters =\nbuild-users-group ="
        trusted = ["--option", "trusted-public-keys", self.key]
        self.timed([*self.near, "nix", "copy", "--from", self.url, "--to", self.at("store"), *trusted, *self.paths], env=environment)


class Curl(Nginx):
    """The same directory, NARs only, 16 at once with `curl -Z`; nothing is checked or unpacked."""

    def fetch(self):
        wanted, to = self.at("wanted"), self.at("out")
        os.mkdir(to)
        with open(wanted, "w") as file:
            for number, nar in enumerate(sorted(glob.glob(self.at("a/cache/nar/*.nar")))):
                file.write(f'url = "{self.url}/nar/{os.path.basename(nar)}"\noutput = "{to}/{number}"\n')
        self.timed([*self.near, "curl", "-sfZ", "--parallel-max", "16", "-K", wanted])
        assert len(os.listdir(to)) == len(self.paths)
