//! Going into namespaces that a job has made, and coming back.
//!
//! Only one thread goes. What it asks the kernel then, and the sockets and queues it makes, are of the namespace it is
//! in. Where it could not come back, because home belongs to others (a user's job shares the machine's network), a
//! thread goes that ends there; otherwise it is the calling one, at home again when the last of this is dropped.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use cpr_kernel::namespace::Place;
use cpr_kernel::proc::{self, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::blockers;
use crate::freeze::Process;

/// Namespaces of one kind: home, which is the job's and this thread's, and others.
#[derive(Debug)]
pub struct Visits {
    place: Place,
    /// None while there are no others.
    home: Option<Home>,
    others: Vec<Other>,
    /// Where the calling thread is; [`AT_HOME`] or an index.
    at: AtomicUsize,
}

const AT_HOME: usize = usize::MAX;

#[derive(Debug)]
struct Home {
    namespace: File,
    /// No thread of ours could come back to it.
    one_way: bool,
}

#[derive(Debug)]
struct Other {
    namespace: File,
    /// Its name in /proc.
    link: Vec<u8>,
    /// A process in it, for messages; zero for none.
    pid: i32,
}

impl Visits {
    /// Home alone.
    pub fn new(place: Place) -> Self {
        Visits {
            place,
            home: None,
            others: Vec::new(),
            at: AtomicUsize::new(AT_HOME),
        }
    }

    /// The number of the namespace that a process is in, which may be new; none for the job's own, and for one that
    /// this thread could not enter, which is refused elsewhere.
    ///
    /// # Errors
    /// The process has gone, or may not be looked at.
    pub fn of(&mut self, process: &ProcDir, home: &blockers::Home) -> Result<Option<usize>> {
        let file = format!("ns/{}", self.place.file());
        let what = || {
            format!(
                "look at the {} namespace of process {}",
                self.place.file(),
                process.pid()
            )
        };
        let link = process.read_link(&file).context(what)?;
        if let Some(known) = self.others.iter().position(|other| other.link == link) {
            return Ok(Some(known));
        }
        if home.has(self.place.file(), &link) || !home.may_visit_kind(process, self.place.file()) {
            return Ok(None);
        }
        let namespace = process.open_file(&file, rustix::fs::OFlags::RDONLY).context(what)?;
        self.add(namespace.into(), link, process.pid()).map(Some)
    }

    fn add(&mut self, namespace: File, link: Vec<u8>, pid: i32) -> Result<usize> {
        if self.home.is_none() {
            let namespace = self.place.here().context(|| "look at our own namespaces")?;
            // It belongs to a user namespace that we do not see, and that we have no power over.
            let one_way = cpr_kernel::namespace::owner(namespace.as_fd()).is_err();
            self.home = Some(Home { namespace, one_way });
        }
        self.others.push(Other { namespace, link, pid });
        Ok(self.others.len() - 1)
    }

    /// As [`Visits::of`], of a process in a namespace that is known.
    ///
    /// # Errors
    /// As [`Visits::of`]; the process has left its namespace.
    pub fn known(&self, process: &ProcDir, home: &blockers::Home) -> Result<Option<usize>> {
        let link = process.read_link(&format!("ns/{}", self.place.file()));
        let link = link.context(|| format!("look at the namespaces of process {}", process.pid()))?;
        match self.others.iter().position(|other| other.link == link) {
            Some(known) => Ok(Some(known)),
            None if home.has(self.place.file(), &link) => Ok(None),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                format!("process {} has just left its namespaces", process.pid()),
            )),
        }
    }

    /// As [`Visits::of`], of a stopped process that may be a zombie.
    ///
    /// # Errors
    /// As [`Visits::of`].
    pub fn of_process(&mut self, process: &Process, home: &blockers::Home) -> Result<Option<usize>> {
        match process.threads.is_empty() {
            true => Ok(None),
            false => self.of(&process.proc, home),
        }
    }

    /// Adds a namespace where a process has something but does not live; none where it is known, or home.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn include(&mut self, namespace: OwnedFd, process: &ProcDir, home: &blockers::Home) -> Result<()> {
        let stat = rustix::fs::fstat(&namespace).map_err(std::io::Error::from);
        let stat = stat.context(|| format!("look at a namespace ({})", self.place.file()))?;
        let link = format!("{}:[{}]", self.place.file(), stat.st_ino).into_bytes();
        if home.has(self.place.file(), &link) || self.others.iter().any(|other| other.link == link) {
            return Ok(());
        }
        self.add(namespace.into(), link, process.pid()).map(drop)
    }

    /// Adds a namespace that somebody else has made for us.
    ///
    /// # Errors
    /// Our own cannot be looked at.
    pub fn adopt(&mut self, namespace: File) -> Result<usize> {
        self.add(namespace, Vec::new(), 0)
    }

    fn enter(&self, to: Option<usize>) -> Result<()> {
        let what = || match to.and_then(|index| self.others.get(index)) {
            Some(other) if other.pid != 0 => {
                format!("enter the {} namespace of process {}", self.place.file(), other.pid)
            }
            _ => format!("enter a namespace ({})", self.place.file()),
        };
        let Some(namespace) = self.namespace(to) else {
            return Err(Error::new(ErrorKind::Internal, "there is no such namespace"));
        };
        self.place.enter(namespace.as_fd()).context(what)
    }

    fn is_one_way(&self) -> bool {
        self.home.as_ref().is_some_and(|home| home.one_way)
    }

    /// Has the calling thread go to a namespace that it can come back from; none is home.
    ///
    /// # Errors
    /// It takes CAP_SYS_ADMIN over the namespace, and over home.
    pub fn go(&self, to: Option<usize>) -> Result<()> {
        let number = to.unwrap_or(AT_HOME);
        if self.at.load(Ordering::Relaxed) == number {
            return Ok(());
        }
        if self.is_one_way() {
            let text = format!("there is no way back from a namespace ({})", self.place.file());
            return Err(Error::new(ErrorKind::Denied, text));
        }
        self.enter(to)?;
        self.at.store(number, Ordering::Relaxed);
        Ok(())
    }

    /// Does something in a namespace, and comes home. Where there is no way home, another thread does it.
    ///
    /// # Errors
    /// It takes CAP_SYS_ADMIN over the namespace; what `act` gives.
    pub fn within<T: Send>(&self, to: Option<usize>, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if to.is_some() && self.is_one_way() {
            return aside(|| self.enter(to).and_then(|()| act()));
        }
        self.go(to)?;
        let result = act();
        self.go(None)?;
        result
    }

    /// The descriptor of a namespace; home where none is given.
    pub fn namespace(&self, of: Option<usize>) -> Option<&File> {
        match of {
            None => self.home.as_ref().map(|home| &home.namespace),
            Some(index) => self.others.get(index).map(|other| &other.namespace),
        }
    }

    /// A process that was found in a namespace.
    pub fn someone_in(&self, index: usize) -> i32 {
        self.others.get(index).map_or(0, |other| other.pid)
    }

    /// How many there are beside home.
    pub fn len(&self) -> usize {
        self.others.len()
    }

    /// Whether there is nothing but home.
    pub fn is_empty(&self) -> bool {
        self.others.is_empty()
    }

    /// Processes outside the job that are in a namespace of the job's, which is then not the job's alone.
    pub fn strangers(&self, job: &HashSet<i32>) -> Vec<(usize, i32)> {
        if self.is_empty() {
            return Vec::new();
        }
        let file = format!("ns/{}", self.place.file());
        let others = proc::pids()
            .unwrap_or_default()
            .into_iter()
            .filter(|pid| !job.contains(pid));
        others
            .filter_map(|pid| {
                let link = ProcDir::open_living(pid).ok()?.read_link(&file).ok()?;
                let found = self.others.iter().position(|other| other.link == link)?;
                Some((found, pid))
            })
            .collect()
    }
}

/// Does something in a new namespace, which is gone then.
///
/// # Errors
/// The kernel makes none; what `act` gives.
pub fn within_new<T: Send>(place: Place, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    aside(|| {
        let what = || format!("make a namespace ({})", place.file());
        place.leave().context(what).and_then(|()| act())
    })
}

/// Does something in a thread of its own, with the same user and capabilities.
fn aside<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("visit".to_owned())
            .spawn_scoped(scope, act);
        let ended = thread.context(|| "start a thread for another namespace")?.join();
        ended.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                "a thread in another namespace panicked",
            ))
        })
    })
}

impl Drop for Visits {
    fn drop(&mut self) {
        // Whoever made it lost the right to come back; there is nobody left to tell.
        let _ = self.go(None);
    }
}
