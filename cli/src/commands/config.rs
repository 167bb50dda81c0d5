//! `nipfs config`: what is set, where, and whether it makes sense.

use super::{App, key, publish, serve};
use crate::args::Config;
use crate::outcome::Stop;
use nipfs_node::control::protocol::{Class, Failure};
use rustix::fs::{Access, access};
use std::io;
use std::path::Path;

/// Runs the verb.
pub(crate) fn run(app: &App<'_>, verb: &Config) -> Result<(), Stop> {
    let settings = &app.settings;
    match verb {
        Config::Show => settings.rows().iter().try_for_each(|row| app.printer.item(row)),
        Config::Check => {
            let keys = key::files(settings).and_then(|files| key::load(&files)).map(drop);
            let profile = publish::profile(settings).map(drop);
            let checks = [serve::service(settings).map(drop), keys, profile, state(&settings.state.value)];
            let wrong: Vec<_> = checks.into_iter().filter_map(Result::err).collect();
            wrong.iter().for_each(|failure| app.printer.failure(failure));
            if wrong.is_empty() { Ok(()) } else { Err(Stop::Items(Class::Usage)) }
        }
    }
}

/// Whether the state directory can be used, or made. Changes nothing.
fn state(directory: &Path) -> Result<(), Failure> {
    let refused = |error: io::Error| {
        let failure = Failure::new(Class::Usage, format!("{}: cannot use as state directory", directory.display()));
        failure.because(&error).hint("choose another with --state DIR")
    };
    for place in directory.ancestors() {
        match place.metadata() {
            Ok(found) if !found.is_dir() => return Err(refused(io::ErrorKind::NotADirectory.into())),
            Ok(_) => return access(place, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| refused(errno.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(error)),
        }
    }
    Ok(())
}
