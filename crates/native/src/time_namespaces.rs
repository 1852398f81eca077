//! Time namespaces that a job has made, for some of its processes or for the children of one (time_namespaces(7)).

use std::collections::HashMap;

use cpr_image::model::{Manifest, TimeNamespace, TimeNamespaceId};
use cpr_kernel::clocks::Offsets;
use cpr_kernel::proc::ProcDir;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use crate::blockers::Home;
use crate::freeze::{Frozen, Process};
use crate::user_namespaces;

const OWN: &str = "ns/time";
const OF_CHILDREN: &str = "ns/time_for_children";

/// Those found so far.
#[derive(Debug)]
pub struct Saved {
    /// By [`TimeNamespaceId`].
    pub namespaces: Vec<TimeNamespace>,
    by_link: HashMap<Vec<u8>, TimeNamespaceId>,
    /// The offsets of the job's own; none where nobody shows them.
    base: Option<Offsets>,
}

/// Whether a process shows the offsets of the job's own time namespace: a process does not show its own, but those of
/// its children.
fn shows_home(proc: &ProcDir, home: &Home) -> bool {
    let has = |name: &str| proc.read_link(name).is_ok_and(|link| home.has("time", &link));
    has(OWN) && has(OF_CHILDREN)
}

/// The offsets of the job's own time namespace; none where no process shows them.
///
/// # Errors
/// They cannot be read.
pub fn base(frozen: &Frozen, home: &Home) -> Result<Option<Offsets>> {
    let stopped = frozen.processes.iter().filter(|process| !process.threads.is_empty());
    let stopped = stopped.map(|process| process.proc.acting());
    let init = ProcDir::open_living(home.init()).ok();
    let shown = stopped
        .filter(|pid| ProcDir::open_living(*pid).is_ok_and(|proc| shows_home(&proc, home)))
        .chain(init.filter(|init| shows_home(init, home)).map(|_| home.init()))
        .next();
    let offsets = shown.map(|pid| Offsets::of_children(&pid.to_string()));
    offsets.transpose().context(|| "read the offsets of the job's clocks")
}

impl Saved {
    /// Nothing yet; `base` is what [`base`] gives.
    pub fn new(base: Option<Offsets>) -> Self {
        Saved {
            namespaces: Vec::new(),
            by_link: HashMap::new(),
            base,
        }
    }

    /// The time namespaces of a stopped process and of its children, where they are not the job's, or the same.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a process in one whose children will be in another; it cannot be looked at.
    pub fn of(
        &mut self,
        process: &Process,
        home: &Home,
        users: &mut user_namespaces::Saved,
    ) -> Result<(Option<TimeNamespaceId>, Option<TimeNamespaceId>)> {
        if process.threads.is_empty() || !cpr_kernel::clocks::is_supported() {
            return Ok((None, None));
        }
        let what = || format!("look at the time namespace of process {}", process.pid);
        let link = |name: &str| process.proc.read_link(name).context(what);
        let (own, later) = (link(OWN)?, link(OF_CHILDREN)?);
        match (home.has("time", &own), own == later) {
            (true, true) => Ok((None, None)),
            (true, false) => Ok((None, Some(self.find(later, process, home, users)?))),
            (false, true) => Ok((Some(self.find(own, process, home, users)?), None)),
            (false, false) => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "process {} is in a time namespace of its own, and has made another one for its children",
                    process.pid
                ),
            )),
        }
    }

    /// The one with this link, which a process has for its children.
    fn find(
        &mut self,
        link: Vec<u8>,
        process: &Process,
        home: &Home,
        users: &mut user_namespaces::Saved,
    ) -> Result<TimeNamespaceId> {
        if let Some(id) = self.by_link.get(&link) {
            return Ok(*id);
        }
        let what = || format!("look at the time namespace of process {}", process.pid);
        let base = self.base.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "no process shows how far the job's own clocks are ahead",
            )
        });
        let base = base.context(what)?;
        let offsets = Offsets::of_children(&process.proc.acting().to_string()).context(what)?;
        let namespace = process.proc.open_file(OF_CHILDREN, OFlags::RDONLY).context(what)?;
        let owner = users.owner(&namespace.into(), home).context(what)?;
        let id = TimeNamespaceId(self.namespaces.len() as u32);
        self.namespaces.push(TimeNamespace {
            monotonic_ns: offsets.monotonic_ns.saturating_sub(base.monotonic_ns),
            boottime_ns: offsets.boottime_ns.saturating_sub(base.boottime_ns),
            owner,
        });
        self.by_link.insert(link, id);
        Ok(id)
    }
}

/// Refuses time namespaces that a restart could not make: one of a user namespace is made by a process in that, and
/// joined by such; and one process makes it.
///
/// # Errors
/// [`ErrorKind::Unsupported`], with the process.
pub fn refuse_unmakeable(manifest: &Manifest) -> Result<()> {
    let refuse = |pid: i32, why: &str| {
        let text = format!("the time namespace that process {pid} has, or has made for its children, {why}");
        Err(Error::new(ErrorKind::Unsupported, text))
    };
    for (index, namespace) in (0..).zip(&manifest.time_namespaces) {
        let id = Some(TimeNamespaceId(index));
        let mut makers = 0;
        for process in &manifest.processes {
            makers += usize::from(process.time_namespace_of_children == id);
            let has = process.time_namespace == id || process.time_namespace_of_children == id;
            if makers > 1 {
                return refuse(process.pid, "is another one's, too");
            }
            if has && namespace.owner.is_some() && namespace.owner != process.user_namespace {
                return refuse(process.pid, "is of a user namespace that the process is not in");
            }
        }
    }
    Ok(())
}
