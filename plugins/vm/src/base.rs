//! The point before, as far as the next backup can build on it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use vaultferry_plugin_sdk::workload::cancelled;
use vaultferry_proto::{Problem, Reason};
use vaultferry_vault::Id;
use vaultferry_vault::reader::PointReader;
use vaultferry_vault::repository::Repository;
use vaultferry_vault::writer::IMAGE_CHUNK;

use crate::MACHINE_STREAM;
use crate::machine::Machine;
use crate::provider::Tracking;

/// A description is some KiB; what is larger is none.
const MACHINE_MAX: u64 = 16 << 20;

/// An earlier point.
pub(crate) struct Base {
    /// The point.
    pub(crate) id: Id,
    /// What the provider compares with; `None`: nothing, for the reason that [`Base::untracked`] tells.
    pub(crate) tracking: Option<Tracking>,
    /// Why there is no tracking; empty when there is.
    pub(crate) untracked: String,
    /// It told of a snapshot to compare with: that it cannot be is worth a warning.
    pub(crate) was_tracked: bool,
    disks: HashMap<String, BaseDisk>,
}

/// A disk of it.
pub(crate) struct BaseDisk {
    /// Bytes of its image.
    pub(crate) size: u64,
    /// One for each [`IMAGE_CHUNK`] bytes.
    pub(crate) chunks: Arc<[Id]>,
    path: PathBuf,
}

impl Base {
    /// Reads the description and the lists of chunks of the point. Fails when the point is none of this plugin's, is damaged, or is gone:
    /// then nothing is taken over.
    pub(crate) async fn read(
        repository: &Arc<Repository>,
        id: Id,
        provider: &str,
        cancel: &CancellationToken,
    ) -> Result<Self, Problem> {
        let point = PointReader::open(repository.clone(), id, cancel).await?;
        let machine = read_machine(&point, cancel).await?;
        let mut disks = HashMap::new();
        for disk in &machine.disks {
            let chunks: Arc<[Id]> = point.chunk_ids(&disk.stream)?.into();
            if chunks.len() as u64 != disk.size.div_ceil(IMAGE_CHUNK as u64) {
                let message = format!("the stream {} has not one chunk for each MiB", disk.stream);
                return Err(Problem::new(Reason::RepositoryDamaged, message));
            }
            disks.insert(disk.name.clone(), BaseDisk { size: disk.size, chunks, path: disk.path.clone() });
        }
        let was_tracked = machine.tracking.is_some();
        let (tracking, untracked) = match machine.tracking {
            None => (None, format!("snapshots by {} are not compared with each other", machine.capture.provider)),
            Some(tracking) => match serde_json::from_value::<Tracking>(tracking) {
                Ok(tracking) if tracking.provider == provider => (Some(tracking), String::new()),
                Ok(tracking) => {
                    (None, format!("the snapshot before was taken by {}, this one by {provider}", tracking.provider))
                }
                Err(error) => (None, format!("what the point before tells of its snapshot cannot be read: {error}")),
            },
        };
        Ok(Self { id, tracking, untracked, was_tracked, disks })
    }

    /// What it has of the disk, if it had it in the same place.
    pub(crate) fn disk(&self, name: &str, path: &Path) -> Option<&BaseDisk> {
        self.disks.get(name).filter(|disk| disk.path == path)
    }
}

/// The description in a point.
pub(crate) async fn read_machine(point: &PointReader, cancel: &CancellationToken) -> Result<Machine, Problem> {
    let size = point.streams().iter().find(|stream| stream.name == MACHINE_STREAM).map(|stream| stream.size);
    match size {
        None => {
            return Err(Problem::new(Reason::RepositoryDamaged, format!("the point has no {MACHINE_STREAM}")));
        }
        Some(size) if size > MACHINE_MAX => {
            return Err(Problem::new(Reason::RepositoryDamaged, format!("{MACHINE_STREAM} is too large")));
        }
        Some(_) => {}
    }
    let mut json = Vec::new();
    let mut chunks = point.chunks(MACHINE_STREAM, cancel)?;
    while let Some(chunk) = chunks.next().await {
        json.extend_from_slice(&chunk?);
    }
    if cancel.is_cancelled() {
        return Err(cancelled());
    }
    Machine::from_json(&json)
}
