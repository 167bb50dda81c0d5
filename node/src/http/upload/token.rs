//! The token that an uploader shows.

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use std::fmt;
use subtle::ConstantTimeEq as _;

/// A secret that both sides know. Only its hash is kept, and no log shows it.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// The token of this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether the headers show it, as `Bearer TOKEN` or as the password of any user (`Basic`, what Nix sends for a line
    /// in its netrc). The time that this takes does not depend on how much of it is right.
    pub(super) fn is_shown(&self, headers: &HeaderMap) -> bool {
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (shown.next(), shown.next()) else { return false };
        let Some((scheme, credentials)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else {
            return false;
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.is(credentials.as_bytes());
        }
        let decoded = STANDARD.decode(credentials).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"));
        let mut parts = decoded.iter().flat_map(|pair| pair.splitn(2, |byte| *byte == b':')).skip(1);
        parts.next().is_some_and(|password| self.is(password))
    }

    fn is(&self, text: &[u8]) -> bool {
        self.0.ct_eq(&<[u8; 32]>::from(Sha256::digest(text))).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_as_bearer_or_as_the_password_of_anybody() {
        let token = Token::new("s3:cret");
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        let shows = |values: &[String]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            token.is_shown(&headers)
        };
        for good in [basic("nipfs:s3:cret"), basic(":s3:cret"), "Bearer s3:cret".into(), "bearer s3:cret".into()] {
            assert!(shows(std::slice::from_ref(&good)), "{good}");
            assert!(!shows(&[good.clone(), good]));
        }
        let digest = format!("Digest {}", STANDARD.encode("nipfs:s3:cret"));
        for bad in
            [basic("s3:cret"), basic("nipfs:s3:cret "), basic("nipfs:"), basic("nipfs"), digest, "Basic =".into()]
        {
            assert!(!shows(std::slice::from_ref(&bad)), "{bad}");
        }
        for bad in ["Bearer", "Bearer ", "Bearer s3:cre", "Bearer  s3:cret", "s3:cret", ""] {
            assert!(!shows(&[bad.to_owned()]), "{bad}");
        }
        assert!(!shows(&[]));
        assert_eq!(format!("{token:?}"), "Token");
    }
}
