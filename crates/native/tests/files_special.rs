//! Descriptors other than files and pipes: saved through another descriptor, restored, and used.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use cpr_image::model::{
    Bytes, EpollTarget, FileId, Object, OpenFile, SocketId, SocketMessage, SocketState, Terminal, TerminalId,
    UnixSocket,
};
use cpr_kernel::proc::{FdInfoKind, ProcDir};
use cpr_kernel::{event, socket as raw, terminal as tty};
use cpr_native::files::{epoll, eventfd, inotify, socket, terminal, timerfd, unix};
use cpr_native::networks::Networks;
use cpr_native::views::Views;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

const STREAM: i32 = 1;
const DGRAM: i32 = 2;
const SEQPACKET: i32 = 5;

/// Held for reading by tests that close descriptors and want them closed: a new child has copies until it execs.
static NO_FORK: RwLock<()> = RwLock::new(());

fn kind(fd: &OwnedFd) -> FdInfoKind {
    own_proc().fdinfo(fd.as_raw_fd()).unwrap().kind
}

fn own_proc() -> ProcDir {
    ProcDir::open(std::process::id() as i32).unwrap()
}

fn read_u64(fd: &OwnedFd) -> Result<u64, Errno> {
    let mut bytes = [0u8; 8];
    rustix::io::read(fd, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn read(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; 1 << 20];
    let count = rustix::io::read(fd, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// What a read gives within a second; terminals pass data on with a delay.
fn read_soon(fd: impl AsFd) -> Vec<u8> {
    poll(fd.as_fd(), 1000);
    read(fd).unwrap()
}

fn poll(fd: BorrowedFd<'_>, milliseconds: i64) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: milliseconds % 1000 * 1_000_000,
    };
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// LBNL-3.9.1.M5
#[test]
fn eventfd_keeps_counter_and_mode() {
    let fd = rustix::event::eventfd(0, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK).unwrap();
    rustix::io::write(&fd, &(1u64 << 40).to_ne_bytes()).unwrap();
    let FdInfoKind::EventFd { count, semaphore, .. } = kind(&fd) else {
        panic!()
    };
    let again = eventfd::make(count, semaphore.unwrap(), true).unwrap();
    assert_eq!(read_u64(&again), Ok(1));
    assert!(matches!(kind(&again), FdInfoKind::EventFd { count, .. } if count == (1 << 40) - 1));
    let plain = eventfd::make(7, false, true).unwrap();
    assert_eq!(read_u64(&plain), Ok(7));
    assert_eq!(read_u64(&plain), Err(Errno::AGAIN));
}

fn timer(clock: TimerfdClockId, flags: TimerfdTimerFlags, value: Duration, interval: Duration) -> OwnedFd {
    let fd = rustix::time::timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).unwrap();
    let spec = |d: Duration| Timespec {
        tv_sec: d.as_secs() as i64,
        tv_nsec: d.subsec_nanos().into(),
    };
    let setting = Itimerspec {
        it_interval: spec(interval),
        it_value: spec(value),
    };
    rustix::time::timerfd_settime(&fd, flags, &setting).unwrap();
    fd
}

fn again(object: &Object) -> OwnedFd {
    let Object::TimerFd {
        clock,
        ticks,
        settime_flags,
        value_ns,
        interval_ns,
    } = *object
    else {
        panic!()
    };
    timerfd::make(clock, ticks, settime_flags, value_ns, interval_ns, true).unwrap()
}

/// LBNL-3.9.1.M5
#[test]
fn timerfd_keeps_expirations_and_time_left() {
    let none = TimerfdTimerFlags::empty();
    let short = Duration::from_millis(10);
    let periodic = timer(TimerfdClockId::Monotonic, none, short, short);
    std::thread::sleep(Duration::from_millis(35));
    let saved = timerfd::read(periodic.as_fd()).unwrap();
    let Object::TimerFd { ticks, value_ns, .. } = saved else {
        panic!()
    };
    assert!(ticks >= 3, "{saved:?}");
    assert!(
        (1..=10_000_000).contains(&value_ns),
        "a periodic timer goes on: {saved:?}"
    );
    std::thread::sleep(Duration::from_millis(30));
    let restored = again(&saved);
    assert!(read_u64(&restored).unwrap() >= ticks);
    std::thread::sleep(Duration::from_millis(25));
    assert!(read_u64(&restored).unwrap() >= 2);
    // Reading changed nothing for a job that goes on.
    assert!(read_u64(&periodic).unwrap() >= 6);

    let long = Duration::from_secs(1000);
    let one_shot = timer(TimerfdClockId::Boottime, none, long, Duration::ZERO);
    let left = rustix::time::timerfd_gettime(again(&timerfd::read(one_shot.as_fd()).unwrap())).unwrap();
    assert!((990..1000).contains(&left.it_value.tv_sec));

    let expired = timer(TimerfdClockId::Monotonic, none, Duration::from_nanos(1), Duration::ZERO);
    std::thread::sleep(Duration::from_millis(2));
    let restored = again(&timerfd::read(expired.as_fd()).unwrap());
    assert_eq!(read_u64(&restored), Ok(1));
    assert_eq!(read_u64(&restored), Err(Errno::AGAIN));

    let disarmed = timer(TimerfdClockId::Monotonic, none, Duration::ZERO, long);
    let saved = timerfd::read(disarmed.as_fd()).unwrap();
    assert!(matches!(saved, Object::TimerFd { value_ns: 0, .. }), "{saved:?}");

    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let absolute = timer(TimerfdClockId::Realtime, flags, now + long, Duration::ZERO);
    let restored = again(&timerfd::read(absolute.as_fd()).unwrap());
    let FdInfoKind::TimerFd {
        settime_flags,
        it_value_ns,
        ..
    } = kind(&restored)
    else {
        panic!()
    };
    assert_eq!(settime_flags, flags.bits() as i32);
    assert!((990..=1000).contains(&(it_value_ns / 1_000_000_000)));
}

/// LBNL-3.9.1.M5
#[test]
fn signalfd_keeps_its_mask() {
    let fd = event::signalfd(0x8000_0000_0000_0201, true).unwrap();
    let FdInfoKind::SignalFd { mask } = kind(&fd) else {
        panic!()
    };
    let again = event::signalfd(mask, false).unwrap();
    assert_eq!(kind(&again), kind(&fd));
}

fn holders(files: &[(&OwnedFd, u32)]) -> Vec<epoll::Holder> {
    let pid = std::process::id() as i32;
    files
        .iter()
        .map(|(fd, file)| epoll::Holder {
            pid,
            fd: fd.as_raw_fd(),
            file: FileId(*file),
        })
        .collect()
}

/// LBNL-3.9.1.M6
#[test]
fn epoll_targets_are_told_apart_even_when_their_numbers_are_reused() {
    let pid = std::process::id() as i32;
    let set = epoll::make().unwrap();
    let inner = epoll::make().unwrap();
    let one = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let other = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
    let number = one.as_raw_fd();
    event::epoll_add(set.as_fd(), one.as_fd(), libc_in(), 1).unwrap();
    event::epoll_add(set.as_fd(), inner.as_fd(), libc_in(), 2).unwrap();
    // `one` moves away, and `other` gets its number and is registered under it as well.
    let moved = rustix::io::dup(&one).unwrap();
    let mut one = one;
    rustix::io::dup2(&other, &mut one).unwrap();
    event::epoll_add(set.as_fd(), one.as_fd(), libc_in() | 1 << 31, 3).unwrap();
    let FdInfoKind::Epoll(watches) = kind(&set) else {
        panic!()
    };
    let all = holders(&[(&set, 0), (&inner, 1), (&moved, 2), (&other, 3), (&one, 3)]);
    let mut targets = epoll::resolve("test", set.as_fd(), &watches, &all, &[pid]).unwrap();
    targets.sort_by_key(|t| t.data);
    let seen: Vec<_> = targets.iter().map(|t| (t.fd, t.file.0, t.data)).collect();
    assert_eq!(seen, [(number, 2, 1), (inner.as_raw_fd(), 1, 2), (number, 3, 3)]);
    assert_eq!(targets[2].events & 1 << 31, 1 << 31);
    // Nobody has `one` any more.
    let few = holders(&[(&set, 0), (&inner, 1), (&other, 3)]);
    let error = epoll::resolve("test", set.as_fd(), &watches, &few, &[pid]).unwrap_err();
    assert_eq!(error.kind(), cpr_types::ErrorKind::Unsupported);
}

fn libc_in() -> u32 {
    1 // EPOLLIN
}

/// LBNL-3.9.1.M7
#[test]
fn inotify_reports_files_made_after_restart() {
    let directory = tempfile::tempdir().unwrap();
    let fd = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
    event::set_next_watch(fd.as_fd(), 17).unwrap();
    let watched = directory.path().join("deep").join("down");
    std::fs::create_dir_all(&watched).unwrap();
    let mask = 0x100 | 0x200; // IN_CREATE, IN_DELETE
    event::add_watch(fd.as_fd(), watched.as_os_str().as_encoded_bytes(), mask).unwrap();
    let FdInfoKind::Inotify(watches) = kind(&fd) else {
        panic!()
    };
    let mounts = own_proc().mountinfo().unwrap();
    let places = || vec![watched.join("a-file-the-job-has-open")];
    for mounts in [&mounts[..], &[]] {
        let saved = inotify::resolve(&watches, mounts, &places, "test").unwrap();
        assert_eq!(saved[0].wd, 17);
        assert_eq!(saved[0].path.as_path(), watched.canonicalize().unwrap());
        let again = inotify::make(&saved, &[], true).unwrap();
        std::fs::write(watched.join("early"), "").unwrap();
        inotify::discard_events(again.as_fd()).unwrap();
        std::fs::write(watched.join("late"), "").unwrap();
        let event = read(&again).unwrap();
        assert_eq!(i32::from_ne_bytes([event[0], event[1], event[2], event[3]]), 17);
        assert!(event.windows(5).any(|w| w == b"late\0"));
        std::fs::remove_file(watched.join("early")).unwrap();
        std::fs::remove_file(watched.join("late")).unwrap();
    }
    let error = inotify::resolve(&watches, &[], &Vec::new, "test").unwrap_err();
    assert!(
        error.message().contains("whose path is not known"),
        "{}",
        error.message()
    );
}

/// Saves sockets as one job; files in flight become file numbers in the order found.
fn save(sockets: &[&OwnedFd], cwd: &Path) -> cpr_types::Result<(Vec<UnixSocket>, Vec<OwnedFd>)> {
    let networks = Networks::home();
    let mut state = unix::SaveState::default();
    for fd in sockets {
        assert_eq!(socket::classify(fd.as_fd()).unwrap(), socket::Class::Unix);
        let held = || Arc::new(rustix::io::dup(fd).unwrap());
        let id = state.note(&held(), "test", (cwd, None), &networks)?;
        assert_eq!(state.note(&held(), "test", (cwd, None), &networks)?, id);
    }
    let mut files = Vec::new();
    let mut queues = Vec::new();
    for index in 0..state.len() {
        let queue = state
            .queue(SocketId(index as u32), &networks)?
            .into_iter()
            .map(|message| SocketMessage {
                data: Bytes(message.data),
                files: message
                    .rights
                    .into_iter()
                    .map(|fd| {
                        files.push(fd);
                        FileId(files.len() as u32 - 1)
                    })
                    .collect(),
                sender: cpr_image::model::ByteString(message.sender),
            });
        queues.push(queue.collect());
    }
    let mut images = state.resolve(&networks, &Views::default())?;
    for (image, queue) in images.iter_mut().zip(queues) {
        image.queue = queue;
    }
    Ok((images, files))
}

fn restore(images: &[UnixSocket], files: &[OwnedFd]) -> cpr_types::Result<Vec<OwnedFd>> {
    let networks = Networks::home();
    let sockets = unix::Sockets::create(images, &networks, &Views::default())?;
    let opened = (0..images.len())
        .map(|index| sockets.open(SocketId(index as u32), OFlags::NONBLOCK.bits() as i32))
        .collect::<cpr_types::Result<Vec<_>>>()?;
    let files: Vec<_> = files.iter().map(|file| Arc::new(file.try_clone().unwrap())).collect();
    sockets.fill(images, &files, &networks)?;
    let alone = opened
        .into_iter()
        .map(|end| Arc::into_inner(end).expect("nobody else has it"));
    Ok(alone.collect())
}

fn send(fd: &OwnedFd, data: &[u8], rights: &[BorrowedFd<'_>]) {
    assert_eq!(raw::send(fd.as_fd(), data, rights, None).unwrap(), data.len());
}

/// The next message, taken: data, number of descriptors, sender.
fn receive(fd: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>, Vec<u8>)> {
    raw::set_option(fd.as_fd(), 42, 0).unwrap(); // SO_PEEK_OFF
    let message = raw::peek(fd.as_fd(), 1 << 20).unwrap()?;
    raw::set_option(fd.as_fd(), 42, -1).unwrap();
    read(fd).unwrap();
    Some((message.data, message.rights, message.sender))
}

/// LBNL-3.9.1.M10
#[test]
fn stream_pair_keeps_data_and_descriptors_where_they_were() {
    let (a, b) = raw::pair(STREAM).unwrap();
    let mut pipe = std::io::pipe().unwrap();
    send(&a, b"before", &[]);
    send(&a, b"with two", &[pipe.1.as_fd(), pipe.0.as_fd()]);
    send(&a, b"after", &[]);
    let big = vec![b'x'; 150_000];
    send(&b, &big, &[]);
    raw::set_option(b.as_fd(), 16, 1).unwrap(); // SO_PASSCRED
    raw::set_timeout(a.as_fd(), 20, 2_500_000).unwrap(); // SO_RCVTIMEO
    raw::set_option(a.as_fd(), 42, 3).unwrap(); // SO_PEEK_OFF
    raw::shutdown(a.as_fd(), 2).unwrap();
    let (images, files) = save(&[&a, &b], Path::new("/")).unwrap();
    assert_eq!(
        raw::option(a.as_fd(), 42).unwrap(),
        3,
        "the job's own peek offset stays"
    );
    assert_eq!(
        images[1].queue.iter().map(|m| m.data.0.len()).collect::<Vec<_>>(),
        [6, 8, 5]
    );
    assert_eq!(files.len(), 2);

    let opened = restore(&images, &files).unwrap();
    assert_eq!(raw::option(opened[1].as_fd(), 16).unwrap(), 1);
    assert_eq!(raw::timeout(opened[0].as_fd(), 20).unwrap(), 2_500_000);
    assert_eq!(raw::option(opened[0].as_fd(), 42).unwrap(), 3);
    assert_eq!(
        raw::option(opened[0].as_fd(), 7).unwrap(),
        raw::option(a.as_fd(), 7).unwrap()
    );
    assert_eq!(read(&opened[0]).unwrap(), big);
    // Without SO_PASSCRED, messages of several writers join as they would have for the program.
    raw::set_option(opened[1].as_fd(), 16, 0).unwrap();
    let (data, rights, _) = receive(&opened[1]).unwrap();
    assert_eq!((data.as_slice(), rights.len()), (&b"beforewith two"[..], 2));
    rustix::io::write(&rights[0], b"through").unwrap();
    let mut text = [0u8; 7];
    pipe.0.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"through");
    assert_eq!(read(&opened[1]).unwrap(), b"after");
    assert_eq!(read(&opened[1]).unwrap(), b"", "the other side was shut");
    send(&opened[1], b"back", &[]);
    assert_eq!(read(&opened[0]).unwrap(), b"back");
    // The originals go on.
    raw::set_option(b.as_fd(), 16, 0).unwrap();
    assert_eq!(receive(&b).unwrap().1.len(), 2);
    assert_eq!(read(&a).unwrap(), big);
}

/// LBNL-3.9.1.M10
#[test]
fn messages_keep_their_boundaries() {
    for kind in [DGRAM, SEQPACKET] {
        let (a, b) = raw::pair(kind).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(&a, b"one", &[]);
        send(&a, b"with", &[null.as_fd()]);
        send(&a, &vec![7u8; 20_000], &[]);
        if kind == DGRAM {
            send(&a, b"", &[]);
        }
        send(&a, b"last", &[]);
        let (images, files) = save(&[&a, &b], Path::new("/")).unwrap();
        let opened = restore(&images, &files).unwrap();
        for fd in [&opened[1], &b] {
            assert_eq!(receive(fd).unwrap().0, b"one");
            let (data, rights, _) = receive(fd).unwrap();
            assert_eq!((data.as_slice(), rights.len()), (&b"with"[..], 1));
            assert_eq!(receive(fd).unwrap().0.len(), 20_000);
            if kind == DGRAM {
                assert_eq!(read(fd).unwrap(), b"");
            }
            assert_eq!(receive(fd).unwrap().0, b"last");
            assert!(receive(fd).is_none());
        }
    }
}

/// LBNL-3.9.1.M10
#[test]
fn closed_peers_leave_their_data() {
    let _alone = NO_FORK.read().unwrap();
    for kind in [STREAM, DGRAM, SEQPACKET] {
        let (a, b) = raw::pair(kind).unwrap();
        send(&a, b"farewell", &[]);
        drop(a);
        let (images, files) = save(&[&b], Path::new("/")).unwrap();
        assert_eq!(images[0].state, SocketState::PeerClosed);
        let opened = restore(&images, &files).unwrap();
        assert_eq!(read(&opened[0]).unwrap(), b"farewell");
        if kind == DGRAM {
            assert_eq!(read(&opened[0]), Err(Errno::AGAIN));
        } else {
            assert_eq!(read(&opened[0]).unwrap(), b"");
        }
        let error = raw::send(opened[0].as_fd(), b"x", &[], None).unwrap_err();
        let expected = raw::send(b.as_fd(), b"x", &[], None).unwrap_err();
        assert_eq!(error.raw_os_error(), expected.raw_os_error());
    }
}

/// LBNL-3.9.1.M10
#[test]
fn server_and_clients_by_name() {
    let _alone = NO_FORK.read().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server");
    let abstract_name = format!("\0cpr-test-{}", std::process::id()).into_bytes();
    for name in [path.as_os_str().as_encoded_bytes(), &abstract_name] {
        let listener = raw::create(STREAM).unwrap();
        raw::bind(listener.as_fd(), name).unwrap();
        raw::listen(listener.as_fd(), 5).unwrap();
        let connect = || {
            let client = raw::create(STREAM).unwrap();
            raw::connect(client.as_fd(), name).unwrap();
            client
        };
        let (c1, c2) = (connect(), connect());
        let (s1, s2) = (
            raw::accept(listener.as_fd()).unwrap(),
            raw::accept(listener.as_fd()).unwrap(),
        );
        let waiting = connect();
        send(&c1, b"to s1", &[]);
        send(&s2, b"to c2", &[]);
        if path.exists() {
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        }
        let all = [&c1, &s1, &waiting, &listener, &s2, &c2];
        let (images, files) = save(&all, Path::new("/")).unwrap();
        assert_eq!(
            images[3].state,
            SocketState::Listening {
                backlog: 5,
                pending: vec![SocketId(2)]
            }
        );
        // The name is still taken.
        assert_eq!(
            restore(&images, &files).unwrap_err().kind(),
            cpr_types::ErrorKind::InUse
        );
        drop((c1, c2, s1, s2, waiting, listener));
        let opened = restore(&images, &files).unwrap();
        assert_eq!(read(&opened[1]).unwrap(), b"to s1");
        assert_eq!(read(&opened[5]).unwrap(), b"to c2");
        assert_eq!(raw::name(opened[1].as_fd()).unwrap(), name);
        assert_eq!(raw::name(opened[0].as_fd()).unwrap(), b"");
        let server = raw::accept(opened[3].as_fd()).unwrap();
        send(&opened[2], b"hello", &[]);
        assert_eq!(read(&server).unwrap(), b"hello");
        assert!(raw::accept(opened[3].as_fd()).is_err());
        let fresh = raw::create(STREAM).unwrap();
        raw::connect(fresh.as_fd(), name).unwrap();
        if name[0] != 0 {
            let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
            assert_eq!(mode & 0o777, 0o640);
            std::fs::remove_file(&path).unwrap();
        }
    }
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

/// LBNL-3.9.1.M10
#[test]
fn accepted_sockets_outlive_their_listener_and_its_directory() {
    let _alone = NO_FORK.read().unwrap();
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("gone");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("s");
    let name = path.as_os_str().as_encoded_bytes();
    let listener = raw::create(SEQPACKET).unwrap();
    raw::bind(listener.as_fd(), name).unwrap();
    raw::listen(listener.as_fd(), 5).unwrap();
    let clients: Vec<OwnedFd> = (0..2)
        .map(|_| {
            let client = raw::create(SEQPACKET).unwrap();
            raw::connect(client.as_fd(), name).unwrap();
            client
        })
        .collect();
    let servers: Vec<OwnedFd> = (0..2).map(|_| raw::accept(listener.as_fd()).unwrap()).collect();
    drop(listener);
    std::fs::remove_dir_all(&directory).unwrap();
    let all = [&clients[0], &clients[1], &servers[0], &servers[1]];
    let (images, files) = save(&all, Path::new("/")).unwrap();
    let opened = restore(&images, &files).unwrap();
    send(&opened[0], b"zero", &[]);
    send(&opened[1], b"one", &[]);
    assert_eq!(read(&opened[2]).unwrap(), b"zero");
    assert_eq!(read(&opened[3]).unwrap(), b"one");
    assert_eq!(raw::name(opened[2].as_fd()).unwrap(), name);
    assert!(!directory.exists());
}

/// LBNL-3.9.1.M10
#[test]
fn datagrams_keep_their_senders() {
    let _alone = NO_FORK.read().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).into_os_string().into_encoded_bytes();
    let bound = |name: &str| {
        let fd = raw::create(DGRAM).unwrap();
        raw::bind(fd.as_fd(), &at(name)).unwrap();
        fd
    };
    let (server, client, gone, deaf) = (
        bound("server"),
        bound("client"),
        bound("gone"),
        raw::create(DGRAM).unwrap(),
    );
    raw::bind_in(deaf.as_fd(), b"relative", directory.path()).unwrap();
    raw::connect(client.as_fd(), &at("server")).unwrap();
    send(&client, b"from client", &[]);
    raw::send(gone.as_fd(), b"from gone", &[], Some(&at("server"))).unwrap();
    raw::send(
        raw::create(DGRAM).unwrap().as_fd(),
        b"anonymous",
        &[],
        Some(&at("server")),
    )
    .unwrap();
    raw::send(gone.as_fd(), b"to relative", &[], Some(&at("relative"))).unwrap();
    raw::connect(server.as_fd(), &at("client")).unwrap();
    drop(gone);
    std::fs::remove_file(directory.path().join("gone")).unwrap();
    std::fs::remove_file(directory.path().join("server")).unwrap();
    let (images, files) = save(&[&server, &client, &deaf], directory.path()).unwrap();
    drop((server, client, deaf));
    let opened = restore(&images, &files).unwrap();
    let (data, _, sender) = receive(&opened[0]).unwrap();
    assert_eq!((data.as_slice(), sender), (&b"from client"[..], at("client")));
    let (data, _, sender) = receive(&opened[0]).unwrap();
    assert_eq!((data.as_slice(), sender), (&b"from gone"[..], at("gone")));
    let (data, _, sender) = receive(&opened[0]).unwrap();
    assert_eq!((data.as_slice(), sender), (&b"anonymous"[..], vec![]));
    assert_eq!(receive(&opened[2]).unwrap().0, b"to relative");
    assert_eq!(raw::name(opened[2].as_fd()).unwrap(), b"relative");
    send(&opened[0], b"answer", &[]);
    assert_eq!(read(&opened[1]).unwrap(), b"answer");
    let mut left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["client", "relative"]);
}

#[test]
fn connections_out_of_the_job_are_refused() {
    let _alone = NO_FORK.read().unwrap();
    let (a, b) = raw::pair(STREAM).unwrap();
    let error = save(&[&a], Path::new("/")).unwrap_err();
    assert_eq!(error.kind(), cpr_types::ErrorKind::Unsupported);
    drop(b);
    let name = format!("\0cpr-refuse-{}", std::process::id()).into_bytes();
    let listener = raw::create(STREAM).unwrap();
    raw::bind(listener.as_fd(), &name).unwrap();
    raw::listen(listener.as_fd(), 5).unwrap();
    let client = raw::create(STREAM).unwrap();
    raw::connect(client.as_fd(), &name).unwrap();
    assert!(
        save(&[&client], Path::new("/"))
            .unwrap_err()
            .message()
            .contains("outside the job")
    );
    assert!(
        save(&[&listener], Path::new("/"))
            .unwrap_err()
            .message()
            .contains("from outside")
    );
    assert!(save(&[&listener, &client], Path::new("/")).is_ok());
    send(&client, b"early", &[]);
    let error = save(&[&listener, &client], Path::new("/")).unwrap_err();
    assert!(error.message().contains("with data in it"), "{}", error.message());
    drop(client);
    let error = save(&[&listener], Path::new("/")).unwrap_err();
    assert!(error.message().contains("client is gone"), "{}", error.message());
}

#[test]
fn contradictory_images_are_refused() {
    let (a, b) = raw::pair(STREAM).unwrap();
    let (good, _) = save(&[&a, &b], Path::new("/")).unwrap();
    let spoil = |change: &dyn Fn(&mut Vec<UnixSocket>)| {
        let mut images = good.clone();
        change(&mut images);
        restore(&images, &[]).unwrap_err().kind()
    };
    let damaged = cpr_types::ErrorKind::Damaged;
    assert_eq!(spoil(&|i| i[0].state = SocketState::Connected(SocketId(9))), damaged);
    assert_eq!(spoil(&|i| i[0].state = SocketState::Connected(SocketId(0))), damaged);
    assert_eq!(spoil(&|i| i[0].kind = 77), damaged);
    let pending = |i: &mut Vec<UnixSocket>| {
        i[1].state = SocketState::Listening {
            backlog: 1,
            pending: vec![SocketId(0), SocketId(0)],
        };
    };
    assert_eq!(spoil(&pending), damaged);
    let message = SocketMessage {
        files: vec![FileId(3)],
        ..SocketMessage::default()
    };
    assert_eq!(spoil(&|i| i[0].queue = vec![message.clone()]), damaged);
}

struct Pty {
    master: OwnedFd,
    slave: OwnedFd,
}

fn pty() -> Pty {
    let pair = cpr_kernel::terminal_relay::open_pair().unwrap();
    rustix::io::ioctl_fionbio(&pair.slave, true).unwrap();
    Pty {
        master: pair.master,
        slave: pair.slave,
    }
}

fn save_terminal(pty: &Pty) -> cpr_types::Result<Terminal> {
    let mut state = terminal::SaveState::default();
    for fd in [&pty.master, &pty.slave] {
        let stat = rustix::fs::fstat(fd).unwrap();
        state.note(fd.as_fd(), &stat, "test", None)?.unwrap();
    }
    Ok(state.finish(&[])?.remove(0))
}

fn restore_terminal(image: &Terminal) -> (terminal::Terminals, Pty) {
    let flags = (OFlags::RDWR | OFlags::NONBLOCK).bits() as i32;
    let file = |object: Object| OpenFile {
        flags,
        position: 0,
        owner: None,
        flock: None,
        locker: 0,
        lease: None,
        ofd_locks: Vec::new(),
        mount_namespace: None,
        object,
    };
    let master = file(Object::TerminalMaster(TerminalId(0)));
    let slave = file(Object::TerminalSlave(TerminalId(0)));
    let images = [image.clone()];
    let objects = [master.object.clone(), slave.object.clone()];
    let mut terminals = terminal::Terminals::create(&images, objects.iter(), None, true, None).unwrap();
    let pty = Pty {
        master: terminals.open(&images, &master).unwrap().unwrap(),
        slave: terminals.open(&images, &slave).unwrap().unwrap(),
    };
    terminals.fill(&images).unwrap();
    (terminals, pty)
}

/// LBNL-3.9.4.2, LBNL-3.9.4.3
#[test]
fn terminal_settings_and_window_come_back() {
    let pty = pty();
    cpr_kernel::terminal_relay::set_window_size(pty.master.as_fd(), [40, 100, 7, 9]).unwrap();
    let mut settings = tty::attributes(pty.slave.as_fd()).unwrap();
    settings.local &= !0o12; // ICANON, ECHO
    settings.characters[6] = 3; // VMIN
    settings.output_speed = 12345;
    settings.control = settings.control & !0o10017 | 0o10000; // BOTHER
    tty::set_attributes(pty.slave.as_fd(), &settings).unwrap();
    tty::set_packet_mode(pty.master.as_fd(), true).unwrap();
    let settings = tty::attributes(pty.slave.as_fd()).unwrap();
    let image = save_terminal(&pty).unwrap();
    assert!(!image.external);
    let (_terminals, again) = restore_terminal(&image);
    assert_eq!(tty::attributes(again.slave.as_fd()).unwrap(), settings);
    assert!(tty::packet_mode(again.master.as_fd()).unwrap());
    assert_eq!(
        cpr_kernel::terminal_relay::window_size(again.slave.as_fd()).unwrap(),
        [40, 100, 7, 9]
    );
    assert!(tty::packet_mode(pty.master.as_fd()).unwrap());
    assert_eq!(tty::attributes(pty.slave.as_fd()).unwrap(), settings);
}

/// Waits until all that was written to the master has been taken in: its echo, or what can be read, is there.
fn settle(pty: &Pty, output: usize) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while tty::readable(pty.master.as_fd()).unwrap() < output {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

/// LBNL-3.9.4.1
#[test]
fn lines_typed_and_text_shown_come_back() {
    let pty = pty();
    // Two lines, an end of file, an empty end of file and an unfinished line; echoed with CR LF and ^D, ^D.
    rustix::io::write(&pty.master, b"first\rsecond\nend\x04\x04unfin").unwrap();
    settle(&pty, b"first\r\nsecond\r\nendunfin".len());
    rustix::io::write(&pty.slave, b"shown\n").unwrap();
    settle(&pty, b"first\r\nsecond\r\nendunfinshown\r\n".len());
    let image = save_terminal(&pty).unwrap();
    assert_eq!(image.input.0, b"first\nsecond\nend\x04\x04unfin");
    let (_terminals, again) = restore_terminal(&image);
    for pty in [&again, &pty] {
        assert_eq!(read(&pty.slave).unwrap(), b"first\n");
        assert_eq!(read(&pty.slave).unwrap(), b"second\n");
        assert_eq!(read(&pty.slave).unwrap(), b"end");
        assert_eq!(read(&pty.slave).unwrap(), b"");
        assert_eq!(read(&pty.slave), Err(Errno::AGAIN), "the last line is not finished");
        let mut shown = image.output.0.clone();
        let mut seen = Vec::new();
        while seen.len() < shown.len() {
            seen.extend(read_soon(&pty.master));
        }
        assert_eq!(seen, shown);
        shown.retain(|b| b.is_ascii_lowercase());
        assert!(shown.starts_with(b"firstsecondend") && shown.ends_with(b"unfinshown"));
        // Editing goes on: the erase character still works on what was there before.
        rustix::io::write(&pty.master, b"\x7f\x7fished\n").unwrap();
        assert_eq!(read_soon(&pty.slave), b"unfished\n");
    }
}

/// LBNL-3.9.4.1
#[test]
fn raw_terminals_keep_their_queues() {
    let pty = pty();
    let mut settings = tty::attributes(pty.slave.as_fd()).unwrap();
    settings.local &= !0o13; // ISIG, ICANON, ECHO
    settings.output = 0;
    settings.characters[6] = 255; // VMIN: a read waits for more than there is
    tty::set_attributes(pty.slave.as_fd(), &settings).unwrap();
    let typed: Vec<u8> = (0..=255).filter(|b| ![17, 19].contains(b)).collect(); // no control-Q, control-S
    rustix::io::write(&pty.master, &typed).unwrap();
    let shown: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
    rustix::io::write(&pty.slave, &shown).unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    while tty::readable(pty.slave.as_fd()).unwrap() < typed.len() {
        assert!(Instant::now() < deadline);
    }
    let image = save_terminal(&pty).unwrap();
    assert_eq!(image.output.0, shown);
    let (_terminals, again) = restore_terminal(&image);
    for pty in [&again, &pty] {
        // CR became NL on the way in, as it does with these settings, and no second time.
        let expected: Vec<u8> = typed.iter().map(|b| if *b == b'\r' { b'\n' } else { *b }).collect();
        assert_eq!(tty::readable(pty.slave.as_fd()).unwrap(), expected.len());
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.extend(read(&pty.slave).unwrap());
        }
        assert_eq!(seen, expected);
        let mut seen = Vec::new();
        while seen.len() < shown.len() {
            seen.extend(read_soon(&pty.master));
        }
        assert_eq!(seen, shown);
    }
}

/// LBNL-3.9.4.1
#[test]
fn output_up_to_the_brim_comes_back() {
    for (piece, processed) in [
        (1, true),
        (7, false),
        (250, true),
        (1793, false),
        (4000, true),
        (4000, false),
    ] {
        let pty = pty();
        let mut settings = tty::attributes(pty.slave.as_fd()).unwrap();
        settings.output &= if processed { u32::MAX } else { 0 };
        tty::set_attributes(pty.slave.as_fd(), &settings).unwrap();
        let mut shown = Vec::new();
        let bytes: Vec<u8> = (0..piece).map(|n| b'a' + (n % 26) as u8).collect();
        for _ in 0..3 {
            // The kernel moves data on while we write.
            while let Ok(count) = rustix::io::write(&pty.slave, &bytes) {
                shown.extend_from_slice(&bytes[..count]);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let image = save_terminal(&pty).unwrap();
        assert_eq!(image.output.0.len(), shown.len());
        let (_terminals, again) = restore_terminal(&image);
        for pty in [&again, &pty] {
            let mut seen = Vec::new();
            while seen.len() < shown.len() {
                seen.extend(read_soon(&pty.master));
            }
            assert!(seen == shown);
        }
    }
}

#[test]
fn stopped_output_is_refused_and_stays_stopped() {
    for length in [4, 5000] {
        for by_ioctl in [false, true] {
            let pty = pty();
            let shown = vec![b'x'; length];
            rustix::io::write(&pty.slave, &shown).unwrap();
            if by_ioctl {
                tty::set_output_stopped(pty.slave.as_fd(), true).unwrap();
            } else {
                rustix::io::write(&pty.master, b"\x13").unwrap();
            }
            let writable = || {
                let mut fds = [PollFd::new(&pty.slave, PollFlags::OUT)];
                rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
            };
            let until = |state: bool| {
                let deadline = Instant::now() + Duration::from_secs(2);
                while writable() != state {
                    assert!(Instant::now() < deadline);
                }
            };
            until(false);
            let error = save_terminal(&pty).unwrap_err();
            assert!(error.chain().contains("control-S"), "{}", error.chain());
            until(false);
            let mut seen = Vec::new();
            while seen.len() < length {
                seen.extend(read_soon(&pty.master));
            }
            assert_eq!(seen, shown);
            assert!(!writable());
            if by_ioctl {
                tty::set_output_stopped(pty.slave.as_fd(), false).unwrap();
            } else {
                rustix::io::write(&pty.master, b"\x11").unwrap();
            }
            until(true);
        }
    }
}

/// LBNL-3.9.4.3
#[test]
fn external_terminals_get_the_settings_but_keep_their_window() {
    let job = pty();
    let mut settings = tty::attributes(job.slave.as_fd()).unwrap();
    settings.local &= !0o12;
    tty::set_attributes(job.slave.as_fd(), &settings).unwrap();
    cpr_kernel::terminal_relay::set_window_size(job.master.as_fd(), [10, 10, 0, 0]).unwrap();
    let mut state = terminal::SaveState::default();
    let stat = rustix::fs::fstat(&job.slave).unwrap();
    state.note(job.slave.as_fd(), &stat, "test", None).unwrap().unwrap();
    let number = (136 << 8 | stat.st_rdev as i32 & 0xff) | (rustix::fs::minor(stat.st_rdev) as i32 & !0xff) << 12;
    assert_eq!(state.find(number, None), Some(TerminalId(0)));
    let member = terminal::Member {
        pid: 5,
        session: 5,
        terminal: number,
        foreground: 6,
        view: None,
    };
    let images = state.finish(&[member]).unwrap();
    assert_eq!(
        (images[0].external, images[0].session, images[0].foreground_group),
        (true, 5, 6)
    );

    let other = pty();
    cpr_kernel::terminal_relay::set_window_size(other.master.as_fd(), [25, 80, 0, 0]).unwrap();
    let file = OpenFile {
        flags: OFlags::RDWR.bits() as i32,
        position: 0,
        owner: None,
        flock: None,
        locker: 0,
        lease: None,
        ofd_locks: Vec::new(),
        mount_namespace: None,
        object: Object::TerminalSlave(TerminalId(0)),
    };
    let objects = [file.object.clone()];
    let mut given =
        terminal::Terminals::create(&images, objects.iter(), Some(other.slave.as_fd()), true, None).unwrap();
    let opened = given.open(&images, &file).unwrap().unwrap();
    given.fill(&images).unwrap();
    assert_eq!(tty::attributes(opened.as_fd()).unwrap(), settings);
    assert_eq!(
        cpr_kernel::terminal_relay::window_size(opened.as_fd()).unwrap(),
        [25, 80, 0, 0]
    );
    assert!(given.slave_for(TerminalId(0)).is_some());
    let none = terminal::Terminals::create(&images, objects.iter(), None, true, None).unwrap();
    assert!(none.open(&images, &file).unwrap().is_none());
}

fn process(pid: i32, descriptors: &[(i32, u32)]) -> cpr_image::model::Process {
    cpr_image::model::Process {
        pid,
        descriptors: descriptors
            .iter()
            .map(|(fd, file)| cpr_image::model::Descriptor {
                fd: *fd,
                file: FileId(*file),
                close_on_exec: *fd == 9,
            })
            .collect(),
        ..Default::default()
    }
}

/// LBNL-3.9.1.M6: how many calls each process makes.
#[test]
fn epoll_registrations_are_made_by_the_right_process() {
    let file = |object: Object| OpenFile {
        flags: 2,
        position: 0,
        owner: None,
        flock: None,
        locker: 0,
        lease: None,
        ofd_locks: Vec::new(),
        mount_namespace: None,
        object,
    };
    let event = || {
        file(Object::EventFd {
            count: 0,
            semaphore: false,
        })
    };
    let target = |fd: i32, id: u32| EpollTarget {
        fd,
        file: FileId(id),
        events: 1,
        data: 0,
    };
    let mut manifest = cpr_image::model::Manifest {
        files: vec![
            file(Object::Epoll {
                targets: vec![target(5, 1), target(6, 2), target(9, 1), target(3, 1)],
            }),
            event(),
            event(),
        ],
        // The first holds the set at 3, file 1 at 5, file 2 nowhere, and something else at 9.
        processes: vec![process(1, &[(3, 0), (5, 1), (9, 0)]), process(2, &[(4, 0), (7, 2)])],
        ..Default::default()
    };
    let calls = |manifest: &cpr_image::model::Manifest, index: usize| {
        let mut batch = cpr_kernel::batch::Batch::new();
        epoll::register(&manifest.processes[index], manifest, 30, &mut batch).map(|()| batch.len())
    };
    // 1 for number 5; 5 for number 9 and for number 3 each, which are occupied: aside, open, register, back, close.
    assert_eq!(calls(&manifest, 0).unwrap(), 11);
    // Number 6 is free: open, register, close.
    assert_eq!(calls(&manifest, 1).unwrap(), 3);
    manifest.processes.remove(1);
    assert_eq!(calls(&manifest, 0).unwrap_err().kind(), cpr_types::ErrorKind::Damaged);
}

/// LBNL-3.9.1.M6
#[test]
fn epoll_registrations_survive_numbers_that_are_taken_or_free() {
    use cpr_kernel::batch::{Arg, Batch};
    use cpr_kernel::memory::Memory;
    use cpr_kernel::ptrace::{SeizeOptions, Tracee, block_child_signals};
    use cpr_kernel::remote::{Arena, Deferred, INJECTION_MASK, find_syscall_instruction};

    block_child_signals().unwrap();
    let alone = NO_FORK.write().unwrap();
    let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    drop(alone);
    let pid = child.id() as i32;
    let deadline = Instant::now() + Duration::from_secs(10);
    let target = ProcDir::open(pid).unwrap();
    while !target.read("cmdline").unwrap().starts_with(b"sleep") {
        assert!(Instant::now() < deadline);
    }
    let options = SeizeOptions {
        kill_on_exit: true,
        follow: false,
    };
    let tracee = Tracee::seize(pid, options).unwrap();
    tracee.interrupt().unwrap();
    tracee.wait(deadline).unwrap();
    let registers = tracee.registers().unwrap();
    tracee.set_signal_mask(INJECTION_MASK).unwrap();
    let memory = Memory::open(target.as_fd()).unwrap();
    let vdso = target
        .maps()
        .unwrap()
        .into_iter()
        .find(|m| m.path == b"[vdso]")
        .unwrap();
    let mut code = vec![0; (vdso.end - vdso.start) as usize];
    memory.read(vdso.start, &mut code).unwrap();
    let at = vdso.start + find_syscall_instruction(&code).unwrap();
    let mut deferred = Deferred::default();
    let arena = Arena::map(tracee, &registers, at, &memory, 0, 1 << 16, deadline, &mut deferred).unwrap();

    // The set at 10, file 1 at 9 and 11, file 2 at 12.
    let mut batch = Batch::new();
    let mut open = |number: i64, first: i32, place: i32| {
        let made = batch.must(number, &[first.into(), 0.into()], "make");
        batch.must(libc::SYS_dup3, &[Arg::Result(made), place.into(), 0.into()], "place");
    };
    open(libc::SYS_epoll_create1, 0, 10);
    open(libc::SYS_eventfd2, 1, 11);
    open(libc::SYS_eventfd2, 2, 12);
    batch.must(libc::SYS_dup3, &[11.into(), 9.into(), libc::O_CLOEXEC.into()], "place");
    arena
        .run(tracee, &registers, &memory, &batch, deadline, &mut deferred)
        .unwrap();

    let wanted = [(11, 1, 100), (20, 2, 101), (12, 1, 102), (10, 2, 103), (9, 2, 104)];
    let targets = wanted.map(|(fd, file, data)| EpollTarget {
        fd,
        file: FileId(file),
        events: 1 | 1 << 31, // EPOLLIN | EPOLLET
        data,
    });
    let file = |object: Object| OpenFile {
        flags: 2,
        position: 0,
        owner: None,
        flock: None,
        locker: 0,
        lease: None,
        ofd_locks: Vec::new(),
        mount_namespace: None,
        object,
    };
    let event = Object::EventFd {
        count: 0,
        semaphore: false,
    };
    let manifest = cpr_image::model::Manifest {
        files: vec![
            file(Object::Epoll {
                targets: targets.to_vec(),
            }),
            file(event.clone()),
            file(event),
        ],
        processes: vec![process(pid, &[(9, 1), (10, 0), (11, 1), (12, 2)])],
        ..Default::default()
    };
    let before = target.descriptors().unwrap();
    let spare = epoll::spare(&manifest.processes[0], 10);
    assert_eq!(spare, 13);
    let mut batch = Batch::new();
    epoll::register(&manifest.processes[0], &manifest, spare, &mut batch).unwrap();
    arena
        .run(tracee, &registers, &memory, &batch, deadline, &mut deferred)
        .unwrap();
    assert_eq!(target.descriptors().unwrap(), before);
    assert_ne!(target.fdinfo(9).unwrap().flags & libc::O_CLOEXEC, 0);
    assert_eq!(target.fdinfo(12).unwrap().flags & libc::O_CLOEXEC, 0);

    // Seen from outside, as a checkpoint does.
    let FdInfoKind::Epoll(watches) = target.fdinfo(10).unwrap().kind else {
        panic!()
    };
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    let pidfd = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
    let set = rustix::process::pidfd_getfd(&pidfd, 10, rustix::process::PidfdGetfdFlags::empty()).unwrap();
    let holders = [(9, 1), (10, 0), (11, 1), (12, 2)].map(|(fd, file)| epoll::Holder {
        pid,
        fd,
        file: FileId(file),
    });
    let mut found = epoll::resolve("test", set.as_fd(), &watches, &holders, &[pid]).unwrap();
    found.sort_by_key(|target| target.data);
    let seen = found.iter().map(|t| (t.fd, t.file.0, t.data)).collect::<Vec<_>>();
    assert_eq!(seen, wanted);
    assert!(found.iter().all(|t| t.events & (1 << 31) != 0));
    child.kill().unwrap();
    child.wait().unwrap();
}
