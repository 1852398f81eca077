//! A synthetic image with one of everything, and tools to take images apart.

#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Seek, Write};

use cpr_image::model::*;
use cpr_image::{Image, ImageSummary, ImageWriter};
use cpr_types::{Error, Result};

/// Length of header and trailer, independent of the crate's constants.
pub const HEADER: usize = 4096;
pub const TRAILER: usize = 208;

/// A packet socket with a ring in use.
fn io_uring(owner: i32) -> IoUring {
    IoUring {
        owner,
        entries: 8,
        completions: 16,
        flags: 1 << 7,
        features: 0x3ffff,
        layout: vec![0, 4, 36, 32, 320, 8, 12, 44, 64],
        submitted: 5,
        completed: 4,
        rings: vec![(0, Bytes(vec![1; 352]))],
        queue: vec![(64, Bytes(vec![2; 64]))],
        files: vec![None, Some(FileId(0))],
        buffers: vec![Some((0x7000_0000_0000, 4096)), None],
    }
}

fn packet_socket() -> PacketSocket {
    PacketSocket {
        kind: 3,
        protocol: 0x88b5,
        interface: Some(ByteString(b"lo".to_vec())),
        memberships: vec![PacketMembership {
            interface: ByteString(b"lo".to_vec()),
            count: 1,
            kind: 1,
            address: Bytes(vec![0; 6]),
        }],
        receive_ring: Some(PacketRing {
            block_size: 4096,
            blocks: 1,
            frame_size: 1024,
            frames: 4,
            next: 3,
        }),
        ring_contents: vec![(0, Bytes(vec![1; 4096]))],
        ..PacketSocket::default()
    }
}

/// A member of a multicast group.
fn member() -> InetSocket {
    InetSocket {
        network: None,
        family: 2,
        kind: 2,
        protocol: 17,
        state: InetState::Unconnected,
        local: Some(Endpoint {
            address: Bytes(vec![0; 4]),
            port: 5353,
            scope: 0,
        }),
        options: Vec::new(),
        received: Bytes::default(),
        queue: Vec::new(),
        multicast: vec![MulticastMembership {
            interface: ByteString(b"lo".to_vec()),
            group: Bytes(vec![239, 1, 2, 3]),
            only: true,
            senders: vec![Bytes(vec![127, 0, 0, 1])],
        }],
        shutdown: 0,
    }
}

/// A manifest of three processes that uses every kind of object, for an image with at least four pages of data.
pub fn manifest() -> Manifest {
    let bytes = |text: &str| ByteString::from(text);
    let open = |object: Object| OpenFile {
        flags: 0o2,
        position: 0,
        owner: None,
        flock: None,
        locker: 0,
        lease: None,
        ofd_locks: vec![],
        mount_namespace: None,
        object,
    };
    let extent = |start, pages: u64, page: u64| Extent {
        start,
        length: pages * 4096,
        offset: 4096 + page * 4096,
    };
    let mapping = |start: u64, end: u64, protection, kind| Mapping {
        start,
        end,
        protection,
        kind,
        offset: 0,
        flags: vec!["mr".to_string()],
        extents: vec![],
        guards: vec![],
        policy: None,
    };
    let text = mapping(0x40_0000, 0x40_2000, 5, MappingKind::PrivateFile(MappedFileId(0)));
    let heap = Mapping {
        extents: vec![extent(0x60_1000, 1, 0), extent(0x60_3000, 1, 1)],
        guards: vec![(0x60_4000, 4096)],
        ..mapping(0x60_0000, 0x60_8000, 3, MappingKind::Anonymous)
    };
    let stack = Mapping {
        extents: vec![extent(0x7fff_f000_0000, 2, 2)],
        ..mapping(0x7fff_f000_0000, 0x7fff_f000_4000, 3, MappingKind::Stack)
    };
    let first = AddressSpace {
        layout: MemoryLayout {
            start_code: 0x40_0000,
            auxv: Bytes(vec![7; 32]),
            ..MemoryLayout::default()
        },
        executable: Some(MappedFileId(0)),
        saved_executable: None,
        mappings: vec![
            text.clone(),
            heap,
            mapping(
                0x7000_0000_0000,
                0x7000_0000_2000,
                3,
                MappingKind::SharedFile(MappedFileId(1)),
            ),
            mapping(
                0x7000_0000_2000,
                0x7000_0000_4000,
                3,
                MappingKind::SharedSaved(SavedFileId(0)),
            ),
            mapping(
                0x7000_0000_4000,
                0x7000_0000_5000,
                1,
                MappingKind::PrivateSaved(SavedFileId(1)),
            ),
            stack,
            mapping(0x7fff_f7fb_0000, 0x7fff_f7fb_3000, 1, MappingKind::Vvar),
            mapping(0x7fff_f7fb_3000, 0x7fff_f7fb_4000, 1, MappingKind::VvarClock),
            mapping(0x7fff_f7fb_4000, 0x7fff_f7fb_6000, 5, MappingKind::Vdso),
        ],
        lock_future: 0,
    };
    let second = AddressSpace {
        mappings: vec![text],
        ..AddressSpace::default()
    };
    let thread = |tid: i32| Thread {
        tid,
        name: bytes("worker"),
        cpu: Cpu {
            general: Bytes(vec![1; 216]),
            extended: Bytes(vec![2; 832]),
            program_counter: 0x40_0123,
            stack_pointer: 0x7fff_f000_3ff0,
        },
        blocked_signals: 1 << 9,
        sleep: Some(TimedSleep {
            syscall: 230,
            remaining_ns: 1_500_000_000,
        }),
        pending_signals: vec![Bytes(vec![0; 128])],
        alternate_stack: (0x60_0000, -1, 8192),
        rseq: Some(Rseq {
            address: 0x60_0020,
            size: 32,
            signature: 0x5305_3053,
            flags: 0,
        }),
        credentials: Credentials {
            uids: [1000; 4],
            gids: [100; 4],
            groups: vec![100, 4],
            ..Credentials::default()
        },
        ..Thread::default()
    };
    let process = |pid: i32, ppid: i32, space: u32| Process {
        pid,
        ppid,
        pgid: 100,
        sid: 100,
        threads: vec![thread(pid)],
        address_space: Some(AddressSpaceId(space)),
        cwd: bytes("/home/u"),
        root: bytes("/"),
        umask: 0o22,
        ..Process::default()
    };
    let files = vec![
        open(Object::Inherited { stream: 0 }),
        open(Object::Regular(RegularFile {
            path: bytes("/home/u/\u{e9}.txt"),
            size: 12,
            mtime_ns: -5,
            mode: 0o100644,
        })),
        open(Object::Directory { path: bytes("/home/u") }),
        open(Object::Saved(SavedFileId(1))),
        open(Object::Pipe(PipeId(0))),
        open(Object::Fifo(Fifo {
            path: bytes("/tmp/fifo"),
            mode: 0o600,
            uid: 1000,
            gid: 100,
            pipe: PipeId(1),
            unwritten: false,
        })),
        open(Object::Device {
            plugin: None,
            path: bytes("/dev/null"),
            rdev: 0x103,
            node: None,
        }),
        open(Object::Proc {
            pid: Some(100),
            path: bytes("status"),
        }),
        open(Object::EventFd {
            count: u64::MAX - 1,
            semaphore: true,
        }),
        open(Object::TimerFd {
            clock: 1,
            ticks: 2,
            settime_flags: 0,
            value_ns: 5,
            interval_ns: 7,
        }),
        open(Object::SignalFd { mask: 0xffff }),
        open(Object::Epoll {
            targets: vec![EpollTarget {
                fd: 4,
                file: FileId(4),
                events: 1,
                data: u64::MAX,
            }],
        }),
        open(Object::Inotify {
            watches: vec![InotifyWatch {
                wd: 1,
                mask: 2,
                path: bytes("/tmp"),
                saved: None,
            }],
            queued: Bytes(vec![0; 16]),
        }),
        open(Object::PidFd { pid: 101 }),
        open(Object::Socket(SocketId(0))),
        open(Object::Socket(SocketId(1))),
        open(Object::TerminalSlave(TerminalId(0))),
        OpenFile {
            owner: Some(FileOwner {
                kind: 1,
                id: 100,
                signal: 29,
            }),
            flock: Some(FlockKind::Exclusive),
            locker: 0,
            lease: None,
            ofd_locks: vec![(true, 0, 0)],
            mount_namespace: None,
            ..open(Object::TerminalMaster(TerminalId(0)))
        },
    ];
    let descriptors = (0..files.len() as u32)
        .map(|id| Descriptor {
            fd: id as i32,
            file: FileId(id),
            close_on_exec: id % 3 == 0,
        })
        .collect();
    let socket = |kind, state| UnixSocket {
        mount_namespace: None,
        network: None,
        kind,
        state,
        address: ByteString::default(),
        bind_directory: ByteString::default(),
        shutdown: 0,
        options: vec![(7, -1)],
        queue: vec![],
        node: None,
        file_name: ByteString::default(),
    };
    let mut leader = process(100, 1, 0);
    leader.threads.push(thread(103));
    leader.descriptors = descriptors;
    leader.limits = vec![Limit {
        resource: 7,
        soft: 1024,
        hard: u64::MAX,
    }];
    leader.signal_actions = vec![SignalAction {
        signal: 2,
        handler: 0x40_0200,
        flags: 0,
        restorer: 0,
        mask: 0,
    }];
    leader.interval_timers = vec![IntervalTimer {
        which: 0,
        value_us: 1,
        interval_us: 2,
    }];
    leader.posix_timers = vec![PosixTimer {
        id: 0,
        notify: 4,
        signal: 34,
        thread: 103,
        clock: -6,
        ..PosixTimer::default()
    }];
    leader.posix_locks = vec![PosixLock {
        fd: 1,
        exclusive: true,
        start: 0,
        length: 10,
    }];
    leader.controlling_terminal = Some(TerminalId(0));
    let mut child = process(101, 100, 1);
    child.state = ProcessState::Stopped(19);
    child.descriptors = vec![Descriptor {
        fd: 300,
        file: FileId(1),
        close_on_exec: false,
    }];
    let zombie = Process {
        threads: vec![],
        address_space: None,
        state: ProcessState::Zombie(256),
        ..process(102, 100, 0)
    };
    Manifest {
        cgroups: Vec::new(),
        host_names: Vec::new(),
        time_namespaces: Vec::new(),
        networks: Vec::new(),
        ipc_namespaces: Vec::new(),
        cgroup_namespaces: 0,
        pid_namespaces: Vec::new(),
        user_namespaces: Vec::new(),
        mount_namespaces: Vec::new(),
        cgroup_namespace_owners: Vec::new(),
        checkpoint: Checkpoint {
            time_ns: 1_700_000_000_000_000_000,
            tool_version: "0.1.0".to_string(),
            engine: "native".to_string(),
            job: "sum".to_string(),
            architecture: "x86_64".to_string(),
            cpu_flags: vec!["avx2".to_string(), "sse4_2".to_string()],
            page_size: 4096,
            root_pid: 100,
            vdso_hash: Bytes(vec![9; 32]),
            ..Checkpoint::default()
        },
        processes: vec![leader, child, zombie],
        address_spaces: vec![first, second],
        mapped_files: vec![
            MappedFile {
                path: bytes("/usr/bin/sum"),
                size: 8192,
                unchangeable: true,
                ..MappedFile::default()
            },
            MappedFile {
                path: bytes("/home/u/data"),
                size: 8192,
                writable: true,
                ..MappedFile::default()
            },
        ],
        files,
        saved_files: vec![
            SavedFile {
                kind: SavedFileKind::SharedAnonymous,
                size: 8192,
                mode: 0,
                uid: 0,
                gid: 0,
                extents: vec![extent(4096, 1, 3)],
                mtime_ns: None,
                huge_pages: 0,
            },
            SavedFile {
                kind: SavedFileKind::Deleted {
                    path: ByteString(b"/tmp/\xff\xfe".to_vec()),
                },
                size: 100,
                mode: 0o100600,
                uid: 1000,
                gid: 100,
                extents: vec![extent(0, 1, 3)],
                mtime_ns: None,
                huge_pages: 0,
            },
            SavedFile {
                kind: SavedFileKind::Memfd {
                    name: bytes("shm"),
                    seals: 1,
                },
                size: 0,
                mode: 0o777,
                uid: 0,
                gid: 0,
                extents: vec![],
                mtime_ns: None,
                huge_pages: 0,
            },
        ],
        pipes: vec![
            Pipe {
                capacity: 65536,
                data: vec![Bytes(b"queued".to_vec())],
            },
            Pipe::default(),
        ],
        inet_sockets: Vec::new(),
        packet_sockets: Vec::new(),
        io_urings: Vec::new(),
        sockets: vec![
            socket(1, SocketState::Connected(SocketId(1))),
            UnixSocket {
                queue: vec![SocketMessage {
                    data: Bytes(b"hello".to_vec()),
                    files: vec![FileId(1)],
                    sender: ByteString(b"\0abstract".to_vec()),
                }],
                ..socket(1, SocketState::Connected(SocketId(0)))
            },
            socket(
                5,
                SocketState::Listening {
                    backlog: 8,
                    pending: vec![SocketId(3)],
                },
            ),
            socket(5, SocketState::Connected(SocketId(2))),
            socket(2, SocketState::Connected(SocketId(5))),
            socket(2, SocketState::Unconnected),
            socket(1, SocketState::PeerClosed),
        ],
        ancestors: Vec::new(),
        terminals: vec![Terminal {
            index: 3,
            attributes: Bytes(vec![0; 44]),
            window: (24, 80, 0, 0),
            session: 100,
            input: Bytes(b"ls\n".to_vec()),
            ..Terminal::default()
        }],
        ipc: Ipc::default(),
        file_policies: vec![],
    }
}

/// The same with objects for communication between processes, which format 1.0 did not have at first.
pub fn manifest_with_ipc() -> Manifest {
    let mut manifest = manifest();
    manifest.ipc = ipc();
    let segment = Mapping {
        start: 0x7000_0000_5000,
        end: 0x7000_0000_6000,
        kind: MappingKind::SysvSegment(SegmentId(0)),
        ..manifest.address_spaces[0].mappings[4].clone()
    };
    let ring = Mapping {
        start: 0x7000_0000_6000,
        end: 0x7000_0000_7000,
        kind: MappingKind::SharedSocket(PacketSocketId(0)),
        ..segment.clone()
    };
    let requests = Mapping {
        start: 0x7000_0000_7000,
        end: 0x7000_0000_8000,
        kind: MappingKind::IoUring(IoUringId(0)),
        offset: 0x1000_0000,
        extents: Vec::new(),
        ..segment.clone()
    };
    manifest.address_spaces[0]
        .mappings
        .splice(5..5, [segment, ring, requests]);
    let owner = manifest.processes[0].threads[0].tid;
    manifest.io_urings.push(io_uring(owner));
    manifest.address_spaces[0].lock_future = 2;
    manifest.checkpoint.xstate_parts = vec![XstatePart {
        component: 2,
        offset: 576,
        length: 256,
    }];
    manifest.inet_sockets.push(member());
    for file in &mut manifest.files {
        if let Object::Fifo(fifo) = &mut file.object {
            fifo.unwritten = true;
        }
    }
    manifest.saved_files[2].huge_pages = 2 << 20;
    let heap = manifest.address_spaces[0]
        .mappings
        .iter_mut()
        .find(|m| m.start == 0x60_0000);
    heap.unwrap().policy = Some(MemoryPolicy {
        mode: 2,
        nodes: Bytes(vec![1; 8]),
    });
    manifest.packet_sockets.push(packet_socket());
    let fanotify = Fanotify {
        flags: 0x10,
        event_flags: 0o100_000,
        marks: vec![FanotifyMark {
            kind: FanotifyMarkKind::Mount,
            path: ByteString(b"/tmp".to_vec()),
            saved: None,
            flags: 0x40,
            mask: 0x20,
            ignored_mask: 2,
        }],
    };
    for object in [
        Object::Device {
            path: ByteString(b"/dev/cpu_dma_latency".to_vec()),
            rdev: 0x0a_0103,
            node: None,
            plugin: Some(DevicePlugin {
                name: "latency".into(),
                state: "12".into(),
            }),
        },
        Object::PacketSocket(PacketSocketId(0)),
        Object::Fanotify(fanotify),
        Object::IoUring(IoUringId(0)),
    ] {
        let file = OpenFile {
            object,
            ..manifest.files[0].clone()
        };
        manifest.files.push(file);
    }
    manifest
}

fn ipc() -> Ipc {
    let identity = |id| SysvIdentity {
        id,
        key: -7,
        mode: 0o600,
        uid: 1000,
        ..SysvIdentity::default()
    };
    Ipc {
        segments: vec![Segment {
            identity: identity(32768),
            size: 10_000,
            huge_pages: 2 << 20,
            extents: vec![Extent {
                start: 8192,
                length: 4096,
                offset: 4096,
            }],
        }],
        semaphores: vec![SemaphoreSet {
            identity: identity(5),
            operated: true,
            semaphores: vec![(1, 100), (32767, 0)],
            undo: vec![(100, 1, -32768)],
        }],
        queues: vec![SysvQueue {
            identity: identity(0),
            capacity: 16384,
            messages: vec![(7, Bytes(b"hello".to_vec()))],
        }],
        posix_queues: vec![PosixQueue {
            name: ByteString::from("queue"),
            max_messages: 10,
            message_size: 8192,
            messages: vec![(31, Bytes(b"hello".to_vec()))],
            ..PosixQueue::default()
        }],
        limits: vec![(ByteString::from("kernel/msgmni"), ByteString::from("32000\n"))],
    }
}

/// Recognisable page data: so many pages.
pub fn pages(count: usize) -> Vec<u8> {
    (0..count * 4096).map(|i| (i / 4096 * 7 + i % 251) as u8).collect()
}

/// Writes an image of these page data into memory.
pub fn write(manifest: &Manifest, data: &[u8]) -> Result<(Vec<u8>, ImageSummary)> {
    let mut writer = ImageWriter::new(Vec::new(), "x86_64")?;
    assert_eq!(writer.append(data)?, 4096);
    writer.finish(manifest)
}

/// The bytes of a small sound image.
pub fn image() -> Vec<u8> {
    write(&manifest(), &pages(4)).unwrap().0
}

/// An unnamed file of these contents.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

pub fn open(bytes: &[u8]) -> Result<Image> {
    Image::from_file(file(bytes), "a.cpr")
}

/// The error of opening these bytes, and if there is none, of checking their page data.
pub fn refusal(bytes: &[u8]) -> Error {
    match open(bytes) {
        Err(error) => error,
        Ok(image) => image
            .verify_data(&mut |_, _| {})
            .expect_err("the image should have been refused"),
    }
}

pub fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn hash_into(bytes: &mut [u8], from: std::ops::Range<usize>, at: usize) {
    let hash = blake3::hash(&bytes[from]);
    bytes[at..at + 32].copy_from_slice(hash.as_bytes());
}

/// Makes header and trailer hashes right again after they were edited.
pub fn seal(bytes: &mut [u8]) {
    hash_into(bytes, 0..HEADER - 32, HEADER - 32);
    let trailer = bytes.len() - TRAILER;
    let header_hash = bytes[HEADER - 32..HEADER].to_vec();
    bytes[trailer + 80..trailer + 112].copy_from_slice(&header_hash);
    hash_into(bytes, trailer..trailer + 176, trailer + 176);
}

/// An image with these bytes as its metadata, and all lengths and hashes right.
pub fn with_metadata(image: &[u8], metadata: &[u8]) -> Vec<u8> {
    let trailer = image.len() - TRAILER;
    let start = get(image, trailer + 48) as usize;
    let mut bytes = image[..start].to_vec();
    bytes.extend_from_slice(metadata);
    let new = bytes.len();
    bytes.extend_from_slice(&image[trailer..]);
    put(&mut bytes, new + 56, metadata.len() as u64);
    let total = bytes.len() as u64;
    put(&mut bytes, new + 64, total);
    hash_into(&mut bytes, start..new, new + 144);
    seal(&mut bytes);
    bytes
}

/// The metadata of an image.
pub fn metadata(image: &[u8]) -> &[u8] {
    let trailer = image.len() - TRAILER;
    let start = get(image, trailer + 48) as usize;
    &image[start..trailer]
}

/// An image that the writer would refuse to make.
pub fn unchecked(manifest: &Manifest) -> Vec<u8> {
    let mut encoded = Vec::new();
    ciborium::into_writer(manifest, &mut encoded).unwrap();
    with_metadata(&image(), &encoded)
}
