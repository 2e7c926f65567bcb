//! A small client of the blob service (shared key), so that what the product wrote is looked at by other code than its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::percent;

const VERSION: &str = "2021-12-02";

/// A storage account of the emulator.
#[derive(Clone)]
pub struct Account {
    port: u16,
    name: String,
    key: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.name)
    }
}

/// A blob as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its name in the container.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

struct Response {
    status: u16,
    body: Vec<u8>,
}

impl Account {
    pub(super) fn new(port: u16, name: &str, key: &str) -> Self {
        Self { port, name: name.to_owned(), key: key.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its key, in base64.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its endpoint, as a configuration names it.
    pub fn endpoint(&self) -> String {
        self.endpoint_at(self.port)
    }

    /// The same through a proxy on another port.
    pub fn endpoint_at(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}/{}", self.name)
    }

    /// Makes a container; it must not exist.
    #[track_caller]
    pub fn create_container(&self, container: &str) {
        let response = self.send("PUT", container, &[("restype", "container")], b"", &[]);
        assert_eq!(response.status, 201, "create {container}: {}", String::from_utf8_lossy(&response.body));
    }

    /// Writes a blob, over one that is there, too.
    #[track_caller]
    pub fn put(&self, container: &str, blob: &str, body: &[u8]) {
        let response = self.send("PUT", &format!("{container}/{blob}"), &[], body, &[("x-ms-blob-type", "BlockBlob")]);
        assert_eq!(response.status, 201, "put {blob}: {}", String::from_utf8_lossy(&response.body));
    }

    /// A blob's bytes.
    #[track_caller]
    pub fn get(&self, container: &str, blob: &str) -> Vec<u8> {
        let response = self.send("GET", &format!("{container}/{blob}"), &[], b"", &[]);
        assert_eq!(response.status, 200, "get {blob}: {}", String::from_utf8_lossy(&response.body));
        response.body
    }

    /// Removes a blob, which must be there.
    #[track_caller]
    pub fn delete(&self, container: &str, blob: &str) {
        let response = self.send("DELETE", &format!("{container}/{blob}"), &[], b"", &[]);
        assert_eq!(response.status, 202, "delete {blob}: {}", String::from_utf8_lossy(&response.body));
    }

    /// The names of all containers.
    #[track_caller]
    pub fn containers(&self) -> Vec<String> {
        let response = self.send("GET", "", &[("comp", "list")], b"", &[]);
        assert_eq!(response.status, 200, "list containers: {}", String::from_utf8_lossy(&response.body));
        elements(&String::from_utf8_lossy(&response.body), "Name")
    }

    /// All blobs of a container.
    #[track_caller]
    pub fn blobs(&self, container: &str) -> Vec<Blob> {
        let mut blobs = Vec::new();
        let mut marker = String::new();
        loop {
            let query = [("comp", "list"), ("marker", &marker), ("restype", "container")];
            let response = self.send("GET", container, &query, b"", &[]);
            let body = String::from_utf8_lossy(&response.body).into_owned();
            assert_eq!(response.status, 200, "list {container}: {body}");
            let sizes = elements(&body, "Content-Length");
            let sizes = sizes.iter().map(|size| size.parse().expect("a size is a number"));
            blobs.extend(elements(&body, "Name").into_iter().zip(sizes).map(|(name, size)| Blob { name, size }));
            marker = elements(&body, "NextMarker").pop().unwrap_or_default();
            if marker.is_empty() {
                return blobs;
            }
        }
    }

    /// Copies all blobs of a container into a folder.
    #[track_caller]
    pub fn copy_out(&self, container: &str, dir: &Path) {
        for blob in self.blobs(container) {
            let path = dir.join(&blob.name);
            fs::create_dir_all(path.parent().expect("a blob's path has a parent")).expect("make a folder");
            let body = self.get(container, &blob.name);
            assert_eq!(body.len() as u64, blob.size, "size of {}", blob.name);
            fs::write(&path, body).expect("write a copied blob");
        }
    }

    /// One request on a connection of its own. HTTP/1.0, so that the answer ends with the connection and is never chunked.
    #[track_caller]
    fn send(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: &[u8],
        headers: &[(&str, &str)],
    ) -> Response {
        let path = format!("/{}/{path}", self.name).trim_end_matches('/').to_owned();
        let date = http_date(SystemTime::now());
        let mut signed: Vec<(&str, &str)> = headers.to_vec();
        signed.extend([("x-ms-date", date.as_str()), ("x-ms-version", VERSION)]);
        signed.sort_unstable();
        let length = if body.is_empty() { String::new() } else { body.len().to_string() };
        let mut text = format!("{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n");
        signed.iter().for_each(|(name, value)| text.push_str(&format!("{name}:{value}\n")));
        text.push_str(&format!("/{}{path}", self.name));
        // Queries are given in the order of their names.
        query.iter().for_each(|(name, value)| text.push_str(&format!("\n{name}:{value}")));
        let key = STANDARD.decode(&self.key).expect("the key is base64");
        let signature = STANDARD.encode(hmac_sha256(&key, text.as_bytes()));

        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
        let mut request = format!("{method} {path}?{} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\n", query.join("&"), self.port);
        signed.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        request.push_str(&format!(
            "Content-Length: {}\r\nAuthorization: SharedKey {}:{signature}\r\n\r\n",
            body.len(),
            self.name
        ));
        exchange(self.port, request.as_bytes(), body).expect("talk to Azurite")
    }
}

fn exchange(port: u16, head: &[u8], body: &[u8]) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(head)?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let mut body = Vec::new();
    reader.take(length.unwrap_or(u64::MAX)).read_to_end(&mut body)?;
    Ok(Response { status, body })
}

/// RFC 2104.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |with: u8| block.iter().map(|byte| byte ^ with).collect::<Vec<u8>>();
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// The texts of all elements of that name. Enough for Azurite's listings, whose names need no unescaping here.
pub fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(open.as_str()).skip(1);
    parts.filter_map(|part| part.split_once(close.as_str()).map(|(text, _)| text.to_owned())).collect()
}

/// The time as HTTP writes it, for example "Sun, 06 Nov 1994 08:49:37 GMT".
fn http_date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = time.duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs();
    let days = seconds / 86_400;
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while rest >= lengths[month] {
        rest -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let day_name = DAYS[(days % 7) as usize];
    format!("{day_name}, {:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT", rest + 1, MONTHS[month])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_macs_are_right() {
        assert_eq!(http_date(UNIX_EPOCH + Duration::from_secs(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(UNIX_EPOCH + Duration::from_secs(1_709_164_800)), "Thu, 29 Feb 2024 00:00:00 GMT");
        // RFC 4231, test case 2
        let mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex::encode(mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
