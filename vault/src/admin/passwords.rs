//! The wrapped passwords of an instance's repository.

use super::*;

/// An instance's newest password record that this key wrapped, with its number.
pub(super) async fn newest_of(
    store: &store::Shared,
    key: &WrapKey,
    cancel: &CancellationToken,
) -> Result<Option<(u64, PasswordRecord)>, Error> {
    let numbers = with_cancel(cancel, records::numbers(&**store, records::PASSWORDS)).await?;
    for n in numbers.into_iter().rev() {
        let record: PasswordRecord =
            with_cancel(cancel, records::get(&**store, &records::numbered(records::PASSWORDS, n))).await?;
        if key.wrapped(&record.password) {
            return Ok(Some((n, record)));
        }
    }
    Ok(None)
}

/// The password of an instance's repository: 64 hexadecimal digits. While a rotation is under way there are records of the old and of the
/// new vault key; each key opens its own.
pub async fn password_of(
    store: &store::Shared,
    key: &WrapKey,
    instance_id: &str,
    cancel: &CancellationToken,
) -> Result<SecretString, Error> {
    let wrong = || Error::KeyWrong { what: format!("the key of {}", context(instance_id)) };
    let Some((_, record)) = newest_of(store, key, cancel).await? else {
        let first = records::numbered(records::PASSWORDS, 1);
        if with_cancel(cancel, records::numbers(&**store, records::PASSWORDS)).await?.is_empty() {
            let what = format!("{first} in {}", store.location());
            return Err(Error::damaged(what, "the repository's password is missing"));
        }
        return Err(wrong());
    };
    let plain = key.unwrap(&record.password, &context(instance_id))?;
    let text = std::str::from_utf8(&plain).map_err(|_| wrong())?;
    Ok(SecretString::from(text))
}

/// Adds a record of the password under this key, unless the newest one is.
pub(super) async fn add(
    store: &store::Shared,
    key: &WrapKey,
    instance_id: &str,
    password: &SecretString,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let mut password_record = None;
    loop {
        let newest = with_cancel(cancel, records::numbers(&**store, records::PASSWORDS)).await?.last().copied();
        if let Some(n) = newest {
            let place = records::numbered(records::PASSWORDS, n);
            let record: PasswordRecord = with_cancel(cancel, records::get(&**store, &place)).await?;
            if key.wrapped(&record.password) {
                return Ok(());
            }
        }
        let record = match &password_record {
            Some(record) => record,
            None => password_record.insert(PasswordRecord {
                version: records::VERSION,
                create_time: crate::clock::now(),
                password: key.wrap(password.expose_secret().as_bytes(), &context(instance_id))?,
            }),
        };
        let place = records::numbered(records::PASSWORDS, newest.unwrap_or(0) + 1);
        if with_cancel(cancel, records::put(&**store, &place, record)).await? == Put::Created {
            return Ok(());
        }
    }
}
