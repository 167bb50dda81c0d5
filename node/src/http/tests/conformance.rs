//! Cases of the gateway-conformance suite, replayed: the suites about single blocks, probes and refusals.

use super::*;
use crate::store::{CidPin, Op};
use nipfs_proto::block::Digest;
use nipfs_proto::dag::car::{CarError, Reader};
use serde_json::Value;
use std::path::{Path, PathBuf};

const SUITES: [&str; 4] = ["trustless-raw", "trustless-format-precedence", "spec-probe", "spec-negative"];

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
    let of_ours = |case: &&Value| SUITES.contains(&case["suite"].as_str().unwrap());
    let cases: Vec<&Value> = vectors["cases"].as_array().unwrap().iter().filter(of_ours).collect();
    assert!(cases.len() > 40);
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
        let answer = server.ask(text("method"), &format!("{}?{query}", text("path")), &headers).await;
        if !case["any_of"].as_array().unwrap().iter().any(|expected| fits(&answer, expected)) {
            wrong.push(format!("{} {}: {}", case["id"], text("name"), answer.status));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Pins everything in a CAR, block by block: its roots need not reach all of it.
fn publish(server: &Server, car: &Path) {
    let (mut reader, lease) = (Reader::new(), server.node.store().lease());
    let mut pins = Vec::new();
    let mut keep = |block: nipfs_proto::block::Block| {
        lease.put(&block).unwrap();
        pins.push(Op::PutPin(CidPin { cid: *block.cid(), added_unix: 0 }));
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
    let all = strings("blocks").unwrap_or_default().iter().all(|cid| blocks.iter().any(|block| block == cid));
    read.is_ok() && all && strings("roots").is_none_or(|expected| expected == roots)
}
