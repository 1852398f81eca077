//! Images made by somebody who computes hashes correctly: metadata that lie, and rubbish.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use cpr_image::Image;
use cpr_image::model::*;
use cpr_types::ErrorKind;
use proptest::prelude::*;

/// The highest number that is a multiple of the page size.
const LAST_PAGE: u64 = u64::MAX - 4095;

/// Checks that the manifest, changed so, is refused with these words.
#[track_caller]
fn check(expected: &str, change: impl FnOnce(&mut Manifest)) {
    check_in(manifest(), expected, change);
}

fn check_in(mut manifest: Manifest, expected: &str, change: impl FnOnce(&mut Manifest)) {
    change(&mut manifest);
    let error = open(&unchecked(&manifest)).expect_err(expected);
    assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
    assert!(
        error.chain().contains(expected),
        "expected {expected:?}, got {}",
        error.chain()
    );
    assert!(write(&manifest, &pages(4)).is_err(), "the writer wrote it");
}

fn mappings(manifest: &mut Manifest) -> &mut Vec<Mapping> {
    &mut manifest.address_spaces[0].mappings
}

#[test]
fn the_manifest_all_others_are_made_from_is_sound() {
    open(&unchecked(&manifest())).unwrap();
}

#[test]
fn processes_and_threads() {
    check("parent 101 does not come before it", |m| m.processes[0].ppid = 101);
    check("parent 100 does not come before it", |m| m.processes[0].ppid = 100);
    check("listed twice", |m| m.processes[2].pid = 101);
    check("thread 103 is listed twice", |m| {
        m.processes[1].threads.push(Thread {
            tid: 103,
            ..Thread::default()
        })
    });
    check("thread 102 is listed twice", |m| {
        m.processes[0].posix_timers.clear();
        m.processes[0].threads[1].tid = 102;
    });
    check("impossible process or thread ID", |m| m.processes[0].threads[1].tid = 0);
    for pid in [0, -1, i32::MIN, i32::MAX] {
        check("impossible process or thread ID", |m| m.processes[1].pid = pid);
    }
    check("impossible process group", |m| m.processes[1].pgid = -1);
    check("impossible leading thread", |m| m.processes[1].threads[0].tid = 900);
    check("it has no threads", |m| m.processes[1].threads.clear());
    check("it has no address space", |m| m.processes[1].address_space = None);
    check("there is no address space 2", |m| {
        m.processes[1].address_space = Some(AddressSpaceId(2))
    });
    check("belongs to another process", |m| {
        m.processes[1].address_space = Some(AddressSpaceId(0))
    });
    check("thread 101 is listed twice", |m| {
        m.processes[1].ended_leader = Some(EndedLeader::default());
    });
    check("number of groups", |m| {
        let mut ended = EndedLeader::default();
        ended.credentials.groups = vec![0; 65537];
        m.processes[1].threads[0].tid = 900;
        m.processes[1].ended_leader = Some(ended);
    });
    check("zombie with threads", |m| {
        m.processes[2].ended_leader = Some(EndedLeader::default())
    });
    check("zombie with threads", |m| {
        m.processes[1].state = ProcessState::Zombie(0)
    });
    check("impossible signal number", |m| {
        m.processes[1].state = ProcessState::Stopped(65)
    });
    check("there is no process 55", |m| m.checkpoint.root_pid = 55);
    check("impossible pending signal", |m| {
        m.processes[0].pending_signals.push(Bytes(vec![0; 127]))
    });
    check("impossible pending signal", |m| {
        m.processes[0].threads[0].pending_signals.push(Bytes(vec![]))
    });
    check("impossible signal number", |m| {
        m.processes[0].signal_actions[0].signal = 0
    });
    check("second action", |m| {
        m.processes[0].signal_actions.extend_from_within(..)
    });
    check("impossible resource limit", |m| m.processes[0].limits[0].resource = 64);
    check("of a thread that is missing", |m| {
        m.processes[0].posix_timers[0].thread = 101
    });
    check("no descriptor 99", |m| m.processes[0].posix_locks[0].fd = 99);
    check("impossible file lock", |m| {
        m.processes[0].posix_locks[0].length = u64::MAX
    });
    check("there is no terminal 1", |m| {
        m.processes[0].controlling_terminal = Some(TerminalId(1))
    });
    check("there is no namespace for host names 0", |m| {
        m.processes[0].host_names = Some(HostNamesId(0))
    });
    check("there is no time namespace 0", |m| {
        m.processes[0].time_namespace_of_children = Some(TimeNamespaceId(0))
    });
    check("there is no network namespace 0", |m| {
        m.processes[0].network = Some(NetworkId(0))
    });
    check("there is no IPC namespace 0", |m| {
        m.processes[0].ipc_namespace = Some(IpcNamespaceId(0))
    });
    check("impossible cgroup namespace", |m| {
        m.processes[0].cgroup_namespace = Some(CgroupNamespaceId(0))
    });
    check("impossible number of cgroup namespaces", |m| {
        m.cgroup_namespaces = u32::MAX
    });
    check("there is no PID namespace 0", |m| {
        m.processes[0].pid_namespace = Some(PidNamespaceId(0))
    });
    check("there is no IPC namespace 0", |m| {
        m.ipc.posix_queues = vec![PosixQueue {
            namespace: Some(IpcNamespaceId(0)),
            name: ByteString::from("queue"),
            max_messages: 1,
            message_size: 1,
            ..PosixQueue::default()
        }]
    });
    check("there is no network namespace 0", |m| {
        m.sockets[0].network = Some(NetworkId(0))
    });
    for name in ["", "net/../kernel/core_pattern", "/etc/passwd", "net//x", "a\0b"] {
        check("impossible setting", |m| {
            m.ipc_namespaces = vec![IpcNamespace {
                settings: vec![(ByteString::from(name), ByteString::from("1"))],
                ..IpcNamespace::default()
            }]
        });
    }
    let link = |index, kind| NetworkLink {
        index,
        name: ByteString::from("left"),
        kind,
        flags: 1,
        mtu: 1500,
        queue_length: 1000,
        group: 0,
        address: Bytes(vec![2; 6]),
    };
    let network = |links| Network {
        links,
        ..Network::default()
    };
    check("impossible number of an interface", |m| {
        m.networks = vec![network(vec![link(0, LinkKind::Dummy)])]
    });
    check("impossible other end of an interface", |m| {
        let kind = LinkKind::Veth {
            network: NetworkId(0),
            index: 2,
        };
        m.networks = vec![network(vec![link(2, kind)])]
    });
    check("impossible name of an interface", |m| {
        let mut named = link(2, LinkKind::Dummy);
        named.name = ByteString::from("a/b");
        m.networks = vec![network(vec![named])]
    });
    check("impossible address, route or rule", |m| {
        m.networks = vec![Network {
            routes: vec![NetworkEntry {
                header: Bytes(vec![0; 3]),
                attributes: Vec::new(),
            }],
            ..Network::default()
        }]
    });
    for size in [0, 1, 3 << 20, 4096, 2 << 20] {
        check("impossible size of huge pages", |m| {
            mappings(m)[1].kind = MappingKind::HugePages(size)
        });
    }
    check("impossible register set", |m| {
        m.processes[0].threads[0].cpu.extended = Bytes(vec![0; 100_000])
    });
    check("impossible path", |m| {
        m.processes[0].cwd = ByteString(b"/a\0b".to_vec())
    });
    check("impossible path", |m| {
        m.processes[0].root = ByteString(vec![b'/'; 5000])
    });
    check("impossible page size", |m| m.checkpoint.page_size = 65536);
}

#[test]
fn memory() {
    check("overlaps the one before", |m| mappings(m)[1].start = 0x40_1000);
    check("overlaps the one before", |m| mappings(m).swap(0, 1));
    check("impossible range", |m| mappings(m)[0].start = 0x40_3000);
    check("impossible range", |m| mappings(m)[0].end = 0x40_0000);
    check("impossible range", |m| mappings(m)[0].start = 0x40_0001);
    check("impossible range", |m| mappings(m)[8].end = 0x8000_0000_0000);
    check("impossible range", |m| mappings(m)[8].end = LAST_PAGE);
    check("impossible protection", |m| mappings(m)[0].protection = 8);
    check("impossible offset", |m| mappings(m)[0].offset = LAST_PAGE);
    check("impossible offset", |m| mappings(m)[0].offset = 1);
    check("no mapped file 2", |m| {
        mappings(m)[0].kind = MappingKind::PrivateFile(MappedFileId(2))
    });
    check("no mapped file 4294967295", |m| {
        mappings(m)[0].kind = MappingKind::SharedFile(MappedFileId(u32::MAX))
    });
    check("no saved file 3", |m| {
        mappings(m)[3].kind = MappingKind::SharedSaved(SavedFileId(3))
    });
    check("no saved file 3", |m| {
        mappings(m)[3].kind = MappingKind::PrivateSaved(SavedFileId(3))
    });
    check("no mapped file 2", |m| {
        m.address_spaces[1].executable = Some(MappedFileId(2))
    });
    check("are not in it", |m| mappings(m)[1].extents[0].start = 0x5f_f000);
    check("are not in it", |m| mappings(m)[1].extents[1].length = 0x6000);
    check("are not in it", |m| mappings(m)[1].extents[0].start += 1);
    check("are not in it", |m| mappings(m)[1].extents[0].length = 0);
    check("are not in it", |m| mappings(m)[1].extents[0].length = LAST_PAGE);
    check("overlap those before", |m| mappings(m)[1].extents[0].length = 0x3000);
    check("not in the image", |m| mappings(m)[1].extents[0].offset = 0);
    check("not in the image", |m| mappings(m)[1].extents[0].offset = 4096 * 5);
    check("not in the image", |m| mappings(m)[1].extents[0].offset = 4097);
    check("not in the image", |m| mappings(m)[1].extents[0].offset = LAST_PAGE);
    check("impossible guard pages", |m| mappings(m)[1].guards[0].0 = 0x60_8000);
    check("impossible guard pages", |m| {
        mappings(m)[1].guards.push((0x60_0000, 4096))
    });
    check("are not in it", |m| m.saved_files[0].extents[0].start = 8192);
    check("are not in it", |m| m.saved_files[1].extents[0].length = 8192);
    check("impossible size", |m| m.saved_files[0].size = u64::MAX);
    check("impossible size", |m| m.mapped_files[0].size = 1 << 63);
}

#[test]
fn policies_for_files() {
    let with_policies = || {
        let mut manifest = manifest();
        let path = ByteString::from("/home/u/kept");
        manifest.saved_files.push(SavedFile {
            kind: SavedFileKind::Backup { path: path.clone() },
            size: 10,
            mode: 0o600,
            uid: 1000,
            gid: 100,
            mtime_ns: None,
            extents: vec![],
            huge_pages: 0,
        });
        manifest.file_policies = vec![
            FilePolicy {
                path: ByteString::from("/home/u/data"),
                content: FileContent::Check,
                truncate: Some(true),
                hash: Bytes(vec![3; 32]),
                ..FilePolicy::default()
            },
            FilePolicy {
                path,
                content: FileContent::BackupRestore,
                size: 10,
                saved: Some(SavedFileId(3)),
                ..FilePolicy::default()
            },
        ];
        manifest.address_spaces[0].saved_executable = Some(SavedFileId(2));
        manifest
    };
    let sound = with_policies();
    let (bytes, _) = write(&sound, &pages(4)).unwrap();
    assert_eq!(*open(&bytes).unwrap().manifest(), sound);
    let check = |expected: &str, change: &dyn Fn(&mut Manifest)| check_in(with_policies(), expected, change);
    check("impossible path", &|m| {
        m.file_policies[1].path = m.file_policies[0].path.clone()
    });
    check("impossible path", &|m| {
        m.file_policies[0].path = ByteString::from("relative")
    });
    check("impossible size", &|m| m.file_policies[0].size = u64::MAX);
    check("impossible hash", &|m| m.file_policies[0].hash.0.clear());
    check("impossible contents", &|m| m.file_policies[1].saved = None);
    check("impossible contents", &|m| {
        m.file_policies[0].saved = Some(SavedFileId(3))
    });
    check("impossible saved file", &|m| {
        m.file_policies[1].saved = Some(SavedFileId(2))
    });
    check("there is no saved file 9", &|m| {
        m.file_policies[1].saved = Some(SavedFileId(9))
    });
    check("impossible executable", &|m| {
        m.address_spaces[0].saved_executable = Some(SavedFileId(0))
    });
    check("impossible session", &|m| m.checkpoint.session = -1);
}

#[test]
fn objects_between_processes() {
    let check = |expected: &str, change: &dyn Fn(&mut Manifest)| check_in(manifest_with_ipc(), expected, change);
    check("there is no message queue 1", &|m| {
        m.files[3].object = Object::MessageQueue(PosixQueueId(1))
    });
    check("there is no segment 1", &|m| {
        mappings(m)[5].kind = MappingKind::SysvSegment(SegmentId(1))
    });
    check("impossible ring of asynchronous I/O", &|m| {
        mappings(m)[5].kind = MappingKind::AioRing;
        mappings(m)[5].extents.clear();
    });
    check("there is no packet socket 1", &|m| {
        mappings(m)[6].kind = MappingKind::PrivateSocket(PacketSocketId(1))
    });
    check("packet socket 0", &|m| m.packet_sockets[0].kind = 1);
    check("there is no io_uring instance 1", &|m| {
        mappings(m)[7].kind = MappingKind::IoUring(IoUringId(1))
    });
    check("impossible part of an io_uring instance", &|m| {
        mappings(m)[7].offset = 4096
    });
    check("two open files are one", &|m| {
        let file = m.files.last().unwrap().clone();
        m.files.push(file);
    });
    let ring = |expected: &str, change: &dyn Fn(&mut IoUring)| {
        check(expected, &|m| change(&mut m.io_urings[0]));
    };
    ring("impossible owner", &|ring| ring.owner += 1000);
    ring("impossible room for requests", &|ring| ring.entries = 7);
    ring("impossible room for requests", &|ring| ring.entries = 1 << 16);
    ring("impossible room for completions", &|ring| ring.completions = 4);
    ring("impossible flags", &|ring| ring.flags |= 1 << 6);
    ring("impossible layout", &|ring| ring.layout.push(0));
    ring("impossible layout", &|ring| ring.layout[2] = 4096);
    ring("impossible layout", &|ring| ring.layout[4] = u32::MAX - 3);
    ring("impossible number of completions", &|ring| ring.completed = 6);
    ring("impossible contents", &|ring| ring.rings[0].0 = 8);
    ring("impossible contents", &|ring| ring.queue[0].0 = u64::MAX - 7);
    ring("there is no open file", &|ring| ring.files[1] = Some(FileId(99)));
    ring("impossible registered memory", &|ring| {
        ring.buffers[0] = Some((u64::MAX, 2))
    });
    check("impossible frame of a ring", &|m| {
        m.packet_sockets[0].receive_ring = m.packet_sockets[0]
            .receive_ring
            .map(|ring| PacketRing { next: 4, ..ring })
    });
    check("impossible size of a ring", &|m| {
        let ring = m.packet_sockets[0].receive_ring;
        m.packet_sockets[0].receive_ring = ring.map(|ring| PacketRing { frames: 5, ..ring })
    });
    check("impossible contents of a ring", &|m| {
        m.packet_sockets[0].ring_contents[0].0 = 8
    });
    check("impossible part of a segment", &|m| mappings(m)[5].offset = 3 * 4096);
    check("impossible size", &|m| {
        m.ipc.segments[0].size = 0;
        mappings(m).remove(5);
    });
    check("impossible size", &|m| {
        m.ipc.segments[0].size = u64::MAX;
        mappings(m).remove(5);
    });
    check("are not in it", &|m| m.ipc.segments[0].extents[0].start = 12_288);
    check("impossible identifier", &|m| m.ipc.segments[0].identity.id = -1);
    check("impossible identifier", &|m| {
        let again = m.ipc.queues[0].clone();
        m.ipc.queues.push(again)
    });
    check("impossible mode", &|m| m.ipc.queues[0].identity.mode = u32::MAX);
    check("impossible number of semaphores", &|m| {
        m.ipc.semaphores[0].semaphores.clear()
    });
    check("impossible value", &|m| m.ipc.semaphores[0].semaphores[0].0 = 32768);
    check("impossible adjustment", &|m| m.ipc.semaphores[0].undo[0].1 = 2);
    check("impossible adjustment", &|m| m.ipc.semaphores[0].undo[0].2 = i32::MIN);
    check("impossible type of a message", &|m| m.ipc.queues[0].messages[0].0 = 0);
    for name in ["", "a/b", "a\0b"] {
        check("impossible name", &|m| {
            m.ipc.posix_queues[0].name = ByteString::from(name)
        });
    }
    check("impossible size", &|m| m.ipc.posix_queues[0].message_size = i64::MAX);
    check("impossible message", &|m| m.ipc.posix_queues[0].messages[0].0 = 32768);
    check("impossible message", &|m| m.ipc.posix_queues[0].message_size = 4);
    for path in ["/etc/passwd", "/dev/shm/", "/dev/shm/../../etc/passwd", "/dev/shm/./a"] {
        check("impossible path of shared memory", &|m| {
            let path = ByteString::from(path);
            m.saved_files[0].kind = SavedFileKind::SharedMemory { path }
        });
    }
    check("there is no saved file 3", &|m| {
        m.mapped_files[1].contents = Some(SavedFileId(3))
    });
    check("impossible locking", &|m| m.address_spaces[0].lock_future = 1);
}

#[test]
fn descriptors_and_what_they_refer_to() {
    let object = |m: &mut Manifest, object: Object| m.files[3].object = object;
    check("out of order", |m| m.processes[0].descriptors[1].fd = 0);
    check("out of order", |m| m.processes[0].descriptors.swap(2, 3));
    for fd in [-1, 1 << 20, i32::MIN, i32::MAX] {
        check("impossible descriptor number", |m| {
            m.processes[1].descriptors[0].fd = fd
        });
    }
    check("there is no open file 18", |m| {
        m.processes[1].descriptors[0].file = FileId(18)
    });
    check("cannot share descriptors", |m| m.processes[1].shares_descriptors = true);
    check("there is no saved file 3", |m| object(m, Object::Saved(SavedFileId(3))));
    check("there is no pipe 2", |m| object(m, Object::Pipe(PipeId(2))));
    check("there is no socket 7", |m| object(m, Object::Socket(SocketId(7))));
    check("there is no terminal 1", |m| {
        object(m, Object::TerminalMaster(TerminalId(1)))
    });
    check("there is no terminal 1", |m| {
        object(m, Object::TerminalSlave(TerminalId(1)))
    });
    check("there is no process 7", |m| object(m, Object::PidFd { pid: 7 }));
    check("impossible standard stream", |m| {
        object(m, Object::Inherited { stream: 3 })
    });
    check("impossible position", |m| m.files[1].position = 1 << 63);
    check("impossible capacity", |m| m.pipes[0].capacity = 5);
    let target = |fd, file| EpollTarget {
        fd,
        file: FileId(file),
        events: 0,
        data: 0,
    };
    check("there is no open file 18", |m| {
        object(
            m,
            Object::Epoll {
                targets: vec![target(1, 18)],
            },
        )
    });
    check("impossible descriptor number", |m| {
        object(
            m,
            Object::Epoll {
                targets: vec![target(-1, 1)],
            },
        )
    });
    check("second registration", |m| {
        object(
            m,
            Object::Epoll {
                targets: vec![target(1, 1), target(1, 1)],
            },
        )
    });
    check("contain each other", |m| {
        object(
            m,
            Object::Epoll {
                targets: vec![target(3, 3)],
            },
        )
    });
    check("contain each other", |m| {
        object(
            m,
            Object::Epoll {
                targets: vec![target(1, 1), target(2, 2)],
            },
        );
        m.files[2].object = Object::Epoll {
            targets: vec![target(3, 3)],
        };
    });
}

#[test]
fn sockets() {
    let state = |m: &mut Manifest, index: usize, state| m.sockets[index].state = state;
    let listening = |pending| SocketState::Listening { backlog: 1, pending };
    check("impossible type", |m| m.sockets[6].kind = 3);
    check("there is no socket 9", |m| {
        state(m, 0, SocketState::Connected(SocketId(9)))
    });
    check("is not connected to it", |m| {
        state(m, 0, SocketState::Connected(SocketId(0)))
    });
    check("is not connected to it", |m| state(m, 0, SocketState::Unconnected));
    check("peer of another type", |m| {
        state(m, 0, SocketState::Connected(SocketId(5)))
    });
    check("is not connected to it", |m| state(m, 2, listening(vec![])));
    check("there is no socket 9", |m| state(m, 2, listening(vec![SocketId(9)])));
    check("waits but is not connected", |m| {
        state(m, 2, listening(vec![SocketId(3), SocketId(0)]))
    });
    check("client waiting twice", |m| {
        state(m, 2, listening(vec![SocketId(3), SocketId(3)]))
    });
    check("listening datagram", |m| state(m, 5, listening(vec![])));
    check("impossible address", |m| {
        m.sockets[0].address = ByteString(vec![b'a'; 109])
    });
    check("there is no open file 99", |m| {
        m.sockets[1].queue[0].files.push(FileId(99))
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes changed in the file: refused.
    #[test]
    fn changed_bytes_are_refused(changes in prop::collection::vec((0_usize..30_000, 1_u8..), 1..5)) {
        let sound = image();
        let mut bytes = sound.clone();
        for (at, change) in changes {
            let at = at % bytes.len();
            bytes[at] ^= change;
        }
        if bytes != sound {
            prop_assert_eq!(refusal(&bytes).kind(), ErrorKind::Damaged);
        }
    }

    /// Any bytes changed in the metadata, with hashes made right: refused or read, without panic.
    #[test]
    fn changed_metadata_do_not_panic(changes in prop::collection::vec((0_usize..30_000, any::<u8>()), 1..4)) {
        let image = image();
        let mut metadata = metadata(&image).to_vec();
        for (at, value) in changes {
            let at = at % metadata.len();
            metadata[at] = value;
        }
        let _ = open(&with_metadata(&image, &metadata));
    }

    /// Any bytes as metadata.
    #[test]
    fn rubbish_as_metadata_does_not_panic(metadata in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = open(&with_metadata(&image(), &metadata));
    }

    /// Any bytes as trailer or header, with hashes made right.
    #[test]
    fn rubbish_as_header_and_trailer_does_not_panic(
        header in prop::collection::vec((8_usize..100, any::<u8>()), 0..4),
        trailer in prop::collection::vec((8_usize..176, any::<u8>()), 0..4),
    ) {
        let mut bytes = image();
        let start = bytes.len() - TRAILER;
        header.into_iter().for_each(|(at, value)| bytes[at] = value);
        trailer.into_iter().for_each(|(at, value)| bytes[start + at] = value);
        seal(&mut bytes);
        let _ = open(&bytes);
    }

    /// Any file, with and without our mark.
    #[test]
    fn rubbish_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..9000), mark in any::<bool>()) {
        if mark && bytes.len() >= 12 {
            bytes[..12].copy_from_slice(b"\x89CPR\r\n\x1a\n\0\x10\0\0");
        }
        prop_assert_eq!(refusal(&bytes).kind(), ErrorKind::Damaged);
        prop_assert!(Image::from_stream(&mut &bytes[..], "-").is_err());
    }
}

/// PID namespaces without end, without a beginning, and with numbers that contradict each other.
#[test]
fn pid_namespaces() {
    let inside = |parent: Option<u32>, numbers: &[(i32, i32)]| PidNamespace {
        parent: parent.map(PidNamespaceId),
        numbers: numbers.to_vec(),
        ..PidNamespace::default()
    };
    let sound = || {
        let mut manifest = manifest();
        manifest.pid_namespaces = vec![inside(None, &[(101, 1)])];
        manifest.processes[1].pid_namespace = Some(PidNamespaceId(0));
        manifest
    };
    open(&unchecked(&sound())).unwrap();
    check_in(sound(), "it is in one that does not come before it", |m| {
        m.pid_namespaces[0].parent = Some(PidNamespaceId(0))
    });
    check_in(sound(), "number of PID namespaces", |m| {
        m.pid_namespaces = vec![inside(None, &[(101, 1)]); 100]
    });
    check("impossible depth", |m| {
        let first = m.processes[1].clone();
        for pid in 200..240 {
            m.processes.push(Process {
                pid,
                threads: vec![],
                address_space: None,
                descriptors: vec![],
                state: ProcessState::Zombie(0),
                ..first.clone()
            });
        }
        let parents = std::iter::once(None).chain((0..39).map(Some));
        m.pid_namespaces = parents.map(|parent| inside(parent, &[])).collect();
    });
    check_in(sound(), "process 101: it has no number", |m| {
        m.pid_namespaces[0].numbers.clear()
    });
    check_in(sound(), "has no first process before it", |m| {
        m.pid_namespaces[0].numbers = vec![(101, 2)]
    });
    check_in(sound(), "is listed twice", |m| {
        m.pid_namespaces[0].numbers.push((102, 1))
    });
    check_in(sound(), "is listed twice", |m| {
        m.pid_namespaces[0].numbers.push((101, 3))
    });
    for number in [0, -1, i32::MAX] {
        check_in(sound(), "impossible process or thread ID", |m| {
            m.pid_namespaces[0].numbers.push((102, number))
        });
    }
    check_in(sound(), "around its parent's", |m| m.processes[2].ppid = 101);
    check_in(sound(), "is not below its own", |m| {
        m.processes[1].pid_namespace_of_children = Some(PidNamespaceId(0))
    });
}

/// User namespaces without end, and with users that contradict each other.
#[test]
fn user_namespaces() {
    let sound = || {
        let mut manifest = manifest();
        manifest.user_namespaces = vec![UserNamespace {
            uids: vec![(0, 1000, 1), (5, 2000, 10)],
            gids: vec![(0, 1000, 1)],
            ..UserNamespace::default()
        }];
        manifest.processes[1].user_namespace = Some(UserNamespaceId(0));
        manifest
    };
    open(&unchecked(&sound())).unwrap();
    check("there is no user namespace 0", |m| {
        m.processes[1].user_namespace = Some(UserNamespaceId(0))
    });
    check("there is no user namespace 3", |m| {
        m.pid_namespaces = vec![PidNamespace {
            owner: Some(UserNamespaceId(3)),
            ..PidNamespace::default()
        }]
    });
    check_in(sound(), "it is in one that does not come before it", |m| {
        m.user_namespaces[0].parent = Some(UserNamespaceId(0))
    });
    check_in(sound(), "impossible depth", |m| {
        let parents = std::iter::once(None).chain((0..39).map(Some));
        let inside = |parent: Option<u32>| UserNamespace {
            parent: parent.map(UserNamespaceId),
            ..UserNamespace::default()
        };
        m.user_namespaces = parents.map(inside).collect();
    });
    for range in [
        (0, 7, 1),
        (9, 1000, 1),
        (14, 7, 1),
        (100, 2009, 1),
        (20, 7, 0),
        (20, u32::MAX, 1),
        (20, 7, u32::MAX),
    ] {
        check_in(sound(), "impossible range of users or groups", |m| {
            m.user_namespaces[0].uids.push(range)
        });
    }
    check_in(sound(), "impossible number of ranges", |m| {
        m.user_namespaces[0].gids = (0..341).map(|id| (id, id, 1)).collect()
    });
    check_in(sound(), "impossible number of owners", |m| {
        m.cgroup_namespace_owners = vec![None]
    });
}

#[test]
fn mount_namespaces() {
    let proc = |pid_namespace, flags| {
        vec![MountNamespace {
            proc: Some(ProcMount { pid_namespace, flags }),
            ..MountNamespace::default()
        }]
    };
    check("there is no mount namespace 0", |m| {
        m.processes[1].mount_namespace = Some(MountNamespaceId(0))
    });
    check("there is no PID namespace 5", |m| {
        m.mount_namespaces = proc(Some(PidNamespaceId(5)), 0)
    });
    // MS_REMOUNT, MS_BIND, MS_MOVE.
    for flags in [32, 4096, 8192, u64::MAX] {
        check("impossible flags of /proc", |m| m.mount_namespaces = proc(None, flags));
    }
    check("impossible number of mount namespaces", |m| {
        m.mount_namespaces = vec![MountNamespace::default(); 4]
    });
}

/// A manifest with a mount namespace that holds a bind mount, what came along with it, and a file system in memory.
fn mounted() -> Manifest {
    let mut manifest = manifest();
    let point = |parent, at: &str, mounted| MountPoint {
        parent,
        at: at.into(),
        attributes: 1,
        propagation: Propagation::Private,
        peers: None,
        follows: None,
        mounted,
    };
    let file = |parent, name: &str, kind| MemoryFile {
        parent,
        name: name.into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        atime_ns: 0,
        mtime_ns: -1,
        attributes: vec![("user.a".into(), Bytes(vec![1]))],
        kind,
    };
    let bind = Mounted::Bind {
        path: "/".into(),
        recursive: true,
    };
    let files = vec![
        file(0, "", MemoryFileKind::Directory),
        file(0, "a", MemoryFileKind::Directory),
        file(
            1,
            "b",
            MemoryFileKind::Regular {
                size: 5,
                extents: Vec::new(),
            },
        ),
        file(0, "c", MemoryFileKind::Same { as_file: 2 }),
    ];
    let memory = Mounted::Memory {
        path: "".into(),
        options: vec![("size".to_owned(), "4k".to_owned())],
        files,
    };
    let processes = Mounted::Processes {
        pid_namespace: None,
        options: Vec::new(),
    };
    let tree = vec![
        point(None, "", bind),
        point(Some(0), "proc", Mounted::Along),
        point(Some(0), "tmp", memory),
        point(Some(1), "", processes),
        point(
            Some(2),
            "a",
            Mounted::Part {
                of: 2,
                path: "a/b".into(),
            },
        ),
    ];
    manifest.mount_namespaces = vec![MountNamespace {
        tree,
        ..MountNamespace::default()
    }];
    manifest
}

#[test]
fn mounts_of_a_namespace() {
    open(&unchecked(&mounted())).unwrap();
    let check = |expected: &str, change: &dyn Fn(&mut Vec<MountPoint>)| {
        check_in(mounted(), expected, |m| change(&mut m.mount_namespaces[0].tree));
    };
    let bind = |path: &str| Mounted::Bind {
        path: path.into(),
        recursive: false,
    };
    check("what it is on does not come before it", &|tree| {
        tree[2].parent = Some(2)
    });
    check("what it is on does not come before it", &|tree| {
        tree[2].parent = Some(9)
    });
    check("impossible root", &|tree| tree[2].parent = None);
    check("impossible root", &|tree| tree[0].at = "tmp".into());
    for path in ["/tmp", "a/../b", "a/", "a//b", "."] {
        check("impossible path", &|tree| tree[2].at = path.into());
    }
    for path in ["", "tmp", "/tmp/..", "//", "/./a"] {
        check("impossible path", &|tree| tree[0].mounted = bind(path));
    }
    check("impossible mount that came along", &|tree| tree[0].mounted = bind("/a"));
    check("impossible mount that came along", &|tree| {
        tree[0].mounted = Mounted::Along
    });
    // MOUNT_ATTR_IDMAP, and MS_BIND.
    for attributes in [0x10_0000, 4096] {
        check("impossible attributes", &|tree| tree[0].attributes = attributes);
    }
    let part = |of, path: &str| Mounted::Part { of, path: path.into() };
    check("does not come before it", &|tree| tree[4].mounted = part(4, ""));
    check("impossible path", &|tree| tree[4].mounted = part(2, "../etc"));
    check("impossible number of mounts", &|tree| {
        *tree = (0..4097)
            .map(|index| MountPoint {
                parent: (index > 0).then_some(0),
                ..tree[3].clone()
            })
            .collect()
    });
    let elsewhere = |namespace| Mounted::Elsewhere {
        namespace: MountNamespaceId(namespace),
        of: 0,
        path: "a".into(),
    };
    for namespace in [0, 1, 9] {
        check("impossible mount of another namespace", &|tree| {
            tree[4].mounted = elsewhere(namespace)
        });
    }
    check("impossible group of mounts", &|tree| tree[2].peers = Some(4096));
    check("impossible group of mounts", &|tree| {
        (tree[2].peers, tree[2].follows) = (Some(3), Some(3))
    });
    let layers = |lower: &[&str], upper: &str, option: &str| Mounted::Layers {
        path: "".into(),
        lower: lower.iter().map(|path| (*path).into()).collect(),
        data: Vec::new(),
        upper: Some((upper.into(), "/work".into())),
        options: vec![(option.to_owned(), "on".to_owned())],
    };
    for (lower, upper, option, expected) in [
        (&["/a", "b"][..], "/upper", "index", "impossible path"),
        (&["/a:/../b"], "/upper", "index", "impossible path"),
        (&["/a"], "/upper/../..", "index", "impossible path"),
        (&[], "/upper", "index", "impossible number of layers"),
        (&["/a"], "/upper", "lowerdir", "impossible options"),
    ] {
        check(expected, &|tree| tree[2].mounted = layers(lower, upper, option));
    }
    for (hierarchy, option, value, expected) in [
        ("name=../x", "xattr", "", "impossible name of a hierarchy"),
        ("cpu,,memory", "xattr", "", "impossible name of a hierarchy"),
        ("name=x", "release_agent", "", "impossible options"),
        ("", "nsdelegate", "yes", "impossible options of a hierarchy"),
    ] {
        check(expected, &|tree| {
            tree[2].mounted = Mounted::Hierarchy {
                hierarchy: hierarchy.into(),
                options: vec![(option.to_owned(), value.to_owned())],
            }
        });
    }
    check("there is no network namespace 3", &|tree| {
        tree[3].mounted = Mounted::System {
            network: Some(NetworkId(3)),
        }
    });
    check("there is no PID namespace 3", &|tree| {
        tree[3].mounted = Mounted::Processes {
            pid_namespace: Some(PidNamespaceId(3)),
            options: Vec::new(),
        }
    });
    for option in [
        ("source", "/etc"),
        ("size", "4k,mode=7777"),
        ("size", "/"),
        ("uid", "0"),
    ] {
        check("impossible options", &|tree| {
            if let Mounted::Memory { options, .. } = &mut tree[2].mounted {
                *options = vec![(option.0.to_owned(), option.1.to_owned())];
            }
        });
    }
}

#[test]
fn files_in_memory_of_a_mount_namespace() {
    let check = |expected: &str, change: &dyn Fn(&mut Vec<MemoryFile>)| {
        check_in(mounted(), expected, |m| {
            if let Mounted::Memory { files, .. } = &mut m.mount_namespaces[0].tree[2].mounted {
                change(files);
            }
        });
    };
    check("impossible file system without a root", &|files| files.clear());
    check("impossible root of a file system", &|files| files[0].name = "a".into());
    check("impossible root of a file system", &|files| {
        files[0].kind = MemoryFileKind::Fifo
    });
    for name in ["", ".", "..", "a/b", "/etc", "a\0", &"n".repeat(256)] {
        check("impossible name of a file", &|files| files[2].name = name.into());
    }
    // Of a file, of one that comes later, of itself, and of one that others have come after.
    for (file, parent) in [(3, 2), (1, 3), (1, 1), (3, u32::MAX)] {
        check("impossible directory of a file", &|files| files[file].parent = parent);
    }
    check("impossible directory of a file", &|files| {
        files.push(MemoryFile {
            parent: 1,
            ..files[2].clone()
        })
    });
    check("impossible mode of a file", &|files| files[2].mode = 0o20777);
    for as_file in [0, 1, 3, 9] {
        check("impossible other name of a file", &|files| {
            files[3].kind = MemoryFileKind::Same { as_file }
        });
    }
    check("impossible depth of a directory", &|files| {
        let directory = files[1].clone();
        files.truncate(1);
        files.extend((0..256).map(|parent| MemoryFile {
            parent,
            ..directory.clone()
        }));
    });
    for size in [u64::MAX, 1 << 63] {
        check("impossible size", &|files| {
            files[2].kind = MemoryFileKind::Regular {
                size,
                extents: Vec::new(),
            }
        });
    }
    let extent = Extent {
        start: 4096,
        length: 4096,
        offset: 4096,
    };
    check("are not in it", &|files| {
        files[2].kind = MemoryFileKind::Regular {
            size: 5,
            extents: vec![extent],
        }
    });
    check("impossible attributes of a file", &|files| {
        files[2].attributes = vec![("".into(), Bytes(Vec::new()))]
    });
}

#[test]
fn files_of_a_mount_namespace() {
    check("there is no mount namespace 0", |m| {
        m.mapped_files[0].mount_namespace = Some(MountNamespaceId(0))
    });
    check("impossible mount namespace of a path", |m| {
        m.mount_namespaces = vec![MountNamespace::default()];
        m.mapped_files[0].mount_namespace = Some(MountNamespaceId(0));
    });
    check_in(mounted(), "impossible mount namespace of a file", |m| {
        let other = m.files.iter_mut().find(|file| matches!(file.object, Object::Pipe(_)));
        other.unwrap().mount_namespace = Some(MountNamespaceId(0));
    });
    check("there is no mount namespace 0", |m| {
        m.sockets[0].mount_namespace = Some(MountNamespaceId(0))
    });
    check_in(mounted(), "impossible file system of a terminal", |m| {
        m.terminals[0].file_system = Some((MountNamespaceId(0), 0));
    });
    check_in(mounted(), "impossible mount namespace of a socket", |m| {
        m.sockets[0].mount_namespace = Some(MountNamespaceId(0));
    });
}
