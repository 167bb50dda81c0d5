//! What the verbs do beyond asking the node: sinks, standard input, ssh, many items.

use crate::common::{Machine, describe};
use crate::sources::Liar;
use crate::walk::{fetch, fetched, publish_tree};
use nipfs_proto::block::parse_cid;

/// The CIDv0 in base58 of the second link of a dag-pb block.
fn second_link(block: &[u8]) -> String {
    let links = block.windows(4).enumerate().filter(|(_, bytes)| *bytes == [0x0a, 0x22, 0x12, 0x20]);
    let (at, _) = links.into_iter().nth(1).expect("two links");
    let digits: String = block[at + 2..at + 36].iter().map(|byte| format!("{byte:02x}")).collect();
    // Multibase 16 of the CIDv1 with the same hash: dag-pb is 0x70.
    parse_cid(&format!("f0170{digits}")).unwrap().to_string()
}

#[test]
fn bytes_that_are_no_nar_are_taken_back_for_those_of_the_next_source() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "noise", 70, 6 << 20);
    let path = published["path"].as_str().unwrap();
    let root = published["root"].as_str().unwrap().to_owned();
    let middle = second_link(&at_a.get(&format!("/ipfs/{root}?format=raw")).body);
    let liar = Liar::before(&at_a.http, move |path, body| match path.ends_with(".narinfo") {
        true => String::from_utf8(body).unwrap().replace(&root, &middle).into_bytes(),
        false => body,
    });
    let said = fetch(&c, path, &liar.http, &key, &["--peer", &at_a.peer]).ok();
    assert!(said.stderr.contains("trying the next source"), "{said:#?}");
    assert_eq!(said.one()["source"], "http");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}
