//! What is registered to be called, and what a callback is told and can say.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cpr_kernel::control::{self, Page};
use cpr_kernel::inside;
use cpr_types::{Context as _, Error, ErrorKind, Result};

use crate::process::{lock, own_tid, page, started};
use crate::{run, sections};

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Event {
    /// A checkpoint is about to be taken. The callback can refuse it.
    Before = 1,
    /// The program goes on after a checkpoint, or after one that came to nothing ([`Notice::failed`]).
    Continue = 2,
    /// The program goes on from an image.
    Restart = 3,
    /// Somebody says that something has happened ([`Notice::reason`]), such as a failure that the program may want to
    /// get out of the way of. It goes on as before.
    Told = 4,
}

/// What a callback is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What happens.
    pub event: Event,
    /// With [`Event::Continue`]: there is no checkpoint after all.
    pub failed: bool,
    /// How often the program was restarted.
    pub restarts: u32,
    /// Number of the checkpoint, the same before and after it; the numbers grow.
    pub checkpoint: u32,
    pub(crate) text: Arc<CStr>,
}

impl Notice {
    /// With [`Event::Told`]: what has happened; else empty.
    pub fn reason(&self) -> &str {
        self.text.to_str().unwrap_or_default()
    }
}

/// What a callback says before a checkpoint; otherwise it is not listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The checkpoint can be taken.
    Ready,
    /// Not now, but perhaps later.
    Later,
    /// It must not be taken.
    Refuse,
}

/// Where a callback runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// In a thread of the library.
    Thread,
    /// In a signal handler of the thread that registers it: it can do only what signal handlers can.
    Signal,
}

/// A registered callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallbackId(pub(crate) u32);

pub(crate) type Function = dyn Fn(&Notice) -> Verdict + Send + Sync;

/// One registration.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) id: u32,
    pub(crate) function: Arc<Function>,
    /// The thread whose signal handler it runs in.
    pub(crate) thread: Option<i32>,
}

/// All registrations, in their order.
pub(crate) type Registry = Vec<Entry>;

static REGISTRY: Mutex<Registry> = Mutex::new(Vec::new());
static NEXT: AtomicU32 = AtomicU32::new(1);

pub(crate) fn registry() -> MutexGuard<'static, Registry> {
    lock(&REGISTRY)
}

/// Registers a callback. Before a checkpoint callbacks run in the opposite order of their registration, those of
/// [`Context::Thread`] first and those of [`Context::Signal`] last; afterwards the other way round. So a program, which
/// registers after the libraries it uses, prepares before them and goes on after them. Before and after run in the
/// same thread.
///
/// # Errors
/// The library cannot be started; [`ErrorKind::Busy`] for [`Context::Signal`] when no real-time signal is free.
pub fn register(context: Context, callback: impl Fn(&Notice) -> Verdict + Send + Sync + 'static) -> Result<CallbackId> {
    let page = started()?;
    let thread = match context {
        Context::Thread => None,
        Context::Signal => {
            inside::take_signal(run::handle_signal).context(|| "take a signal for callbacks")?;
            sections::watch_thread();
            Some(own_tid())
        }
    };
    let id = NEXT.fetch_add(1, Ordering::Relaxed) & (u32::MAX >> 1);
    let mut registry = registry();
    registry.push(Entry {
        id,
        function: Arc::new(callback),
        thread,
    });
    publish(page, &registry);
    Ok(CallbackId(id))
}

/// Removes a callback. One that runs now runs to its end.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is none, or not any more.
pub fn unregister(id: CallbackId) -> Result<()> {
    let removed = {
        let mut registry = registry();
        let place = registry.iter().position(|entry| entry.id == id.0);
        let removed = place.map(|place| registry.remove(place));
        if let Some(page) = page() {
            publish(page, &registry);
        }
        removed
    };
    // What it owns is dropped with nothing locked.
    match removed {
        Some(entry) => {
            drop(entry);
            Ok(())
        }
        None => Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no callback {}", id.0),
        )),
    }
}

fn publish(page: &Page, registry: &Registry) {
    page.callbacks.store(registry.len() as u32, Ordering::Release);
}

/// Says why a callback refuses: the message of the checkpoint that fails. Can be called in signal handlers. Cut to 255
/// bytes.
pub fn explain(reason: &str) {
    explain_bytes(reason.as_bytes());
}

pub(crate) fn explain_bytes(reason: &[u8]) {
    if let Some(page) = page() {
        control::put(&page.message, reason);
    }
}

/// A thread has ended, and its signal handler with it.
pub(crate) fn thread_ended(tid: i32) {
    let mut kept = registry();
    let gone: Vec<Entry> = kept.extract_if(.., |entry| entry.thread == Some(tid)).collect();
    if let Some(page) = page() {
        publish(page, &kept);
    }
    drop(kept);
    drop(gone);
}

/// In the child of fork(2): the forking thread, `parent` in the parent, is the only one left.
pub(crate) fn after_fork(page: &Page, parent: i32) {
    let own = own_tid();
    let mut registry = registry();
    registry.retain(|entry| entry.thread.is_none_or(|tid| tid == parent));
    for entry in registry.iter_mut() {
        entry.thread = entry.thread.map(|_| own);
    }
    publish(page, &registry);
}
