//! What the small fakes of Azure's services read: one request of HTTP/1.1 on a connection of its own. A fake answers with
//! `connection: close`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::time::Duration;

/// Longest wait for the next bytes of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A request.
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path with its query.
    pub(crate) target: String,
    headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Reads one; `None` when the connection ends before it is there, or it is no request.
    pub(crate) fn read(stream: &TcpStream) -> Option<Self> {
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let mut words = head.first()?.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut request = Self { method, target, headers: head.split_off(1), body: Vec::new() };
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        request.body = vec![0; length];
        reader.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    /// A header's value; its name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}
