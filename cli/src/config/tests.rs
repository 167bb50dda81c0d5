use super::*;

fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
    |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let (_directory, path) = file("chunker = \"file\"");
    let flag = Values { chunker: Some("flag".to_owned()), ..Values::default() };
    let vars = env(&[("NIPFS_CHUNKER", "env")]);
    let none = env(&[]);
    let chunker = |flags: &Values, config: Option<&Path>, env: Env<'_>| {
        let setting = Settings::resolve(flags.clone(), config, env).unwrap().chunker;
        (setting.value, setting.origin)
    };
    let silent = Values::default();
    assert_eq!(chunker(&flag, Some(&path), &vars), ("flag".to_owned(), Origin::Flag));
    assert_eq!(chunker(&silent, Some(&path), &vars), ("env".to_owned(), Origin::Env("NIPFS_CHUNKER")));
    assert_eq!(chunker(&silent, Some(&path), &none), ("file".to_owned(), Origin::File(path.clone())));
    let home = env(&[("XDG_CONFIG_HOME", "/nonexistent")]);
    assert_eq!(chunker(&silent, None, &home), (DEFAULT_CHUNKER.to_owned(), Origin::Default));
}

#[test]
fn the_cache_lies_in_the_state_directory_unless_said_otherwise() {
    let flags = Values { state: Some("/s".into()), ..Values::default() };
    let settings = Settings::resolve(flags.clone(), None, &env(&[])).unwrap();
    assert_eq!(settings.cache, Setting { value: "/s/cache".into(), origin: Origin::Default });
    let settings = Settings::resolve(flags, None, &env(&[("NIPFS_CACHE", "/c")])).unwrap();
    assert_eq!(settings.cache.value, Path::new("/c"));
}

#[test]
fn lists_in_the_environment_are_separated_by_white_space() {
    let vars = env(&[("NIPFS_PEERS", " /a/p2p/1\n/b/p2p/2 "), ("NIPFS_GATEWAYS", "")]);
    let settings = Settings::resolve(Values::default(), None, &vars).unwrap();
    assert_eq!(settings.peers.value, ["/a/p2p/1", "/b/p2p/2"]);
    assert_eq!(settings.gateways.origin, Origin::Default);
}

#[test]
fn paths_in_a_file_are_relative_to_it() {
    let (directory, path) = file("state = \"s\"\nsigning-key-files = [\"k\", \"/abs\"]");
    let settings = Settings::resolve(Values::default(), Some(&path), &env(&[])).unwrap();
    assert_eq!(settings.state.value, directory.path().join("s"));
    assert_eq!(settings.signing_key_files.value, [directory.path().join("k"), "/abs".into()]);
}

#[test]
fn a_size_is_a_number_or_a_text_with_a_unit() {
    let size = |text: &str| {
        let (_directory, path) = file(text);
        Settings::resolve(Values::default(), Some(&path), &env(&[])).map(|settings| settings.max_size.value)
    };
    assert_eq!(size("max-size = 1000").unwrap(), Some(1000));
    assert_eq!(size("max-size = \"2K\"").unwrap(), Some(2048));
    assert_eq!(size("").unwrap(), None);
    assert!(size("max-size = \"much\"").is_err() && size("max-size = -1").is_err());
    let vars = env(&[("NIPFS_MAX_SIZE", "1M"), ("NIPFS_ENABLE_UPLOAD", "true")]);
    let settings = Settings::resolve(Values::default(), None, &vars).unwrap();
    assert_eq!((settings.max_size.value, settings.enable_upload.value), (Some(1 << 20), true));
    for (name, value) in [("NIPFS_MAX_SIZE", "1X"), ("NIPFS_ENABLE_UPLOAD", "yes")] {
        let failure = Settings::resolve(Values::default(), None, &env(&[(name, value)])).unwrap_err();
        assert!(failure.message.contains(&format!("{name}={value}")), "{failure}");
    }
}

#[test]
fn mistakes_name_the_file_and_the_key() {
    let (_directory, path) = file("trusted-keys = []");
    let failure = Settings::resolve(Values::default(), Some(&path), &env(&[])).unwrap_err();
    assert_eq!(failure.class, Class::Usage);
    assert!(failure.message.contains(path.to_str().unwrap()));
    assert!(failure.causes[0].contains("trusted-keys") && failure.causes[0].contains("line 1"), "{failure}");

    let missing = Settings::resolve(Values::default(), Some(Path::new("/nonexistent/c")), &env(&[])).unwrap_err();
    assert!(missing.message.contains("/nonexistent/c"));
    let named = env(&[("NIPFS_CONFIG", "/nonexistent/d")]);
    assert!(Settings::resolve(Values::default(), None, &named).unwrap_err().message.contains("/nonexistent/d"));
    let (_directory, path) = file("profile = \"secret\"");
    let unknown = Settings::resolve(Values::default(), Some(&path), &env(&[])).unwrap_err();
    assert!(unknown.causes[0].contains("secret") && unknown.causes[0].contains("private"), "{unknown}");
    let profile = env(&[("NIPFS_PROFILE", "secret")]);
    assert!(Settings::resolve(Values::default(), None, &profile).unwrap_err().message.contains("NIPFS_PROFILE=secret"));
    let http = env(&[("NIPFS_HTTP", "here")]);
    assert!(Settings::resolve(Values::default(), None, &http).unwrap_err().message.contains("NIPFS_HTTP=here"));
}

#[test]
fn what_is_shown_is_a_configuration_file_again() {
    let flags = Values {
        state: Some("/s".into()),
        http: Some("[::1]:80".parse().unwrap()),
        peers: Some(vec!["/dns4/a/tcp/1/p2p/X".to_owned()]),
        max_size: Some(1 << 30),
        upload_token_file: Some("/t".into()),
        ..Values::default()
    };
    let settings = Settings::resolve(flags, None, &env(&[])).unwrap();
    let text: Vec<_> = settings.rows().iter().map(Row::to_string).collect();
    assert_eq!(text[0], "state = \"/s\"  # flag");
    let values: Values = toml::from_str(&text.join("\n")).unwrap();
    assert_eq!(values.peers, Some(settings.peers.value));
    assert_eq!(values.http, Some(settings.http.value));
    assert_eq!(values.listen, Some(settings.listen.value));
    assert_eq!((values.max_size, values.upload_token_file), (Some(1 << 30), Some("/t".into())));
}
