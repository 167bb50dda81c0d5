//! The messages of `vectors/bitswap/messages.json`, as they travel on a stream.

use super::raw::RawPeer;
use super::*;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use nipfs_proto::bitswap::message::{Message, Presence, Received, Want};
use nipfs_proto::block::parse_cid;

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// What the node says to `frame`, up to its answer to a question that is sent after it.
async fn answers(peer: &mut RawPeer, frame: &[u8], expected: usize) -> Vec<Received> {
    let [probe] = blocks(1, 100).try_into().unwrap();
    let last =
        Want { cid: *probe.cid(), priority: i32::MIN, kind: WantKind::Block, cancel: false, send_dont_have: true };
    // On the same stream: it is as usable as before.
    let mut stream = peer.open().await;
    stream.write_all(frame).await.unwrap();
    stream.write_all(&Message { wants: vec![last], ..Message::default() }.encode_frame()).await.unwrap();
    stream.flush().await.unwrap();
    let (mut said, mut answered, mut count) = (Vec::new(), false, 0);
    while !answered || count < expected {
        let mut answer = peer.answer().await;
        answered |= answer.presences.iter().any(|presence| presence.cid == *probe.cid());
        answer.presences.retain(|presence| presence.cid != *probe.cid());
        count += answer.blocks.len() + answer.presences.len();
        said.push(answer);
    }
    said
}

#[tokio::test]
async fn every_message_of_the_vectors_is_answered_as_listed_and_harms_nobody() {
    let Some(folder) = std::env::var_os("NIPFS_VECTORS").map(PathBuf::from) else {
        println!("skipped: NIPFS_VECTORS is not set");
        return;
    };
    let set = std::fs::read(folder.join("bitswap/messages.json")).unwrap();
    let set: serde_json::Value = serde_json::from_slice(&set).unwrap();
    let cid = |text: &serde_json::Value| parse_cid(text.as_str().unwrap()).unwrap();
    let (v0, raw, absent) = (cid(&set["has"]["v0"]), cid(&set["has"]["v1_raw"]), cid(&set["absent"]));
    let as_dag_pb = Cid::new_v1(nipfs_proto::block::DAG_PB, *raw.hash());
    let held = |name: &str| Bytes::from(from_hex(set["has"][name].as_str().unwrap()));
    // As the store, it goes by the multihash.
    let held: HashMap<Cid, Bytes> =
        [(v0, held("v0_block")), (raw, held("v1_raw_block")), (as_dag_pb, held("v1_raw_block"))].into();
    let under_test = node(Shelf(Arc::new(Mutex::new(held))).source()).await;

    let mut peers = Vec::new();
    for case in set["messages"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let frame = from_hex(case["hex"].as_str().unwrap());
        let mut peer = RawPeer::connect(&under_test).await;
        let dont_have = Presence { cid: absent, have: false };
        let (blocks, presences) = match name {
            "want-block v0 CID, sendDontHave" => (vec![v0], vec![]),
            "want-block v1 raw" | "want-have present" | "want CID undecodable" => (vec![raw], vec![]),
            "negative priority" | "full wantlist replaces" => (vec![raw], vec![]),
            "same multihash, other codec" => (vec![as_dag_pb], vec![]),
            "want-have absent, sendDontHave" => (vec![], vec![dont_have]),
            "frame length 2^63" | "frame length 10-byte varint overflow" => {
                let mut stream = peer.open().await;
                stream.write_all(&frame).await.unwrap();
                stream.flush().await.unwrap();
                // Reset or closed.
                _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await.unwrap();
                (vec![], vec![])
            }
            "truncated body" => {
                peer.send(&frame).await;
                (vec![], vec![])
            }
            _ => (vec![], vec![]),
        };
        let frame = if name.starts_with("frame length") || name == "truncated body" { Vec::new() } else { frame };
        let said = answers(&mut peer, &frame, blocks.len() + presences.len()).await;
        let got: Vec<Cid> = said.iter().flat_map(|answer| &answer.blocks).map(|block| *block.cid()).collect();
        let told: Vec<Presence> = said.iter().flat_map(|answer| answer.presences.clone()).collect();
        assert_eq!((got, told), (blocks, presences), "{name}");
        peers.push(peer);
    }
    assert!(peers.len() >= 17, "only {} messages", peers.len());
    // No connection was closed, and who did nothing is served.
    assert_eq!(under_test.peers().await.unwrap().len(), peers.len());
    let client = client_of(&[&under_test]).await;
    let (arrived, _) = timeout(LONG, client.session(Vec::new()).want(raw)).await.unwrap().unwrap();
    assert_eq!(*arrived.cid(), raw);
}
