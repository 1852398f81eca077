//! Namespaces for the host name (UTS) that a job has made for some of its processes.

use std::collections::HashMap;
use std::time::Instant;

use cpr_image::model::{ByteString, HostNames, HostNamesId};
use cpr_kernel::batch::Batch;
use cpr_types::{Context, Result};
use rustix::fs::OFlags;

use crate::blockers::Home;
use crate::freeze::Process;
use crate::user_namespaces;

/// Bytes of each field of `struct new_utsname`, and which of them are the names.
const FIELD: usize = 65;
const FIELDS: usize = 6;
const HOST: usize = 1;
const DOMAIN: usize = 5;

/// Those found so far.
#[derive(Debug, Default)]
pub struct Saved {
    /// By [`HostNamesId`].
    pub namespaces: Vec<HostNames>,
    by_link: HashMap<Vec<u8>, HostNamesId>,
}

impl Saved {
    /// The namespace of a stopped process, where it is not the job's. It must have an arena.
    ///
    /// # Errors
    /// The process cannot be looked at.
    pub fn of(
        &mut self,
        process: &mut Process,
        home: &Home,
        users: &mut user_namespaces::Saved,
        deadline: Instant,
    ) -> Result<Option<HostNamesId>> {
        if process.threads.is_empty() {
            return Ok(None);
        }
        let link = process.proc.read_link("ns/uts");
        let link = link.context(|| format!("look at the host name of process {}", process.pid))?;
        if home.has("uts", &link) {
            return Ok(None);
        }
        if let Some(id) = self.by_link.get(&link) {
            return Ok(Some(*id));
        }
        let what = || format!("look at the host name of process {}", process.pid);
        let namespace = process.proc.open_file("ns/uts", OFlags::RDONLY).context(what)?;
        let owner = users.owner(&namespace.into(), home).context(what)?;
        let mut batch = Batch::new();
        let (place, out) = batch.out(FIELD * FIELDS);
        batch.must(libc::SYS_uname, &[place], "ask for the host name");
        let outcome = process.run(0, &batch, deadline)?;
        let name = |field: usize| {
            let bytes = outcome.output(out).iter().skip(field * FIELD).take(FIELD);
            ByteString(bytes.copied().take_while(|byte| *byte != 0).collect())
        };
        let id = HostNamesId(self.namespaces.len() as u32);
        self.namespaces.push(HostNames {
            host: name(HOST),
            domain: name(DOMAIN),
            owner,
        });
        self.by_link.insert(link, id);
        Ok(Some(id))
    }
}
