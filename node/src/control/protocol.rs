//! The frames and messages of a control connection.
//!
//! A frame is a length (u32, big endian, at most [`MAX_FRAME`]), a kind (one byte) and the body:
//! JSON for [`Request`], [`Item`], [`Report`], [`Done`] and [`Failure`], bytes for data.
//!
//! ```text
//! client: Request  (Data… (End | Failed))?   the data of `stage`; `Failed` gives it up
//! node:   (Report | Item | Data | Restart)…  (Done | Failed)
//! ```
//!
//! `Restart` takes back all data sent for the current path: its source turned out wrong and the next
//! one starts from the first byte.

pub use crate::dag::read::SourceBytes;
pub use crate::store::Keep;
use serde::{Deserialize, Serialize};

/// Longest frame body in bytes.
pub const MAX_FRAME: usize = 4 << 20;

/// What a client asks. Store paths are absolute (`/nix/store/…`), hashes `sha256:<nix32>`, CIDs text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Request {
    /// Who answers. Ends with [`Done::Hello`].
    Hello,
    /// Figures of the node. Ends with [`Done::Status`].
    Status,
    /// Is this NAR held under this profile? If so it stays as if it had been staged. Ends with [`Done::Known`].
    Known {
        /// Its hash.
        nar_hash: String,
        /// Name of the chunking profile whose root is asked for.
        profile: String,
    },
    /// Import the NAR that follows as data. Ends with [`Done::Staged`].
    Stage {
        /// Name of the chunking profile.
        profile: String,
    },
    /// Import the NAR of a valid store path of this machine's Nix, which the node reads itself, and leave its bytes
    /// where they are. Ends with [`Done::Staged`].
    StageOutside {
        /// The store path.
        path: String,
        /// Name of the chunking profile.
        profile: String,
    },
    /// Publish narinfos whose NARs were staged on this connection or are held already, in this order. Pins them. Ends
    /// with [`Done::Committed`].
    Commit {
        /// The narinfos' texts, each with its `IPFSHash`.
        narinfos: Vec<String>,
        /// Where its blocks shall lie.
        keep: Keep,
    },
    /// Get store paths, verified. For each: [`Item::Path`], data, [`Item::Fetched`] (or [`Item::Failed`]).
    Fetch(Fetch),
    /// The bytes of a NAR that is held, as data.
    Nar {
        /// Its hash.
        nar_hash: String,
    },
    /// Pin and serve everything that a cache lists. One [`Item::Mirrored`] or [`Item::Failed`] a path.
    MirrorPull {
        /// Base URL of the cache.
        url: String,
        /// Keys whose signature is accepted, `name:base64`.
        trusted_keys: Vec<String>,
        /// Peers to ask, as multiaddrs that end in `/p2p/ID`.
        peers: Vec<String>,
        /// Store paths to mirror instead of what the cache lists.
        store_paths: Option<Vec<String>>,
    },
    /// Pin and serve these narinfos: the far end of `mirror push`. Items as for `MirrorPull`.
    MirrorReceive {
        /// The pusher's addresses, as multiaddrs that end in `/p2p/ID`.
        peers: Vec<String>,
        /// Whole narinfo texts, each with its `IPFSHash`.
        narinfos: Vec<String>,
        /// Keys whose signature is accepted, `name:base64`; empty accepts any (the pusher came in over ssh).
        trusted_keys: Vec<String>,
    },
    /// What is pinned and whether every block of it is here. One [`Item::Pin`] a pin.
    PinList {
        /// Also walk each DAG and say whether it is complete.
        check: bool,
    },
    /// Pin a published path again, or a CID (fetched from the peers when it is not here).
    PinAdd {
        /// Store path or CID.
        target: String,
        /// Peers to ask, as multiaddrs that end in `/p2p/ID`.
        peers: Vec<String>,
    },
    /// Unpin a store path (its narinfo is no longer served) or a CID.
    PinRemove {
        /// Store path or CID.
        target: String,
    },
    /// Free what no pin reaches. [`Item::Dropped`]s and [`Item::Kept`]s; ends with [`Done::Gc`].
    Gc {
        /// Say what would be done and change nothing.
        dry_run: bool,
        /// Also unpin, oldest first, until the store is at most this many bytes.
        max_size: Option<u64>,
        /// Unpin only what this peer (a multiaddr that ends in `/p2p/ID`) proved to hold.
        require_mirror: Option<String>,
    },
    /// Check what is on disk. Ends with [`Done::Verify`].
    Verify {
        /// Hash every block and every NAR, not only the pinned DAGs' shape.
        deep: bool,
        /// Drop damaged blocks and fetch them again from the peers.
        repair: bool,
        /// Peers to ask, as multiaddrs that end in `/p2p/ID`.
        peers: Vec<String>,
    },
}

/// A fetch. See [`Request::Fetch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetch {
    /// Store paths, or just their 32-character hash parts.
    pub paths: Vec<String>,
    /// Base URLs of caches, asked in this order.
    pub from: Vec<String>,
    /// Keys whose signature is accepted, `name:base64`.
    pub trusted_keys: Vec<String>,
    /// Peers to ask, as multiaddrs that end in `/p2p/ID`.
    pub peers: Vec<String>,
    /// Base URLs of trustless gateways, asked when no peer has a block.
    pub gateways: Vec<String>,
    /// Also everything the paths refer to, dependencies first.
    pub closure: bool,
    /// Refuse a narinfo without a trusted signature. Only ever false when the user said so.
    pub check_sigs: bool,
    /// Send the NAR bytes as data; otherwise the NAR only ends in the node's store.
    pub data: bool,
    /// Hash parts of paths that the client has already and does not want again.
    pub skip: Vec<String>,
}

/// One result among several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Item {
    /// A path whose data follows.
    Path {
        /// Store path.
        path: String,
        /// The narinfo text as the cache sent it.
        narinfo: String,
        /// Bytes of its NAR.
        nar_size: u64,
    },
    /// The path just sent is complete and verified.
    Fetched {
        /// Store path.
        path: String,
        /// Root CID, when one is known.
        root: Option<String>,
        /// Hash of the NAR.
        nar_hash: String,
        /// The source that delivered most: `local`, `bitswap`, `gateway` or `http`.
        source: String,
        /// Where the bytes came from.
        bytes: SourceBytes,
    },
    /// A path that B holds and serves now.
    Mirrored {
        /// Store path.
        path: String,
        /// Root CID.
        root: String,
        /// Bytes of its NAR.
        nar_size: u64,
        /// `held` (was here), `fetched`.
        state: String,
        /// Where the bytes came from.
        bytes: SourceBytes,
    },
    /// One path failed; the others go on.
    Failed {
        /// Store path.
        path: String,
        /// Why.
        failure: Failure,
    },
    /// GC dropped it.
    Dropped {
        /// Store path, or the CID of a bare pin.
        target: String,
        /// A mirror holds it for us: it stays published here.
        left: bool,
    },
    /// `--max-size` would have dropped it, but did not.
    Kept {
        /// Store path.
        path: String,
        /// Why.
        reason: String,
    },
    /// A pin.
    Pin {
        /// Store path, or the CID of a bare pin.
        target: String,
        /// Root CID.
        root: String,
        /// Bytes of its NAR; 0 for a bare CID.
        nar_size: u64,
        /// Unix time in seconds when it was pinned.
        added: u64,
        /// Whether every block is here; `None` when not checked.
        complete: Option<bool>,
    },
}

/// Progress: dropped when nobody looks, never a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Report {
    /// How much of one path is done.
    Progress {
        /// Store path.
        path: String,
        /// NAR bytes so far.
        done: u64,
        /// NAR bytes in all.
        total: u64,
        /// `local`, `bitswap`, `gateway` or `http`.
        source: String,
    },
    /// A source failed and the next is tried. For a person to read.
    Note {
        /// One line, without a final full stop.
        text: String,
    },
}

/// How a request ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Done {
    /// Nothing to say.
    Ok,
    /// Answer to [`Request::Hello`].
    Hello {
        /// Version of the node.
        version: String,
        /// Its peer id.
        peer_id: String,
        /// Its state directory.
        state: String,
        /// Whether a running `serve` answers, not a node opened for this command.
        serving: bool,
        /// Its multiaddrs, each ending in `/p2p/ID`; empty when it does not listen.
        addresses: Vec<String>,
    },
    /// Answer to [`Request::Status`].
    Status(Status),
    /// Answer to [`Request::Known`].
    Known {
        /// The root of the NAR under the profile asked for.
        root: Option<String>,
    },
    /// Answer to [`Request::Stage`].
    Staged {
        /// Root CID.
        root: String,
        /// Hash of the NAR.
        nar_hash: String,
        /// Bytes of the NAR.
        nar_size: u64,
        /// Plain bytes of blocks not held before.
        new_bytes: u64,
    },
    /// Answer to [`Request::Commit`].
    Committed {
        /// For each narinfo, why it is not published.
        failures: Vec<Option<Failure>>,
    },
    /// Answer to [`Request::Gc`].
    Gc {
        /// Bytes given back to the file system.
        freed_bytes: u64,
        /// How many paths stay pinned.
        kept_paths: u64,
    },
    /// Answer to [`Request::Verify`].
    Verify {
        /// Blocks looked at.
        blocks: u64,
        /// CIDs of damaged or missing blocks.
        damaged: Vec<String>,
        /// CIDs that were fetched again.
        repaired: Vec<String>,
        /// Store paths that are not whole.
        broken_paths: Vec<String>,
        /// Damaged records of the log that opening the store met: what they said is lost.
        damaged_records: u64,
    },
    /// End of a request with items: how many succeeded and failed.
    Count {
        /// Items that succeeded.
        ok: u64,
        /// Items that failed.
        failed: u64,
    },
}

/// Figures of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Peer id.
    pub peer_id: String,
    /// Multiaddrs, each ending in `/p2p/ID`.
    pub addresses: Vec<String>,
    /// Address of the HTTP listener, when there is one.
    pub http: Option<String>,
    /// Connected peers.
    pub peers: Vec<String>,
    /// Pinned roots.
    pub roots: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Bytes on disk.
    pub stored_bytes: u64,
    /// Plain bytes of the blocks held.
    pub logical_bytes: u64,
    /// Where the bytes of NARs served and fetched since the start came from.
    pub bytes: SourceBytes,
    /// Whether a running `serve` answered.
    pub serving: bool,
    /// How announcing what is published goes; `None` where nothing is announced.
    pub announced: Option<Announced>,
}

/// How announcing goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announced {
    /// Roots that are to be announced, that of the index among them.
    pub roots: u64,
    /// Those that the DHT was told of.
    pub told: u64,
    /// The root of the index of all that is published; `None` while all roots are told.
    pub index: Option<String>,
    /// Why the last round did not tell all that was due.
    pub failure: Option<String>,
}

/// How a request failed, ready to print.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Which kind: decides the exit code.
    pub class: Class,
    /// What failed, naming the object.
    pub message: String,
    /// The chain of causes, nearest first.
    pub causes: Vec<String>,
    /// Something to run, when we know it.
    pub hint: Option<String>,
}

/// Kinds of failure, one for each exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Anything else, or some items of many. Exit 1.
    Failed,
    /// Wrong usage or configuration. Exit 2.
    Usage,
    /// A hash or signature did not match. Exit 3.
    Refused,
    /// No source has it. Exit 4.
    NotFound,
    /// The store is damaged, or of a newer version. Exit 5.
    Damaged,
    /// No space left. Exit 6.
    NoSpace,
    /// Another process has the store open. Exit 7.
    InUse,
    /// Stopped by a signal or by the client. Exit 130.
    Interrupted,
}

impl Class {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NotFound => 4,
            Self::Damaged => 5,
            Self::NoSpace => 6,
            Self::InUse => 7,
            Self::Interrupted => 130,
        }
    }
}
