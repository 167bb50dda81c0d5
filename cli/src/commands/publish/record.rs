//! The narinfo of what is published: built or completed, and signed.

use super::Publisher;
use super::group::Ready;
use crate::commands::cache;
use crate::outcome::Stop;
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_proto::block::Cid;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::{NarInfo, NarInfoError, PathInfo, Root, ipfs_fingerprint};
use nipfs_proto::nix::signature::SecretKey;

impl Publisher<'_> {
    /// A path of ours, whose NAR is staged or held, with its narinfo. Signatures that this has in the cache directory
    /// already are kept.
    pub(super) fn record(&self, mut info: PathInfo, root: Cid, new_bytes: u64) -> Result<Ready, Stop> {
        let file = self.cache.join(format!("{}.narinfo", info.path.hash_part()));
        let read = || std::fs::read(&file).ok().and_then(|text| NarInfo::parse(&info.path.hash_part(), &text).ok());
        let before = self.group.narinfo(&file).cloned().or_else(read);
        let before = before.filter(|before| before.nar_hash() == info.nar_hash);
        for signature in before.iter().flat_map(NarInfo::signatures) {
            if !info.signatures.contains(signature) {
                info.signatures.push(signature.clone());
            }
        }
        let mut narinfo = NarInfo::new(&info).map_err(|error| unfit(&info, &error))?;
        for key in &self.keys {
            narinfo.add_sig(key.sign(&narinfo.fingerprint()));
        }
        let old_root = before.as_ref().and_then(NarInfo::root);
        let narinfo = with_root(&narinfo, old_root, root, (&self.keys, self.profile))?;
        cache::write_info(&self.cache)?;
        Ok(Ready { narinfo, file, new_bytes })
    }
}

/// The narinfo naming `cid`, bound to its NAR by the first of our keys. Without keys, a binding of this
/// very root that was there before is kept.
pub(crate) fn with_root(
    narinfo: &NarInfo,
    before: Option<&Root>,
    cid: Cid,
    (keys, profile): (&[SecretKey], Profile),
) -> Result<NarInfo, Failure> {
    let fingerprint = ipfs_fingerprint(narinfo.nar_hash(), narinfo.nar_size(), &cid, &profile.to_string());
    let ours = keys.first().map(|key| key.sign(&fingerprint));
    let kept = || before.filter(|before| *before.cid() == cid).and_then(Root::signature).cloned();
    let root = Root::new(cid, ours.or_else(kept));
    let root = root.map_err(|error| Failure::new(Class::Failed, format!("not a root: {cid}")).because(&error))?;
    Ok(narinfo.with_ipfs(root))
}

fn unfit(info: &PathInfo, error: &NarInfoError) -> Failure {
    Failure::new(Class::Failed, format!("cannot be described by a narinfo: {}", info.path)).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_proto::block::parse_cid;
    use nipfs_proto::nix::NarHash;
    use nipfs_proto::nix::store_path::StorePath;
    use nipfs_proto::nix::trust::TrustedKeys;

    const PROFILE: Profile = Profile::UnixfsV0_2015;

    fn key(name: &str) -> SecretKey {
        SecretKey::from_seed(name, &[7; 32]).unwrap()
    }

    fn narinfo() -> NarInfo {
        let path = StorePath::from_base_name(&format!("{}-hello", "0".repeat(32))).unwrap();
        let (references, signatures) = (Vec::new(), Vec::new());
        let nar_hash = NarHash::of(b"x");
        NarInfo::new(&PathInfo { path, nar_hash, nar_size: 1, references, deriver: None, signatures, ca: None })
            .unwrap()
    }

    fn cid(text: &str) -> Cid {
        parse_cid(text).unwrap()
    }

    #[test]
    fn a_root_is_bound_by_our_first_key() {
        let root = cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn");
        let bound = with_root(&narinfo(), None, root, (&[key("a-1"), key("b-1")], PROFILE)).unwrap();
        let trusted: TrustedKeys = [key("a-1").public_key()].into_iter().collect();
        assert_eq!(trusted.check_root(&bound, &["other", "unixfs-v0-2015"]), Some("unixfs-v0-2015"));
    }

    #[test]
    fn without_keys_a_binding_of_the_same_root_stays_and_of_another_goes() {
        let root = cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn");
        let other = cid("QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH");
        let before = with_root(&narinfo(), None, root, (&[key("a-1")], PROFILE)).unwrap();
        let again = with_root(&narinfo(), before.root(), root, (&[], PROFILE)).unwrap();
        assert_eq!(again.text(), before.text());
        let moved = with_root(&before, before.root(), other, (&[], PROFILE)).unwrap();
        assert_eq!(moved.root().map(|root| (*root.cid(), root.signature().is_some())), Some((other, false)));
    }
}
