//! What a request to the gateway asks for: format, scope and path, by the query first and the `Accept` header second.

use axum::http::{HeaderMap, header};
use nipfs_proto::dag::walk::{EntityBytes, Scope};
use serde::Deserialize;

pub(super) const RAW: &str = "application/vnd.ipld.raw";
pub(super) const CAR: &str = "application/vnd.ipld.car";

/// Names that a path may have. Each takes a block, or one for each level of a sharded directory.
const MAX_NAMES: usize = 64;

/// The query. Parameters with other names are not looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::http) struct Parameters {
    format: Option<String>,
    filename: Option<String>,
    dag_scope: Option<String>,
    entity_bytes: Option<String>,
    car_version: Option<String>,
    car_order: Option<String>,
    car_dups: Option<String>,
}

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Car(Select),
}

/// What is put into a CAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Select {
    pub(super) scope: Scope,
    /// Whether a block comes as often as it is linked.
    pub(super) duplicates: bool,
}

/// Why a request is not looked at further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It says nothing that can be understood: 400.
    Bad(&'static str),
    /// It asks for a form that we do not have: 406.
    NotAcceptable,
}

impl Format {
    /// The format that `parameters` ask for, or else the `Accept` header (IPIP-523).
    pub(super) fn of(parameters: &Parameters, headers: &HeaderMap) -> Result<Self, Refused> {
        let lists = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
        let mut kinds = lists.flat_map(|list| list.split(',')).filter_map(Kind::parse);
        match parameters.format.as_deref() {
            Some("raw") => Ok(Self::Raw),
            Some("car") => {
                let car = kinds.find_map(|kind| if let Kind::Car(car) = kind { Some(car) } else { None });
                Select::of(parameters, car.unwrap_or_default()).map(Self::Car)
            }
            Some(_) => Err(Refused::NotAcceptable),
            None => match kinds.next() {
                Some(Kind::Raw) => Ok(Self::Raw),
                Some(Kind::Car(car)) => Select::of(parameters, car).map(Self::Car),
                None if headers.contains_key(header::ACCEPT) => Err(Refused::NotAcceptable),
                None => Err(Refused::Bad("ask for format=raw or format=car\n")),
            },
        }
    }
}

/// A media range of the `Accept` header that we can serve.
enum Kind {
    Raw,
    Car(CarKind),
}

impl Kind {
    fn parse(range: &str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        match parts.next()? {
            RAW => Some(Self::Raw),
            CAR => {
                let mut pairs = parts.map(|part| part.split_once('='));
                let add = |car: CarKind, pair: Option<(&str, &str)>| {
                    pair.and_then(|(key, value)| car.with(key, value.trim_matches('"')))
                };
                pairs.try_fold(CarKind::default(), add).map(Self::Car)
            }
            _ => None,
        }
    }
}

/// The parameters of the media type of CARs (IPIP-412) that can be met.
#[derive(Debug, Clone, Copy, Default)]
struct CarKind {
    duplicates: bool,
}

impl CarKind {
    fn with(self, key: &str, value: &str) -> Option<Self> {
        match (key, value) {
            // Depth first is what nobody can complain about who takes any order.
            ("version", "1") | ("order", "dfs" | "unk") => Some(self),
            ("dups", "y") => Some(Self { duplicates: true }),
            ("dups", "n") => Some(Self { duplicates: false }),
            ("version" | "order" | "dups", _) => None,
            _ => Some(self),
        }
    }
}

impl Select {
    fn of(parameters: &Parameters, mut car: CarKind) -> Result<Self, Refused> {
        let Parameters { car_version, car_order, car_dups, .. } = parameters;
        for (key, value) in [("version", car_version), ("order", car_order), ("dups", car_dups)] {
            if let Some(value) = value {
                car = car.with(key, value).ok_or(Refused::NotAcceptable)?;
            }
        }
        let bytes = parameters.entity_bytes.as_deref().map(str::parse::<EntityBytes>).transpose();
        let bytes = bytes.map_err(|_| Refused::Bad("entity-bytes is no range such as 0:1023 or -1024:*\n"))?;
        let scope = match (parameters.dag_scope.as_deref(), bytes) {
            (None | Some("entity"), Some(bytes)) => Scope::Entity(bytes),
            (Some("entity"), None) => Scope::Entity(EntityBytes::ALL),
            (None | Some("all"), None) => Scope::All,
            (Some("block"), None) => Scope::Block,
            (Some("all" | "block"), Some(_)) => return Err(Refused::Bad("entity-bytes is for dag-scope=entity\n")),
            (Some(_), _) => return Err(Refused::Bad("dag-scope is none of block, entity, all\n")),
        };
        Ok(Self { scope, duplicates: car.duplicates })
    }

    /// `Content-Type` of the CAR.
    pub(super) fn content_type(self) -> String {
        format!("{CAR}; version=1; order=dfs; dups={}", self.dups())
    }

    /// The query that names this CAR whatever the headers.
    pub(super) fn query(self) -> String {
        let scope = match self.scope {
            Scope::Block => "block".to_owned(),
            Scope::Entity(EntityBytes::ALL) => "entity".to_owned(),
            Scope::Entity(bytes) => format!("entity&entity-bytes={bytes}"),
            Scope::All => "all".to_owned(),
        };
        format!("format=car&dag-scope={scope}&car-version=1&car-order=dfs&car-dups={}", self.dups())
    }

    fn dups(self) -> char {
        if self.duplicates { 'y' } else { 'n' }
    }
}

impl Parameters {
    /// The name for the file that the client asked for, if it is a plain one.
    pub(super) fn file_name(&self) -> Option<&str> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        self.filename.as_deref().filter(|name| (1..=128).contains(&name.len()) && name.bytes().all(plain))
    }
}

/// The names in a path. Empty ones mean nothing; those that would climb are refused.
pub(super) fn names(path: &str) -> Result<Vec<String>, Refused> {
    let names: Vec<String> = path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.iter().any(|name| name == "." || name == "..") {
        return Err(Refused::Bad("a path does not climb\n"));
    }
    if names.len() > MAX_NAMES { Err(Refused::Bad("a path of more than 64 names\n")) } else { Ok(names) }
}
