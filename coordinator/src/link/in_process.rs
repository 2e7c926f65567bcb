//! A backup service that is served in this process, for the simulated year: the same calls over a pipe in memory.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::plugin::in_process::Io;

/// Answers connections.
pub(crate) trait Host: std::fmt::Debug + Send + Sync {
    /// A connection's end; `None`: nobody answers.
    fn connect(&self) -> Option<Box<dyn Io>>;
}

/// How the link gets to it.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) host: Arc<dyn Host>,
    /// Between two looks for what was done without waking the link.
    pub(crate) look_again: Duration,
}

/// Connects when the first call is made.
pub(super) fn connect(way: &Way) -> Channel {
    let mut io = way.host.connect().map(TokioIo::new);
    let connector = tower::service_fn(move |_: Uri| {
        let io = io.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        async move { io }
    });
    Endpoint::from_static("http://service.invalid").connect_with_connector_lazy(connector)
}
