//! A TCP proxy whose faults are switched while it runs.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

/// Enough for the speed of a local connection.
const RECEIVE_BUFFER: u32 = 256 << 10;

/// What the proxy does to connections. A change is felt by open connections, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// New connections are reset at once, open ones with their next bytes.
    Refuse,
    /// Each connection is reset after this many bytes from the client.
    ResetAfter(u64),
    /// Bytes are taken and go nowhere; nothing comes back, nothing is closed.
    BlackHole,
    /// The server's bytes stop after this many in all (over all connections since the proxy's start), until the fault changes.
    HoldAfter(u64),
    /// Bytes per second, of each direction of each connection.
    Rate(u64),
    /// Each piece of data waits for so long.
    Delay(Duration),
    /// Every HTTP request is answered with this status, and its connection is closed.
    Http(u16),
}

#[derive(Debug)]
struct Shared {
    target: u16,
    fault: Mutex<Fault>,
    from_client: AtomicU64,
    from_server: AtomicU64,
    accepted: AtomicU64,
}

impl Shared {
    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running proxy before a port of 127.0.0.1. Dropping it closes all of its connections.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl FaultProxy {
    /// Starts one without a fault.
    #[track_caller]
    pub fn start(target: u16) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime =
            builder.worker_threads(1).thread_name("fault-proxy").enable_all().build().expect("start a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("listen on a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared {
            target,
            fault: Mutex::new(Fault::None),
            from_client: AtomicU64::new(0),
            from_server: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, runtime: Some(runtime) }
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the fault from now on.
    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Bytes taken from clients so far.
    pub fn bytes_from_client(&self) -> u64 {
        self.shared.from_client.load(Ordering::Relaxed)
    }

    /// Bytes taken from the server so far.
    pub fn bytes_from_server(&self) -> u64 {
        self.shared.from_server.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(connection(client, Arc::clone(&shared)));
    }
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>) {
    match shared.fault() {
        Fault::Refuse => return reset(&client),
        Fault::Http(status) => return answer(client, status).await,
        _ => {}
    }
    let Ok(mut server) = connect(shared.target).await else { return reset(&client) };
    // Small exchanges must not wait for each other's acknowledgements.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let up = pump(client_read, server_write, &shared, Direction::FromClient);
        let down = pump(server_read, client_write, &shared, Direction::FromServer);
        tokio::try_join!(up, down)
    };
    if ended.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// A connection to the server that has little room for what the proxy does not take. Left to itself the kernel gives it up to 32 MiB, so
/// that a server whose bytes are held back would have sent all of them all the same.
async fn connect(port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromClient,
    FromServer,
}

/// The connection must be reset now.
struct Broken;

/// Copies one direction until its end.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
    direction: Direction,
) -> Result<(), Broken> {
    let mut buffer = vec![0; 64 * 1024];
    let mut taken = 0;
    loop {
        let count = from.read(&mut buffer).await.map_err(|_| Broken)?;
        if count == 0 {
            return to.shutdown().await.map_err(|_| Broken);
        }
        taken += count as u64;
        let total = match direction {
            Direction::FromClient => &shared.from_client,
            Direction::FromServer => &shared.from_server,
        };
        let total = total.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        if !pass(shared, direction, taken, total, count).await? {
            continue;
        }
        to.write_all(&buffer[..count]).await.map_err(|_| Broken)?;
    }
}

/// Applies the fault to one piece of data: waits, breaks, or says whether the piece goes on.
async fn pass(shared: &Shared, direction: Direction, taken: u64, total: u64, count: usize) -> Result<bool, Broken> {
    let from_client = direction == Direction::FromClient;
    loop {
        match shared.fault() {
            Fault::None => return Ok(true),
            Fault::Refuse | Fault::Http(_) => return Err(Broken),
            Fault::ResetAfter(limit) if from_client && taken > limit => return Err(Broken),
            Fault::ResetAfter(_) => return Ok(true),
            Fault::BlackHole => return Ok(false),
            Fault::HoldAfter(limit) if !from_client && total > limit => {
                tokio::time::sleep(Duration::from_millis(10)).await
            }
            Fault::HoldAfter(_) => return Ok(true),
            Fault::Delay(time) => {
                tokio::time::sleep(time).await;
                return Ok(true);
            }
            Fault::Rate(rate) => {
                tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate as f64)).await;
                return Ok(true);
            }
        }
    }
}

fn reset(stream: &TcpStream) {
    // With no time to linger, closing sends RST.
    let _ = stream.set_zero_linger();
}

/// Reads what the client has to say for a moment, then answers.
async fn answer(mut client: TcpStream, status: u16) {
    let mut buffer = vec![0; 64 * 1024];
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match client.read(&mut buffer).await {
            Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    let response = format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    if client.write_all(response.as_bytes()).await.is_err() || client.shutdown().await.is_err() {
        return;
    }
    // Closing with unread bytes would reset the connection and take the answer with it.
    let drain = async { while matches!(client.read(&mut buffer).await, Ok(count) if count > 0) {} };
    let _ = tokio::time::timeout(Duration::from_secs(5), drain).await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                std::thread::spawn(move || std::io::copy(&mut stream.try_clone().expect("clone"), &mut stream).is_ok());
            }
        });
        port
    }

    fn connect(proxy: &FaultProxy) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(("127.0.0.1", proxy.port())).expect("connect");
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("set a limit");
        stream
    }

    fn talk(stream: &mut std::net::TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(text)?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back)?;
        Ok(back)
    }

    #[test]
    fn faults_do_what_they_say() {
        let proxy = FaultProxy::start(echo());
        let mut stream = connect(&proxy);
        assert_eq!(talk(&mut stream, b"hello").expect("no fault"), b"hello");
        proxy.set(Fault::HoldAfter(5));
        assert!(talk(&mut stream, b"held").is_err());
        proxy.set(Fault::None);
        let mut held = [0; 4];
        stream.read_exact(&mut held).expect("what was held comes");
        assert_eq!(&held, b"held");
        proxy.set(Fault::ResetAfter(12));
        assert_eq!(talk(&mut stream, b"one").expect("below the limit"), b"one");
        let error = talk(&mut stream, b"more").expect_err("above the limit");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        proxy.set(Fault::BlackHole);
        let error = talk(&mut connect(&proxy), b"gone").expect_err("nothing comes back");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        proxy.set(Fault::Refuse);
        assert!(talk(&mut connect(&proxy), b"no").is_err());
        proxy.set(Fault::Http(503));
        let mut stream = connect(&proxy);
        stream.write_all(b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert_eq!(proxy.connections(), 4);
    }
}
