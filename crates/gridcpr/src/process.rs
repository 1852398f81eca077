//! The library in its process: started once, and again in every child that fork(2) makes.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cpr_kernel::control::{self, Page, Request, Status, Verb};
use cpr_kernel::inside;
use cpr_kernel::spawn::{self, SignalMask};
use cpr_types::{Context as _, Result};

use crate::callbacks::{self, Registry};
use crate::run::Work;
use crate::{sections, supervisor};

static PAGE: OnceLock<&'static Page> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());
/// Room for the waiting thread, which calls little.
const STACK: usize = 128 << 10;
/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: a thread causes these itself.
const SYNCHRONOUS: [i32; 6] = [4, 5, 7, 8, 11, 31];

/// A lock, whether or not a thread has panicked with it: the data are whole after every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread's number.
pub(crate) fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// The control page, if the library has been started.
pub(crate) fn page() -> Option<&'static Page> {
    PAGE.get().copied()
}

/// Starts the library, if it has not been. Every other function does so too; a program that calls none before its
/// first checkpoint cannot be told of a restart.
///
/// # Errors
/// There is no memory, or no thread to be had.
pub fn start() -> Result<()> {
    started().map(drop)
}

/// The control page of the library, started where it has not been.
pub(crate) fn started() -> Result<&'static Page> {
    if let Some(page) = PAGE.get() {
        return Ok(page);
    }
    let _starting = lock(&STARTING);
    if let Some(page) = PAGE.get() {
        return Ok(page);
    }
    let page = control::map().context(|| "map the control page")?;
    page.version.store(control::VERSION, Ordering::Relaxed);
    begin(page).context(|| "start the thread that waits for checkpoints")?;
    inside::on_fork(before_fork, after_fork, after_fork_in_child).context(|| "watch for fork")?;
    let _ = PAGE.set(page);
    Ok(page)
}

/// Starts the waiting thread, and makes the page valid.
fn begin(page: &'static Page) -> std::io::Result<()> {
    // Signals of the program are for its own threads.
    let all: Vec<i32> = (1..=64).filter(|signal| !SYNCHRONOUS.contains(signal)).collect();
    let mask = spawn::signal_mask()?;
    spawn::set_signal_mask(&SignalMask::of(&all))?;
    let thread = std::thread::Builder::new()
        .name("gridcpr".to_owned())
        .stack_size(STACK)
        .spawn(move || supervisor::serve(page));
    spawn::set_signal_mask(&mask)?;
    thread.map(drop)
}

/// What is locked while the process is copied, so that the copy is whole.
struct Held {
    _starting: MutexGuard<'static, ()>,
    _registry: MutexGuard<'static, Registry>,
    _work: MutexGuard<'static, Option<std::sync::Arc<Work>>>,
    tid: i32,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

extern "C" fn before_fork() {
    let held = Held {
        _starting: lock(&STARTING),
        _registry: callbacks::registry(),
        _work: crate::run::work(),
        tid: own_tid(),
    };
    HELD.with(|slot| slot.replace(Some(held)));
}

extern "C" fn after_fork() {
    HELD.with(RefCell::take);
}

/// The child has the callbacks of its parent, but none of its other threads.
extern "C" fn after_fork_in_child() {
    let Some(held) = HELD.with(RefCell::take) else { return };
    let parent = held.tid;
    drop(held);
    let Some(page) = page() else { return };
    page.magic.store(0, Ordering::Release);
    let sequence = Request::of(page.request.load(Ordering::Relaxed)).map_or(0, |r| r.sequence);
    let verb = Verb::None;
    page.request.store(Request { sequence, verb }.word(), Ordering::Relaxed);
    page.answer
        .store(control::answer(sequence, Status::Idle), Ordering::Relaxed);
    page.lease_ns.store(0, Ordering::Relaxed);
    sections::after_fork(page);
    callbacks::after_fork(page, parent);
    crate::run::after_fork();
    // Without a thread the page stays invalid: the child's checkpoints are taken without its callbacks.
    let _ = begin(page);
}
