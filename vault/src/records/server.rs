//! Servers whose databases are protected by themselves.

use serde::{Deserialize, Serialize};

use super::SourceLogin;

/// Where their records lie, in the vault's own store.
pub const SERVERS: &str = "servers/";

/// `servers/<id>/<n>.json`: a server that is a source. The highest n counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// 1.
    pub version: u32,
    /// 32 hexadecimal digits; the same for one server, whoever adds it ([`server_id`]).
    pub id: String,
    /// For people.
    pub name: String,
    /// When it was added.
    pub create_time: jiff::Timestamp,
    /// `postgres`, …
    pub source_type: String,
    /// Without credentials.
    pub server_uri: String,
    /// Two spellings of one server have one identity, with which those of its sources begin.
    pub server_identity: String,
    /// The server's region; empty: not told.
    pub region: String,
    /// The name of the policy that new instances follow.
    pub policy: String,
    /// Where the agent finds the password; never the password itself.
    #[serde(default, skip_serializing_if = "SourceLogin::is_default")]
    pub login: SourceLogin,
    /// Patterns of names, with `*` and `?`; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// What matches one of these is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// It is no source from this record on, until a later one says otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// Where a server's records lie.
pub fn server(id: &str) -> String {
    format!("{SERVERS}{id}/")
}

/// The id of a server: made of its identity, so that a record whose answer was lost is found again.
pub fn server_id(server_identity: &str) -> String {
    crate::id::Id::of(format!("vaultferry-server:{server_identity}").as_bytes()).to_string()[..32].to_owned()
}
