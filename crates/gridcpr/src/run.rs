//! One round of callbacks around one checkpoint, in a thread of its own.
//!
//! The thread that runs the callbacks before a checkpoint stays, asleep, until it runs those after it: a lock taken in
//! the first is released by the same thread. A callback that does not return keeps that thread, and nothing else.

use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use cpr_kernel::control::{self, Page, Verb};
use cpr_kernel::inside;
use cpr_kernel::process::clock_ns;
use rustix::event::Timespec;
use rustix::thread::futex;
use rustix::time::ClockId;

use crate::callbacks::{self, Entry, Event, Notice, Verdict, explain};
use crate::process::lock;
use crate::sections;

/// Room for callbacks of the program, as the C library gives to threads.
const STACK: usize = 8 << 20;
/// A signal that found its handler unable to look at the work is sent again after this time.
const AGAIN: Duration = Duration::from_millis(100);

/// Callbacks run.
pub(crate) const WORKING: u32 = 0;
/// All have said that they are ready.
pub(crate) const READY: u32 = 1;
/// One has refused.
pub(crate) const REFUSED: u32 = 2;
/// One has asked to come again later.
pub(crate) const LATER: u32 = 3;
/// One in a signal handler has not returned in time.
pub(crate) const LATE: u32 = 4;
/// All callbacks after the checkpoint have run.
pub(crate) const OVER: u32 = 5;

pub(crate) fn now_ns() -> u64 {
    clock_ns(ClockId::Monotonic)
}

/// Waits until `word` is no longer `value`, or the time has passed.
pub(crate) fn wait_while(word: &AtomicU32, value: u32, most: Option<Duration>) {
    let timeout = most.map(|most| Timespec {
        tv_sec: most.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: most.subsec_nanos().into(),
    });
    // Whatever ends the wait, who waits looks again.
    let _ = futex::wait(word, futex::Flags::PRIVATE, value, timeout.as_ref());
}

fn set(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    let _ = futex::wake(word, futex::Flags::PRIVATE, i32::MAX as u32);
}

/// A round of callbacks.
pub(crate) struct Run {
    /// How far it has come: [`WORKING`] to [`OVER`]. A futex.
    pub(crate) progress: AtomicU32,
    /// What happens after the checkpoint: a [`Verb`], zero as long as that is not known. A futex.
    stage: AtomicU32,
    done: Mutex<Done>,
    page: &'static Page,
    checkpoint: u32,
    /// What [`Verb::Tell`] tells.
    text: Arc<CStr>,
    deadline_ns: u64,
    limit_ns: u64,
    /// The thread has ended.
    ended: AtomicBool,
}

#[derive(Default)]
struct Done {
    /// Those that were ready, in the order in which they ran.
    ready: Vec<Entry>,
    /// Nobody waits for the rest.
    abandoned: bool,
}

impl Run {
    /// Starts the callbacks before a checkpoint, or those after a restart of a program whose page had none under way.
    pub(crate) fn start(page: &'static Page, checkpoint: u32, first: Verb) -> std::io::Result<Arc<Run>> {
        let limit_ns = page.limit_ns.load(Ordering::Relaxed);
        let run = Arc::new(Run {
            progress: AtomicU32::new(WORKING),
            stage: AtomicU32::new(0),
            done: Mutex::default(),
            page,
            checkpoint,
            text: text_of(page, first),
            deadline_ns: now_ns().saturating_add(limit_ns),
            limit_ns,
            ended: AtomicBool::new(false),
        });
        let mut entries = callbacks::registry().clone();
        // Those of threads first, and the newest first; a stable sort keeps the rest of the order.
        entries.reverse();
        entries.sort_by_key(|entry| entry.thread.is_some());
        let same = Arc::clone(&run);
        thread(move || {
            if first == Verb::Prepare {
                same.whole(entries);
            } else {
                lock(&same.done).ready = entries;
                same.after(first);
            }
            same.ended.store(true, Ordering::Release);
        })?;
        Ok(run)
    }

    /// The time of the callbacks before the checkpoint is over.
    pub(crate) fn is_late(&self) -> bool {
        now_ns() > self.deadline_ns
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn notice(&self, event: Event, failed: bool) -> Notice {
        Notice {
            event,
            failed,
            restarts: self.page.restarts.load(Ordering::Relaxed),
            checkpoint: self.checkpoint,
            text: Arc::clone(&self.text),
        }
    }

    fn whole(&self, entries: Vec<Entry>) {
        let mut outcome = READY;
        for entry in entries {
            let said = call(&entry, &self.notice(Event::Before, false), self.deadline_ns);
            let mut done = lock(&self.done);
            match (said, done.abandoned) {
                (Said::Ready, false) => done.ready.push(entry),
                (Said::Ready, true) => {
                    drop(done);
                    // Those before it have been told.
                    call(&entry, &self.notice(Event::Continue, true), u64::MAX);
                    return;
                }
                (_, true) => return,
                (Said::Refuse, _) => outcome = REFUSED,
                (Said::Later, _) => outcome = LATER,
                (Said::Nothing, _) => outcome = LATE,
            }
            if outcome != READY {
                break;
            }
        }
        if outcome != READY {
            self.tell(Event::Continue, true);
            set(&self.progress, outcome);
            return;
        }
        set(&self.progress, READY);
        let verb = loop {
            match self.stage.load(Ordering::Acquire) {
                0 => wait_while(&self.stage, 0, None),
                verb => break verb,
            }
        };
        let verb = [Verb::Continue, Verb::Restart].into_iter().find(|v| *v as u32 == verb);
        self.after(verb.unwrap_or(Verb::Fail));
    }

    fn after(&self, verb: Verb) {
        match verb {
            Verb::Continue => self.tell(Event::Continue, false),
            Verb::Restart => self.tell(Event::Restart, false),
            Verb::Tell => self.tell(Event::Told, false),
            _ => self.tell(Event::Continue, true),
        }
        set(&self.progress, OVER);
    }

    /// Tells those that were ready, the last of them first.
    fn tell(&self, event: Event, failed: bool) {
        let ready = std::mem::take(&mut lock(&self.done).ready);
        tell(ready, &self.notice(event, failed), self.limit_ns);
    }

    /// The checkpoint is taken, or comes to nothing: the rest may run.
    pub(crate) fn go_on(&self, verb: Verb) {
        set(&self.stage, verb as u32);
    }

    /// Gives up on a callback that does not return: those before it are told now, in another thread, and it when it
    /// does return.
    pub(crate) fn abandon(&self) {
        let ready = {
            let mut done = lock(&self.done);
            done.abandoned = true;
            std::mem::take(&mut done.ready)
        };
        let notice = self.notice(Event::Continue, true);
        let limit_ns = self.limit_ns;
        // Without a thread there is nothing more that could be done for them.
        let _ = thread(move || tell(ready, &notice, limit_ns));
    }
}

/// What the page says, if it is to be told.
fn text_of(page: &Page, verb: Verb) -> Arc<CStr> {
    let said = match verb {
        Verb::Tell => control::get(&page.notice),
        _ => Vec::new(),
    };
    // It ends before its first zero.
    CString::new(said).unwrap_or_default().into()
}

fn thread(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("gridcpr-call".to_owned())
        .stack_size(STACK)
        .spawn(work)
        .map(drop)
}

fn tell(ready: Vec<Entry>, notice: &Notice, limit_ns: u64) {
    for entry in ready.iter().rev() {
        call(entry, notice, now_ns().saturating_add(limit_ns));
    }
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Ready,
    Later,
    Refuse,
    /// It did not return in time.
    Nothing,
}

impl From<Verdict> for Said {
    fn from(verdict: Verdict) -> Said {
        match verdict {
            Verdict::Ready => Said::Ready,
            Verdict::Later => Said::Later,
            Verdict::Refuse => Said::Refuse,
        }
    }
}

fn call(entry: &Entry, notice: &Notice, deadline_ns: u64) -> Said {
    match entry.thread {
        Some(tid) => call_in_handler(entry, tid, notice, deadline_ns),
        None => call_here(entry, notice).into(),
    }
}

fn call_here(entry: &Entry, notice: &Notice) -> Verdict {
    let called = sections::in_callback(|| catch_unwind(AssertUnwindSafe(|| (entry.function)(notice))));
    called.unwrap_or_else(|_| {
        explain("a callback panicked");
        Verdict::Refuse
    })
}

/// A callback to be run in a signal handler.
pub(crate) struct Work {
    entry: Entry,
    notice: Notice,
    tid: i32,
    begun: AtomicBool,
    /// Zero, or the verdict and one. A futex.
    finished: AtomicU32,
}

static WORK: Mutex<Option<Arc<Work>>> = Mutex::new(None);
/// One at a time.
static CALLING: Mutex<()> = Mutex::new(());

pub(crate) fn work() -> MutexGuard<'static, Option<Arc<Work>>> {
    lock(&WORK)
}

/// In the child of fork(2): nothing is under way.
pub(crate) fn after_fork() {
    // The copy of the thread that had it is not there to free it; another one may still be using it.
    std::mem::forget(work().take());
}

/// The signal handler. It takes a lock only if that is free, allocates nothing, and frees nothing.
pub(crate) fn handle_signal() {
    let work = match WORK.try_lock() {
        Ok(guard) => guard.clone(),
        Err(TryLockError::Poisoned(guard)) => guard.into_inner().clone(),
        // It is sent again.
        Err(TryLockError::WouldBlock) => return,
    };
    let Some(work) = work else { return };
    if work.tid == crate::process::own_tid() && !work.begun.swap(true, Ordering::AcqRel) {
        let verdict = call_here(&work.entry, &work.notice);
        set(&work.finished, verdict as u32 + 1);
    }
    // Who waits may have given up and left us the last of it; what that costs is less than a broken heap.
    std::mem::forget(work);
}

fn call_in_handler(entry: &Entry, tid: i32, notice: &Notice, deadline_ns: u64) -> Said {
    let Ok(signal) = inside::take_signal(handle_signal) else {
        return Said::Nothing;
    };
    let _one = lock(&CALLING);
    let new = Arc::new(Work {
        entry: entry.clone(),
        notice: notice.clone(),
        tid,
        begun: AtomicBool::new(false),
        finished: AtomicU32::new(0),
    });
    *work() = Some(Arc::clone(&new));
    let said = loop {
        if !new.begun.load(Ordering::Acquire) && inside::signal_thread(tid, signal).is_err() {
            // The thread has ended: there is nothing that it could prepare.
            break Said::Ready;
        }
        wait_while(&new.finished, 0, Some(AGAIN));
        match new.finished.load(Ordering::Acquire) {
            0 if now_ns() > deadline_ns => {
                explain(&format!(
                    "callback {} of thread {tid} has not returned in time",
                    entry.id
                ));
                break Said::Nothing;
            }
            0 => {}
            verdict if verdict == Verdict::Ready as u32 + 1 => break Said::Ready,
            verdict if verdict == Verdict::Later as u32 + 1 => break Said::Later,
            _ => break Said::Refuse,
        }
    };
    let left = work().take();
    if said == Said::Nothing {
        std::mem::forget(left);
    }
    said
}

/// Empties the message of the last refusal.
pub(crate) fn clear_message(page: &Page) {
    control::put(&page.message, b"");
}
