// One Helia node for the tests, on the packages of integration/helia/package.json. It is run from the directory
// in which they are installed.
//
// One JSON command a line on stdin, one JSON answer a line on stdout:
//
//   {"op": "start", "listen": [MULTIADDR]}         -> {"peers": [MULTIADDR]}  TCP with noise and yamux, QUIC; no DHT, no mDNS
//   {"op": "add", "file": PATH, "version": 0|1, "chunk": N}
//                                                  -> {"cid": CID}            chunks of N bytes in dag-pb leaves
//   {"op": "connect", "addr": MULTIADDR}           -> {"connected": true}
//   {"op": "get", "cid": CID, "to": PATH}          -> {"ok": true}
//   {"op": "most"}                                 -> {"theirs": N, "ours": N}  blocks that a peer, and that we, waited
//                                                                             for at one time

import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { MemoryBlockstore } from 'blockstore-core'
import { MemoryDatastore } from 'datastore-core'
import { createHeliaLight } from 'helia'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'
import fs from 'node:fs'
import readline from 'node:readline'

// It loads a binary that is not to be had for every platform. Without it there is TCP alone.
const { quic } = await import('@chainsafe/libp2p-quic').catch(() => ({}))

let helia, files
const most = { theirs: 0, ours: 0 }

function count ({ peerWantLists, wantList, network }) {
  network.addEventListener('bitswap:message', ({ detail }) => {
    const theirs = peerWantLists.wantListForPeer(detail.connection.remotePeer).filter(want => want.status !== 'sent')
    most.theirs = Math.max(most.theirs, theirs.length)
    most.ours = Math.max(most.ours, wantList.wants.size)
  })
}

const verbs = {
  async start ({ listen }) {
    const light = createHeliaLight({ blockstore: new MemoryBlockstore(), datastore: new MemoryDatastore() })
    helia = withBitswap(withLibp2pLight(light, {
      addresses: { listen: listen.filter(address => quic || !address.includes('/quic-v1')) },
      transports: quic ? [tcp(), quic()] : [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      services: { identify: identify() },
      peerDiscovery: []
    }))
    await helia.start()
    count(helia.blockBrokers.find(broker => broker.name === 'bitswap').bitswap)
    files = unixfs(helia)
    return { peers: helia.libp2p.getMultiaddrs().map(String) }
  },
  async add ({ file, version, chunk }) {
    const options = {
      cidVersion: version,
      rawLeaves: false,
      reduceSingleLeafToSelf: true,
      chunker: fixedSize({ chunkSize: chunk }),
      layout: balanced({ maxChildrenPerNode: 174 })
    }
    return { cid: String(await files.addByteStream(fs.createReadStream(file), options)) }
  },
  async connect ({ addr }) {
    await helia.libp2p.dial(multiaddr(addr))
    return { connected: true }
  },
  async get ({ cid, to }) {
    const out = fs.createWriteStream(to)
    for await (const bytes of files.cat(CID.parse(cid))) out.write(bytes)
    await new Promise(resolve => out.end(resolve))
    return { ok: true }
  },
  async most () {
    return most
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  let answer
  try {
    answer = await verbs[command.op](command)
  } catch (error) {
    answer = { error: String(error.stack) }
  }
  process.stdout.write(JSON.stringify(answer) + '\n')
}
process.exit(0)
