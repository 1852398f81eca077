//! Going into namespaces that a job has made, and coming back.
//!
//! Only the calling thread goes. What it asks the kernel then, and the sockets and queues it makes, are of the namespace
//! it is in. It is at home again when the last of this is dropped.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;

use cpr_kernel::namespace::Place;
use cpr_kernel::proc::{self, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::blockers::Home;
use crate::freeze::Process;

/// Namespaces of one kind: home, which is the job's and this thread's, and others.
#[derive(Debug)]
pub struct Visits {
    place: Place,
    /// None while there are no others.
    home: Option<File>,
    others: Vec<Other>,
    at: Cell<Option<usize>>,
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
            at: Cell::new(None),
        }
    }

    /// The number of the namespace that a process is in, which may be new; none for the job's own, and for one that this
    /// thread could not enter, which is refused elsewhere.
    ///
    /// # Errors
    /// The process has gone, or may not be looked at.
    pub fn of(&mut self, process: &ProcDir, home: &Home) -> Result<Option<usize>> {
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
            self.home = Some(self.place.here().context(|| "look at our own namespaces")?);
        }
        self.others.push(Other { namespace, link, pid });
        Ok(self.others.len() - 1)
    }

    /// As [`Visits::of`], of a process in a namespace that is known.
    ///
    /// # Errors
    /// As [`Visits::of`]; the process has left its namespace.
    pub fn known(&self, process: &ProcDir, home: &Home) -> Result<Option<usize>> {
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
    pub fn of_process(&mut self, process: &Process, home: &Home) -> Result<Option<usize>> {
        match process.threads.is_empty() {
            true => Ok(None),
            false => self.of(&process.proc, home),
        }
    }

    /// Makes a new namespace, and goes there.
    ///
    /// # Errors
    /// The kernel makes none.
    pub fn make(&mut self) -> Result<usize> {
        let what = || format!("make a namespace ({})", self.place.file());
        self.go(None)?;
        let home = self.place.here().context(what)?;
        self.place.leave().context(what)?;
        let index = self.others.len();
        // Now there is a way back, whatever fails.
        self.home.get_or_insert(home);
        self.at.set(Some(index));
        let namespace = self.place.here().context(what)?;
        self.add(namespace, Vec::new(), 0)
    }

    /// Adds a namespace that somebody else has made for us.
    ///
    /// # Errors
    /// There is no way back from it.
    pub fn adopt(&mut self, namespace: File) -> Result<usize> {
        self.go(None)?;
        self.add(namespace, Vec::new(), 0)
    }

    /// Goes to a namespace; none is home.
    ///
    /// # Errors
    /// It takes CAP_SYS_ADMIN over the namespace.
    pub fn go(&self, to: Option<usize>) -> Result<()> {
        if self.at.get() == to {
            return Ok(());
        }
        let namespace = match to {
            None => self.home.as_ref(),
            Some(index) => self.others.get(index).map(|other| &other.namespace),
        };
        let what = || match to.and_then(|index| self.others.get(index)) {
            Some(other) if other.pid != 0 => {
                format!("enter the {} namespace of process {}", self.place.file(), other.pid)
            }
            _ => format!("enter a namespace ({})", self.place.file()),
        };
        let Some(namespace) = namespace else {
            return Err(Error::new(ErrorKind::Internal, "there is no such namespace"));
        };
        self.place.enter(namespace.as_fd()).context(what)?;
        self.at.set(to);
        Ok(())
    }

    /// Does something in a namespace, and comes home.
    ///
    /// # Errors
    /// As [`Visits::go`], and what `act` gives.
    pub fn within<T>(&self, to: Option<usize>, act: impl FnOnce() -> Result<T>) -> Result<T> {
        self.go(to)?;
        let result = act();
        self.go(None)?;
        result
    }

    /// The descriptor of a namespace; home where none is given.
    pub fn namespace(&self, of: Option<usize>) -> Option<&File> {
        match of {
            None => self.home.as_ref(),
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
                let link = ProcDir::open(pid).ok()?.read_link(&file).ok()?;
                let found = self.others.iter().position(|other| other.link == link)?;
                Some((found, pid))
            })
            .collect()
    }
}

impl Drop for Visits {
    fn drop(&mut self) {
        // Whoever made it lost the right to come back; there is nobody left to tell.
        let _ = self.go(None);
    }
}
