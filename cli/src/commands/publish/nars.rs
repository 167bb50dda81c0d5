//! `--write-nars`: NARs as files beside the narinfos, for web servers that know nothing of blocks.

use super::Publisher;
use crate::commands::{cache, out_of_turn};
use crate::files::Draft;
use crate::outcome::Stop;
use nipfs_node::control::client::Event;
use nipfs_node::control::protocol::Request;
use nipfs_proto::nix::narinfo::NarInfo;
use std::io::Write;

impl Publisher<'_> {
    /// The NAR as it will lie where its narinfo says; `None` when it does already.
    pub(super) async fn draft_nar(&mut self, narinfo: &NarInfo) -> Result<Option<Draft>, Stop> {
        let file = self.cache.join(narinfo.url());
        if file.exists() {
            return Ok(None);
        }
        let unwritable = |error| cache::unwritable(&file, &error);
        std::fs::create_dir_all(self.cache.join("nar")).map_err(unwritable)?;
        let mut draft = Draft::new(&file).map_err(unwritable)?;
        let request = Request::Nar { nar_hash: narinfo.nar_hash().to_string() };
        let mut client = self.app.client().await.map_err(Stop::NoNode)?;
        let mut exchange = client.request(request).await?;
        loop {
            match exchange.next().await? {
                Event::Data(bytes) => draft.write_all(&bytes).map_err(unwritable)?,
                Event::Done(_) => break,
                event => return Err(out_of_turn(&event).into()),
            }
        }
        Ok(Some(draft))
    }
}
