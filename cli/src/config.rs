//! Settings: what flags, environment, configuration file and defaults say together.
//!
//! Precedence is flag > environment > file > default, decided in [`Settings::resolve`] and nowhere
//! else; every value remembers its [`Origin`], which `config show` prints. All three sources are read
//! into the same [`Values`], so that a key has one name: `trusted-public-keys` in the file is
//! `NIPFS_TRUSTED_PUBLIC_KEYS` in the environment. Lists in the environment are separated by white
//! space. Secrets are only ever named by path. An empty variable counts as unset.

use nipfs_node::control::protocol::{Class, Failure};
use nipfs_node::network::Profile;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The key of cache.nixos.org: what stock Nix trusts when nobody says otherwise.
const DEFAULT_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// The name of that key: what it signed is public anyway.
const DEFAULT_SHARED: &str = "cache.nixos.org-1";
/// Next to 4001, which a Kubo on the same machine uses.
const DEFAULT_LISTEN: &str = "/ip4/0.0.0.0/tcp/4002";
/// The port of nix-serve; loopback only, because what is served there includes what was fetched.
const DEFAULT_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);
/// The nodes that Kubo too enters the public DHT by.
const DEFAULT_BOOTSTRAP: [&str; 5] = [
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
    "/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
];
/// What `ipfs add` makes, and what the `IPFSHash` of caches published so far is.
const DEFAULT_CHUNKER: &str = "size-262144";

/// Reads an environment variable.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What one source says; `None` where it is silent. The keys of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Values {
    /// State directory.
    pub(crate) state: Option<PathBuf>,
    /// Directory of the narinfos.
    pub(crate) cache: Option<PathBuf>,
    /// Address of the HTTP substituter.
    pub(crate) http: Option<SocketAddr>,
    /// Multiaddrs to listen on.
    pub(crate) listen: Option<Vec<String>>,
    /// Peers to ask, multiaddrs that end in `/p2p/ID`.
    pub(crate) peers: Option<Vec<String>>,
    /// What the node does unasked.
    pub(crate) profile: Option<Profile>,
    /// Where to enter the DHTs, multiaddrs that end in `/p2p/ID`.
    pub(crate) bootstrap: Option<Vec<String>>,
    /// Base URLs of caches to ask for what is not here.
    pub(crate) upstreams: Option<Vec<String>>,
    /// Base URLs of delegated routers, asked for providers.
    pub(crate) routers: Option<Vec<String>>,
    /// Base URLs of IPFS gateways.
    pub(crate) gateways: Option<Vec<String>>,
    /// Keys whose signature is accepted, `name:base64`.
    pub(crate) trusted_public_keys: Option<Vec<String>>,
    /// Names of the keys whose paths a `serve` that is not private shares once they were fetched.
    pub(crate) share_signed_by: Option<Vec<String>>,
    /// Secret key files that `publish` signs with.
    pub(crate) signing_key_files: Option<Vec<PathBuf>>,
    /// How NARs are cut into blocks.
    pub(crate) chunker: Option<String>,
    /// Bytes that the store of a running `serve` may take.
    #[serde(default, deserialize_with = "crate::size::deserialize")]
    pub(crate) max_size: Option<u64>,
    /// Whether `serve` publishes what clients send.
    pub(crate) enable_upload: Option<bool>,
    /// File with the token that those clients show.
    pub(crate) upload_token_file: Option<PathBuf>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Env(&'static str),
    /// This configuration file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Env(name) => f.write_str(name),
            Self::File(path) => path.display().fmt(f),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    /// The value.
    pub(crate) value: T,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// The settings of this run. Fields are as in [`Values`]; paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) state: Setting<PathBuf>,
    pub(crate) cache: Setting<PathBuf>,
    pub(crate) http: Setting<SocketAddr>,
    pub(crate) listen: Setting<Vec<String>>,
    pub(crate) peers: Setting<Vec<String>>,
    pub(crate) profile: Setting<Profile>,
    pub(crate) bootstrap: Setting<Vec<String>>,
    pub(crate) upstreams: Setting<Vec<String>>,
    pub(crate) routers: Setting<Vec<String>>,
    pub(crate) gateways: Setting<Vec<String>>,
    pub(crate) trusted_public_keys: Setting<Vec<String>>,
    pub(crate) share_signed_by: Setting<Vec<String>>,
    pub(crate) signing_key_files: Setting<Vec<PathBuf>>,
    pub(crate) chunker: Setting<String>,
    pub(crate) max_size: Setting<Option<u64>>,
    pub(crate) enable_upload: Setting<bool>,
    pub(crate) upload_token_file: Setting<Option<PathBuf>>,
}

impl Settings {
    /// Puts flags, environment, file and defaults together. `config` is the file that a flag names.
    ///
    /// # Errors
    /// A usage failure that names the file or variable and the key.
    pub(crate) fn resolve(flags: Values, config: Option<&Path>, env: Env<'_>) -> Result<Self, Failure> {
        let (file_path, file) = read_file(config, env)?;
        let from_env = Values::from_env(env)?;
        let origins = |name| (Origin::Env(name), Origin::File(file_path.clone()));
        let state = pick(flags.state, from_env.state, file.state, origins("NIPFS_STATE"), || default_state(env));
        let below_state = state.value.join("cache");
        let settings = Self {
            cache: pick(flags.cache, from_env.cache, file.cache, origins("NIPFS_CACHE"), || below_state),
            http: pick(flags.http, from_env.http, file.http, origins("NIPFS_HTTP"), || DEFAULT_HTTP),
            listen: pick(flags.listen, from_env.listen, file.listen, origins("NIPFS_LISTEN"), || {
                vec![DEFAULT_LISTEN.to_owned()]
            }),
            peers: pick(flags.peers, from_env.peers, file.peers, origins("NIPFS_PEERS"), Vec::new),
            profile: pick(flags.profile, from_env.profile, file.profile, origins("NIPFS_PROFILE"), Profile::default),
            bootstrap: pick(flags.bootstrap, from_env.bootstrap, file.bootstrap, origins("NIPFS_BOOTSTRAP"), || {
                DEFAULT_BOOTSTRAP.map(str::to_owned).to_vec()
            }),
            upstreams: pick(flags.upstreams, from_env.upstreams, file.upstreams, origins("NIPFS_UPSTREAMS"), Vec::new),
            routers: pick(flags.routers, from_env.routers, file.routers, origins("NIPFS_ROUTERS"), Vec::new),
            gateways: pick(flags.gateways, from_env.gateways, file.gateways, origins("NIPFS_GATEWAYS"), Vec::new),
            trusted_public_keys: pick(
                flags.trusted_public_keys,
                from_env.trusted_public_keys,
                file.trusted_public_keys,
                origins("NIPFS_TRUSTED_PUBLIC_KEYS"),
                || vec![DEFAULT_KEY.to_owned()],
            ),
            share_signed_by: pick(
                flags.share_signed_by,
                from_env.share_signed_by,
                file.share_signed_by,
                origins("NIPFS_SHARE_SIGNED_BY"),
                || vec![DEFAULT_SHARED.to_owned()],
            ),
            signing_key_files: pick(
                flags.signing_key_files,
                from_env.signing_key_files,
                file.signing_key_files,
                origins("NIPFS_SIGNING_KEY_FILES"),
                Vec::new,
            ),
            chunker: pick(flags.chunker, from_env.chunker, file.chunker, origins("NIPFS_CHUNKER"), || {
                DEFAULT_CHUNKER.to_owned()
            }),
            max_size: pick(
                flags.max_size.map(Some),
                from_env.max_size.map(Some),
                file.max_size.map(Some),
                origins("NIPFS_MAX_SIZE"),
                || None,
            ),
            enable_upload: pick(
                flags.enable_upload,
                from_env.enable_upload,
                file.enable_upload,
                origins("NIPFS_ENABLE_UPLOAD"),
                || false,
            ),
            upload_token_file: pick(
                flags.upload_token_file.map(Some),
                from_env.upload_token_file.map(Some),
                file.upload_token_file.map(Some),
                origins("NIPFS_UPLOAD_TOKEN_FILE"),
                || None,
            ),
            state,
        };
        settings.absolute()
    }

    fn absolute(mut self) -> Result<Self, Failure> {
        let paths = [&mut self.state.value, &mut self.cache.value].into_iter();
        let secrets = self.signing_key_files.value.iter_mut().chain(&mut self.upload_token_file.value);
        for path in paths.chain(secrets) {
            *path = std::path::absolute(&*path)
                .map_err(|error| usage(format!("not a usable path: {}", path.display())).because(&error))?;
        }
        Ok(self)
    }

    /// Each key, its value as TOML and its origin, in the order of the manual.
    #[must_use]
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = vec![
            Row::new("state", &self.state),
            Row::new("cache", &self.cache),
            Row::new("http", &self.http),
            Row::new("listen", &self.listen),
            Row::new("peers", &self.peers),
            Row::new("profile", &self.profile),
            Row::new("bootstrap", &self.bootstrap),
            Row::new("upstreams", &self.upstreams),
            Row::new("routers", &self.routers),
            Row::new("gateways", &self.gateways),
            Row::new("trusted-public-keys", &self.trusted_public_keys),
            Row::new("share-signed-by", &self.share_signed_by),
            Row::new("signing-key-files", &self.signing_key_files),
            Row::new("chunker", &self.chunker),
            Row::new("enable-upload", &self.enable_upload),
        ];
        // TOML has no word for a value that is not there.
        if self.max_size.value.is_some() {
            rows.push(Row::new("max-size", &self.max_size));
        }
        if self.upload_token_file.value.is_some() {
            rows.push(Row::new("upload-token-file", &self.upload_token_file));
        }
        rows
    }
}

/// A line of `config show`. As text it is a line of a configuration file.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: &'static str,
    value: serde_json::Value,
    origin: String,
}

impl Row {
    fn new<T: Serialize>(name: &'static str, setting: &Setting<T>) -> Self {
        // Fails for a path that is not UTF-8 only; that one cannot be in a file either.
        let value = serde_json::to_value(&setting.value).unwrap_or_default();
        Self { name, value, origin: setting.origin.to_string() }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Strings, lists of strings, numbers and booleans are written alike in JSON and TOML.
        write!(f, "{} = {}  # {}", self.name, self.value, self.origin)
    }
}

impl Values {
    fn from_env(env: Env<'_>) -> Result<Self, Failure> {
        let var = |name: &str| env(name).filter(|value| !value.is_empty());
        let text = |name: &str| {
            var(name).map(|value| value.into_string().map_err(|_| usage(format!("not UTF-8: {name}")))).transpose()
        };
        let list = |name: &str| -> Result<Option<Vec<String>>, Failure> {
            Ok(text(name)?.map(|value| value.split_whitespace().map(str::to_owned).collect()))
        };
        let http = |value: String| {
            value
                .parse()
                .map_err(|error| usage(format!("not an address with port: NIPFS_HTTP={value}")).because(&error))
        };
        let profile = |value: String| {
            value.parse().map_err(|error| usage(format!("not a profile: NIPFS_PROFILE={value}")).because(&error))
        };
        let size = |value: String| {
            crate::size::parse(&value).map_err(|why| usage(format!("not a size: NIPFS_MAX_SIZE={value}: {why}")))
        };
        let switch = |value: String| {
            value
                .parse()
                .map_err(|error| usage(format!("neither true nor false: NIPFS_ENABLE_UPLOAD={value}")).because(&error))
        };
        Ok(Self {
            state: var("NIPFS_STATE").map(PathBuf::from),
            cache: var("NIPFS_CACHE").map(PathBuf::from),
            http: text("NIPFS_HTTP")?.map(http).transpose()?,
            listen: list("NIPFS_LISTEN")?,
            peers: list("NIPFS_PEERS")?,
            bootstrap: list("NIPFS_BOOTSTRAP")?,
            profile: text("NIPFS_PROFILE")?.map(profile).transpose()?,
            upstreams: list("NIPFS_UPSTREAMS")?,
            routers: list("NIPFS_ROUTERS")?,
            gateways: list("NIPFS_GATEWAYS")?,
            trusted_public_keys: list("NIPFS_TRUSTED_PUBLIC_KEYS")?,
            share_signed_by: list("NIPFS_SHARE_SIGNED_BY")?,
            signing_key_files: list("NIPFS_SIGNING_KEY_FILES")?.map(|list| list.into_iter().map(Into::into).collect()),
            chunker: text("NIPFS_CHUNKER")?,
            max_size: text("NIPFS_MAX_SIZE")?.map(size).transpose()?,
            enable_upload: text("NIPFS_ENABLE_UPLOAD")?.map(switch).transpose()?,
            upload_token_file: var("NIPFS_UPLOAD_TOKEN_FILE").map(PathBuf::from),
        })
    }
}

fn pick<T>(
    flag: Option<T>,
    env: Option<T>,
    file: Option<T>,
    (env_origin, file_origin): (Origin, Origin),
    default: impl FnOnce() -> T,
) -> Setting<T> {
    let said = [(flag, Origin::Flag), (env, env_origin), (file, file_origin)];
    let found = said.into_iter().find_map(|(value, origin)| Some(Setting { value: value?, origin }));
    found.unwrap_or_else(|| Setting { value: default(), origin: Origin::Default })
}

/// The file's path and what it says. A file that was asked for must be there; the others may be missing.
fn read_file(flag: Option<&Path>, env: Env<'_>) -> Result<(PathBuf, Values), Failure> {
    let var = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let asked = flag.map(Path::to_owned).or_else(|| var("NIPFS_CONFIG"));
    let home = var("XDG_CONFIG_HOME").or_else(|| var("HOME").map(|home| home.join(".config")));
    let candidates = match &asked {
        Some(path) => vec![path.clone()],
        None => {
            let user = home.map(|home| home.join("nipfs/config.toml"));
            user.into_iter().chain([PathBuf::from("/etc/nipfs/config.toml")]).collect()
        }
    };
    for path in candidates {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if asked.is_none() && error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(usage(format!("cannot read configuration: {}", path.display())).because(&error)),
        };
        let mut values: Values = toml::from_str(&text)
            .map_err(|error| usage(format!("invalid configuration: {}", path.display())).because(&error))?;
        values.relative_to(path.parent().unwrap_or_else(|| Path::new("")));
        return Ok((path, values));
    }
    Ok((PathBuf::new(), Values::default()))
}

impl Values {
    /// Paths in a file are relative to the file.
    fn relative_to(&mut self, directory: &Path) {
        let keys = self.signing_key_files.iter_mut().flatten().chain(&mut self.upload_token_file);
        for path in self.state.iter_mut().chain(&mut self.cache).chain(keys) {
            *path = directory.join(&*path);
        }
    }
}

fn default_state(env: Env<'_>) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/nipfs");
    }
    let var = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = var("XDG_STATE_HOME").or_else(|| var("HOME").map(|home| home.join(".local/state")));
    home.unwrap_or_default().join("nipfs")
}

/// Where the machine's Nix keeps its database. Nix's own variable names it, so it is no setting of ours.
pub(crate) fn nix_state() -> PathBuf {
    std::env::var_os("NIX_STATE_DIR").map_or_else(|| PathBuf::from("/nix/var/nix"), PathBuf::from)
}

fn usage(message: String) -> Failure {
    Failure::new(Class::Usage, message)
}

#[cfg(test)]
mod tests;
