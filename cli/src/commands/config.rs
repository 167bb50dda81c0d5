//! `nipfs config`: what is set, where, and whether it makes sense.

use super::{App, key, publish, serve};
use crate::args::Config;
use crate::outcome::Stop;
use nipfs_node::control::protocol::Class;

/// Runs the verb.
pub(crate) fn run(app: &App<'_>, verb: &Config) -> Result<(), Stop> {
    let settings = &app.settings;
    match verb {
        Config::Show => settings.rows().iter().try_for_each(|row| app.printer.item(row)),
        Config::Check => {
            let keys = key::load(&settings.signing_key_files.value).map(drop);
            let checks = [serve::service(settings).map(drop), keys, publish::profile(settings).map(drop)];
            let wrong: Vec<_> = checks.into_iter().filter_map(Result::err).collect();
            wrong.iter().for_each(|failure| app.printer.failure(failure));
            if wrong.is_empty() { Ok(()) } else { Err(Stop::Items(Class::Usage)) }
        }
    }
}
