//! Locks between test processes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a lock may be others'. Generous: machines are slow and shared.
const PATIENCE: Duration = Duration::from_secs(180);

/// A lock between test processes, held until dropped or until this process ends.
pub struct Lock(Child);

impl Lock {
    /// Waits for the lock on `path`.
    pub fn take(path: &Path) -> Lock {
        // The holder lives as long as its standard input: std has no file locks in the oldest Rust we support.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let marker = path.with_extension(format!("held-{}-{number}", std::process::id()));
        let mut command = Command::new("flock");
        command.arg(path).args(["sh", "-c", r#": >"$1" && exec cat"#, "sh"]);
        command.arg(&marker).stdin(Stdio::piped()).stdout(Stdio::null());
        let holder = Lock(command.spawn().expect("flock of util-linux can be run"));
        let deadline = Instant::now() + PATIENCE;
        while !marker.exists() {
            assert!(Instant::now() < deadline, "not in time: a lock between tests is free");
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = std::fs::remove_file(&marker);
        holder
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
