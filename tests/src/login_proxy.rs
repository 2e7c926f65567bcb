//! An HTTP proxy that demands a login (Basic) and counts. Whatever name it is asked for, it leads to one port of this machine.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A running proxy. It ends with the test's process.
#[derive(Debug)]
pub struct LoginProxy {
    port: u16,
    seen: Arc<Mutex<Seen>>,
}

/// What came by.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// `METHOD http://host:port/path?query` of what was passed on.
    pub passed: Vec<String>,
    /// How many questions had no login, or a wrong one.
    pub refused: usize,
}

impl LoginProxy {
    /// Passes on to `target` whatever has the login `user:password`.
    #[track_caller]
    pub fn start(target: u16, login: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let wanted = format!("Basic {}", STANDARD.encode(login));
        let serving = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, wanted) = (Arc::clone(&serving), wanted.clone());
                // A client that goes away in the middle is no fault of the proxy.
                thread::spawn(move || serve(stream, target, &wanted, &seen));
            }
        });
        Self { port, seen }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What came by until now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One request of the connection: its answer ends it.
fn serve(mut client: TcpStream, target: u16, wanted: &str, seen: &Mutex<Seen>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut first, mut login, mut length) = (String::new(), String::new(), None, 0_u64);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            break;
        }
        if first.is_empty() {
            first = line.trim().to_owned();
            continue;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            "proxy-authorization" => login = Some(value.trim().to_owned()),
            "connection" => {}
            "content-length" => {
                length = value.trim().parse().unwrap_or(0);
                head.push_str(&line);
            }
            _ => head.push_str(&line),
        }
    }
    if login.as_deref() != Some(wanted) {
        seen.lock().unwrap_or_else(PoisonError::into_inner).refused += 1;
        // What was sent is read to its end: a reset would hide the answer.
        io::copy(&mut reader.take(length), &mut io::sink())?;
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"test\"\r\n\
                       Content-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(refusal.as_bytes());
    }
    let mut words = first.split(' ');
    let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // http://host:port/path
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    seen.lock().unwrap_or_else(PoisonError::into_inner).passed.push(format!("{method} {url}"));
    let mut server = TcpStream::connect(("127.0.0.1", target))?;
    server.write_all(format!("{method} /{path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n").as_bytes())?;
    io::copy(&mut reader.take(length), &mut server)?;
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Write)
}
