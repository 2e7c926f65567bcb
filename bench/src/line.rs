//! A proxy that makes a connection as slow as a real one: a limited rate, and a delay that does not limit the rate.
//!
//! Bytes towards the server arrive `delay` later than they were sent, in order, however many are on their way: so every request is answered
//! `delay` later, as over a line with that round trip. The rate is of the server's bytes, over all connections together.

use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Result;

const PIECE: usize = 64 << 10;
/// What can be on its way: 64 MiB a connection, far above 50 MB/s for 100 ms.
const PIECES_ON_THE_WAY: usize = 1024;

/// How slow the line is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slowness {
    /// Bytes per second from the server, over all connections.
    pub rate: Option<f64>,
    /// Later arrival of what is sent to the server.
    pub delay: Duration,
}

/// A running proxy. Dropping it closes its connections.
#[derive(Debug)]
pub struct Line {
    address: SocketAddrV4,
    runtime: Option<Runtime>,
}

impl Line {
    /// Starts one on a free port of 127.0.0.1.
    pub fn start(target: SocketAddrV4, slowness: Slowness) -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("line").enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let port = listener.local_addr()?.port();
        let pace = Arc::new(Pace { rate: slowness.rate, free: Mutex::new(None) });
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, target, slowness.delay, Arc::clone(&pace)));
            }
        });
        Ok(Self { address: SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port), runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// When the line is free for the next bytes.
#[derive(Debug)]
struct Pace {
    rate: Option<f64>,
    free: Mutex<Option<Instant>>,
}

impl Pace {
    /// Waits for the turn of so many bytes. A moment in which nothing is sent is lost, but for 20 ms: timers are not exact.
    async fn pass(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let due = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earliest = now.checked_sub(Duration::from_millis(20)).unwrap_or(now);
            let from = free.unwrap_or(now).max(earliest);
            let due = from + Duration::from_secs_f64(bytes as f64 / rate);
            *free = Some(due);
            due
        };
        tokio::time::sleep_until(due).await;
    }
}

async fn connection(client: TcpStream, target: SocketAddrV4, delay: Duration, pace: Arc<Pace>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Small exchanges must not wait for each other's acknowledgements.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let (sender, receiver) = mpsc::channel(PIECES_ON_THE_WAY);
    tokio::join!(
        send_off(client_read, delay, sender),
        arrive(receiver, server_write),
        pump(server_read, client_write, &pace)
    );
}

async fn send_off(mut from: OwnedReadHalf, delay: Duration, line: mpsc::Sender<(Instant, Vec<u8>)>) {
    loop {
        let mut piece = vec![0; PIECE];
        let Ok(count @ 1..) = from.read(&mut piece).await else { return };
        piece.truncate(count);
        if line.send((Instant::now() + delay, piece)).await.is_err() {
            return;
        }
    }
}

async fn arrive(mut line: mpsc::Receiver<(Instant, Vec<u8>)>, mut to: OwnedWriteHalf) {
    while let Some((due, piece)) = line.recv().await {
        tokio::time::sleep_until(due).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pace: &Pace) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        pace.pass(count).await;
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::Ipv4Addr;

    use super::*;

    /// A server that answers one byte after each request of `request` bytes, and then sends `flood` bytes.
    fn server(request: usize, requests: usize, flood: usize) -> SocketAddrV4 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut buffer = vec![0; request];
            for _ in 0..requests {
                stream.read_exact(&mut buffer).expect("a request");
                stream.write_all(b"x").expect("answer");
            }
            stream.write_all(&vec![0; flood]).expect("flood");
        });
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    #[test]
    fn each_request_is_answered_later_and_a_large_one_not_later_still() {
        let delay = Duration::from_millis(100);
        let line = Line::start(server(8 << 20, 3, 0), Slowness { rate: None, delay }).expect("a line");
        let mut stream = std::net::TcpStream::connect(line.address()).expect("connect");
        let started = std::time::Instant::now();
        for _ in 0..3 {
            stream.write_all(&vec![0; 8 << 20]).expect("send");
            stream.read_exact(&mut [0]).expect("an answer");
        }
        let took = started.elapsed();
        // 8 MiB are 128 pieces: a delay of each would take 38 s.
        assert!((300..5000).contains(&took.as_millis()), "{took:?}");
    }

    #[test]
    fn the_rate_is_kept() {
        let slowness = Slowness { rate: Some(20e6), delay: Duration::ZERO };
        let line = Line::start(server(1, 1, 10_000_000), slowness).expect("a line");
        let mut stream = std::net::TcpStream::connect(line.address()).expect("connect");
        stream.write_all(b"r").expect("send");
        let started = std::time::Instant::now();
        let count = stream.read_to_end(&mut Vec::new()).expect("read");
        let took = started.elapsed().as_secs_f64();
        assert_eq!(count, 10_000_001);
        assert!((0.45..2.0).contains(&took), "{took} s for 0.5 s worth of bytes");
    }
}
