//! The thread that sleeps until a checkpointer asks for something, and answers it. It runs no callback itself, so
//! that none can keep it from answering.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cpr_kernel::control::{self, CLOSED, Page, Request, Status, Verb};

use crate::callbacks::{self, explain};
use crate::process::own_tid;
use crate::run::{self, Run, now_ns, wait_while};
use crate::sections;

/// While a checkpoint is under way, how often to look whether who asked has given up.
const LOOK: Duration = Duration::from_millis(20);

struct Supervisor {
    page: &'static Page,
    /// The newest request that was dealt with.
    seen: u32,
    /// The checkpoint under way.
    active: Option<Active>,
    /// Rounds with a callback that has not returned.
    stuck: Vec<Arc<Run>>,
}

struct Active {
    sequence: u32,
    run: Option<Arc<Run>>,
}

/// Serves as long as the process lives.
pub(crate) fn serve(page: &'static Page) {
    let mut supervisor = Supervisor {
        page,
        seen: page.request.load(Ordering::Acquire),
        active: None,
        stuck: Vec::new(),
    };
    page.tid.store(own_tid(), Ordering::Relaxed);
    page.pid.store(std::process::id() as i32, Ordering::Relaxed);
    page.magic.store(control::MAGIC, Ordering::Release);
    loop {
        supervisor.step();
    }
}

impl Supervisor {
    fn step(&mut self) {
        let word = self.page.request.load(Ordering::Acquire);
        if word != self.seen {
            self.seen = word;
            if let Some(request) = Request::of(word) {
                self.obey(request);
            }
        } else if self.active.is_none() {
            wait_while(&self.page.request, word, None);
        } else if self.is_void() {
            // Who asked has died.
            self.finish(Verb::Fail);
        } else {
            let left = self.page.lease_ns.load(Ordering::Relaxed).saturating_sub(now_ns());
            let left = Duration::from_nanos(left).clamp(LOOK, Duration::from_secs(1));
            wait_while(&self.page.request, word, Some(left));
        }
    }

    fn obey(&mut self, request: Request) {
        match request.verb {
            Verb::None => {}
            Verb::Prepare => self.prepare(request.sequence),
            Verb::Close => self.close(request.sequence),
            Verb::Continue | Verb::Fail | Verb::Restart | Verb::Tell => {
                if self.active.is_none() {
                    self.active = Some(Active {
                        sequence: request.sequence,
                        run: None,
                    });
                }
                self.finish(request.verb);
            }
        }
    }

    fn answer(&self, sequence: u32, status: Status) {
        let word = control::answer(sequence, status);
        self.page.answer.store(word, Ordering::SeqCst);
    }

    /// Nobody cares for the request any more.
    fn is_void(&self) -> bool {
        now_ns() > self.page.lease_ns.load(Ordering::Relaxed)
    }

    fn is_overtaken(&self) -> bool {
        self.page.request.load(Ordering::Acquire) != self.seen || self.is_void()
    }

    fn prepare(&mut self, sequence: u32) {
        if self.active.is_some() {
            // Who asked before has died, and somebody else came before that was noticed.
            self.finish(Verb::Fail);
        }
        run::clear_message(self.page);
        self.answer(sequence, Status::Working);
        self.stuck.retain(|run| !run.has_ended());
        self.active = Some(Active { sequence, run: None });
        if !self.stuck.is_empty() {
            explain("a callback of an earlier checkpoint has not returned");
            return self.answer(sequence, Status::Late);
        }
        if callbacks::registry().is_empty() {
            return self.answer(sequence, Status::Ready);
        }
        let run = match Run::start(self.page, sequence, Verb::Prepare) {
            Ok(run) => run,
            Err(error) => {
                explain(&format!("no thread for callbacks: {error}"));
                return self.answer(sequence, Status::Later);
            }
        };
        let limit = self.page.limit_ns.load(Ordering::Relaxed);
        let deadline = now_ns().saturating_add(limit);
        let status = loop {
            match run.progress.load(Ordering::Acquire) {
                run::WORKING => {}
                run::READY => break Status::Ready,
                run::LATER => break Status::Later,
                run::LATE => break Status::Late,
                _ => break Status::Refused,
            }
            if now_ns() > deadline {
                explain(&format!("a callback has not returned in {} ms", limit / 1_000_000));
                break Status::Late;
            }
            if self.is_overtaken() {
                break Status::Working;
            }
            wait_while(&run.progress, run::WORKING, Some(LOOK));
        };
        match status {
            Status::Ready => self.keep(run),
            Status::Working => {
                // What comes now deals with it.
                self.keep(run);
                return;
            }
            _ if run.progress.load(Ordering::Acquire) == run::WORKING => {
                run.abandon();
                self.stuck.push(run);
            }
            _ => {}
        }
        self.answer(sequence, status);
    }

    fn keep(&mut self, run: Arc<Run>) {
        if let Some(active) = &mut self.active {
            active.run = Some(run);
        }
    }

    fn close(&mut self, sequence: u32) {
        if self.active.as_ref().is_none_or(|active| active.sequence != sequence) {
            return;
        }
        sections::close(self.page);
        loop {
            let word = self.page.sections.load(Ordering::SeqCst);
            if word == CLOSED {
                return self.answer(sequence, Status::Closed);
            }
            if self.is_overtaken() {
                return;
            }
            wait_while(&self.page.sections, word, Some(LOOK));
        }
    }

    /// Runs the callbacks after a checkpoint and opens critical sections.
    fn finish(&mut self, verb: Verb) {
        let Some(active) = self.active.take() else { return };
        self.answer(active.sequence, Status::Working);
        let run = match active.run {
            Some(run) => {
                run.go_on(verb);
                Some(run)
            }
            None if matches!(verb, Verb::Restart | Verb::Tell) && !callbacks::registry().is_empty() => {
                Run::start(self.page, active.sequence, verb).ok()
            }
            None => None,
        };
        if let Some(run) = run {
            let deadline = now_ns().saturating_add(self.page.limit_ns.load(Ordering::Relaxed));
            loop {
                let progress = run.progress.load(Ordering::Acquire);
                if progress > run::READY {
                    break;
                }
                // Callbacks before the checkpoint may still run, with the time they had.
                if progress == run::WORKING && run.is_late() {
                    run.abandon();
                    self.stuck.push(run);
                    break;
                }
                if now_ns() > deadline {
                    self.stuck.push(run);
                    break;
                }
                wait_while(&run.progress, progress, Some(LOOK));
            }
        }
        sections::open(self.page);
        self.answer(active.sequence, Status::Idle);
    }
}
