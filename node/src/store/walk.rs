//! Walking the DAGs that are stored here.

use super::digest_set::DigestSet;
use super::index::BlockRow;
use super::{Store, StoreError};
use nipfs_proto::Cid;
use nipfs_proto::block::{DAG_PB, Digest};
use nipfs_proto::dag::codec::Node;
use nipfs_proto::dag::walk::WalkError;

/// Links that wait to be followed, about 40 MiB of them: no honest DAG comes near.
const MAX_AHEAD: usize = 1 << 18;

impl Store {
    /// Visits every stored block of the DAG under `root` that is not in `seen`, once, and adds it there. `visit` is
    /// given the block's row, `None` when it is missing; it decides whether that is an error. Leaves are not read:
    /// raw blocks, and those that were found to have no links when they were put.
    pub(super) fn walk(
        &self,
        root: &Cid,
        seen: &mut DigestSet,
        mut visit: impl FnMut(&Cid, &Digest, Option<BlockRow>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let unreadable =
            |node: Cid, source| StoreError::Unreadable { root: Box::new(*root), node: Box::new(node), source };
        let mut ahead = vec![*root];
        while let Some(cid) = ahead.pop() {
            let digest = Digest::of_cid(&cid).map_err(|error| unreadable(cid, error.into()))?;
            let mut ends = cid.codec() != DAG_PB;
            if let Some(digest) = digest {
                let fresh = seen.insert(&digest);
                ends = ends || !seen.insert_node(&digest);
                if !fresh && ends {
                    continue;
                }
                let row = self.0.log.lookup(&digest)?;
                ends |= row.is_none_or(|row| row.leaf);
                if fresh {
                    visit(&cid, &digest, row)?;
                }
            }
            if ends {
                continue;
            }
            let block = match self.block(&cid) {
                Ok(Some(block)) => block,
                Ok(None) => continue,
                Err(error) => return Err(unreadable(cid, error.into())),
            };
            let node = Node::decode(block.bytes()).map_err(|error| unreadable(cid, error.into()))?;
            ahead.extend(node.links.iter().map(|link| link.cid));
            if ahead.len() > MAX_AHEAD {
                return Err(unreadable(cid, WalkError::TooWide(cid).into()));
            }
        }
        Ok(())
    }
}
