//! Values between the catalog's words and columns: objects as JSON, times in microseconds.

use rusqlite::Transaction;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::catalog::Status;

/// Why a transaction was rolled back.
pub(super) enum Failure {
    Taken(String),
    Sqlite(rusqlite::Error),
    Body(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::Body(error.to_string()))
}

pub(super) fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::Body(error.to_string()))
}

/// Every `body` that the query finds.
pub(super) fn bodies<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<T>, Failure> {
    let mut statement = tx.prepare_cached(sql)?;
    let texts = statement.query_map(params, |row| row.get::<_, String>(0))?;
    texts.map(|text| decode(&text?)).collect()
}

pub(super) fn body<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Option<T>, Failure> {
    Ok(bodies(tx, sql, params)?.into_iter().next())
}

pub(super) fn time_from(us: i64) -> Result<jiff::Timestamp, Failure> {
    jiff::Timestamp::from_microsecond(us).map_err(|error| Failure::Body(error.to_string()))
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn status_name(status: &Status) -> &'static str {
    match status {
        Status::InProgress => "in-progress",
        Status::Cancelling => "cancelling",
        Status::Completed { .. } => "completed",
        Status::Failed { .. } => "failed",
        Status::Cancelled { .. } => "cancelled",
    }
}
