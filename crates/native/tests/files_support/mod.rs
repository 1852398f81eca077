//! A Python program that opens things, its stopped processes as targets, and an image in memory.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use cpr_image::model::{Manifest, Process};
use cpr_kernel::namespace::Place;
use cpr_kernel::proc::ProcDir;
use cpr_native::files::{self, RestoreContext, SaveContext, Surroundings, Target};
use cpr_native::networks::Networks;
use cpr_native::visits::Visits;
use cpr_native::{Blocker, PageSink, PageSource, TcpPolicy};
use cpr_types::Result;
use rustix::process::{Pid, Signal};

/// Page data in memory.
#[derive(Default)]
pub struct Pages(pub Vec<u8>);

impl PageSink for Pages {
    fn append(&mut self, pages: &[u8]) -> Result<u64> {
        assert_eq!(pages.len() % 4096, 0);
        self.0.extend_from_slice(pages);
        Ok((self.0.len() - pages.len()) as u64)
    }
}

impl PageSource for Pages {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let at = offset as usize;
        buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
        Ok(())
    }
}

/// A running program and the processes it told about.
pub struct Program {
    child: Child,
    pub pids: Vec<i32>,
    pub targets: Vec<Target>,
}

impl Program {
    /// Starts `python3 -c` with a few imports and helpers before `script`; ready when the script has called `ready()`
    /// with the PIDs of its children. Arguments are in `sys.argv[1:]`.
    pub fn start(script: &str, arguments: &[&str]) -> Program {
        let prelude = "import os, sys, time, fcntl, socket, struct, signal, ctypes\n\
                       os.closerange(3, 1000)\n\
                       libc = ctypes.CDLL(None, use_errno=True)\n\
                       def ready(*pids):\n  print('ready', *pids, flush=True)\n  time.sleep(1000)\n";
        let mut child = Command::new("python3")
            .arg("-c")
            .arg(format!("{prelude}{script}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("ready"), "the program failed");
        let mut pids = vec![child.id() as i32];
        pids.extend(words.map(|word| word.parse::<i32>().unwrap()));
        let targets = pids.iter().map(|pid| target(*pid)).collect();
        Program { child, pids, targets }
    }

    pub fn root(&self) -> i32 {
        self.pids[0]
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.pids {
            let _ = rustix::process::kill_process(Pid::from_raw(*pid).unwrap(), signal);
        }
    }

    /// Stops all processes.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        for target in &self.targets {
            while target.proc.stat().unwrap().state != b'T' {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    /// Stops the processes and saves their files.
    pub fn save(&self) -> Result<(Manifest, Pages)> {
        self.stop();
        let networks = Networks::home();
        let mut context = SaveContext::new(&self.targets, self.root(), TcpPolicy::Refuse, false, &networks);
        let saved = files::save(&mut context)?;
        let mut pages = Pages::default();
        let mut manifest = Manifest::default();
        for (target, (descriptors, posix_locks)) in self.targets.iter().zip(saved) {
            manifest.processes.push(Process {
                pid: target.pid,
                descriptors,
                posix_locks,
                ..Process::default()
            });
        }
        let read_memory: &mut files::ReadMemory<'_> = &mut |_, _, _| panic!("no mappings here");
        manifest.saved_files = context.saved.write_contents(&mut pages, read_memory)?;
        (manifest.files, manifest.pipes) = (context.files, context.pipes);
        (manifest.sockets, manifest.terminals) = (context.sockets, context.terminals);
        Ok((manifest, pages))
    }

    pub fn check(&self) -> Vec<Blocker> {
        let around = Surroundings {
            devices: None,
            root_pid: self.root(),
            own_ipc: false,
            tcp: TcpPolicy::Refuse,
            channels: None,
            requester: None,
            networks: &Networks::home(),
            ipc: &Visits::new(Place::Ipc),
        };
        let found = files::check(&self.targets, around);
        [found.themselves, found.elsewhere].concat()
    }

    /// Ends all processes.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Saves, ends the processes and opens everything again here.
    pub fn move_here(mut self) -> Restored {
        let (manifest, pages) = self.save().unwrap();
        self.kill();
        Restored::new(manifest, &pages).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process as the engine sees it.
pub fn target(pid: i32) -> Target {
    let process = Pid::from_raw(pid).unwrap();
    Target {
        pid,
        proc: ProcDir::open(pid).unwrap(),
        pidfd: rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap(),
    }
}

/// The files of an image, open in the test.
#[derive(Debug)]
pub struct Restored {
    pub manifest: Manifest,
    pub files: Vec<Arc<OwnedFd>>,
}

impl Restored {
    pub fn new(manifest: Manifest, pages: &Pages) -> Result<Restored> {
        Self::with_streams(manifest, pages, &[None, None, None])
    }

    pub fn with_streams(manifest: Manifest, pages: &Pages, streams: &[Option<OwnedFd>; 3]) -> Result<Restored> {
        Self::with_terminal(manifest, pages, streams, None)
    }

    pub fn with_terminal(
        manifest: Manifest,
        pages: &Pages,
        streams: &[Option<OwnedFd>; 3],
        terminal: Option<&OwnedFd>,
    ) -> Result<Restored> {
        for process in &manifest.processes {
            assert!(
                process
                    .descriptors
                    .iter()
                    .all(|d| d.file.index() < manifest.files.len())
            );
            assert!(process.descriptors.windows(2).all(|w| w[0].fd < w[1].fd));
        }
        let mut backups = files::Backups::default();
        let saved = files::create_saved(&manifest, pages, &mut backups)?;
        let networks = Networks::home();
        let mut context = RestoreContext::new(&manifest, pages, streams, terminal, false, saved, &networks);
        let files = files::open_all(&mut context)?;
        let mut changes = files::Changes::prepare(context.manifest, &files, &context.saved, backups)?;
        changes.apply()?;
        changes.keep();
        let saved = std::mem::take(&mut context.saved);
        drop(context);
        files::seal_last(&manifest, &saved)?;
        Ok(Restored { manifest, files })
    }

    /// What descriptor `fd` of process number `process` is open on.
    pub fn at(&self, process: usize, fd: i32) -> BorrowedFd<'_> {
        self.files[self.id(process, fd)].as_fd()
    }

    /// Index of that open file.
    pub fn id(&self, process: usize, fd: i32) -> usize {
        let descriptors = &self.manifest.processes[process].descriptors;
        descriptors.iter().find(|d| d.fd == fd).unwrap().file.index()
    }
}
