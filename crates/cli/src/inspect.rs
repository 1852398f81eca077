//! An image as text, section by section. `--json` shows the same data whole, under the names of the schema.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use clap::ValueEnum;
use gridcpr::image::Image;
use gridcpr::image::model::{
    AddressSpace, Credentials, Descriptor, Extent, FileContent, FileId, InetSocket, InetState, Limit, Manifest,
    Mapping, MappingKind, Object, OpenFile, Process, ProcessState, SavedFile, SavedFileKind, Scheduling, SocketState,
    SysvIdentity, Thread,
};

use crate::args::images::Section;
use crate::output::{clean, duration, size, timestamp};
use crate::signal::signal_name;

/// Names of the resource limits in the kernel's order.
const LIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];
/// Status flags of open(2) on Linux, other than the access mode.
const FLAGS: [(i32, &str); 6] = [
    (0o2000, "append"),
    (0o4000, "nonblock"),
    (0o10000, "dsync"),
    (0o20000, "async"),
    (0o40000, "direct"),
    (0o10000000, "path"),
];

/// Lines of text, indented.
struct Text(String);

impl Text {
    fn heading(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.line(0, text);
    }

    fn line(&mut self, depth: usize, text: impl AsRef<str>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{:indent$}{}", "", clean(text.as_ref()), indent = depth * 2);
    }
}

/// The sections asked for, or all, of an image.
pub fn render(image: &Image, sections: &[Section]) -> String {
    let mut text = Text(String::new());
    let manifest = image.manifest();
    for section in Section::value_variants() {
        if !sections.is_empty() && !sections.contains(section) {
            continue;
        }
        match section {
            Section::Checkpoint => checkpoint(&mut text, image),
            Section::Processes => processes(&mut text, manifest),
            Section::Credentials => credentials(&mut text, manifest),
            Section::Signals => signals(&mut text, manifest),
            Section::Limits => limits(&mut text, manifest),
            Section::Memory => memory(&mut text, manifest),
            Section::Files => files(&mut text, manifest),
            Section::Contents => contents(&mut text, manifest),
            Section::Channels => channels(&mut text, manifest),
            Section::Ipc => ipc(&mut text, manifest),
        }
    }
    text.0
}

fn checkpoint(text: &mut Text, image: &Image) {
    let manifest = image.manifest();
    let c = &manifest.checkpoint;
    let header = image.header();
    let threads: usize = manifest.processes.iter().map(|p| p.threads.len()).sum();
    let user = |uid: u32| format!("user {uid}");
    let mut rows = vec![
        ("image", image.id().to_string()),
        ("format", format!("{}.{}", header.version.0, header.version.1)),
        ("size", format!("{} ({} bytes)", size(image.length()), image.length())),
        ("page data", size(image.data_bytes())),
        ("time", timestamp(UNIX_EPOCH + Duration::from_nanos(c.time_ns))),
        ("job stopped for", duration(c.freeze_ns)),
        (
            "processes",
            format!("{} with {threads} threads", manifest.processes.len()),
        ),
        ("root process", c.root_pid.to_string()),
        (
            "PID namespace",
            if c.own_pid_namespace {
                "its own"
            } else {
                "the machine's"
            }
            .to_string(),
        ),
        (
            "IPC namespace",
            if c.own_ipc_namespace {
                "its own"
            } else {
                "the machine's"
            }
            .to_string(),
        ),
        ("owner", format!("{}, group {}", user(c.owner_uid), c.owner_gid)),
        ("made by", user(c.initiator_uid)),
        ("made with", format!("cpr {}, engine {}", c.tool_version, c.engine)),
        ("machine", format!("{} ({})", c.uname.nodename, c.architecture)),
        (
            "kernel",
            format!("{} {} {}", c.uname.sysname, c.uname.release, c.uname.version),
        ),
        ("page size", format!("{} bytes", c.page_size)),
        ("XSAVE features", format!("{:#x}", c.xstate_features)),
        ("CPU features", c.cpu_flags.join(" ")),
    ];
    if !c.job.is_empty() {
        rows.insert(1, ("job", c.job.clone()));
    }
    if !c.edited_from.is_empty() {
        rows.push(("edited from", c.edited_from.clone()));
    }
    if !header.required_features.is_empty() {
        rows.push(("needs", header.required_features.join(" ")));
    }
    text.heading("checkpoint");
    for (name, value) in rows {
        text.line(1, format!("{name:16} {value}"));
    }
}

fn processes(text: &mut Text, manifest: &Manifest) {
    text.heading("processes");
    for process in &manifest.processes {
        let state = match process.state {
            ProcessState::Running => "running".to_string(),
            ProcessState::Stopped(signal) => format!("stopped by {}", signal_name(signal)),
            ProcessState::Zombie(status) => format!("dead, wait status {status:#x}"),
        };
        text.line(
            1,
            format!(
                "process {}: parent {}, group {}, session {}, {state}",
                process.pid, process.ppid, process.pgid, process.sid
            ),
        );
        if let Some(space) = address_space(manifest, process) {
            let file = space.executable.and_then(|id| manifest.mapped_files.get(id.index()));
            if let Some(file) = file {
                text.line(2, format!("executable {}", file.path));
            }
            if let Some(file) = space
                .saved_executable
                .and_then(|id| manifest.saved_files.get(id.index()))
            {
                text.line(2, format!("executable in the image: {}", saved_file(file)));
            }
            text.line(
                2,
                format!(
                    "directory {}, root {}, umask {:03o}",
                    process.cwd, process.root, process.umask
                ),
            );
        }
        if let Some(terminal) = process.controlling_terminal {
            text.line(2, format!("controlling terminal: terminal {}", terminal.0));
        }
        let used = &process.accounting;
        text.line(
            2,
            format!(
                "used {} in user mode, {} in the kernel; peak memory {}",
                duration(used.user_ns),
                duration(used.system_ns),
                size(used.peak_rss_kib.saturating_mul(1024))
            ),
        );
        for thread in &process.threads {
            let sleep = match &thread.sleep {
                Some(sleep) => {
                    let left = duration(sleep.remaining_ns);
                    format!(", in system call {} with {left} left", sleep.syscall)
                }
                None => String::new(),
            };
            text.line(
                2,
                format!(
                    "thread {} {:?}: program counter {:#x}, stack pointer {:#x}{sleep}",
                    thread.tid,
                    thread.name.to_string(),
                    thread.cpu.program_counter,
                    thread.cpu.stack_pointer
                ),
            );
        }
    }
}

fn credentials(text: &mut Text, manifest: &Manifest) {
    text.heading("credentials");
    for process in &manifest.processes {
        let mut told: Option<&Credentials> = None;
        for thread in &process.threads {
            let c = &thread.credentials;
            // Threads of a process nearly always have the same.
            if told == Some(c) {
                continue;
            }
            told = Some(c);
            let who = match thread.tid == process.pid {
                true => format!("process {}", process.pid),
                false => format!("process {}, thread {} and following", process.pid, thread.tid),
            };
            text.line(1, who);
            let four = |ids: &[u32; 4]| {
                format!(
                    "real {}, effective {}, saved {}, file system {}",
                    ids[0], ids[1], ids[2], ids[3]
                )
            };
            text.line(2, format!("user: {}", four(&c.uids)));
            text.line(2, format!("group: {}", four(&c.gids)));
            let groups: Vec<String> = c.groups.iter().map(u32::to_string).collect();
            text.line(2, format!("supplementary groups: {}", or_none(&groups.join(" "))));
            text.line(
                2,
                format!(
                    "capabilities: effective {:#x}, permitted {:#x}, inheritable {:#x}, bounding {:#x}, ambient {:#x}",
                    c.effective, c.permitted, c.inheritable, c.bounding, c.ambient
                ),
            );
            let new = if c.no_new_privs { ", no new privileges" } else { "" };
            text.line(2, format!("securebits {:#x}{new}", c.securebits));
        }
    }
}

fn signals(text: &mut Text, manifest: &Manifest) {
    text.heading("signals and timers");
    for process in &manifest.processes {
        text.line(1, format!("process {}", process.pid));
        for action in &process.signal_actions {
            let what = match action.handler {
                0 => "default".to_string(),
                1 => "ignored".to_string(),
                address => format!("handler {address:#x}"),
            };
            let flags = action.flags;
            let mask = signal_set(action.mask);
            text.line(
                2,
                format!("{}: {what}, flags {flags:#x}, mask {mask}", signal_name(action.signal)),
            );
        }
        if !process.pending_signals.is_empty() {
            text.line(2, format!("pending: {}", pending(&process.pending_signals)));
        }
        for thread in &process.threads {
            if thread.blocked_signals != 0 || !thread.pending_signals.is_empty() {
                let blocked = signal_set(thread.blocked_signals);
                let waiting = or_none(&pending(&thread.pending_signals)).to_string();
                text.line(
                    2,
                    format!("thread {}: blocked {blocked}, pending {waiting}", thread.tid),
                );
            }
        }
        for timer in &process.interval_timers {
            let name = ["ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"];
            let name = usize::try_from(timer.which)
                .ok()
                .and_then(|n| name.get(n))
                .unwrap_or(&"timer");
            let left = timer_times(
                timer.value_us.saturating_mul(1000),
                timer.interval_us.saturating_mul(1000),
            );
            text.line(2, format!("{name}: {left}"));
        }
        for timer in &process.posix_timers {
            let left = timer_times(timer.value_ns, timer.interval_ns);
            let signal = signal_name(timer.signal);
            text.line(
                2,
                format!("timer {}: clock {}, signal {signal}, {left}", timer.id, timer.clock),
            );
        }
    }
}

fn limits(text: &mut Text, manifest: &Manifest) {
    text.heading("limits and scheduling");
    for process in &manifest.processes {
        text.line(
            1,
            format!("process {}: oom_score_adj {}", process.pid, process.oom_score_adj),
        );
        let limits: Vec<String> = process.limits.iter().map(limit).collect();
        text.line(2, format!("limits: {}", or_none(&limits.join(", "))));
        let mut told: Option<&Scheduling> = None;
        for thread in &process.threads {
            if told != Some(&thread.scheduling) {
                told = Some(&thread.scheduling);
                text.line(2, format!("thread {}: {}", thread.tid, scheduling(thread)));
            }
        }
        for lock in &process.posix_locks {
            let kind = if lock.exclusive { "exclusive" } else { "shared" };
            let range = range(lock.start, lock.length);
            text.line(2, format!("record lock: descriptor {}, {kind}, {range}", lock.fd));
        }
    }
}

fn scheduling(thread: &Thread) -> String {
    let s = &thread.scheduling;
    let policy = match s.policy {
        0 => "other",
        1 => "fifo",
        2 => "round robin",
        3 => "batch",
        5 => "idle",
        6 => "deadline",
        _ => "unknown",
    };
    let processors: u32 = s.affinity.0.iter().map(|byte| byte.count_ones()).sum();
    format!(
        "policy {policy}, nice {}, priority {}, may run on {processors} processors",
        s.nice, s.priority
    )
}

fn memory(text: &mut Text, manifest: &Manifest) {
    text.heading("memory");
    for process in &manifest.processes {
        let Some(space) = address_space(manifest, process) else {
            continue;
        };
        let saved: u64 = space.mappings.iter().map(|m| saved_bytes(&m.extents)).sum();
        let mapped: u64 = space.mappings.iter().map(|m| m.end.saturating_sub(m.start)).sum();
        text.line(
            1,
            format!(
                "process {}: {} mappings, {} mapped, {} saved",
                process.pid,
                space.mappings.len(),
                size(mapped),
                size(saved)
            ),
        );
        for mapping in &space.mappings {
            let bit = |bit: u32, letter: char| if mapping.protection & bit != 0 { letter } else { '-' };
            let shared = matches!(
                mapping.kind,
                MappingKind::SharedFile(_)
                    | MappingKind::SharedSaved(_)
                    | MappingKind::SharedSocket(_)
                    | MappingKind::IoUring(_)
            );
            text.line(
                2,
                format!(
                    "{:012x}-{:012x} {}{}{}{} {:>8}, saved {:>8}  {}",
                    mapping.start,
                    mapping.end,
                    bit(1, 'r'),
                    bit(2, 'w'),
                    bit(4, 'x'),
                    if shared { 's' } else { 'p' },
                    size(mapping.end.saturating_sub(mapping.start)),
                    size(saved_bytes(&mapping.extents)),
                    mapped_object(manifest, mapping)
                ),
            );
        }
    }
}

fn mapped_object(manifest: &Manifest, mapping: &Mapping) -> String {
    let object = match mapping.kind {
        MappingKind::Anonymous => "anonymous".to_string(),
        MappingKind::Stack => "stack".to_string(),
        MappingKind::Vdso => "[vdso]".to_string(),
        MappingKind::Vvar => "[vvar]".to_string(),
        MappingKind::VvarClock => "[vvar_vclock]".to_string(),
        MappingKind::HugePages(page) => format!("huge pages of {}", size(page)),
        MappingKind::AioRing => "asynchronous I/O".to_string(),
        MappingKind::IoUring(id) => format!("io_uring instance {} at {:#x}", id.0, mapping.offset),
        MappingKind::SharedSocket(id) | MappingKind::PrivateSocket(id) => format!("rings of packet socket {}", id.0),
        MappingKind::PrivateFile(id) | MappingKind::SharedFile(id) => {
            let path = manifest.mapped_files.get(id.index()).map(|file| file.path.to_string());
            format!("{} at {:#x}", path.unwrap_or_default(), mapping.offset)
        }
        MappingKind::SharedSaved(id) | MappingKind::PrivateSaved(id) => {
            let file = manifest.saved_files.get(id.index());
            format!("{} at {:#x}", file.map(saved_file).unwrap_or_default(), mapping.offset)
        }
        MappingKind::SysvSegment(id) => {
            let segment = manifest.ipc.segments.get(id.index());
            let id = segment.map_or(-1, |segment| segment.identity.id);
            format!("System V segment {id} at {:#x}", mapping.offset)
        }
    };
    let guards = match mapping.guards.len() {
        0 => String::new(),
        n => format!(", {n} guard ranges"),
    };
    let flags = match mapping.flags.len() {
        0 => String::new(),
        _ => format!(" [{}]", mapping.flags.join(" ")),
    };
    format!("{object}{guards}{flags}")
}

fn files(text: &mut Text, manifest: &Manifest) {
    text.heading("descriptors");
    for process in &manifest.processes {
        text.line(1, format!("process {}", process.pid));
        for descriptor in &process.descriptors {
            text.line(2, descriptor_line(manifest, descriptor));
        }
    }
}

fn descriptor_line(manifest: &Manifest, descriptor: &Descriptor) -> String {
    let close = if descriptor.close_on_exec {
        ", closed on exec"
    } else {
        ""
    };
    let Some(file) = manifest.files.get(descriptor.file.index()) else {
        return format!("{}: nothing", descriptor.fd);
    };
    let (object, flags) = (object(manifest, &file.object), open_flags(file));
    let number = descriptor.file.0;
    format!(
        "{}: {object}, {flags}, position {}{close} (file {number})",
        descriptor.fd, file.position
    )
}

fn open_flags(file: &OpenFile) -> String {
    let access = ["read", "write", "read and write", "no access"];
    let mut words = vec![access[(file.flags & 3) as usize]];
    words.extend(
        FLAGS
            .iter()
            .filter(|(bit, _)| file.flags & bit != 0)
            .map(|(_, word)| *word),
    );
    let mut text = words.join(" ");
    if file.flock.is_some() || !file.ofd_locks.is_empty() {
        text.push_str(", locked");
    }
    if file.lease.is_some() {
        text.push_str(", leased");
    }
    text
}

fn object(manifest: &Manifest, object: &Object) -> String {
    match object {
        Object::Regular(file) => format!("{} ({})", file.path, size(file.size)),
        Object::Directory { path } => format!("directory {path}"),
        Object::Saved(id) => manifest.saved_files.get(id.index()).map(saved_file).unwrap_or_default(),
        Object::Pipe(id) => format!("pipe {}", id.0),
        Object::Fifo(fifo) => format!("FIFO {} (pipe {})", fifo.path, fifo.pipe.0),
        Object::Device { path, .. } => format!("device {path}"),
        Object::Proc { pid: Some(pid), path } => format!("/proc/{pid}/{path}"),
        Object::DeadProc { pid, path } => format!("/proc/{pid}/{path} (deleted)"),
        Object::Proc { pid: None, path } => format!("/proc/{path}"),
        Object::EventFd { count, semaphore } => {
            format!("eventfd, count {count}{}", if *semaphore { ", semaphore" } else { "" })
        }
        Object::TimerFd {
            clock,
            ticks,
            value_ns,
            interval_ns,
            ..
        } => {
            let times = timer_times(*value_ns, *interval_ns);
            format!("timerfd, clock {clock}, {ticks} ticks unread, {times}")
        }
        Object::SignalFd { mask } => format!("signalfd for {}", signal_set(*mask)),
        Object::Epoll { targets } => {
            let fds: Vec<String> = targets.iter().map(|target| target.fd.to_string()).collect();
            format!("epoll of descriptors {}", or_none(&fds.join(" ")))
        }
        Object::Inotify { watches, .. } => {
            let paths: Vec<String> = watches.iter().map(|watch| watch.path.to_string()).collect();
            format!("inotify of {}", or_none(&paths.join(" ")))
        }
        Object::PidFd { pid } => format!("pidfd of process {pid}"),
        Object::DeadPidFd { .. } => "pidfd of a process that has ended".to_string(),
        Object::Socket(id) => format!("UNIX socket {}", id.0),
        Object::InetSocket(id) => format!("IP socket {}", id.0),
        Object::NetlinkSocket(socket) => format!("netlink socket of protocol {}", socket.protocol),
        Object::PacketSocket(id) => format!("packet socket {}", id.0),
        Object::IoUring(id) => {
            let instance = manifest.io_urings.get(id.index());
            let (entries, submitted) = instance.map_or((0, 0), |one| (one.entries, one.submitted));
            format!(
                "io_uring instance {}, room for {entries} requests, {submitted} made so far",
                id.0
            )
        }
        Object::Fanotify(group) => {
            let paths: Vec<String> = group.marks.iter().map(|mark| mark.path.to_string()).collect();
            format!("fanotify of {}", or_none(&paths.join(" ")))
        }
        Object::TerminalSlave(id) => format!("terminal {}", id.0),
        Object::TerminalMaster(id) => format!("master of terminal {}", id.0),
        Object::MessageQueue(id) => {
            let queue = manifest.ipc.posix_queues.get(id.index());
            format!(
                "message queue /{}",
                queue.map(|q| q.name.to_string()).unwrap_or_default()
            )
        }
        Object::Inherited { stream } => {
            let names = ["standard input", "standard output", "standard error"];
            let name = usize::try_from(*stream).ok().and_then(|n| names.get(n));
            format!("{} of whoever restarts", name.unwrap_or(&"stream"))
        }
    }
}

fn contents(text: &mut Text, manifest: &Manifest) {
    text.heading("mapped files");
    for (number, file) in manifest.mapped_files.iter().enumerate() {
        let must = if file.unchangeable { ", must be unchanged" } else { "" };
        text.line(1, format!("{number}: {} ({}){must}", file.path, size(file.size)));
    }
    text.heading("policies for files");
    for policy in &manifest.file_policies {
        let length = match policy.truncate {
            None => "",
            Some(true) => ", truncate",
            Some(false) => ", nottruncate",
        };
        let content = match policy.content {
            FileContent::Default => "default",
            FileContent::Check => "check",
            FileContent::Nocheck => "nocheck",
            FileContent::Append => "append",
            FileContent::BackupRestore => "backup-restore",
            FileContent::BackupAnonymous => "backup-anonymous",
        };
        text.line(1, format!("{} ({}): {content}{length}", policy.path, size(policy.size)));
    }
    text.heading("files in the image");
    for (number, file) in manifest.saved_files.iter().enumerate() {
        let saved = size(saved_bytes(&file.extents));
        text.line(
            1,
            format!("{number}: {}, {}, saved {saved}", saved_file(file), size(file.size)),
        );
    }
}

fn inet_socket(socket: &InetSocket) -> String {
    let kind = match (socket.kind, socket.protocol) {
        (1, _) => "TCP",
        (2, 17) => "UDP",
        (2, 136) => "UDP-Lite",
        (2, _) => "ping",
        _ => "raw",
    };
    let state = match &socket.state {
        InetState::Unconnected => "not connected".to_string(),
        InetState::Associated { remote } => format!("connected to {remote}"),
        InetState::Listening { backlog } => format!("listening, backlog {backlog}"),
        InetState::Inner { peer, remote } => format!("connected to {} ({remote})", peer.0),
        InetState::Channel { remote } => format!("connected to {remote}, of another job of the set"),
        InetState::Connecting { remote } => format!("connecting to {remote}"),
        InetState::Waiting { listener, remote } => format!("waiting to be accepted by {} ({remote})", listener.0),
        InetState::PeerClosed { remote } => format!("connected to {remote}, which has closed"),
        InetState::Ended { reset: false } => "ended".to_string(),
        InetState::Ended { reset: true } => "reset".to_string(),
        InetState::Outer(connection) => format!(
            "connected to {} outside, {} bytes to be sent",
            connection.remote,
            connection.send_queue.0.len()
        ),
    };
    let local = match &socket.local {
        Some(local) => format!(", bound to {local}"),
        None => String::new(),
    };
    let queued: usize = socket.queue.iter().map(|datagram| datagram.data.0.len()).sum();
    let queued = queued + socket.received.0.len();
    format!("{kind}, {state}{local}, {queued} bytes to be read")
}

fn channels(text: &mut Text, manifest: &Manifest) {
    text.heading("pipes");
    for (number, pipe) in manifest.pipes.iter().enumerate() {
        let queued: usize = pipe.data.iter().map(|part| part.0.len()).sum();
        let capacity = size(u64::from(pipe.capacity));
        text.line(1, format!("{number}: {queued} bytes queued, capacity {capacity}"));
    }
    text.heading("UNIX sockets");
    for (number, socket) in manifest.sockets.iter().enumerate() {
        let kind = match socket.kind {
            1 => "stream",
            2 => "datagram",
            5 => "seqpacket",
            _ => "unknown kind",
        };
        let state = match &socket.state {
            SocketState::Unconnected => "not connected".to_string(),
            SocketState::Connected(peer) => format!("connected to {}", peer.0),
            SocketState::PeerClosed => "peer closed".to_string(),
            SocketState::Listening { backlog, pending } => {
                format!("listening, backlog {backlog}, {} not accepted", pending.len())
            }
        };
        let address = match socket.address.0.first() {
            None => String::new(),
            // An abstract name begins with a zero byte.
            Some(0) => format!(", bound to @{}", String::from_utf8_lossy(&socket.address.0[1..])),
            Some(_) => format!(", bound to {}", socket.address),
        };
        let queued: usize = socket.queue.iter().map(|message| message.data.0.len()).sum();
        let messages = socket.queue.len();
        let passed: Vec<&FileId> = socket.queue.iter().flat_map(|message| &message.files).collect();
        let passed = match passed.len() {
            0 => String::new(),
            n => format!(", {n} descriptors in flight"),
        };
        text.line(
            1,
            format!("{number}: {kind}, {state}{address}, {queued} bytes in {messages} messages queued{passed}"),
        );
    }
    text.heading("IP sockets");
    for (number, socket) in manifest.inet_sockets.iter().enumerate() {
        text.line(1, format!("{number}: {}", inet_socket(socket)));
    }
    if !manifest.packet_sockets.is_empty() {
        text.heading("packet sockets");
    }
    for (number, socket) in manifest.packet_sockets.iter().enumerate() {
        let interface = socket.interface.as_ref().map(|name| format!(", interface {name}"));
        let protocol = socket.protocol;
        let interface = interface.unwrap_or_default();
        text.line(
            1,
            format!("{number}: type {}, protocol {protocol:#06x}{interface}", socket.kind),
        );
    }
    text.heading("terminals");
    for (number, terminal) in manifest.terminals.iter().enumerate() {
        let place = if terminal.external {
            "outside the job"
        } else {
            "of the job"
        };
        let (rows, columns, ..) = terminal.window;
        text.line(
            1,
            format!(
                "{number}: /dev/pts/{}, {place}, {columns}x{rows}, session {}, foreground group {}, {} bytes unread",
                terminal.index,
                terminal.session,
                terminal.foreground_group,
                terminal.input.0.len() + terminal.output.0.len()
            ),
        );
    }
}

fn ipc(text: &mut Text, manifest: &Manifest) {
    let ipc = &manifest.ipc;
    let who = |i: &SysvIdentity| {
        let (id, key, mode) = (i.id, i.key, i.mode & 0o777);
        format!("{id}: key {key:#x}, user {}, group {}, mode {mode:03o}", i.uid, i.gid)
    };
    text.heading("System V shared memory");
    for segment in &ipc.segments {
        let (all, saved) = (size(segment.size), size(saved_bytes(&segment.extents)));
        text.line(1, format!("{}, {all}, saved {saved}", who(&segment.identity)));
    }
    text.heading("System V semaphores");
    for set in &ipc.semaphores {
        let values: Vec<String> = set.semaphores.iter().map(|(value, _)| value.to_string()).collect();
        text.line(1, format!("{}, values {}", who(&set.identity), values.join(" ")));
        for (pid, index, amount) in &set.undo {
            text.line(
                2,
                format!("at the end of process {pid}: {amount:+} on semaphore {index}"),
            );
        }
    }
    text.heading("System V message queues");
    for queue in &ipc.queues {
        let bytes: usize = queue.messages.iter().map(|(_, data)| data.0.len()).sum();
        let messages = queue.messages.len();
        text.line(
            1,
            format!("{}, {bytes} bytes in {messages} messages", who(&queue.identity)),
        );
    }
    text.heading("POSIX message queues");
    for queue in &ipc.posix_queues {
        let gone = if queue.unlinked { " (unlinked)" } else { "" };
        let (messages, most) = (queue.messages.len(), queue.max_messages);
        text.line(1, format!("/{}{gone}: {messages} of {most} messages", queue.name));
    }
}

fn address_space<'a>(manifest: &'a Manifest, process: &Process) -> Option<&'a AddressSpace> {
    manifest.address_spaces.get(process.address_space?.index())
}

fn saved_bytes(extents: &[Extent]) -> u64 {
    extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.length))
}

fn saved_file(file: &SavedFile) -> String {
    match &file.kind {
        SavedFileKind::Deleted { path } => format!("{path} (deleted)"),
        SavedFileKind::DeletedDirectory { path } => format!("directory {path} (deleted)"),
        SavedFileKind::DeletedLink { path, target } => format!("link {path} to {target} (deleted)"),
        SavedFileKind::Memfd { name, .. } => format!("memfd {name}"),
        SavedFileKind::SharedAnonymous => "shared memory".to_string(),
        SavedFileKind::SharedMemory { path } | SavedFileKind::Backup { path } => path.to_string(),
    }
}

fn limit(limit: &Limit) -> String {
    let value = |value: u64| match value {
        u64::MAX => "unlimited".to_string(),
        value => value.to_string(),
    };
    let name = LIMITS.get(limit.resource as usize).unwrap_or(&"unknown");
    match limit.soft == limit.hard {
        true => format!("{name} {}", value(limit.soft)),
        false => format!("{name} {} (hard {})", value(limit.soft), value(limit.hard)),
    }
}

fn range(start: u64, length: u64) -> String {
    match length {
        0 => format!("from byte {start}"),
        length => format!("{length} bytes from byte {start}"),
    }
}

fn timer_times(value_ns: u64, interval_ns: u64) -> String {
    let left = match value_ns {
        0 => "not running".to_string(),
        value => format!("{} left", duration(value)),
    };
    match interval_ns {
        0 => left,
        interval => format!("{left}, every {}", duration(interval)),
    }
}

/// Names of the signals in a mask.
fn signal_set(mask: u64) -> String {
    let all = u64::MAX;
    if mask == all {
        return "all".to_string();
    }
    let names: Vec<String> = (1..=64).filter(|n| mask >> (n - 1) & 1 == 1).map(signal_name).collect();
    or_none(&names.join(" ")).to_string()
}

/// Names of the signals in a list of siginfo_t, which begin with the number.
fn pending(list: &[gridcpr::image::model::Bytes]) -> String {
    let numbers = list.iter().filter_map(|info| info.0.first_chunk::<4>());
    let names: Vec<String> = numbers.map(|bytes| signal_name(i32::from_le_bytes(*bytes))).collect();
    names.join(" ")
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
