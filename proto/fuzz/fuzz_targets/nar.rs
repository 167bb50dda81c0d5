//! Whatever the NAR reader accepts, the writer writes back byte for byte, however the input was cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nipfs_proto::nix::nar::{NarError, Reader, Writer};

fn rewrite(pieces: &[&[u8]]) -> Result<Vec<u8>, NarError> {
    let (mut reader, mut writer, mut out) = (Reader::new(), Writer::new(), Vec::new());
    for mut piece in pieces.iter().copied() {
        while let Some(event) = reader.next_event(&mut piece)? {
            writer.write(&event, &mut out);
        }
    }
    reader.finish().map(|()| out)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = rewrite(&[bytes]);
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    assert_eq!(whole, rewrite(&[head, tail]));
    if let Ok(written) = whole {
        assert_eq!(written, bytes);
    }
});
