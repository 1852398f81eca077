//! The one place that names the checkpoint engine: everything else here speaks of these types.

#[cfg(feature = "stub-engine")]
pub use stub::*;

#[cfg(not(feature = "stub-engine"))]
pub use cpr_image::{Image, PendingImage};
#[cfg(not(feature = "stub-engine"))]
pub use cpr_native::{
    After, Blocker, CheckpointReport, CheckpointRequest, Destination, Event, RestartRequest, Restarted, check,
    check_restart, checkpoint, restart,
};

/// Stands in for the engine where this crate is built and tested alone; it can do nothing.
#[cfg(feature = "stub-engine")]
#[allow(missing_docs)]
mod stub {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use cpr_image::model::Manifest;
    use cpr_types::{Error, ErrorKind, Result};
    use serde::{Deserialize, Serialize};

    fn none<T>() -> Result<T> {
        Err(Error::new(ErrorKind::Unsupported, "built without checkpoint engine"))
    }

    pub struct PendingImage(pub PathBuf);
    impl PendingImage {
        pub fn create(path: &Path) -> Result<Self> {
            Ok(PendingImage(path.to_path_buf()))
        }
    }

    pub struct Image(Manifest);
    impl Image {
        pub fn open(_: &Path) -> Result<Self> {
            none()
        }
        pub fn manifest(&self) -> &Manifest {
            &self.0
        }
    }

    pub enum After {
        Continue,
        Kill,
        Signal(i32),
    }
    pub struct CheckpointRequest {
        pub pid: i32,
        pub after: After,
        pub job: String,
        pub initiator_uid: u32,
        pub own_pid_namespace: bool,
        pub stop_timeout: Duration,
    }
    pub enum Destination {
        File(PendingImage),
        Stream(File),
    }
    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct CheckpointReport {
        pub image_id: String,
        pub image_bytes: u64,
        pub data_bytes: u64,
        pub freeze_ns: u64,
        pub total_ns: u64,
        pub processes: usize,
        pub threads: usize,
    }
    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub enum Event {
        Progress { phase: String, done: u64, total: u64 },
        Durable,
    }
    pub fn checkpoint(_: &CheckpointRequest, _: Destination, _: &mut dyn FnMut(Event)) -> Result<CheckpointReport> {
        none()
    }
    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct Blocker {
        pub pid: i32,
        pub object: String,
        pub reason: String,
        pub hint: Option<String>,
    }
    pub fn check(_: i32) -> Result<Vec<Blocker>> {
        none()
    }
    pub fn check_restart(_: &Image, _: bool) -> Result<Vec<Blocker>> {
        none()
    }
    pub struct RestartRequest<'a> {
        pub image: &'a Image,
        pub streams: [Option<OwnedFd>; 3],
        pub terminal: Option<OwnedFd>,
        pub own_pid_namespace: bool,
    }
    pub struct Restarted {
        pub root_pid: i32,
        pub processes: usize,
        pub total_ns: u64,
    }
    pub fn restart(_: RestartRequest<'_>) -> Result<Restarted> {
        none()
    }
}
