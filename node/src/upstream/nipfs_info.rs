//! `nipfs-info`: what a cache of ours says about itself, beside `nix-cache-info`.
//!
//! ```json
//! {"version":1,"storeDir":"/nix/store","sequence":17,"expires":1790000000,
//!  "peers":["/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…"],"index":"bafybei…","sig":["cache.example.org-1:…"]}
//! ```
//!
//! It only says whom to ask: every block is checked against its CID whoever sent it, so an unsigned one is of use. A
//! signature tells a client that may not dial strangers that these are not. The paths that the cache publishes are a
//! resource of their own, `nipfs-paths`: base names, one a line.

use nipfs_proto::nix::signature::{PublicKey, SecretKey};
use nipfs_proto::nix::store_path::STORE_DIR;
use serde::{Deserialize, Serialize};

/// The only version there is.
const VERSION: u32 = 1;

/// What a cache of ours says about itself. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NipfsInfo {
    version: u32,
    /// The store directory that its paths are in.
    pub store_dir: String,
    /// Grows with every change; a client keeps the one with the highest.
    pub sequence: u64,
    /// Unix time in seconds after which it says nothing.
    pub expires: u64,
    /// Multiaddrs that end in `/p2p/ID`, of the cache's own node and of its mirrors.
    pub peers: Vec<String>,
    /// The root of an index of what the cache publishes, as the DHTs are told: who has it has the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Signatures over the other fields, `KEY:BASE64`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sig: Vec<String>,
}

impl NipfsInfo {
    /// An unsigned one.
    #[must_use]
    pub fn new(sequence: u64, expires: u64, peers: Vec<String>, index: Option<String>) -> Self {
        Self { version: VERSION, store_dir: STORE_DIR.to_owned(), sequence, expires, peers, index, sig: Vec::new() }
    }

    /// Reads the JSON text.
    ///
    /// # Errors
    /// When it is not one, or of another version.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let info: Self = serde_json::from_str(text)?;
        if info.version == VERSION {
            return Ok(info);
        }
        Err(serde::de::Error::custom(format_args!("version {} is not known, only {VERSION} is", info.version)))
    }

    /// The JSON text, one line.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always are JSON") + "\n"
    }

    /// Adds a signature.
    pub fn sign(&mut self, key: &SecretKey) {
        self.sig.push(key.sign(&self.fingerprint()).to_string());
    }

    /// Whether one of `keys` signed it. Time is the caller's to check.
    #[must_use]
    pub fn is_signed_by(&self, keys: &[PublicKey]) -> bool {
        let plain = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',' && byte != b';');
        let fingerprint = self.fingerprint();
        let signed =
            |sig: &String| sig.parse().is_ok_and(|sig| keys.iter().any(|key| key.verifies(&fingerprint, &sig)));
        let mut texts = self.peers.iter().chain(&self.index).chain([&self.store_dir]);
        texts.all(plain) && self.sig.iter().any(signed)
    }

    /// Its fields are told apart by the semicolons, which none of them has in what is believed.
    fn fingerprint(&self) -> String {
        let Self { version, store_dir, sequence, expires, peers, index, .. } = self;
        let index = index.as_ref().map(|index| format!(";{index}")).unwrap_or_default();
        format!("nipfs-info-{version};{store_dir};{sequence};{expires};{}{index}", peers.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(index: Option<&str>) -> (NipfsInfo, SecretKey) {
        let key = SecretKey::from_seed("cache.example.org-1", &[7; 32]).unwrap();
        let mut info = NipfsInfo::new(
            17,
            1_790_000_000,
            vec!["/ip4/192.0.2.1/tcp/4001/p2p/12D3KooX".to_owned()],
            index.map(str::to_owned),
        );
        info.sign(&key);
        (info, key)
    }

    #[test]
    fn text_round_trips_and_other_versions_do_not() {
        for index in [None, Some("bafyindex")] {
            let (info, key) = signed(index);
            assert_eq!(info.to_text().contains("index"), index.is_some());
            let read = NipfsInfo::parse(&info.to_text()).unwrap();
            assert_eq!(read, info);
            assert!(read.is_signed_by(&[key.public_key()]));
        }
        let (info, _) = signed(None);
        let more = info.to_text().replacen('{', "{\"mirrors\":[],", 1);
        assert_eq!(NipfsInfo::parse(&more).unwrap(), info);
        assert!(NipfsInfo::parse(&info.to_text().replace("\"version\":1", "\"version\":2")).is_err());
        assert!(NipfsInfo::parse("{}").is_err());
    }

    #[test]
    fn any_change_breaks_the_signature() {
        type Change = fn(&mut NipfsInfo);
        let changes: [Change; 8] = [
            |info| info.sequence += 1,
            |info| info.expires += 1,
            |info| info.store_dir.push('x'),
            |info| info.peers.push("/ip4/198.51.100.1/tcp/1/p2p/Q".to_owned()),
            |info| info.index = None,
            |info| info.index = Some("bafyother".to_owned()),
            |info| info.peers.extend(info.index.take()),
            |info| info.sig.clear(),
        ];
        for change in changes {
            let (mut info, key) = signed(Some("bafyindex"));
            change(&mut info);
            assert!(!info.is_signed_by(&[key.public_key()]));
        }
        let (mut two, key) = signed(None);
        two.peers = vec!["/a".to_owned(), "/b".to_owned()];
        two.sign(&key);
        two.peers = vec!["/a,/b".to_owned()];
        assert!(!two.is_signed_by(&[key.public_key()]));
        // Nor is a field to be taken for another.
        two.peers = vec!["3".to_owned()];
        (two.store_dir, two.index) = ("/a".to_owned(), Some("/b".to_owned()));
        two.sign(&key);
        assert!(two.is_signed_by(&[key.public_key()]));
        let (sequence, expires) = (two.sequence, two.expires);
        (two.store_dir, two.sequence, two.expires) = (format!("/a;{sequence}"), expires, 3);
        (two.peers, two.index) = (vec!["/b".to_owned()], None);
        assert!(!two.is_signed_by(&[key.public_key()]));
    }
}
