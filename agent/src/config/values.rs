//! Values that are more than text. Each error is the end of a sentence that begins with the key.

use std::path::PathBuf;
use std::time::Duration;

use vaultferry_coordinator::LEAST_READ_BYTES_PER_S;
use vaultferry_coordinator::vault::{InvalidKeyUrl, InvalidLocation, KeyUrl, Location};

use super::CredentialKind;

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path".to_owned()) }
}

/// A size in bytes: "64MiB", "1 GiB", "500MB", "67108864".
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "must be a size such as \"64MiB\"".to_owned();
    let digits_end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// A size in a second: "50MB/s".
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let bytes = text.strip_suffix("/s").and_then(|bytes| size(bytes.trim_end()).ok());
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "must be a rate such as \"50MB/s\"".to_owned())
}

/// How fast a source is read: a rate that lets a backup come to an end.
pub fn read_limit(text: &str) -> Result<u64, String> {
    match rate(text)? {
        bytes if bytes >= LEAST_READ_BYTES_PER_S => Ok(bytes),
        _ => Err("must be at least 100KB/s".to_owned()),
    }
}

/// At least one whole second, at most a day: "120s", "2m", "PT2M", "120".
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    time_up_to(86_400, text).ok_or_else(|| "must be a time from 1s to 24h, such as \"120s\" or \"PT2M\"".to_owned())
}

/// At least one whole second, at most thirty days: "36h", "PT36H".
pub(super) fn long_time(text: &str) -> Result<Duration, String> {
    time_up_to(30 * 86_400, text)
        .ok_or_else(|| "must be a time from 1s to 720h, such as \"4h\" or \"PT36H\"".to_owned())
}

fn time_up_to(most_s: u64, text: &str) -> Option<Duration> {
    let parsed = match text.parse::<u32>() {
        Ok(seconds) => Some(Duration::from_secs(seconds.into())),
        Err(_) => text.parse::<jiff::SignedDuration>().ok().and_then(|duration| duration.try_into().ok()),
    };
    parsed.filter(|duration| (1..=most_s).contains(&duration.as_secs()))
}

/// As the vault's own parser reads it. Its message repeats the text, in which somebody may have pasted a secret; only the detail is told.
pub(super) fn location(text: &str) -> Result<Location, String> {
    text.parse().map_err(|error: InvalidLocation| error.detail.to_owned())
}

pub(super) fn region(text: &str) -> Result<String, String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    if !text.is_empty() && text.chars().all(is_name) {
        Ok(text.to_owned())
    } else {
        Err("must be a region's name, such as \"koreacentral\"".to_owned())
    }
}

pub(super) fn http_url(text: &str) -> Result<url::Url, String> {
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.password().is_none() => {
            Ok(url)
        }
        _ => Err("must be http://… or https://…, without a signature or a password".to_owned()),
    }
}

/// Where the backup service listens. Plain only where nobody else can listen: on this machine.
pub(super) fn service_endpoint(text: &str) -> Result<String, String> {
    let wrong = || "must be https://host:port, without a path, a user or a password".to_owned();
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let is_this_machine = match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => return Err(wrong()),
    };
    match url.scheme() {
        _ if !is_bare || url.password().is_some() => Err(wrong()),
        "https" => Ok(text.to_owned()),
        "http" if is_this_machine => Ok(text.to_owned()),
        "http" => Err("must be https://…: http:// is for a service on this machine only".to_owned()),
        _ => Err(wrong()),
    }
}

/// The text is not repeated: somebody may have pasted a token.
pub(super) fn key_url(text: &str) -> Result<KeyUrl, String> {
    text.parse().map_err(|_: InvalidKeyUrl| {
        "must be a key's address: https://NAME.vault.azure.net/keys/KEY, with or without /VERSION".to_owned()
    })
}

pub(super) fn credential_kind(text: &str) -> Result<CredentialKind, String> {
    match text {
        "access-key" => Ok(CredentialKind::AccessKey),
        "sas" => Ok(CredentialKind::Sas),
        "managed-identity" => Err("managed-identity is not supported yet; use access-key or sas".to_owned()),
        _ => Err("must be access-key or sas".to_owned()),
    }
}

pub(super) fn variable_name(text: &str) -> Result<String, String> {
    if is_variable_name(text) {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a variable of the environment, not the secret itself".to_owned())
    }
}

/// Letters, digits and underscores: what keys and signatures are never made of alone.
pub fn is_variable_name(text: &str) -> bool {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    !text.is_empty() && !text.starts_with(|first: char| first.is_ascii_digit()) && text.chars().all(is_name)
}
