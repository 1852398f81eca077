//! Virtual machines under QEMU (GCA section 4): the job is the monitor, and what runs in its guest is saved with it.
//!
//! The guest stands still between `stop` and `resume_after_checkpoint`; QEMU itself does not. Its state goes into a
//! file as on a migration, through a descriptor, so that QEMU needs no right of its own on it. A restart runs the same
//! command, with the guest waiting for that state; where a wrapper had made it, the wrapper is not needed again.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::descriptor::{Deadlines, Descriptor};
use crate::engine::{Engine, Group, GroupKind, Rebuilt, Unit};
use crate::program::Program;
use crate::qmp::{Monitor, socket_of};

/// The state of the machine, among the engine's files.
const STATE: &str = "machine";
/// What else has to be known of it.
const NOTE: &str = "machine.json";
/// What the descriptor is called that QEMU is handed.
const HANDED: &str = "gridcpr";
/// Arguments that have a new QEMU wait for the state.
const WAITING: [&str; 3] = ["-incoming", "defer", "-S"];
/// Memory is not written slower than the disk takes it, bytes a second.
const FASTEST: u64 = 1 << 40;
/// How often it is looked how far QEMU is.
const LOOK: Duration = Duration::from_millis(20);

/// [`NOTE`].
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    socket: PathBuf,
    /// The guest ran, and was stopped for the checkpoint.
    ran: bool,
    /// The command that QEMU was run with, by whatever means.
    command: Vec<String>,
}

/// A machine that is saved or built again.
pub(crate) struct Qemu {
    deadlines: Deadlines,
    unit: Option<Unit>,
    monitor: Option<Monitor>,
    socket: PathBuf,
    command: Vec<String>,
    /// We have stopped the guest.
    stopped: bool,
    saved: Option<Note>,
}

impl Qemu {
    pub(crate) fn new(descriptor: &Descriptor) -> Qemu {
        Qemu {
            deadlines: descriptor.deadlines.clone(),
            unit: None,
            monitor: None,
            socket: PathBuf::new(),
            command: Vec::new(),
            stopped: false,
            saved: None,
        }
    }

    /// Looks whether QEMU is here; gives its version.
    pub(crate) fn probe(descriptor: &Descriptor) -> Result<Option<String>> {
        let default = format!("qemu-system-{}", std::env::consts::ARCH);
        let mut command = descriptor.command(&[&default]);
        command.push("--version".into());
        let deadline = Instant::now() + descriptor.deadlines.probe();
        let mut program = Program::start(&command)?;
        let line = program.line(deadline)?;
        // "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
        let version = line.split("version ").nth(1).and_then(|rest| rest.split(' ').next());
        let version = version
            .ok_or_else(|| program.garbage("it does not tell its version"))?
            .to_string();
        // It is known, however it ends.
        let _ = program.finish(deadline);
        Ok(Some(version))
    }

    fn monitor(&mut self) -> Result<&mut Monitor> {
        let monitor = self.monitor.as_mut();
        monitor.ok_or_else(|| Error::new(ErrorKind::Gone, "QEMU's monitor is not connected"))
    }

    fn ask(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        self.monitor()?.ask(command, arguments, Instant::now() + limit)
    }

    /// `query-status`.
    fn status(&mut self, limit: Duration) -> Result<String> {
        let status = self.ask("query-status", json!({}), limit)?;
        Ok(status["status"].as_str().unwrap_or_default().to_string())
    }

    /// Refuses what is written to and is not in the image: it would be of a later time after a restart.
    fn require_no_disk(&mut self, limit: Duration) -> Result<()> {
        let disks = self.ask("query-block", json!({}), limit)?;
        for disk in disks.as_array().into_iter().flatten() {
            let inserted = &disk["inserted"];
            if inserted.is_object() && inserted["ro"] != true {
                let name = disk["device"].as_str().filter(|name| !name.is_empty());
                let name = name.or_else(|| disk["qdev"].as_str()).unwrap_or("?");
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the machine can write to its disk {name}, which is not in the image"),
                )
                .with_hint("give it disks with readonly=on, and what it writes to in memory"));
            }
        }
        Ok(())
    }

    fn unit(&self) -> Result<&Unit> {
        let unit = self.unit.as_ref();
        unit.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no unit"))
    }

    fn write(&self, note: &Note) -> Result<()> {
        let path = self.unit()?.files.join(NOTE);
        let what = || format!("write {}", path.display());
        let text = serde_json::to_vec(note)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode a note").with_source(error))?;
        std::fs::write(&path, text).context(what)
    }
}

/// The command line of a process.
fn arguments_of(pid: i32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/cmdline");
    let bytes = std::fs::read(&path).context(|| format!("read {path}"))?;
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    let word = |word: &[u8]| {
        String::from_utf8(word.to_vec()).map_err(|_| {
            let text = format!("the command of process {pid} has an argument that is no UTF-8");
            Error::new(ErrorKind::Unsupported, text)
        })
    };
    words.map(word).collect()
}

impl Engine for Qemu {
    fn prepare(&mut self, unit: &Unit) -> Result<Group> {
        let limit = self.deadlines.prepare();
        self.command = arguments_of(unit.root)?;
        let socket = socket_of(&self.command).ok_or_else(|| {
            let text = format!("process {} is no QEMU with a monitor that can be reached", unit.root);
            Error::new(ErrorKind::Unsupported, text)
                .with_hint("run qemu-system-… with `-qmp unix:PATH,server=on,wait=off` as the job")
        })?;
        // As the process itself sees it; short, for a socket's address.
        let seen = Path::new("/proc").join(unit.root.to_string()).join("cwd").join(&socket);
        self.monitor = Some(Monitor::connect(&seen, Instant::now() + limit, false)?);
        self.socket = socket;
        self.require_no_disk(limit)?;
        self.unit = Some(unit.clone());
        Ok(Group {
            kind: GroupKind::Process,
            id: unit.root.to_string(),
            processes: vec![unit.root],
        })
    }

    fn stop(&mut self) -> Result<()> {
        let limit = self.deadlines.stop();
        if self.status(limit)? == "running" {
            self.stopped = true;
            self.ask("stop", json!({}), limit)?;
        }
        match self.status(limit)?.as_str() {
            "running" => Err(Error::new(ErrorKind::TimedOut, "the guest runs on")),
            _ => Ok(()),
        }
    }

    fn holds(&self) -> bool {
        false
    }

    fn checkpoint(&mut self) -> Result<()> {
        let limit = self.deadlines.checkpoint();
        let deadline = Instant::now() + limit;
        let path = self.unit()?.files.join(STATE);
        let what = || format!("make {}", path.display());
        let mut options = File::options();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .context(what)?;
        self.write(&Note {
            socket: self.socket.clone(),
            ran: self.stopped,
            command: self.command.clone(),
        })?;
        self.ask("migrate-set-parameters", json!({"max-bandwidth": FASTEST}), limit)?;
        let monitor = self.monitor()?;
        monitor.ask_with("getfd", json!({"fdname": HANDED}), &file, deadline)?;
        monitor.ask("migrate", json!({"uri": format!("fd:{HANDED}")}), deadline)?;
        loop {
            let progress = monitor.ask("query-migrate", json!({}), deadline)?;
            match progress["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let why = progress["error-desc"].as_str().unwrap_or("it does not say why");
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format!("QEMU has not saved the machine: {why}"),
                    ));
                }
                _ if Instant::now() >= deadline => {
                    return Err(Error::new(
                        ErrorKind::TimedOut,
                        "QEMU has not saved the machine in time",
                    ));
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }

    fn resume_after_checkpoint(&mut self) -> Result<()> {
        let limit = self.deadlines.resume();
        if std::mem::take(&mut self.stopped) {
            self.ask("cont", json!({}), limit)?;
            let status = self.status(limit)?;
            if status != "running" {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("the guest does not go on, it is {status}"),
                ));
            }
        }
        self.monitor = None;
        Ok(())
    }

    fn abandon(&mut self) {
        let limit = self.deadlines.resume();
        if std::mem::take(&mut self.stopped) {
            // Where QEMU has ended, so has the guest. There may be nothing to cancel.
            let _ = self.ask("migrate_cancel", json!({}), limit);
            let deadline = Instant::now() + limit;
            while self
                .ask("cont", json!({}), limit)
                .is_err_and(|error| error.kind() == ErrorKind::Unsupported)
                && Instant::now() < deadline
            {
                std::thread::sleep(LOOK);
            }
        }
        self.monitor = None;
    }

    fn rebuild(&mut self, unit: &Unit) -> Result<Rebuilt> {
        let path = unit.files.join(NOTE);
        let text = std::fs::read(&path).context(|| format!("read {}", path.display()))?;
        let note: Note = serde_json::from_slice(&text)
            .map_err(|error| Error::new(ErrorKind::Damaged, format!("{NOTE} is not understood")).with_source(error))?;
        // What was left there would be taken for the new one's; a link leads to that of a machine of a pool.
        let left = std::fs::symlink_metadata(&note.socket).map(|found| found.file_type());
        if left.is_ok_and(|kind| kind.is_socket() || kind.is_symlink()) {
            std::fs::remove_file(&note.socket).context(|| format!("remove {}", note.socket.display()))?;
        }
        self.unit = Some(unit.clone());
        let waiting = WAITING.into_iter().map(Into::into);
        let command = note.command.iter().map(Into::into).chain(waiting).collect();
        self.saved = Some(note);
        Ok(Rebuilt::Start(Some(command)))
    }

    fn resume_after_restart(&mut self) -> Result<()> {
        let limit = self.deadlines.rebuild();
        let deadline = Instant::now() + limit;
        let note = self.saved.take();
        let note = note.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no machine"))?;
        let path = self.unit()?.files.join(STATE);
        let file = File::open(&path).context(|| format!("open {}", path.display()))?;
        let mut monitor = Monitor::connect(&note.socket, deadline, true)?;
        monitor.ask_with("getfd", json!({"fdname": HANDED}), &file, deadline)?;
        monitor.ask("migrate-incoming", json!({"uri": format!("fd:{HANDED}")}), deadline)?;
        self.monitor = Some(monitor);
        while self.status(limit)? == "inmigrate" {
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::TimedOut, "QEMU has not read the machine in time"));
            }
            std::thread::sleep(LOOK);
        }
        if note.ran {
            self.ask("cont", json!({}), limit)?;
        }
        self.monitor = None;
        Ok(())
    }
}
