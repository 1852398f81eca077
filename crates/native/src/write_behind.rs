//! Has an image go to its disk while it is still being made, so that little is left to wait for in the end.
//!
//! A thread of its own asks the kernel to begin writing, [`WINDOW`] bytes at a time, since the request may have to wait
//! for the disk. It is started by the first window: small images have none.

use std::fs::File;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use cpr_kernel::writeback;

/// So many bytes are begun at once. Far fewer become many small requests to the disk, which take longer than one fsync
/// in the end: files of 1 GiB took 0.44 s to 0.50 s with 8 MiB to 32 MiB, 0.64 s with 64 MiB, and 0.68 s without; with 1
/// MiB it was more than a second, in a series of its own.
const WINDOW: u64 = 16 << 20;

/// Windows that the thread has not come to yet; where the disk does not keep up, the others are left to the end.
const WAITING: usize = 64;

/// The part of an image that is on its way to the disk.
#[derive(Debug)]
pub struct WriteBehind(Mutex<State>);

#[derive(Debug)]
struct State {
    file: File,
    /// How far it is.
    begun: u64,
    /// None before the first window, and where there is no thread to be had.
    windows: Option<SyncSender<u64>>,
}

impl WriteBehind {
    /// Of an image that is written to this file from its beginning on.
    pub fn new(file: File) -> Self {
        WriteBehind(Mutex::new(State {
            file,
            begun: 0,
            windows: None,
        }))
    }

    /// Has what was written since the last time begun, if that is enough. Nothing comes of a failure: whoever makes the
    /// image durable is told of it.
    pub fn go_on(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(length) = state.file.metadata().map(|metadata| metadata.len()) else {
            return;
        };
        while state.begun + WINDOW <= length {
            let window = state.begun;
            state.begun += WINDOW;
            if state.windows.is_none() {
                state.windows = start(&state.file);
            }
            if let Some(windows) = &state.windows {
                // There may be too many already, or the thread has given up: then it is left to the end.
                let _ = windows.try_send(window);
            }
        }
    }
}

/// Starts the thread, which ends when nobody has windows for it any more.
fn start(file: &File) -> Option<SyncSender<u64>> {
    let file = file.try_clone().ok()?;
    let (windows, coming) = sync_channel(WAITING);
    let thread = std::thread::Builder::new().name("cpr-behind".to_owned());
    thread.spawn(move || begin_each(&file, &coming)).ok()?;
    Some(windows)
}

fn begin_each(file: &File, windows: &Receiver<u64>) {
    for window in windows {
        if writeback::begin(file, window, WINDOW).is_err() {
            return;
        }
    }
}
