//! The native engine behind the interface, for jobs that stand still together with others.
//!
//! A checkpoint of one job alone does not go this way: it copies memory while the job runs and writes while it goes on,
//! which six steps one after the other cannot say. The engine works in a thread, which is the tracer, and is held up at
//! two points: when the job has stopped, and when its image is complete.

use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use cpr_native::{ALL_STOPPED, After, CheckpointReport, CheckpointRequest, Destination, Event};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::descriptor::Deadlines;
use crate::engine::{Engine, Group, GroupKind, Rebuilt, Unit};

/// The native engine at work on one unit.
pub struct Native {
    request: CheckpointRequest,
    destination: Option<Destination>,
    deadlines: Deadlines,
    reports: Sender<CheckpointReport>,
    work: Option<Work>,
    saved: bool,
}

/// The thread.
struct Work {
    /// It has come to a point, or to its end.
    words: Receiver<Word>,
    /// Leave to go on; without it the job goes on and nothing is saved.
    leave: Sender<()>,
}

/// What the thread says.
enum Word {
    Stopped,
    Durable,
    Ended(Result<CheckpointReport>),
}

impl Native {
    /// Where the request says that the job is to be killed, that is what `resume_after_checkpoint` does; otherwise the
    /// job goes on then. The other value gets the report.
    pub fn new(
        request: CheckpointRequest,
        destination: Destination,
        deadlines: &Deadlines,
    ) -> (Native, Receiver<CheckpointReport>) {
        let (reports, receiver) = mpsc::channel();
        let request = CheckpointRequest {
            after: match request.after {
                After::Kill => After::Kill,
                // Signal 0 is none: the job goes on when its image is durable, and not before.
                _ => After::Signal(0),
            },
            hold: true,
            keep_tracking: false,
            ..request
        };
        let native = Native {
            request,
            destination: Some(destination),
            deadlines: deadlines.clone(),
            reports,
            work: None,
            saved: false,
        };
        (native, receiver)
    }

    fn start(&mut self) -> Result<()> {
        let destination = self.destination.take();
        let destination = destination.ok_or_else(|| Error::new(ErrorKind::Internal, "the image has no place"))?;
        let (say, words) = mpsc::channel();
        let (leave, granted) = mpsc::channel();
        let request = self.request.clone();
        let work = move || {
            let wait = |word: Word| match say.send(word).is_ok() && granted.recv().is_ok() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            };
            let mut stopped = false;
            let mut observer = |event: Event| match event {
                Event::Progress { phase, .. } if phase == ALL_STOPPED && !stopped => {
                    stopped = true;
                    wait(Word::Stopped)
                }
                Event::Progress { .. } => ControlFlow::Continue(()),
                Event::Durable => wait(Word::Durable),
            };
            let result = cpr_native::checkpoint(&request, destination, None, &mut observer);
            // Nobody may be there any more.
            let _ = say.send(Word::Ended(result.map(|(report, _)| report)));
        };
        let thread = thread::Builder::new().name("cpr-native".to_string());
        // It is waited for by its last word.
        thread.spawn(work).context(|| "start a thread")?;
        self.work = Some(Work { words, leave });
        Ok(())
    }

    fn hear(&self, limit: Duration) -> Result<Word> {
        let work = self.work.as_ref();
        let work = work.ok_or_else(|| Error::new(ErrorKind::Gone, "the checkpoint has ended"))?;
        match work.words.recv_timeout(limit) {
            Ok(Word::Ended(Err(error))) => Err(error),
            Ok(word) => Ok(word),
            Err(RecvTimeoutError::Timeout) => Err(Error::new(ErrorKind::TimedOut, "it has not come so far in time")),
            Err(RecvTimeoutError::Disconnected) => Err(Error::new(ErrorKind::Internal, "its thread has failed")),
        }
    }

    fn go_on(&self) -> Result<()> {
        let leave = self.work.as_ref().map(|work| work.leave.send(()));
        match leave {
            Some(Ok(())) => Ok(()),
            _ => Err(Error::new(ErrorKind::Gone, "the checkpoint has ended")),
        }
    }
}

/// It has come to another point than it should.
fn astray() -> Error {
    Error::new(ErrorKind::Internal, "it has come to a point out of turn")
}

impl Engine for Native {
    fn prepare(&mut self, unit: &Unit) -> Result<Group> {
        let (kind, id) = match self.request.own_pid_namespace {
            true => {
                let link = std::fs::read_link("/proc/self/ns/pid").context(|| "read our PID namespace")?;
                (GroupKind::PidNamespace, link.to_string_lossy().into_owned())
            }
            false => (GroupKind::Tree, unit.root.to_string()),
        };
        Ok(Group {
            kind,
            id,
            processes: unit.processes.clone(),
        })
    }

    fn stop(&mut self) -> Result<()> {
        self.start()?;
        // Callbacks may take that long, too, and so may critical sections.
        let limit = self.request.stop_timeout * 3 + self.deadlines.prepare();
        match self.hear(limit)? {
            Word::Stopped => Ok(()),
            Word::Durable | Word::Ended(_) => Err(astray()),
        }
    }

    fn holds(&self) -> bool {
        true
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.go_on()?;
        match self.hear(self.deadlines.checkpoint())? {
            Word::Durable => {
                self.saved = true;
                Ok(())
            }
            Word::Stopped | Word::Ended(_) => Err(astray()),
        }
    }

    fn has_saved(&self, _: &Unit) -> bool {
        self.saved
    }

    fn resume_after_checkpoint(&mut self) -> Result<()> {
        self.go_on()?;
        match self.hear(self.deadlines.resume())? {
            Word::Ended(Ok(report)) => {
                // Who does not want it has dropped the other end.
                let _ = self.reports.send(report);
                Ok(())
            }
            _ => Err(astray()),
        }
    }

    fn abandon(&mut self) {
        let Some(Work { words, leave }) = self.work.take() else {
            return;
        };
        drop(leave);
        let deadline = Instant::now() + self.deadlines.resume();
        // Until the thread has let the job go.
        while let Ok(word) = words.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if matches!(word, Word::Ended(_)) {
                return;
            }
        }
    }

    fn rebuild(&mut self, _: &Unit) -> Result<Rebuilt> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "its images are restarted by the init of a new job, in one step",
        ))
    }

    fn resume_after_restart(&mut self) -> Result<()> {
        Err(astray())
    }
}
