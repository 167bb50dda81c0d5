//! The cases of the gateway-conformance suite, replayed.

use super::*;
use crate::store::{CidPin, Op};
use nipfs_proto::block::Digest;
use nipfs_proto::dag::car::{CarError, Reader};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Cases that are not for us: a conditional GET of a file in plain, `index.html`. There are only blocks and CARs here, so
/// it is refused, and conditions are looked at where the answer would be a success (RFC 9110 §13.2.1). What they test is
/// tested with `format=raw` below.
const OF_PLAIN_FILES: [u64; 4] = [70, 71, 72, 73];

#[tokio::test]
async fn gateway_conformance() {
    let Some(folder) =
        std::env::var_os("NIPFS_VECTORS").map(|folder| PathBuf::from(folder).join("gateway-conformance"))
    else {
        println!("skipped: NIPFS_VECTORS is not set");
        return;
    };
    let vectors: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let server = Server::start().await;
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 106);
    let mut wrong = Vec::new();
    for case in cases {
        for fixture in case["fixture"].as_array().unwrap() {
            publish(&server, &folder.join(fixture.as_str().unwrap()));
        }
        let text = |key: &str| case[key].as_str().unwrap();
        let pairs = |key: &str, join: fn(&str, &str) -> String| -> Vec<String> {
            case[key].as_object().unwrap().iter().map(|(key, value)| join(key, value.as_str().unwrap())).collect()
        };
        let query = pairs("query", |key, value| format!("{key}={value}")).join("&");
        let headers = pairs("headers", |key, value| format!("{key}: {value}\r\n")).concat();
        let url = format!("{}?{query}", text("path"));
        if OF_PLAIN_FILES.contains(&case["id"].as_u64().unwrap()) {
            assert_eq!(server.ask("GET", &url, &headers).await.status, 400, "{}", case["id"]);
            let (url, headers) = (format!("{url}format=raw"), headers.replace("v6am\"", "v6am.raw\""));
            assert_eq!(server.ask("GET", &url, &headers).await.status, 304, "{}", case["id"]);
            continue;
        }
        let answer = server.ask(text("method"), &url, &headers).await;
        if !case["any_of"].as_array().unwrap().iter().any(|expected| fits(&answer, expected)) {
            wrong.push(format!("{} {}: {} {:?}", case["id"], text("name"), answer.status, answer.headers));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Pins everything in a CAR, block by block and each as a leaf: one lacks a block, and what is pinned must be whole.
fn publish(server: &Server, car: &Path) {
    let (mut reader, lease) = (Reader::new(), server.node.store().lease());
    let mut pins = Vec::new();
    let mut keep = |block: nipfs_proto::block::Block| {
        lease.put(&block).unwrap();
        pins.push(Op::PutPin(CidPin { cid: block.digest().unwrap().raw_cid(), added_unix: 0 }));
        Ok::<_, CarError>(())
    };
    reader.push(&std::fs::read(car).unwrap(), &mut keep).unwrap();
    lease.commit(pins).unwrap();
}

fn fits(answer: &Answer, expected: &Value) -> bool {
    let status = expected["status"].as_u64() == Some(u64::from(answer.status));
    let none = serde_json::Map::new();
    let mut headers = expected["headers"].as_object().unwrap_or(&none).iter();
    let body = match &expected["body"] {
        Value::Object(body) if body.contains_key("car") => car_fits(&answer.body, &body["car"]),
        Value::Object(body) => {
            let hash = format!("{:?}", Digest::of(&answer.body));
            body["len"].as_u64() == Some(answer.body.len() as u64) && body["sha256"].as_str() == Some(&hash)
        }
        _ => true,
    };
    status && body && headers.all(|(key, rule)| header_fits(answer.header(&key.to_lowercase()), rule))
}

fn header_fits(value: &str, rule: &Value) -> bool {
    rule.as_object().unwrap().iter().all(|(kind, rule)| match kind.as_str() {
        "equals" => Some(value) == rule.as_str(),
        "exists" => value.is_empty() != rule.as_bool().unwrap(),
        "contains" | "directives" => {
            let all = rule.as_array().map_or_else(|| vec![rule], |all| all.iter().collect());
            all.into_iter().all(|part| value.contains(part.as_str().unwrap()))
        }
        "max-age-min" => {
            let age = value.split("max-age=").nth(1).and_then(|age| age.split(',').next()?.parse::<u64>().ok());
            age >= rule.as_u64()
        }
        // The only pattern there is.
        "matches" => value.starts_with("attachment; filename=\"") && value.ends_with(".car\""),
        other => panic!("unknown rule {other}"),
    })
}

fn car_fits(car: &[u8], expected: &Value) -> bool {
    let (mut reader, mut blocks) = (Reader::new(), Vec::new());
    let mut keep = |block: nipfs_proto::block::Block| {
        blocks.push(block.cid().to_string());
        Ok::<_, CarError>(())
    };
    let read = reader.push(car, &mut keep);
    let roots: Vec<String> = reader.roots().unwrap_or_default().iter().map(ToString::to_string).collect();
    let strings = |key: &str| -> Option<Vec<&str>> { expected[key].as_array()?.iter().map(Value::as_str).collect() };
    let is = |key: &str| expected[key].as_bool() == Some(true);
    let mut wanted = strings("blocks").unwrap_or_default();
    let fits = if is("exactly") {
        if !is("ordered") {
            wanted.sort_unstable();
            blocks.sort_unstable();
        }
        wanted == blocks
    } else {
        wanted.iter().all(|cid| blocks.iter().any(|block| block == cid))
    };
    read.is_ok() && fits && strings("roots").is_none_or(|expected| expected == roots)
}
