//! A connection pooler in transaction mode, as small as one can be: one server process for all clients.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::postgres::Server;

/// Serves any number of clients until the test's process ends. Whoever comes is let in, as [`ROLE`].
#[derive(Debug)]
pub struct Pooler {
    port: u16,
}

/// The pooler's own role at the server.
pub const ROLE: &str = "pooled";

/// A message of either side: its kind, and all of its bytes.
struct Message {
    kind: u8,
    bytes: Vec<u8>,
}

impl Pooler {
    /// Makes its role at the server (a superuser who needs no password), and logs in to that database.
    #[track_caller]
    pub fn start(server: &Server, database: &str) -> Self {
        let hba = server.data_dir().join("pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).expect("read pg_hba.conf");
        std::fs::write(&hba, format!("host all {ROLE} 127.0.0.1/32 trust\n{rules}")).expect("write pg_hba.conf");
        server.psql("postgres", &format!("create role {ROLE} superuser login;\nselect pg_reload_conf()"));
        // The postmaster reads its rules a moment later; until then it refuses.
        let (backend, parameters) =
            crate::wait_for("the server to let the pooler in", std::time::Duration::from_secs(20), || {
                log_in(server.port(), database).ok()
            });
        let backend = Arc::new(Mutex::new(backend));
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (backend, parameters) = (Arc::clone(&backend), parameters.clone());
                // A client that goes away breaks its own thread only.
                thread::spawn(move || serve(client, &backend, &parameters).is_ok());
            }
        });
        Self { port }
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Logs in to the server; the connection, and what a client is told of the server at its start.
fn log_in(port: u16, database: &str) -> io::Result<(TcpStream, Vec<u8>)> {
    let mut backend = TcpStream::connect(("127.0.0.1", port))?;
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for text in ["user", ROLE, "database", database, ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let length = u32::try_from(body.len() + 4).expect("short");
    backend.write_all(&[&length.to_be_bytes()[..], &body].concat())?;
    let mut parameters = Vec::new();
    loop {
        let message = read_message(&mut backend)?;
        match message.kind {
            b'S' => parameters.extend(message.bytes),
            b'Z' => return Ok((backend, parameters)),
            b'E' => return Err(io::Error::other("refused")),
            _ => {}
        }
    }
}

fn read_message(from: &mut TcpStream) -> io::Result<Message> {
    let mut bytes = vec![0; 5];
    from.read_exact(&mut bytes)?;
    let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
    bytes.resize(length + 1, 0);
    from.read_exact(&mut bytes[5..])?;
    Ok(Message { kind: bytes[0], bytes })
}

fn serve(mut client: TcpStream, backend: &Mutex<TcpStream>, parameters: &[u8]) -> io::Result<()> {
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
    client.read_exact(&mut startup)?;
    // Welcome, the server's parameters, a key for cancellations that nobody will ask for, ready.
    let welcome = b"R\0\0\0\x08\0\0\0\0";
    let key = b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x01";
    let ready = b"Z\0\0\0\x05I";
    client.write_all(&[&welcome[..], parameters, &key[..], &ready[..]].concat())?;
    // Held from a transaction's first message to its end.
    let mut held: Option<MutexGuard<'_, TcpStream>> = None;
    loop {
        let message = match read_message(&mut client) {
            Ok(message) if message.kind != b'X' => message,
            _ => break,
        };
        let mut server = held.take().unwrap_or_else(|| backend.lock().unwrap_or_else(PoisonError::into_inner));
        server.write_all(&message.bytes)?;
        // A query, or the end of a series of messages: the server answers until it is ready again.
        let mut idle = false;
        if matches!(message.kind, b'Q' | b'S') {
            idle = answer(&mut server, Some(&mut client))?;
        }
        if !idle {
            held = Some(server);
        }
    }
    // Whoever leaves in the middle of a transaction leaves it to the pooler.
    if let Some(mut server) = held {
        server.write_all(b"Q\0\0\0\x0drollback\0")?;
        answer(&mut server, None)?;
    }
    Ok(())
}

/// Passes on what the server says until it is ready; true when no transaction is open then.
fn answer(server: &mut TcpStream, mut client: Option<&mut TcpStream>) -> io::Result<bool> {
    loop {
        let message = read_message(server)?;
        if let Some(client) = client.as_mut() {
            client.write_all(&message.bytes)?;
        }
        if message.kind == b'Z' {
            return Ok(message.bytes.last() == Some(&b'I'));
        }
    }
}
