//! How a verb ends, and the exit code that follows.

use nipfs_node::control::client::ClientError;
use nipfs_node::control::protocol::{Class, Failure};
use std::io;
use std::process::ExitCode;

/// Why a verb ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It failed as a whole: print this.
    Failed(Failure),
    /// No node answers, or it went away: what is left to do would fail the same way. Print this.
    NoNode(Failure),
    /// Some items failed; each was printed when it did.
    Items(Class),
    /// Nobody reads our output any more, as in `nipfs pin ls | head -1`. That is success.
    ReaderGone,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Failed(failure) => Self::Failed(failure),
            error => Self::NoNode(error.into()),
        }
    }
}

impl Stop {
    /// What an error of writing to standard output means.
    pub(crate) fn writing(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(Failure::new(Class::Failed, "cannot write to standard output").because(error)),
        }
    }
}

/// The exit code of the process.
pub(crate) fn exit_code(outcome: &Result<(), Stop>) -> ExitCode {
    match outcome {
        Ok(()) | Err(Stop::ReaderGone) => ExitCode::SUCCESS,
        Err(Stop::Failed(failure) | Stop::NoNode(failure)) => ExitCode::from(failure.class.exit_code()),
        Err(Stop::Items(class)) => ExitCode::from(class.exit_code()),
    }
}

/// Counts the items of a verb that goes on after one failed.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    succeeded: bool,
    failed: Vec<Class>,
}

impl Tally {
    /// One item succeeded.
    pub(crate) fn success(&mut self) {
        self.succeeded = true;
    }

    /// One item failed.
    pub(crate) fn failure(&mut self, class: Class) {
        self.failed.push(class);
    }

    /// Some of many failed: exit 1. All failed for one reason: that reason's code.
    pub(crate) fn outcome(self) -> Result<(), Stop> {
        match self.failed.split_first() {
            None => Ok(()),
            Some((first, rest)) if !self.succeeded && rest.iter().all(|class| class == first) => {
                Err(Stop::Items(*first))
            }
            Some(_) => Err(Stop::Items(Class::Failed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let table = [
            (Class::Failed, 1),
            (Class::Usage, 2),
            (Class::Refused, 3),
            (Class::NotFound, 4),
            (Class::Damaged, 5),
            (Class::NoSpace, 6),
            (Class::InUse, 7),
            (Class::Interrupted, 130),
        ];
        for (class, code) in table {
            let failed = Err(Stop::Failed(Failure::new(class, "x")));
            assert_eq!(exit_code(&failed), ExitCode::from(code));
            assert_eq!(exit_code(&Err(Stop::Items(class))), ExitCode::from(code));
        }
        assert_eq!(exit_code(&Ok(())), ExitCode::SUCCESS);
        assert_eq!(exit_code(&Err(Stop::writing(&io::ErrorKind::BrokenPipe.into()))), ExitCode::SUCCESS);
        assert_eq!(exit_code(&Err(Stop::writing(&io::ErrorKind::StorageFull.into()))), ExitCode::from(1));
    }

    #[test]
    fn some_of_many_is_one_and_all_for_one_reason_is_that_reason() {
        let run = |succeeded, failed: &[Class]| {
            let tally = Tally { succeeded, failed: failed.to_vec() };
            exit_code(&tally.outcome())
        };
        assert_eq!(run(true, &[]), ExitCode::SUCCESS);
        assert_eq!(run(false, &[Class::Refused]), ExitCode::from(3));
        assert_eq!(run(false, &[Class::NotFound, Class::NotFound]), ExitCode::from(4));
        assert_eq!(run(false, &[Class::NotFound, Class::Refused]), ExitCode::from(1));
        assert_eq!(run(true, &[Class::Refused]), ExitCode::from(1));
    }
}
