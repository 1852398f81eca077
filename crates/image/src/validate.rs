//! Whether metadata make sense: every reference in range, every number within what Linux allows.
//!
//! After [`Manifest::validate`] the rest of GridCPR may index tables with the identifiers it finds, and add lengths to
//! addresses without overflow. Whether the objects can be made on this machine is not asked here.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use cpr_types::{Error, ErrorKind, Result};

use crate::format::{ANCESTOR_STRIDE, MAX_DATA, PAGE};
use crate::model::*;

/// Addresses below this one are user space; TASK_SIZE_MAX of x86-64 with four-level page tables.
const USER_LIMIT_X86_64: u64 = 0x7fff_ffff_f000;
/// Of other architectures, no more than that the sign bit is free.
const USER_LIMIT: u64 = (1 << 63) - PAGE;
/// PID_MAX_LIMIT.
const MAX_PID: i32 = 4 << 20;
/// MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_NODIRATIME, MS_RELATIME.
const MOUNT_FLAGS: u64 = 1 | 2 | 4 | 8 | 1 << 10 | 1 << 11 | 1 << 21;
/// MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, STRICTATIME, NODIRATIME, NOSYMFOLLOW.
const MOUNT_ATTRIBUTES: u64 = 1 | 2 | 4 | 8 | 0x10 | 0x20 | 0x80 | 0x20_0000;
/// More mounts than these no namespace of a job has.
const MAX_MOUNTS: usize = 4096;
/// More files than these are not saved of a file system in memory.
const MAX_MEMORY_FILES: usize = 1 << 20;
/// Directories of such a file system lie in each other no deeper.
const MAX_DEPTH: usize = 256;
/// NAME_MAX.
const MAX_NAME: usize = 255;
/// UID_GID_MAP_MAX_EXTENTS.
const MAX_ID_RANGES: usize = 340;
/// More user namespaces than this no job has.
const MAX_USER_NAMESPACES: usize = 4096;
/// User namespaces lie in each other no deeper.
const MAX_USER_LEVELS: usize = 33;
/// MAX_PID_NS_LEVEL.
const MAX_PID_LEVELS: usize = 32;
/// Descriptor numbers are below this one: the usual fs.nr_open.
const MAX_FD: i32 = 1 << 20;
/// Largest offset in a file.
const MAX_FILE: u64 = i64::MAX as u64;
/// PATH_MAX.
const MAX_PATH: usize = 4096;
const MAX_SIGNAL: i32 = 64;
/// SEMVMX.
const MAX_SEMAPHORE: u16 = 32767;
/// An image does not refer to more than this many others.
const MAX_ANCESTORS: usize = 4096;
const SIGINFO_LENGTH: usize = 128;
/// Of BLAKE3.
const HASH_LENGTH: usize = 32;
/// No register set, auxiliary vector, processor mask or terminal setting comes near this.
const MAX_BLOB: usize = 64 << 10;
/// The kernel buffers less of a terminal in one direction (640 KiB, TTYB_DEFAULT_MEM_LIMIT, and a line).
const MAX_TERMINAL: usize = 1 << 20;
/// Largest sun_path.
const MAX_SOCKET_NAME: usize = 108;
const SOCK_STREAM: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const SOCK_SEQPACKET: i32 = 5;
const SOCK_RAW: i32 = 3;
/// The old kind of packet sockets.
const SOCK_PACKET: i32 = 10;
/// More often nobody asks an interface for the same thing.
const MAX_MEMBERSHIPS: u32 = 1 << 16;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
/// SIGEV_THREAD_ID.
const NOTIFY_THREAD: i32 = 4;

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

fn options(options: &[SocketOption]) -> Verdict {
    within(options.len() <= 256, "number of options")?;
    within(
        options.iter().all(|(_, _, value)| value.0.len() <= 4096),
        "length of an option",
    )
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

/// A path from some directory that leads nowhere but down; empty for that itself.
fn inner_path(name: &ByteString) -> Verdict {
    path(name)?;
    let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    within(
        name.0.is_empty() || name.0.split(|byte| *byte == b'/').all(plain),
        "path",
    )
}

fn mount_options(options: &[MountOption], known: &[&str]) -> Verdict {
    let mut seen = HashSet::new();
    let sound = |(name, value): &MountOption| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'%';
        known.contains(&name.as_str()) && value.len() <= 64 && value.bytes().all(plain)
    };
    within(
        options
            .iter()
            .all(|option| sound(option) && seen.insert(option.0.clone())),
        "options",
    )
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

/// Whether the range is not empty, on page borders, and inside `outer`.
fn is_page_range(start: u64, length: u64, outer: &Range<u64>) -> bool {
    let aligned = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) && length > 0;
    aligned && start >= outer.start && start.checked_add(length).is_some_and(|end| end <= outer.end)
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

    /// Checks all processes and returns their PIDs.
    fn processes(&self) -> Result<HashSet<i32>> {
        let processes = &self.manifest.processes;
        let mut order = HashMap::with_capacity(processes.len());
        let mut tids = HashSet::new();
        let mut spaces = HashSet::new();
        for (index, process) in processes.iter().enumerate() {
            let this = |what: String| wrong(format!("process {}: {what}", process.pid));
            pid(process.pid).map_err(this)?;
            if order.insert(process.pid, index).is_some() {
                return Err(this("it is listed twice".to_string()));
            }
            // A zombie has no threads listed, but its ID is taken all the same.
            let leader = process.threads.is_empty().then_some(process.pid);
            for tid in process.threads.iter().map(|thread| thread.tid).chain(leader) {
                pid(tid).map_err(this)?;
                if !tids.insert(tid) {
                    return Err(this(format!("thread {tid} is listed twice")));
                }
            }
            if process.address_space.is_some_and(|id| !spaces.insert(id)) {
                return Err(this("its address space belongs to another process".to_string()));
            }
            self.process(process).map_err(this)?;
        }
        for (index, process) in processes.iter().enumerate() {
            if order.get(&process.ppid).is_some_and(|parent| *parent >= index) {
                let what = format!(
                    "process {}: its parent {} does not come before it",
                    process.pid, process.ppid
                );
                return Err(wrong(what));
            }
        }
        for process in processes.iter().filter(|process| process.shares_descriptors) {
            let parent = order.get(&process.ppid).and_then(|index| processes.get(*index));
            if !process.descriptors.is_empty() || parent.is_none_or(|parent| parent.threads.is_empty()) {
                return Err(wrong(format!(
                    "process {} cannot share descriptors with its parent {}",
                    process.pid, process.ppid
                )));
            }
        }
        let root = self.manifest.checkpoint.root_pid;
        if root != 0 && !order.contains_key(&root) {
            return Err(wrong(format!("there is no process {root}, of which the checkpoint is")));
        }
        Ok(order.into_keys().collect())
    }

    fn process(&self, process: &Process) -> Verdict {
        match process.state {
            ProcessState::Zombie(_) => {
                within(
                    process.threads.is_empty() && process.address_space.is_none(),
                    "zombie with threads or memory",
                )?;
            }
            ProcessState::Running | ProcessState::Stopped(_) => {
                let leader = process.threads.first().ok_or("it has no threads")?;
                within(leader.tid == process.pid, "leading thread")?;
                let space = process.address_space.ok_or("it has no address space")?;
                in_table(space.index(), &self.manifest.address_spaces, "address space")?;
            }
        }
        if let ProcessState::Stopped(number) = process.state {
            signal(number)?;
        }
        for (id, what) in [
            (process.ppid, "parent"),
            (process.pgid, "process group"),
            (process.sid, "session"),
        ] {
            within((0..=MAX_PID).contains(&id), what)?;
        }
        let mut last = -1;
        for open in &process.descriptors {
            descriptor(open.fd)?;
            if open.fd <= last {
                return Err(format!("descriptor {} is out of order or listed twice", open.fd));
            }
            last = open.fd;
            in_table(open.file.index(), &self.manifest.files, "open file")?;
        }
        path(&process.cwd)?;
        path(&process.root)?;
        within(process.umask <= 0o7777, "umask")?;
        let mut resources = HashSet::new();
        for limit in &process.limits {
            within(
                limit.resource < 64 && resources.insert(limit.resource),
                "resource limit",
            )?;
        }
        let mut signals = HashSet::new();
        for action in &process.signal_actions {
            signal(action.signal)?;
            within(signals.insert(action.signal), "second action for one signal")?;
        }
        siginfos(&process.pending_signals)?;
        for timer in &process.interval_timers {
            within((0..=2).contains(&timer.which), "interval timer")?;
        }
        let mut timers = HashSet::new();
        for timer in &process.posix_timers {
            within(timer.id >= 0 && timers.insert(timer.id), "timer ID")?;
            within((0..=MAX_SIGNAL).contains(&timer.signal), "timer signal")?;
            if timer.notify == NOTIFY_THREAD && !process.threads.iter().any(|thread| thread.tid == timer.thread) {
                return Err(format!("timer {} is of a thread that is missing", timer.id));
            }
        }
        for lock in &process.posix_locks {
            if process
                .descriptors
                .binary_search_by_key(&lock.fd, |open| open.fd)
                .is_err()
            {
                return Err(format!("there is no descriptor {} for a file lock", lock.fd));
            }
            within(
                lock.start
                    .checked_add(lock.length)
                    .is_some_and(|end| end - 1.min(end) <= MAX_FILE),
                "file lock",
            )?;
        }
        within((-1000..=1000).contains(&process.oom_score_adj), "oom_score_adj")?;
        for saved in process.cwd_saved.iter().chain(&process.root_saved) {
            in_table(saved.index(), &self.manifest.saved_files, "saved file")?;
        }
        if let Some(names) = process.host_names {
            in_table(names.index(), &self.manifest.host_names, "namespace for host names")?;
        }
        self.network(process.network)?;
        self.ipc_namespace(process.ipc_namespace)?;
        if let Some(CgroupNamespaceId(id)) = process.cgroup_namespace {
            within(id < self.manifest.cgroup_namespaces, "cgroup namespace")?;
        }
        for namespace in [process.pid_namespace, process.pid_namespace_of_children] {
            namespace.map_or(Ok(()), |id| {
                in_table(id.index(), &self.manifest.pid_namespaces, "PID namespace")
            })?;
        }
        process.mount_namespace.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.mount_namespaces, "mount namespace")
        })?;
        if let Some(terminal) = process.controlling_terminal {
            in_table(terminal.index(), &self.manifest.terminals, "terminal")?;
        }
        for thread in &process.threads {
            self.thread(thread)
                .map_err(|what| format!("thread {}: {what}", thread.tid))?;
        }
        Ok(())
    }

    fn thread(&self, thread: &Thread) -> Verdict {
        if let Some(own) = &thread.directories {
            path(&own.cwd)?;
            path(&own.root)?;
            within(own.umask <= 0o7777, "umask")?;
        }
        if let Seccomp::Filters(filters) = &thread.seccomp {
            // The kernel limits what all filters of a thread take together to 32768 instructions.
            within(filters.len() <= 32768, "number of seccomp filters")?;
            for filter in filters {
                let length = filter.program.0.len();
                within(
                    length.is_multiple_of(8) && (8..=4096 * 8).contains(&length),
                    "seccomp filter",
                )?;
            }
        }
        within(thread.memory_policy.nodes.0.len() <= 8192, "memory policy")?;
        within(thread.speculation.len() <= 3, "speculation controls")?;
        within(thread.name.0.len() <= 64 && !thread.name.0.contains(&0), "name")?;
        blob(&thread.cpu.general, "register set")?;
        blob(&thread.cpu.extended, "register set")?;
        siginfos(&thread.pending_signals)?;
        within(
            (0..=MAX_SIGNAL).contains(&thread.parent_death_signal),
            "parent-death signal",
        )?;
        blob(&thread.scheduling.affinity, "processor mask")?;
        within((-20..=19).contains(&thread.scheduling.nice), "nice value")?;
        // NGROUPS_MAX.
        within(thread.credentials.groups.len() <= 65536, "number of groups")
    }

    fn address_space(&self, space: &AddressSpace) -> Verdict {
        let manifest = self.manifest;
        blob(&space.layout.auxv, "auxiliary vector")?;
        within(space.lock_future & !6 == 0, "locking of mappings to come")?;
        if let Some(file) = space.executable {
            in_table(file.index(), &manifest.mapped_files, "mapped file")?;
        }
        if let Some(file) = space.saved_executable {
            in_table(file.index(), &manifest.saved_files, "saved file")?;
            let kind = &manifest.saved_files[file.index()].kind;
            within(matches!(kind, SavedFileKind::Memfd { .. }), "executable")?;
        }
        let mut last = 0;
        for mapping in &space.mappings {
            let this = |what: String| format!("mapping {:x}-{:x}: {what}", mapping.start, mapping.end);
            let length = mapping.end.saturating_sub(mapping.start);
            within(is_page_range(mapping.start, length, &(0..self.limit)), "range").map_err(this)?;
            if mapping.start < last {
                return Err(this("it overlaps the one before or is out of order".to_string()));
            }
            last = mapping.end;
            self.mapping(mapping, length).map_err(this)?;
        }
        Ok(())
    }

    fn mapping(&self, mapping: &Mapping, length: u64) -> Verdict {
        let manifest = self.manifest;
        within(mapping.protection <= 7, "protection")?;
        let end = mapping.offset.checked_add(length);
        within(
            mapping.offset.is_multiple_of(PAGE) && end.is_some_and(|end| end <= MAX_FILE),
            "offset",
        )?;
        match mapping.kind {
            MappingKind::PrivateFile(id) | MappingKind::SharedFile(id) => {
                in_table(id.index(), &manifest.mapped_files, "mapped file")?;
            }
            MappingKind::SharedSaved(id) | MappingKind::PrivateSaved(id) => {
                in_table(id.index(), &manifest.saved_files, "saved file")?;
            }
            MappingKind::SysvSegment(id) => {
                let segment = manifest.ipc.segments.get(id.index());
                let segment = segment.ok_or_else(|| format!("there is no segment {}", id.0))?;
                let size = segment.size.checked_next_multiple_of(PAGE).unwrap_or(0);
                within(end.is_some_and(|end| end <= size), "part of a segment")?;
            }
            MappingKind::HugePages(size) => {
                let aligned = size.is_power_of_two() && size > PAGE;
                let whole = mapping.start.is_multiple_of(size.max(1)) && length.is_multiple_of(size.max(1));
                within(aligned && whole, "size of huge pages")?;
            }
            MappingKind::SharedSocket(id) | MappingKind::PrivateSocket(id) => {
                in_table(id.index(), &self.manifest.packet_sockets, "packet socket")?;
            }
            MappingKind::AioRing => {
                let covered: u64 = mapping.extents.iter().map(|extent| extent.length).sum();
                within(covered == length && mapping.offset == 0, "ring of asynchronous I/O")?;
            }
            MappingKind::Anonymous
            | MappingKind::Stack
            | MappingKind::Vdso
            | MappingKind::Vvar
            | MappingKind::VvarClock => {}
        }
        within(mapping.flags.iter().all(|flag| flag.len() <= 16), "flag")?;
        let bounds = mapping.start..mapping.end;
        self.extents(&mapping.extents, &bounds)?;
        let mut last = 0;
        for (start, length) in &mapping.guards {
            within(is_page_range(*start, *length, &bounds) && *start >= last, "guard pages")?;
            last = start + length;
        }
        Ok(())
    }

    /// Checks runs of saved pages that belong into `bounds`.
    fn extents(&self, extents: &[Extent], bounds: &Range<u64>) -> Verdict {
        let mut last = 0;
        for extent in extents {
            let Extent { start, length, offset } = *extent;
            let this = |what: &str| format!("saved pages at {start:x} ({length} bytes) {what}");
            if !is_page_range(start, length, bounds) {
                return Err(this("are not in it"));
            }
            if start < last {
                return Err(this("overlap those before or are out of order"));
            }
            last = start + length;
            let data = self.data_of(offset / ANCESTOR_STRIDE);
            if !is_page_range(offset % ANCESTOR_STRIDE, length, &data) {
                return Err(this(&format!("are not in the image at offset {offset}")));
            }
        }
        Ok(())
    }

    fn saved_file(&self, file: &SavedFile) -> Verdict {
        match &file.kind {
            SavedFileKind::Deleted { path: name } | SavedFileKind::Backup { path: name } => path(name)?,
            SavedFileKind::DeletedDirectory { path: name } => {
                path(name)?;
                within(file.size == 0, "size")?;
            }
            SavedFileKind::DeletedLink { path: name, target } => {
                path(name)?;
                path(target)?;
                within(file.size == 0, "size")?;
            }
            // The kernel allows 249 bytes.
            SavedFileKind::Memfd { name, .. } => within(name.0.len() <= 255 && !name.0.contains(&0), "name")?,
            SavedFileKind::SharedAnonymous => {}
            SavedFileKind::SharedMemory { path: name } => {
                path(name)?;
                let inside = name.0.strip_prefix(b"/dev/shm/").is_some_and(|rest| !rest.is_empty());
                let plain = name.0.split(|&b| b == b'/').all(|part| part != b".." && part != b".");
                within(inside && plain, "path of shared memory")?;
            }
        }
        within(file.size <= MAX_FILE, "size")?;
        // i64::MAX rounded up still fits.
        self.extents(&file.extents, &(0..file.size.next_multiple_of(PAGE)))
    }

    fn network(&self, id: Option<NetworkId>) -> Verdict {
        id.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.networks, "network namespace")
        })
    }

    fn ipc_namespace(&self, id: Option<IpcNamespaceId>) -> Verdict {
        id.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.ipc_namespaces, "IPC namespace")
        })
    }

    fn owner(&self, id: Option<UserNamespaceId>) -> Verdict {
        id.map_or(Ok(()), |id| {
            in_table(id.index(), &self.manifest.user_namespaces, "user namespace")
        })
    }

    /// User namespaces: each within one before it, and with users and groups that are each known by one number. What
    /// belongs to them.
    fn user_namespaces(&self) -> Result<()> {
        let manifest = self.manifest;
        let namespaces = &manifest.user_namespaces;
        within(namespaces.len() <= MAX_USER_NAMESPACES, "number of user namespaces").map_err(wrong)?;
        let mut depths: Vec<usize> = Vec::with_capacity(namespaces.len());
        for (index, namespace) in namespaces.iter().enumerate() {
            let this = |what: String| wrong(format!("user namespace {index}: {what}"));
            let depth = match namespace.parent {
                None => Some(1),
                Some(parent) => depths.get(parent.index()).map(|depth| depth + 1),
            };
            let depth = depth.ok_or_else(|| this("it is in one that does not come before it".to_owned()))?;
            within(depth <= MAX_USER_LEVELS, "depth").map_err(this)?;
            depths.push(depth);
            for ranges in [&namespace.uids, &namespace.gids] {
                within(ranges.len() <= MAX_ID_RANGES, "number of ranges").map_err(this)?;
                for side in [|range: &IdRange| range.0, |range: &IdRange| range.1] {
                    let mut spans: Vec<(u32, u32)> = ranges.iter().map(|range| (side(range), range.2)).collect();
                    spans.sort_unstable();
                    let mut free = 0u64;
                    for (first, count) in spans {
                        // The highest number stands for nobody.
                        let end = u64::from(first) + u64::from(count);
                        let sound = count > 0 && u64::from(first) >= free && end <= u64::from(u32::MAX);
                        within(sound, "range of users or groups").map_err(this)?;
                        free = end;
                    }
                }
            }
        }
        within(
            manifest.mount_namespaces.len() <= manifest.processes.len(),
            "number of mount namespaces",
        )
        .map_err(wrong)?;
        for (index, namespace) in manifest.mount_namespaces.iter().enumerate() {
            self.mount_namespace(namespace)
                .map_err(|what| wrong(format!("mount namespace {index}: {what}")))?;
        }
        let owners = &manifest.cgroup_namespace_owners;
        let sound = owners.is_empty() || owners.len() == manifest.cgroup_namespaces as usize;
        within(sound, "number of owners of cgroup namespaces").map_err(wrong)?;
        let owned = owners.iter().copied();
        owned
            .chain(manifest.processes.iter().map(|process| process.user_namespace))
            .chain(manifest.pid_namespaces.iter().map(|namespace| namespace.owner))
            .chain(manifest.ipc_namespaces.iter().map(|namespace| namespace.owner))
            .chain(manifest.networks.iter().map(|namespace| namespace.owner))
            .chain(manifest.host_names.iter().map(|namespace| namespace.owner))
            .chain(manifest.mount_namespaces.iter().map(|namespace| namespace.owner))
            .try_for_each(|owner| self.owner(owner))
            .map_err(wrong)
    }

    fn mount_namespace(&self, namespace: &MountNamespace) -> Verdict {
        let pid_namespace = |id: Option<PidNamespaceId>| {
            id.map_or(Ok(()), |id| {
                in_table(id.index(), &self.manifest.pid_namespaces, "PID namespace")
            })
        };
        if let Some(proc) = &namespace.proc {
            pid_namespace(proc.pid_namespace)?;
            within(proc.flags & !MOUNT_FLAGS == 0, "flags of /proc")?;
        }
        let tree = &namespace.tree;
        within(tree.len() <= MAX_MOUNTS, "number of mounts")?;
        let mut shown = None;
        for (index, point) in tree.iter().enumerate() {
            let this = |what: String| format!("mount {index}: {what}");
            self.mount_point(point, index, tree).map_err(this)?;
            if let Mounted::Processes { pid_namespace: id, .. } = &point.mounted {
                pid_namespace(*id).map_err(this)?;
                // Whoever makes it is in one of them.
                within(*shown.get_or_insert(*id) == *id, "second PID namespace").map_err(this)?;
            }
        }
        Ok(())
    }

    fn mount_point(&self, point: &MountPoint, index: usize, tree: &[MountPoint]) -> Verdict {
        let earlier = |id: u32| tree.get(id as usize).filter(|_| (id as usize) < index);
        let parent = match point.parent {
            None => {
                within(index == 0 && point.at.0.is_empty(), "root")?;
                None
            }
            Some(id) => Some(earlier(id).ok_or("what it is on does not come before it")?),
        };
        inner_path(&point.at)?;
        within(point.attributes & !MOUNT_ATTRIBUTES == 0, "attributes")?;
        match &point.mounted {
            Mounted::Bind { path: name, .. } => absolute(name),
            Mounted::Along => {
                let goes = parent.is_some_and(|parent| {
                    matches!(parent.mounted, Mounted::Bind { recursive: true, .. } | Mounted::Along)
                });
                within(goes, "mount that came along")
            }
            Mounted::Part { of, path: name } => {
                earlier(*of).ok_or("what it is a part of does not come before it")?;
                inner_path(name)
            }
            Mounted::Processes { options, .. } => mount_options(options, &["hidepid", "subset", "gid"]),
            Mounted::Queues { ipc_namespace } => self.ipc_namespace(*ipc_namespace),
            Mounted::Terminals { options } => mount_options(options, &["mode", "ptmxmode", "gid", "max"]),
            Mounted::Memory {
                path: name,
                options,
                files,
            } => {
                inner_path(name)?;
                mount_options(options, &["size", "nr_inodes", "huge", "noswap", "ro"])?;
                self.memory_files(files)
            }
        }
    }

    fn memory_files(&self, files: &[MemoryFile]) -> Verdict {
        within(files.len() <= MAX_MEMORY_FILES, "number of files")?;
        // The directories that the present file is in, the innermost last.
        let mut around: Vec<u32> = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let name = &file.name.0;
            if index == 0 {
                within(
                    name.is_empty() && file.kind == MemoryFileKind::Directory,
                    "root of a file system",
                )?;
            } else {
                let plain = !name.is_empty() && name.len() <= MAX_NAME && name != b"." && name != b"..";
                within(plain && !name.contains(&b'/') && !name.contains(&0), "name of a file")?;
                while around.last().is_some_and(|directory| *directory != file.parent) {
                    around.pop();
                }
                within(!around.is_empty(), "directory of a file")?;
            }
            within(file.mode <= 0o7777, "mode of a file")?;
            let attributes = &file.attributes;
            let sound = |(name, value): &(ByteString, Bytes)| {
                !name.0.is_empty() && name.0.len() <= MAX_NAME && !name.0.contains(&0) && value.0.len() <= MAX_BLOB
            };
            within(
                attributes.len() <= 1024 && attributes.iter().all(sound),
                "attributes of a file",
            )?;
            match &file.kind {
                MemoryFileKind::Directory => {
                    within(around.len() < MAX_DEPTH, "depth of a directory")?;
                    around.push(index as u32);
                }
                MemoryFileKind::Regular { size, extents } => {
                    within(*size <= MAX_FILE, "size")?;
                    self.extents(extents, &(0..size.next_multiple_of(PAGE)))?;
                }
                MemoryFileKind::Link { target } => path(target)?,
                MemoryFileKind::Fifo | MemoryFileKind::Socket | MemoryFileKind::Device { .. } => {}
                MemoryFileKind::Same { as_file } => {
                    let other = files[..index].get(*as_file as usize).map(|other| &other.kind);
                    let sound = !matches!(
                        other,
                        None | Some(MemoryFileKind::Directory | MemoryFileKind::Same { .. })
                    );
                    within(sound, "other name of a file")?;
                }
            }
        }
        within(!files.is_empty(), "file system without a root")
    }

    /// A mount namespace that paths are of: one with mounts of its own.
    fn place(&self, id: Option<MountNamespaceId>) -> Verdict {
        let Some(id) = id else { return Ok(()) };
        in_table(id.index(), &self.manifest.mount_namespaces, "mount namespace")?;
        within(
            !self.manifest.mount_namespaces[id.index()].tree.is_empty(),
            "mount namespace of a path",
        )
    }

    /// PID namespaces: each within one before it, with a first process that everybody in it comes after, and a number in
    /// it for everybody in it.
    fn pid_namespaces(&self) -> Result<()> {
        let namespaces = &self.manifest.pid_namespaces;
        let processes = &self.manifest.processes;
        // One for each process, and one for its children.
        within(namespaces.len() <= 2 * processes.len(), "number of PID namespaces").map_err(wrong)?;
        let mut tables: Vec<HashMap<i32, i32>> = Vec::with_capacity(namespaces.len());
        let mut depths: Vec<usize> = Vec::with_capacity(namespaces.len());
        for (index, namespace) in namespaces.iter().enumerate() {
            let this = |what: String| wrong(format!("PID namespace {index}: {what}"));
            let depth = match namespace.parent {
                None => Some(1),
                Some(parent) => depths.get(parent.index()).map(|depth| depth + 1),
            };
            let depth = depth.ok_or_else(|| this("it is in one that does not come before it".to_owned()))?;
            within(depth <= MAX_PID_LEVELS, "depth").map_err(this)?;
            depths.push(depth);
            let mut table = HashMap::with_capacity(namespace.numbers.len());
            let mut inside = HashSet::with_capacity(namespace.numbers.len());
            for &(outside, number) in &namespace.numbers {
                pid(outside).and_then(|()| pid(number)).map_err(this)?;
                if table.insert(outside, number).is_some() || !inside.insert(number) {
                    return Err(this(format!("number {number} for {outside} is listed twice")));
                }
            }
            tables.push(table);
        }
        let within_all = |mut id: Option<PidNamespaceId>, number: i32| {
            while let Some(at) = id {
                if !tables[at.index()].contains_key(&number) {
                    return false;
                }
                id = namespaces[at.index()].parent;
            }
            true
        };
        let by_pid: HashMap<i32, &Process> = processes.iter().map(|process| (process.pid, process)).collect();
        let mut begun = vec![false; namespaces.len()];
        for process in processes {
            let this = |what: &str| wrong(format!("process {}: {what}", process.pid));
            if let Some(later) = process.pid_namespace_of_children {
                let mut around = namespaces[later.index()].parent;
                // In its own, or deeper in a tree of which each comes after its parent.
                while let Some(at) = around.filter(|at| Some(*at) != process.pid_namespace) {
                    around = namespaces[at.index()].parent;
                }
                if around != process.pid_namespace || Some(later) == process.pid_namespace {
                    return Err(this("the PID namespace of its children is not below its own"));
                }
            }
            let tids = process.threads.iter().map(|thread| thread.tid);
            if !tids
                .chain([process.pid])
                .all(|tid| within_all(process.pid_namespace, tid))
            {
                return Err(this("it has no number in its PID namespace"));
            }
            let parent = by_pid.get(&process.ppid).and_then(|parent| parent.pid_namespace);
            let Some(own) = process.pid_namespace else {
                if parent.is_some() {
                    return Err(this("it is in a PID namespace around its parent's"));
                }
                continue;
            };
            let first = tables[own.index()].get(&process.pid) == Some(&1);
            if first {
                begun[own.index()] = true;
                if parent != namespaces[own.index()].parent {
                    return Err(this("its PID namespace is not within its parent's"));
                }
            } else if !begun[own.index()] {
                return Err(this("its PID namespace has no first process before it"));
            }
            let mut around = Some(own);
            while around != parent {
                let Some(at) = around else {
                    return Err(this("its PID namespace is not within its parent's"));
                };
                around = namespaces[at.index()].parent;
            }
        }
        Ok(())
    }

    /// Network and IPC namespaces.
    fn namespaces(&self) -> Verdict {
        let settings = |settings: &[Setting]| {
            settings.iter().try_for_each(|(name, value)| {
                let odd = |part: &[u8]| part.is_empty() || part == b"." || part == b"..";
                let sound = name.0.len() <= 4096 && !name.0.contains(&0) && !name.0.split(|b| *b == b'/').any(odd);
                within(sound && value.0.len() <= 65536, "setting")
            })
        };
        // One for each process at most.
        let most = self.manifest.processes.len();
        within(
            self.manifest.cgroup_namespaces as usize <= most,
            "number of cgroup namespaces",
        )?;
        for (index, namespace) in self.manifest.ipc_namespaces.iter().enumerate() {
            settings(&namespace.settings).map_err(|what| format!("IPC namespace {index}: {what}"))?;
        }
        for (index, network) in self.manifest.networks.iter().enumerate() {
            let this = |what: String| format!("network namespace {index}: {what}");
            settings(&network.settings).map_err(this)?;
            let mut numbers = HashSet::new();
            for link in &network.links {
                let number = (1..=i32::MAX as u32).contains(&link.index) && numbers.insert(link.index);
                within(number, "number of an interface").map_err(this)?;
                let name = &link.name.0;
                let sound = (1..=15).contains(&name.len()) && !name.contains(&0) && !name.contains(&b'/');
                within(sound, "name of an interface").map_err(this)?;
                within(link.address.0.len() <= 32, "hardware address").map_err(this)?;
                if let LinkKind::Veth { network, index: end } = link.kind {
                    self.network(Some(network)).map_err(this)?;
                    let other = &self.manifest.networks[network.index()].links;
                    let back = LinkKind::Veth {
                        network: NetworkId(index as u32),
                        index: link.index,
                    };
                    let itself = network.index() == index && end == link.index;
                    let agreed = !itself && other.iter().any(|other| other.index == end && other.kind == back);
                    within(agreed, "other end of an interface").map_err(this)?;
                }
            }
            for entry in network.addresses.iter().chain(&network.routes).chain(&network.rules) {
                let length: usize = entry.attributes.iter().map(|(_, value)| value.0.len() + 8).sum();
                let sound = (8..=16).contains(&entry.header.0.len()) && length <= 16384;
                within(sound, "address, route or rule").map_err(this)?;
            }
        }
        Ok(())
    }

    fn ipc(&self) -> Verdict {
        let ipc = &self.manifest.ipc;
        let mut ids = [HashSet::new(), HashSet::new(), HashSet::new()];
        let mut identity = |kind: usize, of: &SysvIdentity| {
            self.ipc_namespace(of.namespace)?;
            within(of.id >= 0 && ids[kind].insert((of.namespace, of.id)), "identifier")?;
            within(of.mode <= 0o177_777, "mode")
        };
        for segment in &ipc.segments {
            let this = |what: String| format!("segment {}: {what}", segment.identity.id);
            identity(0, &segment.identity).map_err(this)?;
            within((1..=MAX_FILE).contains(&segment.size), "size").map_err(this)?;
            self.extents(&segment.extents, &(0..segment.size.next_multiple_of(PAGE)))
                .map_err(this)?;
        }
        for set in &ipc.semaphores {
            let this = |what: String| format!("semaphore set {}: {what}", set.identity.id);
            identity(1, &set.identity).map_err(this)?;
            let count = set.semaphores.len();
            within((1..=32000).contains(&count), "number of semaphores").map_err(this)?;
            within(set.semaphores.iter().all(|(value, _)| *value <= MAX_SEMAPHORE), "value").map_err(this)?;
            let limit = i32::from(MAX_SEMAPHORE);
            for &(pid, index, amount) in &set.undo {
                let sound = usize::from(index) < count && (-limit - 1..=limit).contains(&amount);
                within(sound, &format!("adjustment of process {pid}")).map_err(this)?;
            }
        }
        for queue in &ipc.queues {
            let this = |what: String| format!("message queue {}: {what}", queue.identity.id);
            identity(2, &queue.identity).map_err(this)?;
            within(queue.messages.iter().all(|(kind, _)| *kind > 0), "type of a message").map_err(this)?;
        }
        for queue in &ipc.posix_queues {
            let this = |what: String| format!("message queue /{}: {what}", queue.name);
            self.ipc_namespace(queue.namespace).map_err(this)?;
            let name = &queue.name.0;
            let sound = !name.is_empty() && name.len() <= 255 && !name.contains(&0) && !name.contains(&b'/');
            within(sound, "name").map_err(this)?;
            let (most, size) = (queue.max_messages, queue.message_size);
            within((1..=65536).contains(&most) && (1..=16 << 20).contains(&size), "size").map_err(this)?;
            within(queue.messages.len() as i64 <= most, "number of messages").map_err(this)?;
            let fits = |(priority, data): &(u32, Bytes)| *priority < 32768 && data.0.len() as i64 <= size;
            within(queue.messages.iter().all(fits), "message").map_err(this)?;
        }
        Ok(())
    }

    fn terminal(&self, terminal: &Terminal) -> Verdict {
        let Some((namespace, index)) = terminal.file_system else {
            return Ok(());
        };
        self.place(Some(namespace))?;
        let tree = &self.manifest.mount_namespaces[namespace.index()].tree;
        let mounted = tree.get(index as usize).map(|point| &point.mounted);
        let sound = matches!(mounted, Some(Mounted::Terminals { .. })) && !terminal.external && terminal.line.is_none();
        within(sound, "file system of a terminal")
    }

    fn open_file(&self, file: &OpenFile, pids: &HashSet<i32>) -> Verdict {
        let manifest = self.manifest;
        within(file.position <= MAX_FILE, "position")?;
        self.place(file.mount_namespace)?;
        let elsewhere = matches!(
            file.object,
            Object::Regular(_) | Object::Directory { .. } | Object::Fifo(_) | Object::Device { node: None, .. }
        );
        within(file.mount_namespace.is_none() || elsewhere, "mount namespace of a file")?;
        for (_, start, length) in &file.ofd_locks {
            within(
                start
                    .checked_add(*length)
                    .is_some_and(|end| end - 1.min(end) <= MAX_FILE),
                "file lock",
            )?;
        }
        if let Some(owner) = &file.owner {
            within(
                (0..=2).contains(&owner.kind) && (0..=MAX_SIGNAL).contains(&owner.signal),
                "owner",
            )?;
        }
        let process = |number: i32| {
            if pids.contains(&number) {
                Ok(())
            } else {
                Err(format!("there is no process {number}"))
            }
        };
        match &file.object {
            Object::Regular(RegularFile { path: name, size, .. }) => {
                path(name)?;
                within(*size <= MAX_FILE, "size")
            }
            Object::Directory { path: name } | Object::Device { path: name, .. } => path(name),
            Object::Saved(id) => in_table(id.index(), &manifest.saved_files, "saved file"),
            Object::Pipe(id) => in_table(id.index(), &manifest.pipes, "pipe"),
            Object::Fifo(fifo) => {
                path(&fifo.path)?;
                in_table(fifo.pipe.index(), &manifest.pipes, "pipe")
            }
            Object::Proc { pid, path: name } => {
                path(name)?;
                // Init is not part of the job, but always there.
                pid.filter(|pid| *pid != 1).map_or(Ok(()), process)
            }
            Object::DeadProc { pid, path: name } => {
                within(*pid > 0, "process")?;
                within(
                    !name.0.contains(&0) && !name.0.split(|&b| b == b'/').any(|part| part == b".."),
                    "path",
                )
            }
            Object::EventFd { .. } | Object::TimerFd { .. } | Object::SignalFd { .. } => Ok(()),
            Object::Epoll { targets } => {
                let mut registered = HashSet::new();
                for target in targets {
                    descriptor(target.fd)?;
                    in_table(target.file.index(), &manifest.files, "open file")?;
                    within(
                        registered.insert((target.fd, target.file)),
                        "second registration of one descriptor",
                    )?;
                }
                Ok(())
            }
            Object::Inotify { watches, queued } => {
                let mut descriptors = HashSet::new();
                for watch in watches {
                    path(&watch.path)?;
                    within(watch.wd > 0 && descriptors.insert(watch.wd), "watch descriptor")?;
                }
                // 16384 events of 272 bytes: the usual fs.inotify.max_queued_events.
                within(queued.0.len() <= 64 << 20, "length of the event queue")
            }
            Object::PidFd { pid } => process(*pid),
            Object::DeadPidFd { .. } => Ok(()),
            Object::Socket(id) => in_table(id.index(), &manifest.sockets, "socket"),
            Object::InetSocket(id) => in_table(id.index(), &manifest.inet_sockets, "IP socket"),
            Object::NetlinkSocket(socket) => {
                self.network(socket.network)?;
                within([SOCK_DGRAM, SOCK_RAW].contains(&socket.kind), "type")?;
                within((0..256).contains(&socket.protocol), "protocol")?;
                within(socket.groups.iter().all(|group| (1..=65536).contains(group)), "group")?;
                options(&socket.options)
            }
            Object::PacketSocket(id) => in_table(id.index(), &manifest.packet_sockets, "packet socket"),
            Object::Fanotify(group) => group.marks.iter().try_for_each(|mark| path(&mark.path)),
            Object::TerminalSlave(id) | Object::TerminalMaster(id) => {
                in_table(id.index(), &manifest.terminals, "terminal")
            }
            Object::MessageQueue(id) => in_table(id.index(), &manifest.ipc.posix_queues, "message queue"),
            Object::Inherited { stream } => within((0..=2).contains(stream), "standard stream"),
        }
    }

    /// Checks that no epoll set contains itself, directly or through others: the kernel refuses that with ELOOP, and
    /// whoever follows the registrations must come to an end. All targets are in range by now.
    fn epoll_nesting(&self) -> Result<()> {
        let files = &self.manifest.files;
        let sets = |id: usize| match &files[id].object {
            Object::Epoll { targets } => targets.as_slice(),
            _ => &[],
        };
        let mut uses = vec![0_usize; files.len()];
        let all = 0..files.len();
        for target in all.clone().flat_map(sets) {
            uses[target.file.index()] += 1;
        }
        // Takes away sets that nothing left contains, until only cycles are left.
        let mut free: Vec<usize> = all.filter(|id| uses[*id] == 0).collect();
        while let Some(id) = free.pop() {
            for target in sets(id) {
                let target = target.file.index();
                uses[target] -= 1;
                if uses[target] == 0 {
                    free.push(target);
                }
            }
        }
        match uses.iter().position(|uses| *uses > 0) {
            Some(id) => Err(wrong(format!("open file {id}: epoll sets contain each other"))),
            None => Ok(()),
        }
    }

    fn packet_sockets(&self) -> Result<()> {
        for (index, socket) in self.manifest.packet_sockets.iter().enumerate() {
            self.packet_socket(socket)
                .map_err(|what| wrong(format!("packet socket {index}: {what}")))?;
        }
        Ok(())
    }

    fn packet_socket(&self, socket: &PacketSocket) -> Verdict {
        self.network(socket.network)?;
        within([SOCK_DGRAM, SOCK_RAW, SOCK_PACKET].contains(&socket.kind), "type")?;
        within(socket.protocol <= 0xffff, "protocol")?;
        for one in &socket.memberships {
            within(one.address.0.len() <= 32 && one.kind <= 0xffff, "membership")?;
            within(one.count <= MAX_MEMBERSHIPS, "count of a membership")?;
        }
        let mut size = 0;
        for ring in socket.receive_ring.iter().chain(&socket.send_ring) {
            within(
                ring.frame_size > 0 && ring.block_size.is_multiple_of(4096),
                "size of a ring's parts",
            )?;
            within(ring.next == 0 || ring.next < ring.frames, "frame of a ring")?;
            let blocks = u64::from(ring.block_size) * u64::from(ring.blocks);
            within(
                u64::from(ring.frame_size) * u64::from(ring.frames) <= blocks,
                "size of a ring",
            )?;
            size += blocks;
        }
        for (start, bytes) in &socket.ring_contents {
            let end = start.checked_add(bytes.0.len() as u64);
            within(end.is_some_and(|end| end <= size), "contents of a ring")?;
            within(
                start.is_multiple_of(8) && bytes.0.len().is_multiple_of(8),
                "contents of a ring",
            )?;
        }
        options(&socket.options)
    }

    fn inet_sockets(&self) -> Result<()> {
        for (index, socket) in self.manifest.inet_sockets.iter().enumerate() {
            self.inet_socket(index, socket)
                .map_err(|what| wrong(format!("IP socket {index}: {what}")))?;
        }
        // Two open files would be two ends of one.
        let mut used = HashSet::new();
        for (index, file) in self.manifest.files.iter().enumerate() {
            if let Object::InetSocket(id) = &file.object
                && !used.insert(*id)
            {
                return Err(wrong(format!("open file {index}: IP socket {} is open twice", id.0)));
            }
        }
        Ok(())
    }

    fn inet_socket(&self, index: usize, socket: &InetSocket) -> Verdict {
        let sockets = &self.manifest.inet_sockets;
        self.network(socket.network)?;
        within([AF_INET, AF_INET6].contains(&socket.family), "address family")?;
        within([SOCK_STREAM, SOCK_DGRAM, SOCK_RAW].contains(&socket.kind), "type")?;
        // There are numbers beyond those of the IP header, such as that of multipath TCP.
        within((0..512).contains(&socket.protocol), "protocol")?;
        within(socket.shutdown <= 3, "shutdown state")?;
        options(&socket.options)?;
        let endpoint = |endpoint: &Endpoint| {
            let length = if socket.family == AF_INET { 4 } else { 16 };
            within(endpoint.address.0.len() == length, "address")
        };
        socket.local.iter().try_for_each(endpoint)?;
        let stream = socket.kind == SOCK_STREAM;
        within(stream || socket.received.0.is_empty(), "stream data")?;
        within(!stream || socket.queue.is_empty(), "datagrams in a stream")?;
        for datagram in &socket.queue {
            endpoint(&datagram.sender)?;
            within(datagram.data.0.len() <= 65535, "length of a datagram")?;
        }
        match &socket.state {
            InetState::Unconnected => Ok(()),
            InetState::Associated { remote } => {
                within(!stream, "state of a stream")?;
                endpoint(remote)
            }
            _ if !stream => Err("only streams have connections".to_owned()),
            InetState::Listening { .. } | InetState::Ended { .. } => Ok(()),
            InetState::Inner { peer, remote } => {
                endpoint(remote)?;
                in_table(peer.index(), sockets, "IP socket")?;
                within(socket.local.is_some(), "connection without an address")?;
                match &sockets[peer.index()].state {
                    InetState::Inner { peer: back, .. } if back.index() == index && peer.index() != index => Ok(()),
                    _ => Err(format!("IP socket {} is not connected to it", peer.0)),
                }
            }
            InetState::Waiting { listener, remote } => {
                endpoint(remote)?;
                in_table(listener.index(), sockets, "IP socket")?;
                within(socket.local.is_some(), "connection without an address")?;
                within(
                    sockets[listener.index()].network == socket.network,
                    "connection across networks",
                )?;
                match &sockets[listener.index()].state {
                    InetState::Listening { .. } => Ok(()),
                    _ => Err(format!("IP socket {} does not listen", listener.0)),
                }
            }
            InetState::PeerClosed { remote } | InetState::Connecting { remote } => endpoint(remote),
            InetState::Channel { remote } => {
                endpoint(remote)?;
                within(socket.network.is_none(), "network of a connection to another job")?;
                within(socket.local.is_some(), "connection without an address")
            }
            InetState::Outer(connection) => {
                endpoint(&connection.remote)?;
                within(socket.local.is_some(), "connection without an address")?;
                within(
                    connection.unsent as usize <= connection.send_queue.0.len(),
                    "length of what was not sent",
                )?;
                within(
                    connection.send_scale <= 14 && connection.receive_scale <= 14,
                    "window scale",
                )?;
                within(connection.max_segment <= 65535, "segment size")
            }
        }
    }

    fn file_policies(&self) -> Result<()> {
        let mut known = HashSet::new();
        for (index, policy) in self.manifest.file_policies.iter().enumerate() {
            self.file_policy(policy, &mut known)
                .map_err(|what| wrong(format!("file policy {index}: {what}")))?;
        }
        Ok(())
    }

    fn file_policy<'a>(&self, policy: &'a FilePolicy, known: &mut HashSet<&'a ByteString>) -> Verdict {
        path(&policy.path)?;
        within(policy.path.0.starts_with(b"/") && known.insert(&policy.path), "path")?;
        within(policy.size <= MAX_FILE, "size")?;
        let length = if policy.content == FileContent::Check {
            HASH_LENGTH
        } else {
            0
        };
        within(policy.hash.0.len() == length, "hash")?;
        within(
            policy.saved.is_some() == (policy.content == FileContent::BackupRestore),
            "contents",
        )?;
        if let Some(id) = policy.saved {
            in_table(id.index(), &self.manifest.saved_files, "saved file")?;
            let kind = &self.manifest.saved_files[id.index()].kind;
            within(
                matches!(kind, SavedFileKind::Backup { path } if *path == policy.path),
                "saved file",
            )?;
        }
        Ok(())
    }

    fn sockets(&self) -> Result<()> {
        let mut waiting = HashSet::new();
        for (index, socket) in self.manifest.sockets.iter().enumerate() {
            self.socket(index, socket, &mut waiting)
                .map_err(|what| wrong(format!("socket {index}: {what}")))?;
        }
        Ok(())
    }

    /// Checks a socket; `waiting` are those found in some listener's queue so far.
    fn socket(&self, index: usize, socket: &UnixSocket, waiting: &mut HashSet<SocketId>) -> Verdict {
        let sockets = &self.manifest.sockets;
        self.network(socket.network)?;
        self.place(socket.mount_namespace)?;
        within(
            socket.mount_namespace.is_none() || socket.node.is_some(),
            "mount namespace of a socket without a file",
        )?;
        within([SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET].contains(&socket.kind), "type")?;
        within(socket.address.0.len() <= MAX_SOCKET_NAME, "address")?;
        path(&socket.bind_directory)?;
        within(socket.shutdown <= 3, "shutdown state")?;
        for message in &socket.queue {
            within(message.sender.0.len() <= MAX_SOCKET_NAME, "sender")?;
            // SCM_MAX_FD.
            within(message.files.len() <= 253, "number of descriptors in a message")?;
            for file in &message.files {
                in_table(file.index(), &self.manifest.files, "open file")?;
            }
        }
        match &socket.state {
            SocketState::Unconnected | SocketState::PeerClosed => Ok(()),
            SocketState::Connected(id) => {
                in_table(id.index(), sockets, "socket")?;
                let peer = &sockets[id.index()];
                within(peer.kind == socket.kind, "peer of another type")?;
                // A datagram socket may be connected to any other, and to itself.
                let mutual = match &peer.state {
                    _ if socket.kind == SOCK_DGRAM => true,
                    SocketState::Connected(back) => back.index() == index && id.index() != index,
                    SocketState::Listening { pending, .. } => pending.iter().any(|client| client.index() == index),
                    SocketState::Unconnected | SocketState::PeerClosed => false,
                };
                if mutual {
                    Ok(())
                } else {
                    Err(format!("socket {} is not connected to it", id.0))
                }
            }
            SocketState::Listening { pending, .. } => {
                within(socket.kind != SOCK_DGRAM, "listening datagram socket")?;
                for client in pending {
                    in_table(client.index(), sockets, "socket")?;
                    let other = &sockets[client.index()];
                    let agreed = matches!(&other.state, SocketState::Connected(id) if id.index() == index);
                    if !agreed || other.kind != socket.kind {
                        return Err(format!("socket {} waits but is not connected to it", client.0));
                    }
                    within(waiting.insert(*client), "client waiting twice")?;
                }
                Ok(())
            }
        }
    }
}
