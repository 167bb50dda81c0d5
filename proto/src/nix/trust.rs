//! The rule of trust: which narinfos, and which IPFS roots, may be believed.
//!
//! Invariant: a [`TrustedNarInfo`] exists only after [`TrustedKeys::check`], or through [`TrustedNarInfo::own`] for
//! content that was made and hashed on this machine, or out of a [`Seal`] of one that did. Whoever commits foreign content
//! asks for nothing less.

use super::narinfo::{NarInfo, NarInfoError, Root, ipfs_fingerprint};
use super::signature::PublicKey;
use super::store_path::{ContentAddress, StorePath};
use sha2::{Digest as _, Sha256};

/// A narinfo whose path, NarHash, NarSize and references are proven. Its URL, compression, file hash, deriver and IPFS
/// root remain a stranger's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedNarInfo(NarInfo);

impl TrustedNarInfo {
    /// Takes a narinfo that describes content computed here: a path that the local Nix registered, or one whose
    /// content address was computed from its bytes. Never for what somebody else sent.
    #[must_use]
    pub fn own(info: NarInfo) -> Self {
        Self(info)
    }

    /// The record.
    #[must_use]
    pub fn info(&self) -> &NarInfo {
        &self.0
    }

    /// The same record naming `root`, which the proof does not cover.
    #[must_use]
    pub fn with_ipfs(&self, root: Root) -> Self {
        Self(self.0.with_ipfs(root))
    }

    /// Takes the record out; what becomes of it is no longer trusted.
    #[must_use]
    pub fn into_info(self) -> NarInfo {
        self.0
    }
}

/// Stands for a [`TrustedNarInfo`] while its text lies elsewhere: whoever brings that very text gets the record back. It is
/// the text's sha256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal([u8; 32]);

impl Seal {
    /// The seal of a record.
    #[must_use]
    pub fn of(trusted: &TrustedNarInfo) -> Self {
        Self(Sha256::digest(trusted.0.text()).into())
    }

    /// The record again, of its text.
    ///
    /// # Errors
    /// [`Unsealed`] for any other text.
    pub fn open(&self, text: &[u8]) -> Result<TrustedNarInfo, Unsealed> {
        if self.0 != <[u8; 32]>::from(Sha256::digest(text)) {
            return Err(Unsealed::Changed);
        }
        Ok(TrustedNarInfo(NarInfo::parse_unasked(text)?))
    }
}

/// Why a text does not give the record that was sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsealed {
    /// It is another text.
    #[error("the text of a narinfo has changed since it was checked")]
    Changed,
    /// The record had more added to it than may be read; never one that was itself read.
    #[error(transparent)]
    NarInfo(#[from] NarInfoError),
}

/// No trusted key signed the record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no trusted signature for {path} ({})", seen(keys))]
pub struct Untrusted {
    /// The path whose record it is.
    pub path: StorePath,
    /// Names of the keys that are said to have signed it.
    pub keys: Vec<String>,
}

fn seen(keys: &[String]) -> String {
    if keys.is_empty() { "it is not signed".to_owned() } else { format!("signed by {}", keys.join(", ")) }
}

/// The public keys that the user trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl TrustedKeys {
    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }

    /// Believes `info` if one of its signatures is by a trusted key, or if its content address proves both the path and
    /// the NarHash (`fixed:r:sha256` without a reference to itself). Other content-addressed paths need a signature:
    /// what their address covers is not the NAR, so it could only be checked after the fact.
    ///
    /// # Errors
    /// [`Untrusted`] with the names of the keys that were seen.
    pub fn check(&self, info: &NarInfo) -> Result<TrustedNarInfo, Untrusted> {
        let fingerprint = info.fingerprint();
        let signed = info.signatures().iter().any(|sig| self.0.iter().any(|key| key.verifies(&fingerprint, sig)));
        if signed || is_proven_by_content(info) {
            return Ok(TrustedNarInfo(info.clone()));
        }
        let mut keys: Vec<String> = info.signatures().iter().map(|sig| sig.key().to_owned()).collect();
        keys.sort_unstable();
        keys.dedup();
        Err(Untrusted { path: info.store_path().clone(), keys })
    }

    /// The names of the trusted keys that signed `info`; nothing else counts here, not even a content address.
    pub fn signers(&self, info: &NarInfo) -> impl Iterator<Item = &str> {
        let fingerprint = info.fingerprint();
        let signed = move |key: &&PublicKey| info.signatures().iter().any(|sig| key.verifies(&fingerprint, sig));
        self.0.iter().filter(signed).map(PublicKey::name)
    }

    /// The one of `profiles` under which a trusted key bound the record's root to its NAR. `None`: there is no root, or
    /// it is unbound, and nothing from it may be handed on before the whole NAR matched.
    ///
    /// The line does not name its profile, so every known name is tried.
    #[must_use]
    pub fn check_root<'p>(&self, info: &NarInfo, profiles: &[&'p str]) -> Option<&'p str> {
        let root = info.root()?;
        let signature = root.signature()?;
        profiles.iter().copied().find(|profile| {
            let fingerprint = ipfs_fingerprint(info.nar_hash(), info.nar_size(), root.cid(), profile);
            self.0.iter().any(|key| key.verifies(&fingerprint, signature))
        })
    }
}

fn is_proven_by_content(info: &NarInfo) -> bool {
    let address = info.ca().and_then(ContentAddress::parse);
    address.is_some_and(|ca| ca.proves(info.store_path(), info.references(), &info.nar_hash().0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::NarHash;
    use crate::nix::narinfo::PathInfo;
    use crate::nix::signature::SecretKey;
    use crate::nix::store_path;

    const PROFILES: [&str; 2] = ["unixfs-v0-2015", "unixfs-v1-2025"];
    const ROOT: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";

    fn key(name: &str, seed: u8) -> SecretKey {
        SecretKey::from_seed(name, &[seed; 32]).unwrap()
    }

    fn trusting(keys: &[&SecretKey]) -> TrustedKeys {
        keys.iter().map(|key| key.public_key()).collect()
    }

    /// What Nix knows of a source: content-addressed, without references.
    fn source() -> PathInfo {
        let nar_hash = NarHash::of(b"a NAR");
        PathInfo {
            path: store_path::add_path("source", &nar_hash.0).unwrap(),
            nar_hash,
            nar_size: 5,
            references: vec![],
            deriver: None,
            signatures: vec![],
            ca: Some(format!("fixed:r:{nar_hash}")),
        }
    }

    fn unaddressed() -> NarInfo {
        NarInfo::new(&PathInfo { ca: None, ..source() }).unwrap()
    }

    #[test]
    fn trusted_signature_is_enough() {
        let (farm, stranger) = (key("farm", 1), key("stranger", 2));
        let mut info = unaddressed();
        info.add_sig(stranger.sign(&info.fingerprint()));
        info.add_sig(farm.sign(&info.fingerprint()));
        assert_eq!(trusting(&[&farm]).check(&info).unwrap().into_info(), info);
        let error = trusting(&[&key("other", 1)]).check(&info).unwrap_err();
        let expected = format!("no trusted signature for {} (signed by farm, stranger)", info.store_path());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_seal_gives_the_record_back_for_its_very_text_only() {
        let mut info = unaddressed();
        info.add_sig(key("farm", 1).sign(&info.fingerprint()));
        let trusted = trusting(&[&key("farm", 1)]).check(&info).unwrap();
        let seal = Seal::of(&trusted);
        assert_eq!(seal.open(info.text().as_bytes()), Ok(trusted));
        let other = info.text().replace("NarSize: 5", "NarSize: 6");
        assert_eq!(seal.open(other.as_bytes()), Err(Unsealed::Changed));
        assert_eq!(seal.open(b""), Err(Unsealed::Changed));
    }

    #[test]
    fn signers_are_the_trusted_keys_that_signed() {
        let (farm, stranger, idle) = (key("farm", 1), key("stranger", 2), key("idle", 3));
        let mut info = NarInfo::new(&source()).unwrap();
        let signers = |info: &NarInfo| trusting(&[&farm, &idle]).signers(info).map(str::to_owned).collect::<Vec<_>>();
        assert!(signers(&info).is_empty(), "a content address is no signature");
        info.add_sig(stranger.sign(&info.fingerprint()));
        info.add_sig(idle.sign("something else"));
        info.add_sig(farm.sign(&info.fingerprint()));
        assert_eq!(signers(&info), ["farm"]);
    }

    #[test]
    fn unsigned_and_wrongly_signed_are_refused() {
        let farm = key("farm", 1);
        let mut info = unaddressed();
        let error = trusting(&[&farm]).check(&info).unwrap_err();
        assert_eq!(error.to_string(), format!("no trusted signature for {} (it is not signed)", info.store_path()));
        info.add_sig(farm.sign("something else"));
        info.add_sig(key("farm", 2).sign(&info.fingerprint()));
        assert!(trusting(&[&farm]).check(&info).is_err());
        assert!(TrustedKeys::default().check(&info).is_err());
    }

    #[test]
    fn one_name_may_have_two_keys() {
        let (old, new) = (key("farm", 1), key("farm", 2));
        let mut info = unaddressed();
        info.add_sig(new.sign(&info.fingerprint()));
        assert!(trusting(&[&old, &new]).check(&info).is_ok());
    }

    #[test]
    fn content_address_proves_only_the_nar_it_hashes() {
        let nobody = TrustedKeys::default();
        let check = |info: &PathInfo| nobody.check(&NarInfo::new(info).unwrap()).is_ok();
        let good = source();
        assert!(check(&good));
        let other_nar = NarHash::of(b"another NAR");
        assert!(!check(&PathInfo { nar_hash: other_nar, ..good.clone() }));
        assert!(!check(&PathInfo { ca: Some(format!("fixed:r:{other_nar}")), ..good.clone() }));
        assert!(!check(&PathInfo { ca: Some(format!("fixed:{}", good.nar_hash)), ..good.clone() }));
        assert!(!check(&PathInfo { ca: Some("nonsense".to_owned()), ..good.clone() }));
        assert!(!check(&PathInfo { references: vec![good.path.clone()], ..good.clone() }));
        let other_path = StorePath::from_base_name("0jqd0rlxzra1rs38rdxl43yh6rxchgc6-source").unwrap();
        assert!(!check(&PathInfo { path: other_path, ..good }));
    }

    #[test]
    fn root_is_bound_by_key_cid_and_profile() {
        let farm = key("farm", 1);
        let keys = trusting(&[&farm]);
        let info = unaddressed();
        let cid: crate::Cid = ROOT.parse().unwrap();
        let bind = |key: &SecretKey, profile: &str, size: u64| {
            let signature = key.sign(&ipfs_fingerprint(info.nar_hash(), size, &cid, profile));
            info.with_ipfs(Root::new(cid, Some(signature)).unwrap())
        };
        assert_eq!(keys.check_root(&bind(&farm, PROFILES[1], 5), &PROFILES), Some(PROFILES[1]));
        assert_eq!(keys.check_root(&bind(&farm, "unknown", 5), &PROFILES), None);
        assert_eq!(keys.check_root(&bind(&farm, PROFILES[0], 6), &PROFILES), None);
        assert_eq!(keys.check_root(&bind(&key("stranger", 2), PROFILES[0], 5), &PROFILES), None);
        assert_eq!(keys.check_root(&info, &PROFILES), None);
        assert_eq!(keys.check_root(&info.with_ipfs(Root::new(cid, None).unwrap()), &PROFILES), None);
        let line = bind(&farm, PROFILES[0], 5).root().unwrap().signature().unwrap().clone();
        let moved = Root::new(crate::block::Digest::of(b"other").v0_cid(), Some(line)).unwrap();
        assert_eq!(keys.check_root(&info.with_ipfs(moved), &PROFILES), None);
    }
}
