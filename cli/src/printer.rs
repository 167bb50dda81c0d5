//! All that the program writes: results to standard output, everything else to standard error.
//!
//! Standard output carries one line an item, or with `--json` one object a line, and nothing more.
//! Progress is drawn on a terminal only, and never together with `--json`, `-q` or `-v`.

use crate::args::{Color, Global};
use crate::outcome::Stop;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nipfs_node::control::protocol::{Failure, Report};
use serde::Serialize;
use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Writes results, messages and progress.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
    quiet: bool,
    verbose: bool,
    style: Style,
    bar: ProgressBar,
}

/// How messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// Whether to use ANSI colours.
    pub(crate) color: bool,
}

impl Style {
    fn choose(color: Color, terminal: bool, env: impl Fn(&str) -> Option<OsString>) -> Self {
        let plain = env("NO_COLOR").is_some_and(|value| !value.is_empty()) || env("TERM").is_some_and(|t| t == "dumb");
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !plain,
        };
        Self { color }
    }

    /// `error: …`, then `caused by:` lines, then `hint:`.
    pub(crate) fn failure(self, failure: &Failure) -> String {
        let mut text = self.label("error", "1;31") + &harmless(&failure.message);
        for cause in &failure.causes {
            let _ = write!(text, "\n  {}{}", self.label("caused by", "1"), harmless(cause));
        }
        if let Some(hint) = &failure.hint {
            let _ = write!(text, "\n{}{}", self.label("hint", "1;36"), harmless(hint));
        }
        text
    }

    fn label(self, word: &str, code: &str) -> String {
        if self.color { format!("\x1b[{code}m{word}:\x1b[0m ") } else { format!("{word}: ") }
    }
}

impl Printer {
    /// A printer as the global flags say.
    pub(crate) fn new(global: &Global) -> Self {
        let terminal = io::stderr().is_terminal();
        let (quiet, verbose) = (global.quiet > 0, global.verbose > 0);
        let bars = terminal && !(global.json || quiet || verbose || global.no_progress);
        let target = if bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_style(bar_style());
        Self {
            json: global.json,
            quiet,
            verbose,
            style: Style::choose(global.color, terminal, |name| std::env::var_os(name)),
            bar,
        }
    }

    /// Whether messages may use ANSI colours.
    pub(crate) fn color(&self) -> bool {
        self.style.color
    }

    /// Prints one result: its JSON or its text.
    ///
    /// # Errors
    /// [`Stop::ReaderGone`] on a broken pipe.
    pub(crate) fn item(&self, item: &(impl Serialize + Display)) -> Result<(), Stop> {
        let mut line =
            if self.json { serde_json::to_string(item).map_err(io::Error::from) } else { Ok(item.to_string()) }
                .map_err(|error| Stop::writing(&error))?;
        line.push('\n');
        self.raw(line.as_bytes())
    }

    /// Writes bytes to standard output as they are, and flushes.
    ///
    /// # Errors
    /// As [`Printer::item`].
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Stop> {
        let write = || {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        };
        self.bar.suspend(write).map_err(|error| Stop::writing(&error))
    }

    /// Tells of something that went wrong but did not stop the work.
    pub(crate) fn warning(&self, text: impl Display) {
        if !self.quiet {
            self.message(&(self.style.label("warning", "1;33") + &harmless(&text.to_string())));
        }
    }

    /// Tells what happens, with `-v`.
    pub(crate) fn note(&self, text: impl Display) {
        if self.verbose {
            self.message(&harmless(&text.to_string()));
        }
    }

    /// Prints a failure, whatever the verbosity.
    pub(crate) fn failure(&self, failure: &Failure) {
        self.message(&self.style.failure(failure));
    }

    /// Shows a report of the node.
    pub(crate) fn report(&self, report: &Report) {
        match report {
            Report::Note { text } => self.warning(text),
            Report::Progress { path, done, total, source } => self.progress(path, *done, *total, source),
        }
    }

    /// Shows how far one path is, in bytes; a `total` of 0 is not known.
    pub(crate) fn progress(&self, path: &str, done: u64, total: u64, source: &str) {
        if self.bar.is_hidden() {
            return;
        }
        let name = short_name(path);
        if self.bar.message() != name {
            self.bar.reset();
            self.bar.set_message(name);
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        self.bar.set_prefix(source.to_owned());
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
    }

    /// Takes the progress bar away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn message(&self, text: &str) {
        // Standard error is where one would complain.
        let _ = self.bar.suspend(|| writeln!(io::stderr().lock(), "{text}"));
    }
}

/// The name in a store path, without its hash.
fn short_name(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    base.split_once('-').map_or(base, |(_, name)| name).to_owned()
}

const BAR: &str = "{msg:30!} {bar:20} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {prefix:8} ETA {eta}";

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Messages carry words of peers and caches: none of them may steer the terminal.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_node::control::protocol::Class;

    fn failure() -> Failure {
        let cause = io::Error::other("disk on fire");
        Failure::new(Class::Failed, "cannot read: /x").because(&cause).hint("run: nipfs verify")
    }

    #[test]
    fn a_failure_says_what_why_and_what_to_run() {
        let text = Style { color: false }.failure(&failure());
        assert_eq!(text, "error: cannot read: /x\n  caused by: disk on fire\nhint: run: nipfs verify");
    }

    #[test]
    fn colours_change_nothing_but_labels() {
        let text = Style { color: true }.failure(&failure());
        assert!(text.starts_with("\x1b[1;31merror:\x1b[0m cannot read: /x\n"), "{text}");
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let choose = |color, terminal, pairs| Style::choose(color, terminal, env(pairs)).color;
        assert!(choose(Color::Auto, true, &[("TERM", "xterm"), ("NO_COLOR", "")]));
        assert!(!choose(Color::Auto, true, &[("NO_COLOR", "1")]));
        assert!(!choose(Color::Auto, true, &[("TERM", "dumb")]));
        assert!(!choose(Color::Auto, false, &[]));
        assert!(choose(Color::Always, false, &[("NO_COLOR", "1")]));
        assert!(!choose(Color::Never, true, &[]));
    }

    #[test]
    fn the_template_of_the_bar_is_valid() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
        assert_eq!(short_name("/nix/store/0123-hello-2.10"), "hello-2.10");
        assert_eq!(short_name("plain"), "plain");
    }

    #[test]
    fn a_peer_cannot_steer_the_terminal() {
        let failure = Failure::new(Class::Failed, "peer says \x1b[2Jhello\r");
        let text = Style { color: false }.failure(&failure);
        assert_eq!(text, "error: peer says \u{fffd}[2Jhello\u{fffd}");
    }
}
