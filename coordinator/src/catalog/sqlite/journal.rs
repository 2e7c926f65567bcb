//! A catalog without its journal: one file, which can be renamed.

use std::path::Path;

use rusqlite::Connection;

use crate::catalog::Error;

/// Folds the journal of a catalog that nobody has open into its one file.
pub fn single_file(path: &Path) -> Result<(), Error> {
    let fold = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        fold(&connection)
    };
    fold().map_err(|error: rusqlite::Error| Error::Database {
        path: path.display().to_string(),
        detail: error.to_string(),
    })
}

pub(super) fn fold(connection: &Connection) -> rusqlite::Result<()> {
    // Leaving WAL copies it into the file and removes it. SQLite's answer says whether it could.
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0))?;
    match mode.as_str() {
        "delete" => Ok(()),
        mode => Err(rusqlite::Error::ToSqlConversionFailure(format!("its journal stays {mode}").into())),
    }
}
