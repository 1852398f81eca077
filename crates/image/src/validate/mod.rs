//! Whether metadata make sense: every reference in range, every number within what Linux allows.
//!
//! After [`Manifest::validate`] the rest of GridCPR may index tables with the identifiers it finds, and add lengths to
//! addresses without overflow. Whether the objects can be made on this machine is not asked here.

mod files;
mod io_uring;
mod memory;
mod namespaces;
mod processes;
mod sockets;

use std::ops::Range;

use cpr_types::{Error, ErrorKind, Result};

use crate::format::{MAX_DATA, PAGE};
use crate::model::*;

use namespaces::inner_path;

/// Addresses below this one are user space; TASK_SIZE_MAX of x86-64 with four-level page tables.
const USER_LIMIT_X86_64: u64 = 0x7fff_ffff_f000;
/// Of other architectures, no more than that the sign bit is free.
const USER_LIMIT: u64 = (1 << 63) - PAGE;
/// PID_MAX_LIMIT.
const MAX_PID: i32 = 4 << 20;
/// Descriptor numbers are below this one: the usual fs.nr_open.
const MAX_FD: i32 = 1 << 20;
/// Largest offset in a file.
const MAX_FILE: u64 = i64::MAX as u64;
/// PATH_MAX.
const MAX_PATH: usize = 4096;
const MAX_SIGNAL: i32 = 64;
/// An image does not refer to more than this many others.
const MAX_ANCESTORS: usize = 4096;
const SIGINFO_LENGTH: usize = 128;
/// No register set, auxiliary vector, processor mask or terminal setting comes near this.
const MAX_BLOB: usize = 64 << 10;
/// The kernel buffers less of a terminal in one direction (640 KiB, TTYB_DEFAULT_MEM_LIMIT, and a line).
const MAX_TERMINAL: usize = 1 << 20;
const SOCK_DGRAM: i32 = 2;
const SOCK_RAW: i32 = 3;

impl Manifest {
    /// Checks that the metadata are consistent. `data` is where in the file page data lie.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], saying what is wrong with which object.
    pub fn validate(&self, data: Range<u64>) -> Result<()> {
        let manifest = self;
        let limit = if manifest.checkpoint.architecture == "x86_64" {
            USER_LIMIT_X86_64
        } else {
            USER_LIMIT
        };
        let check = Check { manifest, data, limit };
        check.checkpoint()?;
        check.ancestors()?;
        let pids = check.processes()?;
        check.pid_namespaces()?;
        check.user_namespaces()?;
        for (index, space) in manifest.address_spaces.iter().enumerate() {
            check
                .address_space(space)
                .map_err(|what| wrong(format!("address space {index}: {what}")))?;
        }
        for (index, file) in manifest.mapped_files.iter().enumerate() {
            path(&file.path)
                .and_then(|()| blob(&file.build_id, "build ID"))
                .and_then(|()| within(file.size <= MAX_FILE, "size"))
                .and_then(|()| match file.contents {
                    Some(id) => in_table(id.index(), &manifest.saved_files, "saved file"),
                    None => Ok(()),
                })
                .and_then(|()| check.place(file.mount_namespace))
                .map_err(|what| wrong(format!("mapped file {index}: {what}")))?;
        }
        for (index, file) in manifest.files.iter().enumerate() {
            check
                .open_file(file, &pids)
                .map_err(|what| wrong(format!("open file {index}: {what}")))?;
        }
        check.epoll_nesting()?;
        for (index, file) in manifest.saved_files.iter().enumerate() {
            check
                .saved_file(file)
                .map_err(|what| wrong(format!("saved file {index}: {what}")))?;
        }
        for (index, pipe) in manifest.pipes.iter().enumerate() {
            let bytes: usize = pipe.data.iter().map(|data| data.0.len()).sum();
            within(
                bytes as u64 <= u64::from(pipe.capacity) && pipe.capacity <= 1 << 31,
                "capacity",
            )
            .map_err(|what| wrong(format!("pipe {index}: {what}")))?;
        }
        check.ipc().map_err(wrong)?;
        check.namespaces().map_err(wrong)?;
        check.file_policies()?;
        check.sockets()?;
        check.inet_sockets()?;
        check.packet_sockets()?;
        check.io_urings()?;
        for (index, terminal) in manifest.terminals.iter().enumerate() {
            blob(&terminal.attributes, "attributes")
                .and_then(|()| within(terminal.input.0.len() <= MAX_TERMINAL, "input"))
                .and_then(|()| within(terminal.output.0.len() <= MAX_TERMINAL, "output"))
                .and_then(|()| check.terminal(terminal))
                .map_err(|what| wrong(format!("terminal {index}: {what}")))?;
        }
        Ok(())
    }
}

struct Check<'a> {
    manifest: &'a Manifest,
    data: Range<u64>,
    limit: u64,
}

/// What is wrong with an object; its name is put before it by the caller.
type Verdict = Result<(), String>;

fn wrong(what: String) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!("the metadata contradict themselves: {what}"),
    )
}

fn within(sound: bool, what: &str) -> Verdict {
    if sound {
        Ok(())
    } else {
        Err(format!("impossible {what}"))
    }
}

fn in_table<T>(index: usize, table: &[T], what: &str) -> Verdict {
    if index < table.len() {
        Ok(())
    } else {
        Err(format!("there is no {what} {index}"))
    }
}

fn path(path: &ByteString) -> Verdict {
    within(path.0.len() < MAX_PATH && !path.0.contains(&0), "path")
}

/// An absolute path that leads nowhere but down.
fn absolute(name: &ByteString) -> Verdict {
    path(name)?;
    match name.0.strip_prefix(b"/") {
        Some(rest) => inner_path(&ByteString(rest.to_vec())),
        None => Err("impossible path".to_owned()),
    }
}

fn blob(bytes: &Bytes, what: &str) -> Verdict {
    within(bytes.0.len() <= MAX_BLOB, what)
}

fn signal(number: i32) -> Verdict {
    within((1..=MAX_SIGNAL).contains(&number), "signal number")
}

fn pid(number: i32) -> Verdict {
    within((1..=MAX_PID).contains(&number), "process or thread ID")
}

fn descriptor(number: i32) -> Verdict {
    within((0..MAX_FD).contains(&number), "descriptor number")
}

fn siginfos(signals: &[Bytes]) -> Verdict {
    within(
        signals.iter().all(|info| info.0.len() == SIGINFO_LENGTH),
        "pending signal",
    )
}

impl Check<'_> {
    fn ancestors(&self) -> Result<()> {
        let ancestors = &self.manifest.ancestors;
        within(ancestors.len() <= MAX_ANCESTORS, "number of ancestors").map_err(wrong)?;
        for (index, ancestor) in ancestors.iter().enumerate() {
            path(&ancestor.path)
                .and_then(|()| within(ancestor.path.0.first() == Some(&b'/'), "path"))
                .and_then(|()| within(ancestor.id.0.len() == 16, "identifier"))
                .and_then(|()| within(ancestor.root_hash.0.len() == 32, "root hash"))
                .and_then(|()| within(ancestor.data_bytes <= MAX_DATA, "amount of page data"))
                .map_err(|what| wrong(format!("ancestor {index}: {what}")))?;
        }
        Ok(())
    }

    /// Where page data lie in this image (0) or an ancestor.
    fn data_of(&self, image: u64) -> Range<u64> {
        let Some(index) = image.checked_sub(1) else {
            return self.data.clone();
        };
        let ancestor = usize::try_from(index)
            .ok()
            .and_then(|index| self.manifest.ancestors.get(index));
        ancestor.map_or(0..0, |ancestor| PAGE..PAGE + ancestor.data_bytes)
    }

    fn checkpoint(&self) -> Result<()> {
        let checkpoint = &self.manifest.checkpoint;
        let size = u64::from(checkpoint.page_size);
        within(size == 0 || size == PAGE, "page size")
            .and_then(|()| blob(&checkpoint.vdso_hash, "vdso hash"))
            .and_then(|()| within(checkpoint.vdso_length <= 1 << 30, "vdso length"))
            .and_then(|()| within((0..=MAX_PID).contains(&checkpoint.session), "session"))
            .map_err(|what| wrong(format!("checkpoint: {what}")))
    }
}
