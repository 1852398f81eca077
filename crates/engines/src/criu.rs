//! CRIU, driven by its own protocol (`criu swrk`, images/rpc.proto of CRIU 4): protobuf over a packet socket.
//!
//! The primitives end at the points at which CRIU asks for leave to go on (`notify_scripts`): when it has stopped and
//! saved the processes (`post-dump`), and when it has built them (`pre-resume`). Between stopping and saving it asks
//! for none, so that the job is saved by `stop` already; it stands still until it is resumed all the same.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::descriptor::{Deadlines, Descriptor};
use crate::engine::{Engine, Group, GroupKind, Rebuilt, Unit};
use crate::pager::Pager;
use crate::program::{Program, poll, streams};
use crate::protobuf::{Field, Message};
use crate::rounds::Rounds;

/// Oldest version whose protocol is this one.
const OLDEST: u64 = 4;
/// Longest packet.
const LONGEST: usize = 64 << 10;

/// `criu lazy-pages` makes it among the files when it is ready.
const PAGES_SOCKET: &str = "lazy-pages.socket";

/// Our own file among CRIU's.
const STREAMS: &str = "gridcpr-streams.json";
/// Where the output of a job in the background goes, below its directory.
const LOG: &str = "log";

/// `criu_req_type`.
mod request {
    pub(super) const DUMP: u64 = 1;
    pub(super) const RESTORE: u64 = 2;
    pub(super) const CHECK: u64 = 3;
    pub(super) const NOTIFY: u64 = 6;
    pub(super) const FEATURES: u64 = 9;
    pub(super) const VERSION: u64 = 10;
    pub(super) const PRE_DUMP: u64 = 13;
}

/// CRIU at work.
pub(crate) struct Criu {
    command: Vec<OsString>,
    deadlines: Deadlines,
    unit: Option<Unit>,
    session: Option<Session>,
    /// The root process that was saved, and is built again.
    root: i32,
    /// Memory comes when the job runs already.
    later: bool,
    pager: Option<Pager>,
}

/// A CRIU that runs, and the socket to it.
struct Session {
    program: Program,
    socket: OwnedFd,
}

/// What CRIU says.
enum Word {
    /// It has come to this point and waits for leave.
    At(String),
    /// It has ended with success.
    Done(Message),
}

impl Session {
    fn start(command: &[OsString]) -> Result<Session> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)
                .context(|| "make a socket")?;
        let mut command = command.to_vec();
        // Its standard input is the socket.
        command.extend(["swrk".into(), "0".into()]);
        Ok(Session {
            program: Program::start_with(&command, theirs)?,
            socket: ours,
        })
    }

    fn send(&self, message: &[u8]) -> Result<()> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::send(&self.socket, message, flags)
            .map(drop)
            .map_err(io::Error::from)
            .context(|| "send a request to CRIU")
    }

    fn receive(&self, limit: Duration) -> Result<Message> {
        let deadline = Instant::now() + limit;
        let mut packet = vec![0; LONGEST];
        loop {
            match rustix::net::recv(&self.socket, &mut packet, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => {
                    return Err(Error::new(ErrorKind::Gone, "CRIU has ended without an answer"));
                }
                Ok((_, length)) => {
                    let message = packet.get(..length).and_then(Message::decode);
                    return message.ok_or_else(|| Error::new(ErrorKind::Io, "CRIU's answer is not understood"));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let fds = [(self.socket.as_fd(), PollFlags::IN)];
                    if !poll(&fds, deadline).context(|| "wait for CRIU")? {
                        return Err(Error::new(ErrorKind::TimedOut, "CRIU has not answered in time"));
                    }
                }
                Err(error) => return Err(io::Error::from(error)).context(|| "read CRIU's answer"),
            }
        }
    }

    /// The next word of the answer to `kind`; an error where CRIU has failed.
    fn word(&self, kind: u64, limit: Duration) -> Result<Word> {
        let message = self.receive(limit)?;
        let answered = message.number(1);
        if answered == Some(request::NOTIFY)
            && let Some(notify) = message.message(5)
        {
            return Ok(Word::At(notify.text(1).unwrap_or_default()));
        }
        if message.number(2) != Some(1) {
            return Err(refusal(&message));
        }
        if answered != Some(kind) {
            return Err(Error::new(ErrorKind::Io, "CRIU has answered something else"));
        }
        Ok(Word::Done(message))
    }

    /// Gives leave to go on, or not.
    fn leave(&self, good: bool) -> Result<()> {
        let answer = [Field::Number(1, request::NOTIFY), Field::Number(3, u64::from(good))];
        self.send(&Message::encode(&answer))
    }

    /// Lets CRIU go on until it comes to `point`; gives its answer where it ends before.
    fn until(&self, kind: u64, point: &str, limit: Duration) -> Result<Option<Message>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.word(kind, deadline.saturating_duration_since(Instant::now()))? {
                Word::At(at) if at == point => return Ok(None),
                Word::At(_) => self.leave(true)?,
                Word::Done(message) => return Ok(Some(message)),
            }
        }
    }
}

/// Why CRIU has refused, in its own words.
fn refusal(message: &Message) -> Error {
    /// `cr_errno` of CRIU's include/cr-errno.h is an errno(3).
    const ESRCH: u64 = 3;
    const EEXIST: u64 = 17;
    let number = message.number(7).unwrap_or(0);
    let words = message.text(9).unwrap_or_default();
    // A line on limits that it could not raise is no reason.
    let reasons = words
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains("rlimit:"));
    let words = reasons.collect::<Vec<_>>().join("; ");
    let (kind, meaning) = match number {
        ESRCH => (ErrorKind::Gone, "CRIU: the process has ended"),
        EEXIST => (ErrorKind::InUse, "CRIU: a PID that the job needs is taken"),
        _ => (ErrorKind::Unsupported, "CRIU has refused"),
    };
    match words.is_empty() {
        true => Error::new(kind, format!("{meaning} (error {number})")),
        false => Error::new(kind, format!("{meaning}: {words}")),
    }
}

impl Criu {
    pub(crate) fn new(descriptor: &Descriptor) -> Criu {
        Criu {
            command: descriptor.command(&["criu"]),
            deadlines: descriptor.deadlines.clone(),
            unit: None,
            session: None,
            root: 0,
            later: false,
            pager: None,
        }
    }

    /// Asks whether it works here; gives its version. The version is known also where it does not.
    pub(crate) fn probe(descriptor: &Descriptor) -> (Option<String>, Result<()>) {
        let engine = Criu::new(descriptor);
        let limit = engine.deadlines.probe();
        let version = match engine.version(limit) {
            Ok((major, minor)) => {
                let version = format!("{major}.{minor}");
                if major < OLDEST {
                    let old = Error::new(ErrorKind::Unsupported, format!("it is older than {OLDEST}.0"));
                    return (Some(version), Err(old));
                }
                version
            }
            Err(error) => return (None, Err(error)),
        };
        if !rustix::process::geteuid().is_root() {
            let denied = Error::new(ErrorKind::Denied, "it takes root");
            return (Some(version), Err(denied));
        }
        let checked = Session::start(&engine.command).and_then(|session| {
            session.send(&Message::encode(&[Field::Number(1, request::CHECK)]))?;
            session.word(request::CHECK, limit).map(drop)
        });
        (Some(version), checked)
    }

    /// Whether writes can be tracked here (pre-dump), and memory can come later (lazy-pages).
    fn features(&self) -> Result<(bool, bool)> {
        let session = Session::start(&self.command)?;
        let asked = vec![Field::Number(1, 1), Field::Number(2, 1)];
        let request = [Field::Number(1, request::FEATURES), Field::Message(5, asked)];
        session.send(&Message::encode(&request))?;
        let Word::Done(answer) = session.word(request::FEATURES, self.deadlines.probe())? else {
            return Err(Error::new(ErrorKind::Io, "CRIU has answered something else"));
        };
        let features = answer.message(8);
        let has = |number| features.as_ref().and_then(|features| features.number(number)) == Some(1);
        Ok((has(1), has(2)))
    }

    /// Requires that memory can come when a job runs already.
    pub(crate) fn require_lazy(descriptor: &Descriptor) -> Result<()> {
        match Criu::new(descriptor).features()? {
            (_, true) => Ok(()),
            (_, false) => Err(Error::new(
                ErrorKind::Unsupported,
                "CRIU says that the kernel does not let it answer page faults (userfaultfd)",
            )),
        }
    }

    /// Requires that memory can be copied while a job runs.
    pub(crate) fn require_live(descriptor: &Descriptor) -> Result<()> {
        match Criu::new(descriptor).features()? {
            (true, _) => Ok(()),
            (false, _) => Err(Error::new(
                ErrorKind::Unsupported,
                "CRIU says that the kernel does not track writes for it (soft-dirty)",
            )),
        }
    }

    /// Starts what brings memory later, from the files of the unit.
    fn start_pager(&self, unit: &Unit) -> Result<Pager> {
        let mut command = self.command.clone();
        command.extend(["lazy-pages", "-o", "lazy-pages.log", "-D"].map(OsString::from));
        command.push(unit.files.clone().into_os_string());
        let deadline = Instant::now() + self.deadlines.prepare();
        Pager::start(&command, &unit.files.join(PAGES_SOCKET), deadline)
    }

    fn version(&self, limit: Duration) -> Result<(u64, u64)> {
        let session = Session::start(&self.command)?;
        session.send(&Message::encode(&[Field::Number(1, request::VERSION)]))?;
        let Word::Done(answer) = session.word(request::VERSION, limit)? else {
            return Err(Error::new(ErrorKind::Io, "CRIU has answered something else"));
        };
        let version = answer.message(10);
        let number = |at| version.as_ref().and_then(|version| version.number(at)).unwrap_or(0);
        Ok((number(1), number(2)))
    }

    /// Options of dump and restore alike.
    fn options(&self, unit: &Unit, files: &std::os::fd::OwnedFd) -> Vec<Field> {
        let limit = self.deadlines.stop().as_secs().clamp(1, u64::from(u32::MAX));
        vec![
            // CRIU opens it as /proc/PID/fd/N of who has made the socket.
            Field::Number(1, files.as_raw_fd() as u64),
            Field::Number(2, unit.root as u64),
            // Connections within the job.
            Field::Number(5, 1),
            // The job's session is its init's.
            Field::Number(7, 1),
            Field::Number(8, 1),
            Field::Number(9, 2),
            Field::Text(10, "criu.log".to_string()),
            Field::Number(12, 1),
            // Files without a name.
            Field::Number(18, 1),
            // Cgroups are the node's business.
            Field::Number(34, 0),
            Field::Number(45, limit),
        ]
    }

    /// Has CRIU do something with files in this directory, until it comes to `point`; gives its answer where it ends
    /// before.
    fn request(&mut self, kind: u64, files: &Path, mut more: Vec<Field>, point: &str) -> Result<Option<Message>> {
        let unit = self.unit()?;
        let what = || format!("open directory {}", files.display());
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let files = rustix::fs::open(files, flags, rustix::fs::Mode::empty())
            .map_err(io::Error::from)
            .context(what)?;
        let mut options = self.options(unit, &files);
        // Not the job's control group (freeze_cgroup): a process in vfork(2) cannot freeze while its child is stopped.
        options.append(&mut more);
        let session = Session::start(&self.command)?;
        let request = [Field::Number(1, kind), Field::Message(2, options)];
        session.send(&Message::encode(&request))?;
        self.session = Some(session);
        let limit = match kind {
            request::RESTORE => self.deadlines.rebuild(),
            _ => self.deadlines.stop() + self.deadlines.checkpoint(),
        };
        self.session()?.until(kind, point, limit)
    }

    fn begin(&mut self, kind: u64, more: Vec<Field>) -> Result<()> {
        let point = match kind {
            request::DUMP => "post-dump",
            _ => "pre-resume",
        };
        let files = self.unit()?.files.clone();
        match self.request(kind, &files, more, point)? {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Io, format!("CRIU has ended without {point}"))),
        }
    }

    /// Where memory is that was copied before: CRIU saves only what was written since.
    fn since(parent: Option<String>) -> Vec<Field> {
        let parent = parent.map(|parent| Field::Text(14, parent));
        parent.into_iter().chain([Field::Number(15, 1)]).collect()
    }

    /// Notes which of the root's standard streams are pipes, or the file that the job's output goes to: those of the
    /// restarted job take their place. The others are opened by their names again.
    fn note_streams(&self) -> Result<()> {
        let unit = self.unit()?;
        let log = unit.job_directory.join(LOG);
        let mut keys: Vec<Option<String>> = Vec::new();
        for number in 0..=2 {
            let link = std::fs::read_link(format!("/proc/{}/fd/{number}", unit.root)).unwrap_or_default();
            let text = link.to_string_lossy();
            let key = match text.strip_prefix('/') {
                // CRIU knows files by their paths without the first slash.
                Some(path) if link == log => Some(path.to_string()),
                None if text.starts_with("pipe:[") => Some(text.into_owned()),
                _ => None,
            };
            let known = keys.contains(&key);
            keys.push(key.filter(|_| !known));
        }
        let text = serde_json::to_vec(&keys)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode a list").with_source(error))?;
        std::fs::write(unit.files.join(STREAMS), text).context(|| format!("write {STREAMS}"))
    }

    fn noted_streams(&self) -> Result<Vec<Option<String>>> {
        let text = std::fs::read(self.unit()?.files.join(STREAMS)).context(|| format!("read {STREAMS}"))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::new(ErrorKind::Damaged, format!("{STREAMS} is not understood")).with_source(error))
    }

    fn unit(&self) -> Result<&Unit> {
        let unit = self.unit.as_ref();
        unit.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no unit"))
    }

    fn session(&self) -> Result<&Session> {
        let session = self.session.as_ref();
        session.ok_or_else(|| Error::new(ErrorKind::Gone, "CRIU has ended"))
    }

    /// Its work is done.
    fn end(&mut self) {
        if let Some(session) = self.session.take() {
            drop(session.socket);
            // It has answered, and is not needed any more.
            let _ = session.program.finish(Instant::now() + self.deadlines.resume());
        }
    }
}

impl Engine for Criu {
    fn prepare(&mut self, unit: &Unit) -> Result<Group> {
        self.unit = Some(unit.clone());
        // CRIU takes a tree by its root.
        let processes = tree(unit.root)?;
        Ok(Group {
            kind: GroupKind::Tree,
            id: unit.root.to_string(),
            processes,
        })
    }

    fn copy_ahead(&mut self, wanted: &mut dyn FnMut() -> bool) -> Result<u64> {
        let mut rounds = Rounds::of(&self.unit()?.files);
        loop {
            let (directory, before) = rounds.begin()?;
            let ended = self.request(request::PRE_DUMP, &directory, Criu::since(before), "")?;
            self.end();
            if ended.is_none() {
                return Err(Error::new(ErrorKind::Io, "CRIU has ended without an answer"));
            }
            if !rounds.judge()? || !wanted() {
                return rounds.bytes();
            }
        }
    }

    fn stop(&mut self) -> Result<()> {
        self.note_streams()?;
        // Leave it running: who wants its end sees to it.
        let mut more = vec![Field::Number(3, 1)];
        if let Some(last) = Rounds::of(&self.unit()?.files).last() {
            more.append(&mut Criu::since(Some(last)));
        }
        self.begin(request::DUMP, more)
    }

    fn holds(&self) -> bool {
        true
    }

    fn checkpoint(&mut self) -> Result<()> {
        // Done with the stop.
        self.session()?;
        Rounds::of(&self.unit()?.files).untie()
    }

    fn resume_after_checkpoint(&mut self) -> Result<()> {
        let limit = self.deadlines.resume();
        let session = self.session()?;
        session.leave(true)?;
        let ended = session.until(request::DUMP, "", limit)?;
        self.end();
        match ended {
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::Io, "CRIU has ended without an answer")),
        }
    }

    fn abandon(&mut self) {
        let limit = self.deadlines.resume();
        if let Some(session) = self.session.take() {
            // It takes its parts out of the job, and lets it go on, before it answers with the failure it was given.
            if session.leave(false).is_ok() {
                let _ = session.word(request::DUMP, limit);
            }
        }
    }

    fn rebuild(&mut self, unit: &Unit) -> Result<Rebuilt> {
        self.unit = Some(unit.clone());
        self.root = unit.root;
        Rounds::of(&unit.files).tie()?;
        // The root process becomes our child, not CRIU's.
        let mut more = vec![Field::Number(26, 1)];
        let streams = streams()?;
        for (key, stream) in self.noted_streams()?.into_iter().zip(&streams) {
            let inherited = |key| {
                Field::Message(
                    27,
                    vec![Field::Text(1, key), Field::Number(2, stream.as_raw_fd() as u64)],
                )
            };
            more.extend(key.map(inherited));
        }
        if self.later {
            self.pager = Some(self.start_pager(unit)?);
            more.push(Field::Number(48, 1));
        }
        if let Err(error) = self.begin(request::RESTORE, more) {
            if let Some(pager) = self.pager.take() {
                pager.kill();
            }
            return Err(error);
        }
        Ok(Rebuilt::Root(unit.root))
    }

    fn come_later(&mut self) -> Result<()> {
        self.later = true;
        Ok(())
    }

    fn pager(&mut self) -> Option<Pager> {
        self.pager.take()
    }

    fn resume_after_restart(&mut self) -> Result<()> {
        let limit = self.deadlines.resume();
        let session = self.session()?;
        session.leave(true)?;
        let ended = session.until(request::RESTORE, "", limit)?;
        self.end();
        let pid = ended.and_then(|message| message.message(4)?.number(1));
        if pid == Some(self.root as u64) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Io,
            "CRIU has built another process than was saved",
        ))
    }
}

/// A process and its descendants.
fn tree(root: i32) -> Result<Vec<i32>> {
    let what = || format!("look at the descendants of process {root}");
    let mut parents = std::collections::BTreeMap::new();
    for pid in cpr_kernel::proc::pids().context(what)? {
        let stat = cpr_kernel::proc::ProcDir::open(pid).and_then(|proc| proc.stat());
        if let Ok(stat) = stat {
            parents.insert(pid, stat.ppid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(above) = found.get(next).copied() {
        next += 1;
        let children = parents
            .iter()
            .filter(|(pid, parent)| **parent == above && !found.contains(pid));
        let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
    }
    Ok(found)
}
