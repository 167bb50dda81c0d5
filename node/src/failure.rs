//! Errors of the rooms become [`Failure`]s here, and nowhere else: a class for the exit code, one line
//! that names the object, the chain of causes, and a hint when there is something to run.

use crate::cache::CacheError;
use crate::control::protocol::{Class, Failure};
use crate::dag::read::ReadError;
use crate::network::NetworkError;
use crate::store::StoreError;
use crate::upstream::UpstreamError;
use std::error::Error;
use std::fmt::Display;

impl Failure {
    /// A failure without a cause.
    pub fn new(class: Class, message: impl Display) -> Self {
        Self { class, message: message.to_string(), causes: Vec::new(), hint: None }
    }

    /// The same with the chain of causes that starts at `error`.
    #[must_use]
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            self.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// The same with something to run.
    #[must_use]
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The failure of an error that says itself what failed: it is the message, its sources the causes.
    pub fn from_error(class: Class, error: &(dyn Error + 'static)) -> Self {
        let failure = Self::new(class, error);
        match error.source() {
            Some(source) => failure.because(source),
            None => failure,
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl Error for Failure {}

macro_rules! classify {
    ($error:ty, |$value:ident| $class:expr) => {
        impl From<$error> for Failure {
            fn from($value: $error) -> Self {
                let class = $class;
                Self::from_error(class, &$value)
            }
        }
    };
}

classify!(StoreError, |error| store_class(&error));
classify!(NetworkError, |error| match &error {
    NetworkError::Listen { .. } | NetworkError::NoPeerId(_) | NetworkError::IdentityMode { .. } => Class::Usage,
    NetworkError::Stopped => Class::Interrupted,
    NetworkError::Dial { .. } => Class::NotFound,
    _ => Class::Failed,
});
classify!(ReadError, |error| match &error {
    ReadError::Missing { .. } => Class::NotFound,
    ReadError::Store { source, .. } => store_class(source),
    ReadError::Dag { .. } => Class::Refused,
    ReadError::Stopped { .. } => Class::Interrupted,
});
classify!(CacheError, |error| match &error {
    CacheError::Store(source) => store_class(source),
    CacheError::Input(_) | CacheError::Abandoned => Class::Failed,
    CacheError::Nar(_) | CacheError::Mismatch { .. } => Class::Refused,
    CacheError::NoNar { .. } => Class::NotFound,
});
classify!(UpstreamError, |error| match &error {
    UpstreamError::Address { .. } => Class::Usage,
    UpstreamError::Setup { .. } => Class::Failed,
    UpstreamError::Request { .. }
    | UpstreamError::Status { .. }
    | UpstreamError::Deadline { .. }
    | UpstreamError::Stalled { .. } => Class::NotFound,
    _ => Class::Refused,
});

fn store_class(error: &StoreError) -> Class {
    match error {
        StoreError::InUse(_) => Class::InUse,
        StoreError::NoSpace { .. } => Class::NoSpace,
        StoreError::Newer { .. }
        | StoreError::BadFile(_)
        | StoreError::Damaged { .. }
        | StoreError::Incomplete { .. }
        | StoreError::Unreadable { .. } => Class::Damaged,
        _ => Class::Failed,
    }
}
