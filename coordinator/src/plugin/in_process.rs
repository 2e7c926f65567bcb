//! Plugins that are served in this process, for the simulated year: the same calls over a pipe in memory.

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};

/// A pipe's end.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Serves plugins.
pub(crate) trait Host: std::fmt::Debug + Send + Sync {
    /// One for one piece of work, and the way to it.
    fn serve(&self) -> (Box<dyn Guest>, Box<dyn Io>);
}

/// A plugin that is being served. Dropping it ends it at once, as a kill ends a process.
#[async_trait]
pub(crate) trait Guest: std::fmt::Debug + Send + Sync {
    /// Tells it to end, and waits for it.
    async fn stop(&mut self);
}

pub(super) fn start(host: &dyn Host) -> (Box<dyn Guest>, Channel) {
    let (guest, io) = host.serve();
    let mut io = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_: Uri| {
        let io = io.take().ok_or_else(|| std::io::Error::other("it is connected once"));
        async move { io }
    });
    let endpoint = Endpoint::from_static("http://plugin.invalid");
    (guest, endpoint.connect_with_connector_lazy(connector))
}
