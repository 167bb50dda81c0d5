//! Publishing a binary cache that Nix wrote: each narinfo gets its `IPFSHash`, in place.
//!
//! The narinfos are somebody's word about somebody's content: they keep their `Sig` lines and are never
//! signed again. Their NARs must be uncompressed, and match.

use super::group::Ready;
use super::record::with_root;
use super::stage::Source;
use super::{Publisher, changed};
use crate::commands::cache;
use crate::outcome::Stop;
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_proto::nix::narinfo::{Compression, NarInfo};
use nipfs_proto::nix::store_path::StorePathHash;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Publishes all that is in `directory`, dependencies first.
pub(crate) async fn publish(publisher: &mut Publisher<'_>, directory: &Path) -> Result<(), Stop> {
    cache::sweep(directory)?;
    let mut references = BTreeMap::new();
    for file in cache::narinfos(directory)? {
        match cache::read_narinfo(&file) {
            Ok(narinfo) => {
                let refers_to = narinfo.references().iter().map(|reference| reference.hash_part()).collect();
                references.insert(narinfo.store_path().hash_part(), refers_to);
            }
            Err(failure) => publisher.count(&file.display().to_string(), Err(failure.into()))?,
        }
    }
    for hash in dependencies_first(&references) {
        let file = directory.join(format!("{hash}.narinfo"));
        let ready = one(publisher, directory, file.clone()).await;
        publisher.add(file.display().to_string(), ready).await?;
    }
    Ok(())
}

async fn one(publisher: &mut Publisher<'_>, directory: &Path, file: PathBuf) -> Result<Ready, Stop> {
    let narinfo = cache::read_narinfo(&file)?;
    let mut new_bytes = 0;
    let root = match publisher.known(narinfo.nar_hash()).await? {
        Some(root) => root,
        None => {
            let nar = nar_file(&narinfo, directory)?;
            publisher.make_way(narinfo.nar_size()).await?;
            let name = narinfo.store_path().to_absolute_path();
            let staged = publisher.stage(&name, Source::File(nar.clone()), narinfo.nar_size()).await?;
            if staged.nar_hash != narinfo.nar_hash() {
                return Err(changed(&nar.display().to_string(), narinfo.nar_hash(), staged.nar_hash).into());
            }
            new_bytes = staged.new_bytes;
            staged.root
        }
    };
    let narinfo = with_root(&narinfo, narinfo.root(), root, (&publisher.keys, publisher.profile))?;
    Ok(Ready { narinfo, file, new_bytes })
}

fn nar_file(narinfo: &NarInfo, directory: &Path) -> Result<PathBuf, Failure> {
    // A URL of a narinfo that was parsed stays below the cache.
    let nar = directory.join(narinfo.url());
    if narinfo.compression() == Compression::None {
        return Ok(nar);
    }
    let failure = Failure::new(Class::Usage, format!("compressed NAR: {}", nar.display()));
    Err(failure.hint(format!("write the cache with: nix copy --to 'file://{}?compression=none'", directory.display())))
}

/// Every key once, and none before those it refers to, as far as they are here. Cycles do not trap it.
fn dependencies_first(references: &BTreeMap<StorePathHash, Vec<StorePathHash>>) -> Vec<StorePathHash> {
    let (mut ordered, mut visited) = (Vec::with_capacity(references.len()), BTreeSet::new());
    // A path is on the stack once to visit what it refers to, and once more to come after it.
    let mut stack: Vec<_> = references.keys().rev().map(|hash| (*hash, false)).collect();
    while let Some((hash, last)) = stack.pop() {
        if last {
            ordered.push(hash);
        } else if let Some(refers_to) = references.get(&hash)
            && visited.insert(hash)
        {
            stack.push((hash, true));
            stack.extend(refers_to.iter().map(|reference| (*reference, false)));
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(digit: char) -> StorePathHash {
        digit.to_string().repeat(32).parse().unwrap()
    }

    #[test]
    fn dependencies_come_first_and_everything_once() {
        let [a, b, c, d, gone] = ['0', '1', '2', '3', '4'].map(hash);
        let references = BTreeMap::from([(a, vec![a, c, gone]), (b, vec![]), (c, vec![d, b]), (d, vec![b])]);
        let order = dependencies_first(&references);
        assert_eq!(order.len(), 4);
        let at = |hash| order.iter().position(|other| *other == hash).unwrap();
        assert!(at(c) < at(a) && at(d) < at(c) && at(b) < at(d));
        let cycle = BTreeMap::from([(a, vec![b]), (b, vec![a])]);
        assert_eq!(dependencies_first(&cycle).len(), 2);
    }
}
