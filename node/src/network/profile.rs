//! What a node does unasked, by profile. This table is the whole meaning of the word:
//!
//! | | `private` | `lan` | `public` |
//! |---|---|---|---|
//! | answers peers that dial it, for what is published | yes | yes | yes |
//! | dials the peers that it was told of (`--peer`, a cache's `/nipfs-info`) | yes | yes | yes |
//! | asks the local network for other nodes, and says there that it is one (mDNS) | no | yes | no |
//! | shows others what it fetched, if a key on its share list signed it | no | yes | yes |
//! | asks the DHTs of IPFS who has what it looks for | no | no | yes |
//! | tells them which roots it publishes | no | no | yes |
//! | gets around NAT, when built with the cargo feature `nat` | no | no | yes |
//!
//! `public` leaves mDNS alone: it is for machines in data centres too, where shouting into the local network is bad manners.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a node does unasked. See the module's table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Announces nothing and looks for nobody.
    #[default]
    Private,
    /// Finds nodes on the local network, and is found there.
    Lan,
    /// Finds nodes through the DHTs of IPFS, and tells them what it publishes.
    Public,
}

impl Profile {
    const ALL: [Self; 3] = [Self::Private, Self::Lan, Self::Public];

    /// Whether the node shows itself on the local network and looks for others there.
    #[must_use]
    pub fn uses_mdns(self) -> bool {
        self == Self::Lan
    }

    /// Whether the node asks the DHTs and announces there.
    #[must_use]
    pub fn uses_dht(self) -> bool {
        self == Self::Public
    }

    /// Whether the node asks routers, relays and other nodes for a way in from outside.
    #[cfg(feature = "nat")]
    #[must_use]
    pub fn gets_around_nat(self) -> bool {
        self == Self::Public
    }

    /// Whether others may see what was fetched, as far as the share list allows.
    #[must_use]
    pub fn shares(self) -> bool {
        self != Self::Private
    }

    /// Whether the node may know of peers that nobody named.
    #[must_use]
    pub fn finds_peers(self) -> bool {
        self != Self::Private
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Lan => "lan",
            Self::Public => "public",
        })
    }
}

/// No profile has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no profile is called {0:?}, only private, lan and public are known")]
pub struct ProfileError(String);

impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(name: &str) -> Result<Self, ProfileError> {
        let named = Self::ALL.into_iter().find(|profile| profile.to_string() == name);
        named.ok_or_else(|| ProfileError(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for profile in Profile::ALL {
            assert_eq!(profile.to_string().parse(), Ok(profile));
            assert_eq!(serde_json::to_string(&profile).unwrap(), format!("\"{profile}\""));
        }
        assert!("Private".parse::<Profile>().is_err());
        assert_eq!(Profile::default(), Profile::Private);
    }

    #[test]
    fn a_private_node_does_nothing_unasked() {
        let private = Profile::Private;
        assert!(!private.uses_mdns() && !private.uses_dht() && !private.finds_peers() && !private.shares());
    }
}
