//! What a child writes, read in large pieces.
//!
//! pg_dump writes 4 KiB at a time. Whoever waits for a pipe's readiness is woken by every one of these writes (Linux wakes users of epoll
//! even when the pipe is not empty), which costs both sides more processor time than compressing the bytes does. So a large pipe is not
//! waited for: when a read has emptied it, the next one comes after a short sleep, in which much has gathered. A pipe that the system
//! would not enlarge is waited for as usual.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::ChildStdout;

#[cfg(target_os = "linux")]
use super::linux::Gathered;

/// A child's standard output.
#[derive(Debug)]
pub struct Output(Kind);

#[derive(Debug)]
enum Kind {
    Awaited(ChildStdout),
    #[cfg(target_os = "linux")]
    Gathered(Gathered),
}

impl Output {
    pub(super) fn new(stdout: ChildStdout) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        if super::linux::enlarge_pipe(&stdout) {
            return Ok(Self(Kind::Gathered(Gathered::new(stdout)?)));
        }
        Ok(Self(Kind::Awaited(stdout)))
    }
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Awaited(stdout) => Pin::new(stdout).poll_read(context, buffer),
            #[cfg(target_os = "linux")]
            Kind::Gathered(pipe) => Pin::new(pipe).poll_read(context, buffer),
        }
    }
}
