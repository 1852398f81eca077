//! Programs that save themselves when they like: their supervisor sees new files, and makes them an image.
//!
//! Nobody is asked and nothing stands still. A program that ends with an agreed exit code has saved itself and is
//! started again once that is an image, as HTCondor does it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_engines::{Descriptor, PUT_BACK, Registry, Trigger, Unit, is_unfinished};
use cpr_types::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::job::Job;

/// For so long no file may come before what is there is taken for a whole.
const SETTLE: Duration = Duration::from_millis(200);
/// Most directories below one another.
const DEEPEST: usize = 32;

/// What is known of a job's own checkpoints.
#[derive(Debug)]
pub(crate) struct OwnCheckpoints {
    directory: PathBuf,
    watch: OwnedFd,
    /// Something is new; it becomes an image at this time.
    due: Option<Instant>,
    /// Something has become an image since the program was started.
    saved: bool,
    /// The program ends with this code to be started again.
    pub(crate) exit_code: Option<u8>,
}

impl OwnCheckpoints {
    /// None where the job's engine is no such one.
    pub(crate) fn watch(job: &Job) -> Result<Option<OwnCheckpoints>> {
        let Some(engine) = &job.spec().engine else {
            return Ok(None);
        };
        let registry = Registry::load()?;
        let descriptor = registry.engine(&engine.name)?;
        let Some(directory) = own_directory(job, descriptor) else {
            return Ok(None);
        };
        let what = || format!("watch {}", directory.display());
        std::fs::create_dir_all(&directory).context(what)?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(std::io::Error::from)
            .context(what)?;
        let own = OwnCheckpoints {
            watch,
            due: None,
            saved: false,
            exit_code: descriptor.application.as_ref().and_then(|asks| asks.exit_code),
            directory,
        };
        own.watch_all(&own.directory, 0)?;
        Ok(Some(own))
    }

    /// Watches a directory with all below it. One that is watched already stays so.
    fn watch_all(&self, directory: &Path, depth: usize) -> Result<()> {
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.watch, directory, flags | WatchFlags::DONT_FOLLOW) {
            Ok(_) => {}
            // Removed meanwhile.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
            Err(error) => {
                return Err(std::io::Error::from(error)).context(|| format!("watch {}", directory.display()));
            }
        }
        if depth == DEEPEST {
            return Ok(());
        }
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.watch_all(&entry.path(), depth + 1)?;
            }
        }
        Ok(())
    }

    /// Takes in what has happened.
    pub(crate) fn look(&mut self) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        let mut grown = false;
        let mut new = false;
        loop {
            match events.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                    let directory = event.events().contains(ReadFlags::ISDIR);
                    grown |= directory;
                    if name.as_deref() == Some(PUT_BACK) {
                        new = false;
                        self.due = None;
                    }
                    // What was overlooked, where the kernel has lost count, is new, too.
                    let lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    let complete = event.events().intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO);
                    new |= lost || complete && name.is_some_and(|name| !is_unfinished(&name));
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(std::io::Error::from(error)).context(|| "see new files"),
            }
        }
        if grown {
            self.watch_all(&self.directory, 0)?;
        }
        if new {
            self.due = Some(Instant::now() + SETTLE);
        }
        Ok(())
    }

    /// When what is new becomes an image.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It becomes one now.
    pub(crate) fn take(&mut self) {
        self.due = None;
    }

    /// It has become one, or has not.
    pub(crate) fn registered(&mut self, well: bool) {
        self.saved |= well;
    }

    /// Whether the program has saved itself since it was started; forgets that.
    pub(crate) fn has_saved(&mut self) -> bool {
        std::mem::take(&mut self.saved)
    }
}

impl AsFd for OwnCheckpoints {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

/// The directory of such an engine's program.
fn own_directory(job: &Job, descriptor: &Descriptor) -> Option<PathBuf> {
    let unit = Unit {
        job: job.name().to_string(),
        root: 0,
        processes: Vec::new(),
        job_directory: job.path().to_path_buf(),
        files: PathBuf::new(),
        group: None,
    };
    descriptor
        .own_directory(&unit)
        .filter(|_| descriptor.trigger == Trigger::Own)
}
