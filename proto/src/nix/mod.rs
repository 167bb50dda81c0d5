//! The formats of Nix: base32, store paths, NARs, narinfos, signatures, cache info.
