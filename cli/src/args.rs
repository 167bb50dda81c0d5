//! The command line, on one page: verbs and flags, in the words of `--help`.
//!
//! Flags are only what the user said. What they mean together with the environment and the
//! configuration file is [`crate::config`]'s business.

use crate::config::Values;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use nipfs_node::network::Profile;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A Nix binary cache over IPFS, with the IPFS node inside
#[derive(Debug, Parser)]
#[command(name = "nipfs", version, max_term_width = 100, propagate_version = false)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 verification refused, \
    4 not found anywhere, 5 store damaged, 6 no space, 7 store in use, 130 interrupted.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that work before and after every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// State directory [env: NIPFS_STATE] [default: $XDG_STATE_HOME/nipfs, for root /var/lib/nipfs]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Configuration file [env: NIPFS_CONFIG] [default: $XDG_CONFIG_HOME/nipfs/config.toml, else /etc/nipfs/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print results as JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say less: no progress and no warnings
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    pub(crate) quiet: u8,
    /// Say more; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// When to use colours on standard error
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
    /// Show no progress
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish store paths, files, directories or a binary cache that Nix wrote
    Publish(Publish),
    /// Run the node: HTTP substituter, peers and mirrors
    Serve(Serve),
    /// Get store paths, verified, from peers, gateways or HTTP
    Fetch(Fetch),
    /// Hold and serve what somebody else published
    #[command(subcommand)]
    Mirror(Mirror),
    /// List, add and remove pins
    #[command(subcommand)]
    Pin(Pin),
    /// Free what no pin reaches
    Gc(Gc),
    /// Check what is on disk
    Verify(Verify),
    /// Make and show signing keys
    #[command(subcommand)]
    Key(Key),
    /// Print the peer id of this node
    Id,
    /// Print figures of this node
    Status,
    /// Show and check the configuration
    #[command(subcommand)]
    Config(Config),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// `nipfs publish`
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Store path, symlink to one, any file or directory, or a binary-cache directory that Nix wrote
    #[arg(value_name = "PATH", required_unless_present = "stdin")]
    pub(crate) paths: Vec<PathBuf>,
    /// Read more paths from standard input, one a line
    #[arg(long)]
    pub(crate) stdin: bool,
    /// Directory of the narinfos [default: STATE/cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Sign with this key file (repeatable) [default: the configured ones, else the one under STATE/keys]
    #[arg(long, value_name = "FILE", conflicts_with = "unsigned")]
    pub(crate) signing_key_file: Vec<PathBuf>,
    /// Do not sign
    #[arg(long)]
    pub(crate) unsigned: bool,
    /// Only the given paths, not what they refer to
    #[arg(long)]
    pub(crate) no_closure: bool,
    /// How NARs are cut into blocks: size-262144 or unixfs-v1-2025
    #[arg(long, value_name = "NAME")]
    pub(crate) chunker: Option<String>,
    /// Leave out store paths that carry a signature of this key (repeatable), as cache.nixos.org-1
    #[arg(long, value_name = "KEY")]
    pub(crate) skip_signed_by: Vec<String>,
    /// Also write the NARs as files, for web servers that serve the cache directory alone
    #[arg(long)]
    pub(crate) write_nars: bool,
    /// Where the bytes of store paths stay
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Keep::Copy)]
    pub(crate) keep: Keep,
}

/// Where the bytes of published store paths stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Keep {
    /// Copied into the state directory
    Copy,
    /// In the Nix store alone, under a GC root that lasts as long as the pin
    Rooted,
    /// In the Nix store alone; when Nix deletes a path, it is published no more
    Weak,
}

/// `nipfs serve`
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address of the HTTP substituter; port 0 takes a free one [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<SocketAddr>,
    /// Multiaddr to listen on for peers (repeatable) [default: /ip4/0.0.0.0/tcp/4002]
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) listen: Vec<String>,
    /// Peer to ask for blocks (repeatable), ending in /p2p/ID
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) peer: Vec<String>,
    /// What to do unasked: private (nothing), lan (find nodes on the local network) or public (announce what is
    /// published in the DHTs of IPFS, and ask them) [default: private]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<Profile>,
    /// Directory of the narinfos [default: STATE/cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Cache to ask for what is not here (repeatable)
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Vec<String>,
    /// Key whose signature is accepted (repeatable), as name:base64
    #[arg(long, value_name = "KEY")]
    pub(crate) trusted_public_key: Vec<String>,
    /// Show others what was fetched, if the key of this name signed it (repeatable; not in profile private) [default:
    /// cache.nixos.org-1]
    #[arg(long, value_name = "NAME")]
    pub(crate) share_signed_by: Vec<String>,
    /// IPFS gateway to ask when no peer has a block (repeatable)
    #[arg(long, value_name = "URL")]
    pub(crate) gateway: Vec<String>,
    /// Keep the store at N bytes (K, M, G, T: powers of 1024): when it grows beyond, the oldest paths go, as in `gc`
    #[arg(long, value_name = "N", value_parser = crate::size::parse)]
    pub(crate) max_size: Option<u64>,
    /// Publish what `nix copy --to http://ADDR` sends, if a trusted key signed it
    #[arg(long)]
    pub(crate) enable_upload: bool,
    /// File with the password that uploaders need, one line, mode 0600
    #[arg(long, value_name = "FILE")]
    pub(crate) upload_token_file: Option<PathBuf>,
}

/// `nipfs fetch`
#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// Store paths
    #[arg(value_name = "STORE-PATH", required = true)]
    pub(crate) paths: Vec<String>,
    /// Cache that has the narinfos (repeatable) [default: the configured upstreams]
    #[arg(long, value_name = "URL")]
    pub(crate) from: Vec<String>,
    /// Key whose signature is accepted (repeatable), as name:base64
    #[arg(long, value_name = "KEY")]
    pub(crate) trusted_public_key: Vec<String>,
    /// Peer to ask for blocks (repeatable), ending in /p2p/ID
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) peer: Vec<String>,
    /// IPFS gateway to ask when no peer has a block (repeatable)
    #[arg(long, value_name = "URL")]
    pub(crate) gateway: Vec<String>,
    /// Only the given paths, not what they refer to
    #[arg(long)]
    pub(crate) no_closure: bool,
    /// Accept narinfos without a trusted signature
    #[arg(long)]
    pub(crate) no_check_sigs: bool,
    #[command(flatten)]
    pub(crate) sink: Sink,
}

/// Where fetched paths go; without any of these, into the Nix store.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Sink {
    /// Unpack each path to DIR/<hash-name>
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Write the NAR of the one path to this new file
    #[arg(long, value_name = "FILE")]
    pub(crate) nar: Option<PathBuf>,
    /// Import into the Nix store below this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
}

/// `nipfs mirror`
#[derive(Debug, Subcommand)]
pub(crate) enum Mirror {
    /// Have a mirror fetch, pin and serve what a cache directory lists, over one ssh connection
    Push(MirrorPush),
    /// Fetch, pin and serve everything that a cache lists
    Pull(MirrorPull),
    /// List what is held and whether it is complete
    Status,
    /// The far end of `mirror push`
    #[command(hide = true)]
    Receive(MirrorReceive),
}

/// `nipfs mirror push`
#[derive(Debug, Args)]
pub(crate) struct MirrorPush {
    /// The mirror, as ssh names it
    #[arg(long, value_name = "USER@HOST")]
    pub(crate) ssh: String,
    /// Directory of the narinfos [default: STATE/cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) path: Option<PathBuf>,
    /// What to run there
    #[arg(long, value_name = "COMMAND", default_value = "nipfs")]
    pub(crate) remote_command: String,
}

/// `nipfs mirror pull`
#[derive(Debug, Args)]
pub(crate) struct MirrorPull {
    /// Base URL of the cache
    pub(crate) url: String,
    /// Key whose signature is accepted (repeatable), as name:base64
    #[arg(long, value_name = "KEY")]
    pub(crate) trusted_public_key: Vec<String>,
    /// Peer to ask for blocks (repeatable), ending in /p2p/ID
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) peer: Vec<String>,
    /// File or http(s) URL of store paths, one a line, to mirror instead of what the cache lists; - for standard input
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) store_paths: Option<PathBuf>,
}

/// `nipfs mirror receive`
#[derive(Debug, Args)]
pub(crate) struct MirrorReceive {
    /// Key whose signature is required (repeatable) [default: the configured ones, else any]
    #[arg(long, value_name = "KEY")]
    pub(crate) trusted_public_key: Vec<String>,
}

/// `nipfs pin`
#[derive(Debug, Subcommand)]
pub(crate) enum Pin {
    /// List pins, one a line
    Ls,
    /// Pin store paths that are held, or CIDs
    Add {
        /// Store paths or CIDs
        #[arg(value_name = "STORE-PATH|CID", required = true)]
        targets: Vec<String>,
        /// Peer to ask for blocks (repeatable), ending in /p2p/ID
        #[arg(long, value_name = "MULTIADDR")]
        peer: Vec<String>,
    },
    /// Unpin store paths or CIDs; `gc` frees their space
    Rm {
        /// Store paths or CIDs
        #[arg(value_name = "STORE-PATH|CID", required = true)]
        targets: Vec<String>,
    },
}

/// `nipfs gc`
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Say what would be freed and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also unpin, oldest first, until the store holds at most N bytes (K, M, G, T: powers of 1024)
    #[arg(long, value_name = "N", value_parser = crate::size::parse)]
    pub(crate) max_size: Option<u64>,
    /// Unpin only what this peer proved to hold; its narinfo stays and its NAR is answered out of the mirror
    #[arg(long, value_name = "MULTIADDR", requires = "max_size")]
    pub(crate) require_mirror: Option<String>,
}

/// `nipfs verify`
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Hash every block and every NAR
    #[arg(long)]
    pub(crate) deep: bool,
    /// Drop damaged blocks and fetch them again from peers
    #[arg(long)]
    pub(crate) repair: bool,
    /// Peer to ask for blocks (repeatable), ending in /p2p/ID
    #[arg(long, value_name = "MULTIADDR", requires = "repair")]
    pub(crate) peer: Vec<String>,
}

/// `nipfs key`
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key pair: STATE/keys/NAME.secret and NAME.public
    Generate {
        /// Name of the key, as cache.example.org-1
        name: String,
    },
    /// Print the public keys that `publish` signs with, one a line
    Public,
}

/// `nipfs config`
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print each value with its origin
    Show,
    /// Check the configuration, the state directory and the secrets it names; changes nothing
    Check,
}

impl Cli {
    /// What the flags say of the settings.
    pub(crate) fn values(&self) -> Values {
        let values = Values { state: self.global.state.clone(), ..Values::default() };
        match &self.command {
            Command::Publish(publish) => Values {
                cache: publish.cache.clone(),
                signing_key_files: given(&publish.signing_key_file),
                chunker: publish.chunker.clone(),
                ..values
            },
            Command::Serve(serve) => Values {
                http: serve.http,
                listen: given(&serve.listen),
                peers: given(&serve.peer),
                profile: serve.profile,
                cache: serve.cache.clone(),
                upstreams: given(&serve.upstream),
                trusted_public_keys: given(&serve.trusted_public_key),
                share_signed_by: given(&serve.share_signed_by),
                gateways: given(&serve.gateway),
                max_size: serve.max_size,
                enable_upload: serve.enable_upload.then_some(true),
                upload_token_file: serve.upload_token_file.clone(),
                ..values
            },
            Command::Fetch(fetch) => Values {
                upstreams: given(&fetch.from),
                trusted_public_keys: given(&fetch.trusted_public_key),
                peers: given(&fetch.peer),
                gateways: given(&fetch.gateway),
                ..values
            },
            Command::Mirror(Mirror::Push(push)) => Values { cache: push.path.clone(), ..values },
            Command::Mirror(Mirror::Pull(pull)) => {
                Values { trusted_public_keys: given(&pull.trusted_public_key), peers: given(&pull.peer), ..values }
            }
            Command::Mirror(Mirror::Receive(receive)) => {
                Values { trusted_public_keys: given(&receive.trusted_public_key), ..values }
            }
            Command::Pin(Pin::Add { peer, .. }) | Command::Verify(Verify { peer, .. }) => {
                Values { peers: given(peer), ..values }
            }
            _ => values,
        }
    }
}

/// A list that was not given at all is silence, not an empty list.
fn given<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_work_before_and_after_the_verb() {
        for line in
            [["nipfs", "--json", "--state", "/s", "pin", "ls"], ["nipfs", "pin", "ls", "--state", "/s", "--json"]]
        {
            let cli = Cli::try_parse_from(line).unwrap();
            assert!(cli.global.json && cli.global.state == Some("/s".into()));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            &["nipfs", "publish"][..],
            &["nipfs", "fetch", "p", "--out", "a", "--nar", "b"],
            &["nipfs", "publish", "p", "--unsigned", "--signing-key-file", "k"],
            &["nipfs", "gc", "--max-size", "ten"],
            &["nipfs", "-q", "-v", "id"],
        ] {
            assert_eq!(Cli::try_parse_from(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }
}
