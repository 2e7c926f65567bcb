//! What a child writes, read by a thread of its own.
//!
//! pg_dump writes 4 KiB at a time. A user of epoll is woken by every one of these writes (Linux does that even when the pipe is not empty),
//! which costs both sides more processor time than compressing the bytes does. A thread that waits in `read` is woken only when the pipe
//! was empty. How it goes on depends on what the bytes turn out to be ([`Pace`]):
//!
//! - *New to the vault*: compressing them keeps the processors busy, and the child should be disturbed as little as possible. The pipe is
//!   as large as it may be, and is left alone for [`GATHER`] after it was read empty, in which much gathers.
//! - *Known*: the child and its source are what everybody waits for. They go fastest in lockstep with a reader of the usual kind, like `cat`: a
//!   child that nobody holds up runs ahead of its server, goes to sleep at each of its messages, and the server pays for waking it.
//!
//! With a limit ([`Limited`]) the thread waits before it reads: what the child has ready stays in the pipe, which fills up and holds the child
//! up, and so its server. Without one nothing is done for it: the loop is compiled twice.
//!
//! Invariants:
//! - At most [`PIECES`] + 2 pieces of [`PIECE`] bytes are in memory; a slow consumer stops the thread, and so the child.
//! - The thread ends at the child's end of output, at an error, or when it finds that the [`Output`] was dropped: at the next piece. A
//!   child that says nothing more is stopped by its owner, which closes the pipe.
//! - A thread that waits for a limit's sake looks again after [`SHORT`] at the latest, if the limit is 80 KiB/s or more.

use std::io::{self, PipeReader};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use vaultferry_vault::meter::Meter;
use vaultferry_vault::writer::Throttle;

/// What the thread hands over at once, in bytes: stays in a processor's cache on its way.
const PIECE: usize = 128 << 10;
/// Pieces that wait for the consumer.
const PIECES: usize = 8;
/// In it a source of 700 MB/s fills the large pipe.
const GATHER: Duration = Duration::from_micros(1500);
/// A piece is handed over before it is full when it was begun so long ago. Of a child that falls silent, less than a piece waits for its
/// next bytes or its end.
const PATIENCE: Duration = Duration::from_millis(2);
/// How much is read between two looks at how much of it was new, in bytes.
const REVIEW: u64 = 16 << 20;
/// The usual size of a pipe, which is large enough for a reader that waits.
#[cfg(target_os = "linux")]
const USUAL_PIPE: usize = 64 << 10;

/// With a limit, so much is read at once as it gives in this time: short enough to be no burst for anybody, long beside a timer's faults.
const SHORT: Duration = Duration::from_millis(50);
/// What is read at once, at least, in bytes: what pg_dump writes at once.
const LEAST: u64 = 4 << 10;

/// A child's standard output.
#[derive(Debug)]
pub struct Output {
    pieces: mpsc::Receiver<io::Result<Piece>>,
    /// The piece that is being passed on, and how much of it was.
    current: Option<(Piece, usize)>,
    /// Buffers go back to the thread.
    spent: std::sync::mpsc::Sender<Box<[u8]>>,
    meter: Arc<OnceLock<Arc<Meter>>>,
}

#[derive(Debug)]
struct Piece {
    buffer: Box<[u8]>,
    filled: usize,
}

impl Output {
    /// Starts the thread, which reads `limit` bytes in a second at most, on average. Errors: the machine is out of threads.
    pub(super) fn new(pipe: PipeReader, limit: Option<u64>) -> io::Result<Self> {
        let (sender, pieces) = mpsc::channel(PIECES);
        let (spent, free) = std::sync::mpsc::channel();
        let meter = Arc::new(OnceLock::new());
        let pace = Pace::new(&pipe, meter.clone());
        let thread = std::thread::Builder::new().name("child-output".into());
        match limit {
            None => thread.spawn(move || read(pipe, pace, &sender, &free))?,
            Some(bytes_per_s) => thread.spawn(move || read(Limited::new(pipe, bytes_per_s), pace, &sender, &free))?,
        };
        Ok(Self { pieces, current: None, spent, meter })
    }

    /// Names the meter that counts what is read here and how much of it is new to the vault: how it is read follows that. The first one
    /// stays; without one everything counts as new.
    pub fn follow(&self, meter: &Arc<Meter>) {
        self.meter.get_or_init(|| meter.clone());
    }
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (piece, passed) = match self.current.take() {
            Some(current) => current,
            None => match ready!(self.pieces.poll_recv(context)) {
                Some(piece) => (piece?, 0),
                None => return Poll::Ready(Ok(())),
            },
        };
        let rest = &piece.buffer[passed..piece.filled];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        if passed + count < piece.filled {
            self.current = Some((piece, passed + count));
        } else {
            // Nobody takes it back any more: then it is freed.
            let _ = self.spent.send(piece.buffer);
        }
        Poll::Ready(Ok(()))
    }
}

/// What the thread reads from.
trait Input: io::Read {
    /// The pipe itself, for its size.
    fn pipe(&self) -> &PipeReader;
}

impl Input for PipeReader {
    fn pipe(&self) -> &PipeReader {
        self
    }
}

/// A pipe that is read at a mean rate.
struct Limited {
    pipe: PipeReader,
    throttle: Throttle,
    /// What one read may take, in bytes.
    at_once: usize,
}

impl Limited {
    fn new(pipe: PipeReader, bytes_per_s: u64) -> Self {
        let share = u128::from(bytes_per_s) * SHORT.as_millis() / 1000;
        let at_once = usize::try_from(share.max(u128::from(LEAST))).unwrap_or(PIECE).min(PIECE);
        Self { pipe, throttle: Throttle::new(bytes_per_s), at_once }
    }
}

impl io::Read for Limited {
    /// Waits before it reads, until what was read before is paid for.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let turn = self.throttle.turn(0);
        std::thread::sleep(turn.saturating_duration_since(tokio::time::Instant::now()));
        let room = buffer.len().min(self.at_once);
        let count = self.pipe.read(&mut buffer[..room])?;
        self.throttle.turn(count as u64);
        Ok(count)
    }
}

impl Input for Limited {
    fn pipe(&self) -> &PipeReader {
        &self.pipe
    }
}

/// The thread.
fn read(
    mut input: impl Input,
    mut pace: Pace,
    pieces: &mpsc::Sender<io::Result<Piece>>,
    free: &std::sync::mpsc::Receiver<Box<[u8]>>,
) {
    loop {
        let mut buffer = free.try_recv().unwrap_or_else(|_| vec![0; PIECE].into_boxed_slice());
        let (mut filled, begin) = (0, Instant::now());
        let (mut ended, mut emptied) = (false, false);
        while filled < PIECE && !ended && !emptied {
            match input.read(&mut buffer[filled..]) {
                Ok(0) => ended = true,
                Ok(count) => {
                    filled += count;
                    let empty = filled < PIECE;
                    emptied = empty && (pace.gathers || begin.elapsed() >= PATIENCE);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = pieces.blocking_send(Err(error));
                    return;
                }
            }
        }
        if filled > 0 && pieces.blocking_send(Ok(Piece { buffer, filled })).is_err() {
            return;
        }
        if ended {
            return;
        }
        pace.review(input.pipe());
        if emptied && pace.gathers {
            std::thread::sleep(GATHER);
        }
    }
}

/// How the pipe is read: see the module.
#[derive(Debug)]
struct Pace {
    meter: Arc<OnceLock<Arc<Meter>>>,
    /// The meter's counts at the last look.
    read: u64,
    new: u64,
    /// After the pipe was read empty, it is left alone for a while.
    gathers: bool,
}

impl Pace {
    fn new(pipe: &PipeReader, meter: Arc<OnceLock<Arc<Meter>>>) -> Self {
        Self { meter, read: 0, new: 0, gathers: size(pipe, true) }
    }

    /// After each [`REVIEW`]: is what comes mostly (three quarters of it) known?
    fn review(&mut self, pipe: &PipeReader) {
        let Some(meter) = self.meter.get() else { return };
        let read = meter.read();
        let length = read.saturating_sub(self.read);
        if length < REVIEW {
            return;
        }
        let new = meter.new_bytes();
        let known = new.saturating_sub(self.new) <= length / 4;
        (self.read, self.new) = (read, new);
        if known == self.gathers {
            self.gathers = size(pipe, !known);
        }
    }
}

/// Makes the pipe as large as gathering needs, or as small as it usually is; says whether it is large. A pipe that holds too much to be made
/// smaller stays large, which does no harm.
#[cfg(target_os = "linux")]
fn size(pipe: &PipeReader, large: bool) -> bool {
    use super::linux::{LARGEST_PIPE, size_pipe};
    if !large {
        size_pipe(pipe, USUAL_PIPE);
    }
    large && size_pipe(pipe, LARGEST_PIPE)
}

/// Pipes of other systems keep their size, and are waited for.
#[cfg(not(target_os = "linux"))]
fn size(_pipe: &PipeReader, _large: bool) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_pace_follows_what_is_new() {
        let (pipe, _writer) = io::pipe().unwrap();
        let meter = Arc::new(Meter::default());
        let named = Arc::new(OnceLock::new());
        let mut pace = Pace::new(&pipe, named.clone());
        let mut gathers = || {
            pace.review(&pipe);
            pace.gathers
        };
        meter.add_read(REVIEW);
        assert!(gathers(), "without a meter everything is new");
        named.set(meter.clone()).unwrap();
        assert!(!gathers(), "all of it was known");
        meter.add_read(REVIEW - 1);
        meter.add_new(REVIEW - 1);
        assert!(!gathers(), "too early to judge");
        meter.add_read(1);
        assert!(gathers(), "nearly all of it was new");
        meter.add_read(REVIEW);
        meter.add_new(REVIEW / 4);
        assert!(!gathers(), "three quarters were known");
    }

    #[test]
    fn what_is_read_is_paid_for_before_the_next_read() {
        const RATE: u64 = 4 << 20;
        const BYTES: usize = 2 << 20;
        let (pipe, mut writer) = io::pipe().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&vec![7; BYTES]).unwrap());
        let begin = Instant::now();
        let mut limited = Limited::new(pipe, RATE);
        let mut buffer = vec![0; 2 * PIECE];
        let mut paid = 0;
        while let count @ 1.. = io::Read::read(&mut limited, &mut buffer).unwrap() {
            assert!(count <= PIECE, "{count} bytes at once");
            let earliest = Duration::from_secs_f64(paid as f64 / RATE as f64);
            assert!(begin.elapsed() >= earliest, "{paid} bytes after {:?}", begin.elapsed());
            paid += count;
        }
        writing.join().unwrap();
        assert_eq!(paid, BYTES);
    }

    #[test]
    fn a_slow_limit_takes_little_at_once() {
        for (bytes_per_s, at_once) in [(1, 4096), (80 << 10, 4096), (1 << 20, 52_428), (u64::MAX, PIECE)] {
            let (pipe, _writer) = io::pipe().unwrap();
            assert_eq!(Limited::new(pipe, bytes_per_s).at_once, at_once, "{bytes_per_s}");
        }
    }

    #[tokio::test]
    async fn a_dropped_output_closes_the_pipe() {
        let (pipe, mut writer) = io::pipe().unwrap();
        drop(Output::new(pipe, None).unwrap());
        let written = tokio::task::spawn_blocking(move || (0..1000).try_for_each(|_| writer.write_all(&[0; PIECE])));
        assert_eq!(written.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
