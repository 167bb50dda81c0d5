use super::*;
use nipfs_node::nix::unpack::publish;
use nipfs_proto::nix::nar::{Event, Writer};

fn path(digit: &str, name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{name}", digit.repeat(32))).unwrap()
}

/// The NAR of a plain file.
fn nar(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new();
    let size = content.len() as u64;
    for event in [Event::File { name: b"", executable: false, size }, Event::Contents(content), Event::FileEnd] {
        writer.write(&event, &mut bytes);
    }
    bytes
}

/// Ends the path that began last, with all that takes.
fn place(sink: &mut Sink) -> Result<(), Failure> {
    let complete = sink.finish()?;
    publish(complete.into_iter().collect()).into_iter().try_for_each(|named| named.map_err(|error| unpacking(&error)))
}

fn args(out: Option<PathBuf>, nar: Option<PathBuf>) -> args::Sink {
    args::Sink { out, nar, store: None }
}

#[test]
fn what_is_there_is_skipped_and_what_was_asked_for_must_not_be() {
    let root = tempfile::tempdir().unwrap();
    let (asked, other) = (path("0", "asked"), path("1", "other"));
    std::fs::create_dir(root.path().join(other.base_name())).unwrap();
    std::fs::write(root.path().join("notes"), "mine").unwrap();
    let sink = || args(Some(root.path().to_owned()), None);
    let prepared = Sink::prepare(sink(), std::slice::from_ref(&asked)).unwrap();
    assert_eq!(prepared.skip, [other.hash_part().to_string()]);
    let refused = Sink::prepare(sink(), &[asked, other]).unwrap_err();
    assert_eq!(refused.class, Class::Usage);
    assert!(refused.message.contains("-other"), "{refused}");
}

#[test]
fn a_restart_throws_away_what_came_before() {
    let root = tempfile::tempdir().unwrap();
    let wanted = path("0", "file");
    let (out, file) = (root.path().join("out"), root.path().join("x.nar"));
    for args in [args(Some(out.clone()), None), args(None, Some(file.clone()))] {
        let Prepared { mut sink, .. } = Sink::prepare(args, std::slice::from_ref(&wanted)).unwrap();
        sink.start(&wanted, "").unwrap();
        sink.write(&nar(b"wrong")[..70]).unwrap();
        sink.restart().unwrap();
        sink.write(&nar(b"right")).unwrap();
        place(&mut sink).unwrap();
        assert!(sink.place(&wanted).exists());
    }
    assert_eq!(std::fs::read(out.join(wanted.base_name())).unwrap(), b"right");
    assert_eq!(std::fs::read(&file).unwrap(), nar(b"right"));
}

#[test]
fn bytes_that_are_no_nar_are_forgiven_when_they_are_taken_back_and_refused_when_not() {
    let root = tempfile::tempdir().unwrap();
    let wanted = path("0", "file");
    let out = root.path().join("out");
    let sink = args(Some(out.clone()), None);
    let Prepared { mut sink, .. } = Sink::prepare(sink, std::slice::from_ref(&wanted)).unwrap();
    sink.start(&wanted, "").unwrap();
    for bytes in [&[0xff; 100][..], &nar(b"right")] {
        sink.write(bytes).unwrap();
    }
    sink.restart().unwrap();
    sink.write(&nar(b"right")).unwrap();
    place(&mut sink).unwrap();
    assert_eq!(std::fs::read(out.join(wanted.base_name())).unwrap(), b"right");

    let other = path("1", "other");
    sink.start(&other, "").unwrap();
    sink.write(&[0xff; 100]).unwrap();
    assert_eq!(place(&mut sink).unwrap_err().class, Class::Refused);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn what_was_abandoned_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let wanted = path("0", "file");
    let (out, file) = (root.path().join("out"), root.path().join("x.nar"));
    for args in [args(Some(out.clone()), None), args(None, Some(file))] {
        let Prepared { mut sink, .. } = Sink::prepare(args, std::slice::from_ref(&wanted)).unwrap();
        sink.start(&wanted, "").unwrap();
        sink.write(&nar(b"half")[..90]).unwrap();
        sink.abandon();
        assert!(place(&mut sink).is_err());
    }
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn a_nar_file_takes_one_path() {
    let root = tempfile::tempdir().unwrap();
    let two = [path("0", "a"), path("1", "b")];
    let sink = || args(None, Some(root.path().join("x.nar")));
    assert_eq!(Sink::prepare(sink(), &two).unwrap_err().class, Class::Usage);
    assert!(!Sink::prepare(sink(), &two[..1]).unwrap().sink.takes_closures());
}
