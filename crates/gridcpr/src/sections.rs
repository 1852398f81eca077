//! Critical sections: nobody is in one when a checkpoint is taken (LBNL-3.6.7.4, LBNL-3.6.7.5).
//!
//! Entering and leaving is one atomic operation on a word of the control page. While it has the bit that says that a
//! checkpoint is to be taken, threads wait before they enter; those inside may enter further ones, and end them.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use cpr_kernel::control::{CLOSED, Page};
use cpr_types::{Error, ErrorKind, Result};
use rustix::thread::futex;

use crate::callbacks;
use crate::process::{own_tid, page, started};

/// What a thread has to do with checkpoints.
pub(crate) struct Presence {
    /// Sections it is in.
    depth: Cell<u32>,
    /// It is counted in the page.
    counted: Cell<bool>,
    /// It runs a callback.
    in_callback: Cell<bool>,
}

impl Drop for Presence {
    /// The thread ends, perhaps without having left.
    fn drop(&mut self) {
        if self.counted.get() {
            self.counted.set(false);
            uncount();
        }
        callbacks::thread_ended(own_tid());
    }
}

thread_local! {
    static PRESENCE: Presence = const {
        Presence { depth: Cell::new(0), counted: Cell::new(false), in_callback: Cell::new(false) }
    };
}

/// Makes sure that the end of this thread is noticed.
pub(crate) fn watch_thread() {
    PRESENCE.with(|_| {});
}

/// Runs a callback: critical sections in it do not wait for the checkpoint that it is part of.
pub(crate) fn in_callback<T>(work: impl FnOnce() -> T) -> T {
    PRESENCE.with(|presence| {
        let before = presence.in_callback.replace(true);
        let result = work();
        presence.in_callback.set(before);
        result
    })
}

/// Whether the calling thread is in a critical section or a callback, and so in the way of a checkpoint of itself.
pub(crate) fn is_busy() -> bool {
    PRESENCE.with(|presence| presence.depth.get() > 0 || presence.in_callback.get())
}

/// A critical section of the calling thread, left when dropped.
#[derive(Debug)]
pub struct Section {
    /// Belongs to its thread.
    thread: PhantomData<*const ()>,
}

/// Enters a critical section. Waits while a checkpoint is being taken; sections within sections do not.
///
/// # Errors
/// The library cannot be started.
pub fn enter() -> Result<Section> {
    block()?;
    Ok(Section { thread: PhantomData })
}

impl Drop for Section {
    fn drop(&mut self) {
        // It was entered, so it can be left.
        let _ = unblock();
    }
}

/// Enters a critical section that [`unblock`] leaves.
pub(crate) fn block() -> Result<()> {
    let page = started()?;
    PRESENCE.with(|presence| {
        let depth = presence.depth.get();
        if depth == u32::MAX {
            return Err(Error::new(
                ErrorKind::Usage,
                "too many critical sections within each other",
            ));
        }
        if depth == 0 && !presence.in_callback.get() {
            count(page);
            presence.counted.set(true);
        }
        presence.depth.set(depth + 1);
        Ok(())
    })
}

/// Leaves the innermost critical section of the calling thread.
///
/// # Errors
/// [`ErrorKind::Usage`] when it is in none.
pub(crate) fn unblock() -> Result<()> {
    PRESENCE.with(|presence| {
        let depth = presence.depth.get();
        if depth == 0 {
            return Err(Error::new(ErrorKind::Usage, "this thread is in no critical section"));
        }
        presence.depth.set(depth - 1);
        if depth == 1 && presence.counted.replace(false) {
            uncount();
        }
        Ok(())
    })
}

fn count(page: &Page) {
    let word = &page.sections;
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        if seen & CLOSED != 0 {
            // Whatever ends the wait, the word is looked at again.
            let _ = futex::wait(word, futex::Flags::PRIVATE, seen, None);
            seen = word.load(Ordering::Relaxed);
            continue;
        }
        match word.compare_exchange_weak(seen, seen + 1, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

fn uncount() {
    let Some(page) = page() else { return };
    if page.sections.fetch_sub(1, Ordering::SeqCst) == CLOSED + 1 {
        wake(page);
    }
}

fn wake(page: &Page) {
    let _ = futex::wake(&page.sections, futex::Flags::PRIVATE, i32::MAX as u32);
}

/// Lets nobody enter any more.
pub(crate) fn close(page: &Page) {
    page.sections.fetch_or(CLOSED, Ordering::SeqCst);
}

/// Lets threads enter again.
pub(crate) fn open(page: &Page) {
    page.sections.fetch_and(!CLOSED, Ordering::SeqCst);
    wake(page);
}

/// In the child of fork(2): only the forking thread is left.
pub(crate) fn after_fork(page: &Page) {
    let counted = PRESENCE.with(|presence| presence.counted.get());
    page.sections.store(u32::from(counted), Ordering::SeqCst);
}
