//! One job of a set.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cpr_engines::{Native, Steps, Unit};
use cpr_types::{ConnectionEnd, Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;

use super::{How, Order, PREPARED, Way, tell, tell_front};
use crate::engine::{Channels, CheckpointReport, Destination, Event, Observer, Outward};
use crate::foreign::{members_of, signal_all};
use crate::group;
use crate::job::KILL;
use crate::wire::{Receiver, send, wait};
use crate::worker::{Message, Worker};

/// The worker's side.
pub(super) struct Unitary {
    pub(super) steps: Steps,
    pub(super) processes: Vec<i32>,
    pub(super) how: How,
    /// Connections out of the job, from when it stands still; of a job of another engine there are none that count.
    pub(super) outward: Option<Outward>,
    /// Those to jobs of the same set.
    pub(super) channels: Channels,
}

/// A worker and the way to it.
pub(crate) struct Held {
    pub(crate) worker: Worker,
    pub(crate) orders: OwnedFd,
    pub(super) ends: Receiver,
    /// The job's control group, which the worker may have frozen.
    pub(super) group: Option<PathBuf>,
}

impl Unitary {
    pub(super) fn prepare(
        way: Way,
        name: &str,
        root: i32,
        own_namespace: bool,
        deadlines: &cpr_engines::Deadlines,
        channels: Channels,
    ) -> Result<Unitary> {
        match way {
            Way::Foreign(mut saving, mut image) => {
                image.adopt();
                let steps = match saving.prepare() {
                    Ok(steps) => steps,
                    Err(error) => {
                        saving.tidy();
                        return Err(error);
                    }
                };
                let (processes, threads) = saving.processes();
                Ok(Unitary {
                    steps,
                    processes,
                    how: How::Foreign(saving, Some(image), threads),
                    outward: None,
                    channels,
                })
            }
            Way::Native(request, mut image) => {
                image.adopt();
                let processes = members_of(root, own_namespace)?;
                let unit = Unit {
                    job: name.to_string(),
                    root,
                    processes: processes.clone(),
                    job_directory: PathBuf::new(),
                    files: PathBuf::new(),
                    group: request.group.clone(),
                };
                let stop = request.stop_timeout;
                let (engine, reports) = Native::new(*request, Destination::File(image), deadlines);
                let mut steps = Steps::with(cpr_engines::NATIVE, Box::new(engine), unit, stop, stop);
                steps.prepare()?;
                Ok(Unitary {
                    steps,
                    processes,
                    how: How::Native(reports),
                    outward: None,
                    channels,
                })
            }
        }
    }

    /// Carries out orders until there are no more.
    pub(super) fn obey(
        &mut self,
        mut orders: Receiver,
        (front, tell_ends): (&OwnedFd, &OwnedFd),
        events: &mut Observer<'_>,
        (root, own_namespace): (i32, bool),
    ) -> Result<Message> {
        let what = || "listen to the front";
        let began = Instant::now();
        let mut stopped = began;
        let mut freeze = Duration::ZERO;
        let mut report = None;
        tell(events, PREPARED);
        // Others may be draining yet.
        let mut drained = false;
        'orders: loop {
            for order in orders.receive::<Order>().context(what)? {
                match &order {
                    Order::Stop => {
                        stopped = Instant::now();
                        self.steps.stop()?;
                        if let How::Native(_) = self.how {
                            self.outward = Some(Outward::of(&members_of(root, own_namespace)?)?);
                        }
                    }
                    Order::Drain(channels) => {
                        self.channels.tell(channels);
                        if let Some(outward) = &mut self.outward {
                            outward.drain(channels)?;
                            drained = true;
                        }
                    }
                    Order::Save => {
                        (drained, self.outward) = (false, None);
                        self.channels.tell(&[]);
                        self.steps.checkpoint()?;
                    }
                    Order::Resume => {
                        self.steps.resume_after_checkpoint()?;
                        freeze = stopped.elapsed();
                    }
                    Order::Publish => {
                        if let How::Foreign(saving, image, threads) = &mut self.how
                            && let Some(image) = image.take()
                        {
                            let summary = saving.publish(Destination::File(image), events)?;
                            report = Some(saving.report(&summary, *threads, freeze, began.elapsed()));
                        }
                    }
                    Order::End => {
                        freeze = stopped.elapsed();
                        match &self.how {
                            // It was told so when it was made.
                            How::Native(_) => self.steps.resume_after_checkpoint()?,
                            How::Foreign(..) => {
                                signal_all(&self.processes, KILL);
                                self.steps.ended();
                            }
                        }
                    }
                    Order::Leave => break 'orders,
                }
                tell(events, order.phase());
                if order == Order::Stop {
                    let ends = self.outward.as_ref().map(Outward::ends).unwrap_or_default();
                    tell_front(front, tell_ends, &ends)?;
                }
            }
            if orders.ended() {
                break;
            }
            let polled = [(orders.as_fd(), PollFlags::IN), (front.as_fd(), PollFlags::IN)];
            let until = drained.then(|| Instant::now() + Outward::LOOK);
            if wait(&polled, until).context(what)?[1] {
                break;
            }
            if let Some(outward) = self.outward.as_mut().filter(|_| drained) {
                outward.make_room()?;
            }
        }
        self.steps.abandon_if_begun();
        if let How::Native(reports) = &self.how {
            report = reports.try_recv().ok();
        }
        let mut report = report.ok_or_else(|| Error::new(ErrorKind::Cancelled, "the set is given up"))?;
        report.freeze_ns = report.freeze_ns.max(freeze.as_nanos() as u64);
        report.total_ns = began.elapsed().as_nanos() as u64;
        Ok(Message::Checkpointed(report))
    }

    pub(super) fn tidy(&self) {
        if let How::Foreign(saving, ..) = &self.how {
            saving.tidy();
        }
    }
}

impl Held {
    /// Has the worker carry out an order, and waits until it has.
    pub(crate) fn carry_out(&mut self, order: Order) -> Result<()> {
        // Where the worker has ended, its last word says why.
        let _ = send(self.orders.as_fd(), &order);
        self.await_phase(order.phase())
    }

    /// Waits until the worker has come to a phase.
    pub(crate) fn await_phase(&mut self, phase: &str) -> Result<()> {
        let what = || "listen to a worker";
        loop {
            let mut there = false;
            for message in self.worker.reports.receive::<Message>().context(what)? {
                match message {
                    Message::Event(Event::Progress { phase: at, .. }) if at == phase => there = true,
                    Message::Failed(error) => return Err(error.into()),
                    _ => {}
                }
            }
            if there {
                return Ok(());
            }
            if self.worker.reports.ended() {
                return Err(self.worker.lost());
            }
            // The worker has the deadlines that matter.
            self.worker.reports.wait(None).context(what)?;
        }
    }

    /// Which connections lead out of the job: to be asked once, when it has stopped.
    pub(crate) fn take_ends(&mut self) -> Result<Vec<ConnectionEnd>> {
        let what = || "hear of connections from a worker";
        loop {
            if let Some(ends) = self.ends.receive().context(what)?.into_iter().next() {
                return Ok(ends);
            }
            if self.ends.ended() || self.worker.reports.ended() {
                return Err(self.worker.lost());
            }
            let polled = [
                (self.ends.as_fd(), PollFlags::IN),
                (self.worker.reports.as_fd(), PollFlags::IN),
            ];
            if wait(&polled, None).context(what)?[1] {
                for message in self.worker.reports.receive::<Message>().context(what)? {
                    if let Message::Failed(error) = message {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Lets the worker end; gives its last word.
    pub(crate) fn leave(mut self) -> Result<CheckpointReport> {
        let what = || "listen to a worker";
        // Where it has ended, it has said why. Its end of the pipe may be open in workers that came later, so that ours
        // being closed tells nothing.
        let _ = send(self.orders.as_fd(), &Order::Leave);
        let mut last = None;
        while !self.worker.reports.ended() {
            self.worker.reports.wait(None).context(what)?;
            for message in self.worker.reports.receive::<Message>().context(what)? {
                match message {
                    Message::Checkpointed(report) => last = Some(Ok(report)),
                    Message::Failed(error) => last = Some(Err(error.into())),
                    _ => {}
                }
            }
        }
        let last = last.unwrap_or_else(|| Err(self.worker.lost()));
        self.worker.reap();
        if let Some(group) = self.group.filter(|_| last.is_err()) {
            // Of a worker that was killed at such an instant. A group that is gone needs nothing.
            let _ = group::thaw(&group);
        }
        last
    }
}
