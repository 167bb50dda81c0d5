//! `nipfs config`: what is set, where, and whether it makes sense.

use super::App;
use crate::args::Config;
use crate::config::Settings;
use crate::outcome::Stop;
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_proto::nix::signature::PublicKey;

/// Runs the verb.
pub(crate) fn run(app: &App<'_>, verb: &Config) -> Result<(), Stop> {
    match verb {
        Config::Show => app.settings.rows().iter().try_for_each(|row| app.printer.item(row)),
        Config::Check => {
            let wrong = check(&app.settings);
            wrong.iter().for_each(|failure| app.printer.failure(failure));
            if wrong.is_empty() { Ok(()) } else { Err(Stop::Items(Class::Usage)) }
        }
    }
}

fn check(settings: &Settings) -> Vec<Failure> {
    let mut wrong = Vec::new();
    let mut refuse = |key: &str, value: &str, error: &(dyn std::error::Error + 'static)| {
        wrong.push(Failure::new(Class::Usage, format!("{key}: {value}")).because(error));
    };
    for key in &settings.trusted_public_keys.value {
        if let Err(error) = key.parse::<PublicKey>() {
            refuse("trusted-public-keys", key, &error);
        }
    }
    wrong
}
