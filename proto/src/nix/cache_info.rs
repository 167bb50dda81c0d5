//! `nix-cache-info`: what a binary cache says of itself.

use super::store_path::STORE_DIR;

/// Longest `nix-cache-info` in bytes that is read.
pub const MAX_CACHE_INFO: usize = 64 << 10;

/// What a binary cache says of itself. Its store directory is always [`STORE_DIR`]: others are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheInfo {
    /// Whether clients may ask for many narinfos at once.
    pub want_mass_query: bool,
    /// Rank among substituters, lowest first; `None` leaves it to the client (cache.nixos.org says 40).
    pub priority: Option<u32>,
}

/// Why a `nix-cache-info` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheInfoError {
    /// Over [`MAX_CACHE_INFO`], or not UTF-8.
    #[error("nix-cache-info is not a short text")]
    NotText,
    /// There is no `StoreDir`: the answer is something else, an error page for instance.
    #[error("nix-cache-info has no StoreDir")]
    NoStoreDir,
    /// The cache is for another store.
    #[error("binary cache is for Nix stores with prefix '{0}', not '{STORE_DIR}'")]
    OtherStore(String),
    /// `Priority` is not a number.
    #[error("Priority '{0}' in nix-cache-info is not a number")]
    Priority(String),
}

impl CacheInfo {
    /// What our caches say: below cache.nixos.org's 40, so that clients ask us first.
    pub const OURS: Self = Self { want_mass_query: true, priority: Some(30) };

    /// Reads a `nix-cache-info`. As in Nix, spaces around values and unknown lines do not matter.
    ///
    /// # Errors
    /// [`CacheInfoError`].
    pub fn parse(text: &[u8]) -> Result<Self, CacheInfoError> {
        let text = str::from_utf8(text).ok().filter(|text| text.len() <= MAX_CACHE_INFO);
        let (mut info, mut store_dir) = (Self::default(), None);
        for line in text.ok_or(CacheInfoError::NotText)?.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "StoreDir" => store_dir = Some(value),
                "WantMassQuery" => info.want_mass_query = value == "1",
                "Priority" => {
                    info.priority = Some(value.parse().map_err(|_| CacheInfoError::Priority(value.to_owned()))?);
                }
                _ => {}
            }
        }
        match store_dir {
            Some(STORE_DIR) => Ok(info),
            Some(other) => Err(CacheInfoError::OtherStore(other.to_owned())),
            None => Err(CacheInfoError::NoStoreDir),
        }
    }

    /// The text, as Nix writes it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("StoreDir: {STORE_DIR}\n");
        if self.want_mass_query {
            text += "WantMassQuery: 1\n";
        }
        if let Some(priority) = self.priority {
            text += &format!("Priority: {priority}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_caches_serve_is_read() {
        let info = |want_mass_query, priority| Ok(CacheInfo { want_mass_query, priority });
        let cases = [
            ("StoreDir: /nix/store\n", info(false, None)),
            ("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n", info(true, Some(40))),
            ("Priority:30\nStoreDir: /nix/store\nWantMassQuery: 0\nX-Other: y\n", info(false, Some(30))),
            ("StoreDir: /nix/store", info(false, None)),
            ("<html>404</html>", Err(CacheInfoError::NoStoreDir)),
            ("StoreDir: /gnu/store\n", Err(CacheInfoError::OtherStore("/gnu/store".into()))),
            ("StoreDir: /nix/store\nPriority: high\n", Err(CacheInfoError::Priority("high".into()))),
        ];
        for (text, expected) in cases {
            assert_eq!(CacheInfo::parse(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(CacheInfo::parse(&[b'\n'; MAX_CACHE_INFO + 1]), Err(CacheInfoError::NotText));
        assert_eq!(CacheInfo::parse(b"StoreDir: \xff"), Err(CacheInfoError::NotText));
    }

    #[test]
    fn what_is_written_reads_back() {
        for info in [CacheInfo::default(), CacheInfo { want_mass_query: true, priority: Some(30) }] {
            assert_eq!(CacheInfo::parse(info.to_text().as_bytes()), Ok(info));
        }
        assert_eq!(CacheInfo::default().to_text(), "StoreDir: /nix/store\n");
    }
}
