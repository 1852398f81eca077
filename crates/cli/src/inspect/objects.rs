//! What a job has open and what its processes talk through, as text.

use gridcpr::image::model::{
    Descriptor, FileContent, FileId, InetSocket, InetState, Manifest, Object, OpenFile, SocketState, SysvIdentity,
};

use super::{Text, or_none, saved_bytes, saved_file, signal_set, timer_times};
use crate::output::size;

/// Status flags of open(2) on Linux, other than the access mode.
const FLAGS: [(i32, &str); 6] = [
    (0o2000, "append"),
    (0o4000, "nonblock"),
    (0o10000, "dsync"),
    (0o20000, "async"),
    (0o40000, "direct"),
    (0o10000000, "path"),
];

pub(super) fn files(text: &mut Text, manifest: &Manifest) {
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

pub(super) fn contents(text: &mut Text, manifest: &Manifest) {
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

pub(super) fn channels(text: &mut Text, manifest: &Manifest) {
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

pub(super) fn ipc(text: &mut Text, manifest: &Manifest) {
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
