//! What a script says: its beginning and its end, in bounded memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinHandle;

/// In the place of what is left out.
const GAP: &str = "\n…\n";

/// An output that is being read. Dropping it stops the reading.
#[derive(Debug)]
pub(super) struct Words {
    kept: Arc<Mutex<Kept>>,
    reading: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Kept {
    first: Vec<u8>,
    last: Vec<u8>,
    is_cut: bool,
}

impl Kept {
    fn add(&mut self, bytes: &[u8], max: usize) {
        let half = max / 2;
        let (head, tail) = bytes.split_at(bytes.len().min(half.saturating_sub(self.first.len())));
        self.first.extend_from_slice(head);
        self.last.extend_from_slice(tail);
        let excess = self.last.len().saturating_sub(half);
        self.is_cut |= excess > 0;
        self.last.drain(..excess);
    }

    fn text(&self) -> String {
        let gap = if self.is_cut { GAP } else { "" };
        let mut bytes = self.first.clone();
        bytes.extend_from_slice(gap.as_bytes());
        bytes.extend_from_slice(&self.last);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

impl Words {
    /// Keeps `max` bytes of the input.
    pub(super) fn collect(mut input: impl AsyncRead + Unpin + Send + 'static, max: usize) -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let keeping = Arc::clone(&kept);
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = input.read(&mut buffer).await {
                keeping.lock().unwrap_or_else(PoisonError::into_inner).add(&buffer[..count], max);
            }
        });
        Self { kept, reading }
    }

    /// What came until the output's end, or until `patience` is over: something that the script has left running may hold it open.
    pub(super) async fn finish(mut self, patience: Duration) -> String {
        let _ = tokio::time::timeout(patience, &mut self.reading).await;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).text()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// The first and the last part of a text, at most `max` bytes and the mark between them.
pub(super) fn cut(text: &str, max: usize) -> String {
    let mut kept = Kept::default();
    kept.add(text.as_bytes(), max);
    kept.text()
}
