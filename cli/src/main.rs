//! `nipfs`: the command line of the node.
//!
//! [`args`] is the command line, [`config`] what it means together with environment and file,
//! [`door`] which node answers, [`commands`] one function a verb, [`printer`] all output, [`outcome`]
//! the exit code.

mod args;
mod commands;
mod config;
mod door;
mod files;
mod memory;
mod outcome;
mod printer;
mod size;

use crate::args::{Cli, Global};
use crate::commands::App;
use crate::config::Settings;
use crate::outcome::{Stop, exit_code};
use crate::printer::Printer;
use clap::Parser;
use nipfs_node::control::protocol::{Class, Failure};
use std::io;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long threads that still read or write files may take to notice that the program ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` goes to standard output, and a reader may leave early there too.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let printer = Printer::new(&cli.global);
    start_log(&cli.global, printer.color(), matches!(cli.command, args::Command::Serve(_)));
    let settings = Settings::resolve(cli.values(), cli.global.config.as_deref(), &|name| std::env::var_os(name));
    let outcome = match settings.map_err(Stop::from) {
        Ok(settings) => run(cli, settings, &printer),
        Err(stop) => Err(stop),
    };
    printer.clear();
    if let Err(Stop::Failed(failure) | Stop::NoNode(failure)) = &outcome
        && failure.class != Class::Interrupted
    {
        printer.failure(failure);
    }
    exit_code(&outcome)
}

fn run(cli: Cli, settings: Settings, printer: &Printer) -> Result<(), Stop> {
    memory::keep_little();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Class::Failed, "cannot start").because(&error))?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let app = App::new(settings, printer);
        // To `serve`, a signal is how it ends well: it looks out for them itself.
        let serving = matches!(cli.command, args::Command::Serve(_));
        let outcome = tokio::select! {
            outcome = commands::run(&app, cli.command) => outcome,
            () = signals.next(), if !serving => Err(Failure::new(Class::Interrupted, "interrupted").into()),
        };
        // The first signal ends the verb, the second does not wait for the node either.
        tokio::select! {
            biased;
            () = app.close() => outcome,
            () = signals.next() => Err(Failure::new(Class::Interrupted, "interrupted").into()),
        }
    });
    runtime.shutdown_timeout(if outcome.is_ok() { LAST_WORDS } else { Duration::ZERO });
    outcome
}

/// SIGINT and SIGTERM.
struct Signals(Signal, Signal);

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|e| Failure::new(Class::Failed, "cannot handle signals").because(&e));
        Ok(Self(listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?))
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.0.recv() => {}, _ = self.1.recv() => {} }
    }
}

/// The log goes to standard error; `RUST_LOG` says what is in it, else `-q` and `-v` do.
fn start_log(global: &Global, color: bool, serving: bool) {
    let level = match (global.quiet, global.verbose) {
        (0, 0) if serving => "warn,nipfs=info,nipfs_node=info",
        // The printer says what failed.
        (0, 0) => "off",
        // What jobs have to say, the printer says already.
        (0, 1) => "warn,nipfs=info,nipfs_node=info,nipfs_node::jobs=warn",
        (0, 2) => "info,nipfs=debug,nipfs_node=debug",
        (0, _) => "debug,nipfs=trace,nipfs_node=trace",
        _ if serving => "error",
        _ => "off",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(color).with_env_filter(filter).init();
}
