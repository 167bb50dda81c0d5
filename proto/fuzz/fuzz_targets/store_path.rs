//! Base 32, store paths and content addresses: what parses is written back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nipfs_proto::nix::base32;
use nipfs_proto::nix::store_path::{ContentAddress, StorePath};

fuzz_target!(|text: &str| {
    if let Ok(path) = StorePath::parse(text) {
        assert_eq!(path.to_absolute_path(), text);
    }
    if let Ok(path) = StorePath::from_base_name(text) {
        assert_eq!(path.base_name(), text);
        assert_eq!(StorePath::parse(&path.to_absolute_path()), Ok(path));
    }
    if let Ok(hash) = base32::decode::<32>(text) {
        assert_eq!(base32::encode(&hash), text);
    }
    if let Some(address) = ContentAddress::parse(text) {
        assert!(address.store_path("name", &[], false).is_some());
    }
});
