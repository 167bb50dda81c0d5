//! Profiles: everything that decides which CID a stream of bytes gets.

use cid::Version;
use std::fmt;
use std::str::FromStr;

/// How a file becomes a DAG. The names are what narinfos and the store record: a profile never changes
/// once it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// `unixfs-v0-2015` of IPIP-499, what `ipfs add` does by default: chunks of 256 KiB in dag-pb leaves,
    /// CIDv0, a balanced tree of 174 links a node.
    UnixfsV0_2015,
    /// `unixfs-v1-2025` of IPIP-499: chunks of 1 MiB in raw leaves, CIDv1, a balanced tree of 1024 links a
    /// node.
    UnixfsV1_2025,
}

/// What a [`Profile`] means for the builder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Bytes of the file in a leaf.
    pub(super) chunk: usize,
    /// Links in a node.
    pub(super) max_links: usize,
    /// Leaves are raw blocks (always CIDv1) instead of dag-pb ones.
    pub(super) raw_leaves: bool,
    /// Of the dag-pb blocks.
    pub(super) cid_version: Version,
}

impl Profile {
    /// All names.
    pub const NAMES: [&'static str; 2] = ["unixfs-v0-2015", "unixfs-v1-2025"];

    /// The name, as narinfos carry it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UnixfsV0_2015 => "unixfs-v0-2015",
            Self::UnixfsV1_2025 => "unixfs-v1-2025",
        }
    }

    pub(super) fn layout(self) -> Layout {
        match self {
            Self::UnixfsV0_2015 => {
                Layout { chunk: 256 << 10, max_links: 174, raw_leaves: false, cid_version: Version::V0 }
            }
            Self::UnixfsV1_2025 => {
                Layout { chunk: 1 << 20, max_links: 1024, raw_leaves: true, cid_version: Version::V1 }
            }
        }
    }
}

/// A name that is no profile's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown profile {0:?} (known are unixfs-v0-2015, also called size-262144, and unixfs-v1-2025)")]
pub struct UnknownProfile(pub String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        match name {
            // Kubo's name of its default chunker.
            "unixfs-v0-2015" | "size-262144" => Ok(Self::UnixfsV0_2015),
            "unixfs-v1-2025" => Ok(Self::UnixfsV1_2025),
            _ => Err(UnknownProfile(name.to_owned())),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for profile in [Profile::UnixfsV0_2015, Profile::UnixfsV1_2025] {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
        assert_eq!("size-262144".parse(), Ok(Profile::UnixfsV0_2015));
        for name in ["", "unixfs", "size-262145", "UNIXFS-V0-2015", "unixfs-v0-2015 "] {
            assert_eq!(name.parse::<Profile>(), Err(UnknownProfile(name.to_owned())));
        }
    }
}
