//! The parsers of `cpr_kernel::proc`, on fixed texts and on this very process.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use cpr_kernel::proc::*;
use rustix::event::{EventfdFlags, epoll};
use rustix::fs::{FlockOperation, OFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

fn invalid<T: std::fmt::Debug>(result: io::Result<T>, message: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    assert!(
        error.to_string().contains(message),
        "{error} does not contain {message}"
    );
}

/// Every parser, on one text.
fn all_parsers(text: &[u8]) {
    let _ = stat::parse("f", text);
    let _ = status::parse("f", text);
    for map in maps::parse("f", text).unwrap_or_default() {
        assert!(!map.is_empty() && (map.kind() != MapKind::File || !map.path.is_empty()));
    }
    let _ = maps::parse_smaps_flags("f", text);
    let _ = limits::parse("f", text);
    let _ = timers::parse("f", text);
    let _ = fdinfo::parse("f", text);
    let _ = mountinfo::parse("f", text);
    let _ = task::parse_io("f", text);
    let _ = task::parse_exec_start("f", text);
    let _ = task::parse_children("f", text);
}

const STAT: &str = "5272 (NAME) R 5228 5227 2817 34816 -1 4194560 3356 6825 5 7 2 1 3 4 20 -5 2 0 171905 17666048 3555 \
    18446744073709551615 94212119592960 94212119593301 140734368241824 0 0 0 0 16781312 2 0 0 0 17 1 50 2 0 0 0 \
    94212119604656 94212119605272 94212694507520 140734368249906 140734368249959 140734368249960 140734368251855 768\n";

const STATUS: &str = "Name:\tNAME\nUmask:\t0022\nState:\tR (running)\nTgid:\t5272\nNgid:\t0\nPid:\t5273\nPPid:\t5228\n\
    TracerPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t4294967294\nFDSize:\t256\nGroups:\t4 24 27 \nNStgid:\t5272\t3\n\
    NSpid:\t5273\t4\nNSpgid:\t5228\t0\nNSsid:\t2817\t0\nKthread:\t0\nVmPeak:\t   17252 kB\nVmLck:\t       8 kB\n\
    VmHWM:\t   14368 kB\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\nThreads:\t2\nSigQ:\t3/96365\n\
    SigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\nSigBlk:\t8000000000000000\nSigIgn:\t0000000001001000\n\
    SigCgt:\t0000000000000004\nCapInh:\t0000000000000005\nCapPrm:\t000001fffeffffff\nCapEff:\t0000000000000006\n\
    CapBnd:\t0000000000000007\nCapAmb:\t0000000000000008\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

const MAPS: &str = r"55af77ebf000-55af77ec0000 r-xp 00001000 fe:00 18504                      /usr/bin/a  b
55af9a308000-55af9a4fd000 rw-p 00000000 00:00 0                          [heap]
7ff69d241000-7ff69d374000 ---p 00000000 00:00 0 
7ff69dfba000-7ff69dfbb000 rw-s 00000000 00:01 5                          /SYSV00001234 (deleted)
7ff69dfbb000-7ff69dfbc000 rw-s 00000000 00:01 1025                       /memfd:x y (deleted)
7ff69e087000-7ff69e088000 rw-s 00000000 00:01 1026                       /dev/zero (deleted)
7ff69e088000-7ff69e089000 rw-s 7ffffffffffff000 103:fffff 10010705                   /tmp/a\012b\c\134 d (deleted) (deleted)
7ff69e089000-7ff69e08a000 rw-p 00000000 00:06 4                          /dev/zero
7ff69e08a000-7ff69e08b000 rw-s 00000000 00:10 9691                       anon_inode:[io_uring]
7ff69e08b000-7ff69e08c000 rw-s 00000000 00:13 9690                       /[aio] (deleted)
7ff69e08c000-7ff69e08d000 rw-s 00000000 00:0e 9694                       /secretmem (deleted)
7ff69e08d000-7ff69e08e000 rw-s 00000000 00:09 9681                       socket:[9681]
7ff69e08e000-7ff69e08f000 rw-p 00000000 00:00 0                          [anon:a name]
7ff69e08f000-7ff69e090000 rw-s 00000000 00:01 77                         [anon_shmem:b (deleted)]
7ff69e092000-7ff69e096000 r--p 00000000 00:00 0                          [vvar]
7ff69e096000-7ff69e098000 r--p 00000000 00:00 0                          [vvar_vclock]
7ff69e098000-7ff69e09a000 r-xp 00000000 00:00 0                          [vdso]
7ff69e200000-7ff69e400000 rw-p 00000000 00:0f 9700                       /anon_hugepage (deleted)
7ff69e400000-7ff69e401000 rw-p 00000000 fe:00 9701                       /memfd:real (deleted)
7ff69e401000-7ff69e402000 --xp 00000000 00:00 0                          [uprobes]
7ff69e402000-7ff69e403000 --xp 00000000 00:00 0                          [new]
7fff4604f000-7fff46070000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

const SMAPS: &str = "1000-2000 r--p 00000000 fe:00 18504                      /VmFlags: x\n\
    Size:                  4 kB\nTHPeligible:           0\nProtectionKey:         2\nVmFlags: rd mr mw me \n\
    2000-3000 rw-p 00000000 00:00 0 \nVmRandom: 1 kB\nVmFlags: rd wr mr mw me dd ?? \n";

const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
    Max cpu time              10                   unlimited            seconds   \n\
    Max file size             unlimited            unlimited            bytes     \n\
    Max data size             unlimited            unlimited            bytes     \n\
    Max stack size            8388608              18446744073709551614 bytes     \n\
    Max core file size        0                    unlimited            bytes     \n\
    Max resident set          unlimited            unlimited            bytes     \n\
    Max processes             96365                96365                processes \n\
    Max open files            20000                20001                files     \n\
    Max locked memory         8388608              8388608              bytes     \n\
    Max address space         unlimited            unlimited            bytes     \n\
    Max file locks            unlimited            unlimited            locks     \n\
    Max pending signals       96365                96365                signals   \n\
    Max msgqueue size         819200               819200               bytes     \n\
    Max nice priority         0                    3                    \n\
    Max realtime priority     0                    99                   \n\
    Max realtime timeout      unlimited            200                  us        \n";

const TIMERS: &str = "ID: 2\nsignal: 10/0000deadbeef1234\nnotify: signal/tid.5272\nClockID: -2\n\
    ID: 1\nsignal: 34/ffffffffffffffff\nnotify: none/pid.5272\nClockID: 1\n\
    ID: 0\nsignal: 14/0000000000000000\nnotify: thread/pid.5272\nClockID: 0\n";

const SCHED: &str = "a\nse.exec_start: (5272, #threads: 1)\n\
    -------------------------------------------------------------------\n\
    se.exec_start                                :       1719160.051305\n\
    se.vruntime                                  :           286.061243\n";

const MOUNTINFO: &str = r"22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
30 25 0:27 /sub\040dir /mnt/a\011b\012c\134d\043 ro,nosuid - fuse.sshfs  rw
";

const IO: &str = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n";

const FD_HEAD: &str = "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\n";

const EPOLL: &str = "tfd:        4 events:       19 data:                4  pos:0 ino:40e sdev:10\n\
    tfd:        3 events: 80000019 data: ffffffffffffffff  pos:-1 ino:98c070 sdev:fe00001\n";

const INOTIFY: &str = "inotify wd:12 ino:3c4a7 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 \
    f_handle:a7c4030000000000\ninotify wd:1 ino:1 sdev:15 mask:2 ignored_mask:0 \n";

const TIMERFD: &str =
    "clockid: 1\nticks: 3\nsettime flags: 03\nit_value: (99, 999969564)\nit_interval: (3, 500000000)\n";

fn fd_text(tail: &str) -> Vec<u8> {
    format!("{FD_HEAD}{tail}").into_bytes()
}

fn fd_kind(tail: &str) -> io::Result<FdInfoKind> {
    fdinfo::parse("/proc/1/fdinfo/3", &fd_text(tail)).map(|info| info.kind)
}

#[test]
fn stat_fields() {
    let stat = stat::parse("stat", STAT.as_bytes()).unwrap();
    assert_eq!(
        (stat.pid, stat.comm.as_slice(), stat.state),
        (5272, b"NAME".as_slice(), b'R')
    );
    assert_eq!(
        (stat.ppid, stat.pgrp, stat.session, stat.tty_nr, stat.tpgid),
        (5228, 5227, 2817, 34816, -1)
    );
    assert_eq!(
        (stat.flags, stat.minflt, stat.cminflt, stat.majflt, stat.cmajflt),
        (4194560, 3356, 6825, 5, 7)
    );
    assert_eq!((stat.utime, stat.stime, stat.cutime, stat.cstime), (2, 1, 3, 4));
    assert_eq!(
        (stat.priority, stat.nice, stat.num_threads, stat.starttime),
        (20, -5, 2, 171905)
    );
    assert_eq!((stat.vsize, stat.rss), (17666048, 3555));
    assert_eq!((stat.start_code, stat.end_code), (94212119592960, 94212119593301));
    assert_eq!(
        (stat.start_stack, stat.start_data, stat.end_data),
        (140734368241824, 94212119604656, 94212119605272)
    );
    assert_eq!(
        (stat.start_brk, stat.arg_start, stat.arg_end),
        (94212694507520, 140734368249906, 140734368249959)
    );
    assert_eq!(
        (stat.env_start, stat.env_end, stat.exit_code),
        (140734368249960, 140734368251855, 768)
    );
    assert_eq!(
        (stat.exit_signal, stat.processor, stat.rt_priority, stat.policy),
        (17, 1, 50, 2)
    );
}

#[test]
fn stat_names() {
    for name in [&b""[..], b")", b"(", b") R 1\n\\(x \t\x01\xff", b" ) Z 1 (a", b"\n"] {
        let mut text = b"1 (".to_vec();
        text.extend_from_slice(name);
        text.extend_from_slice(STAT.strip_prefix("5272 (NAME").unwrap().as_bytes());
        let stat = stat::parse("stat", &text).unwrap();
        assert_eq!((stat.comm.as_slice(), stat.ppid), (name, 5228));
    }
}

#[test]
fn stat_garbage() {
    invalid(stat::parse("/proc/9/stat", b""), "/proc/9/stat: line 1: no valid name");
    invalid(stat::parse("f", b")("), "name");
    invalid(stat::parse("f", b"1 (a)"), "state");
    invalid(stat::parse("f", b"1 (a) RR 1"), "state");
    invalid(stat::parse("f", b"1 (a) R 1"), "field 5");
    invalid(stat::parse("f", STAT.replace("5272 ", "").as_bytes()), "pid");
    invalid(
        stat::parse("f", STAT.replace(" 171905 ", " 171905x ").as_bytes()),
        "field 22",
    );
    invalid(stat::parse("f", STAT.replace(" 768", "").as_bytes()), "field 52");
}

#[test]
fn status_fields() {
    let text = STATUS.replace("NAME", r") R 1\n\\(x \q\");
    let status = status::parse("status", text.as_bytes()).unwrap();
    assert_eq!(status.name, b") R 1\n\\(x \\q\\");
    assert_eq!(
        (status.umask, status.state, status.tgid, status.ngid),
        (Some(0o22), b'R', 5272, Some(0))
    );
    assert_eq!(
        (status.pid, status.ppid, status.tracer_pid, status.threads),
        (5273, 5228, 7, 2)
    );
    assert_eq!((status.uids, status.gids), ([1, 2, 3, 4], [5, 6, 7, 4294967294]));
    assert_eq!(status.groups, [4, 24, 27]);
    assert_eq!((status.ns_pid, status.ns_tgid), (vec![5273, 4], vec![5272, 3]));
    assert_eq!((status.ns_pgid, status.ns_sid), (vec![5228, 0], vec![2817, 0]));
    assert_eq!(
        (status.vm_hwm_kib, status.vm_lck_kib, status.thp_enabled),
        (14368, 8, Some(true))
    );
    assert_eq!(
        (status.sig_pending, status.shared_pending, status.sig_blocked),
        (1, 2, 1 << 63)
    );
    assert_eq!((status.sig_ignored, status.sig_caught), (0x1001000, 4));
    assert_eq!((status.cap_inheritable, status.cap_permitted), (5, 0x1fffeffffff));
    assert_eq!(
        (status.cap_effective, status.cap_bounding, status.cap_ambient),
        (6, 7, 8)
    );
    assert_eq!((status.no_new_privs, status.seccomp), (true, 2));
}

#[test]
fn status_of_zombie_and_garbage() {
    let gone = ["Umask", "Vm", "THP", "Ngid", "NS"];
    let zombie: String = STATUS
        .lines()
        .filter(|l| !gone.iter().any(|g| l.starts_with(g)))
        .map(|l| l.to_owned() + "\n")
        .collect();
    let status = status::parse("status", zombie.replace("4 24 27 ", " ").as_bytes()).unwrap();
    assert_eq!(
        (status.umask, status.vm_hwm_kib, status.thp_enabled, status.ngid),
        (None, 0, None, None)
    );
    assert_eq!(
        (status.groups, status.ns_pid, status.ns_sid),
        (vec![], vec![5273], vec![])
    );

    invalid(
        status::parse("/proc/9/status", b""),
        "/proc/9/status: line 1: the file ends without Name",
    );
    invalid(
        status::parse("f", STATUS.replace("PPid:\t5228\n", "").as_bytes()),
        "without PPid",
    );
    invalid(
        status::parse("f", STATUS.replace("Uid:\t1\t2\t3\t4", "Uid:\t1\t2\t3").as_bytes()),
        "line 9: no valid Uid",
    );
    invalid(
        status::parse("f", STATUS.replace("0022", "0028").as_bytes()),
        "line 2: no valid Umask",
    );
    invalid(
        status::parse("f", STATUS.replace("8000000000000000", "80000").as_bytes()),
        "SigBlk",
    );
    invalid(
        status::parse("f", STATUS.replace("R (running)", "").as_bytes()),
        "State",
    );
    invalid(
        status::parse("f", STATUS.replace("TracerPid:\t7", "TracerPid 7").as_bytes()),
        "line 8: no colon",
    );
}

#[test]
fn maps_entries() {
    let maps = maps::parse("maps", MAPS.as_bytes()).unwrap();
    assert_eq!(
        maps[0],
        MapEntry {
            start: 0x55af77ebf000,
            end: 0x55af77ec0000,
            read: true,
            write: false,
            exec: true,
            shared: false,
            offset: 0x1000,
            dev: (0xfe, 0),
            inode: 18504,
            path: b"/usr/bin/a  b".to_vec(),
            deleted: false,
            raw_path: b"/usr/bin/a  b".to_vec(),
        }
    );
    let odd = &maps[6];
    assert_eq!(
        (odd.path.as_slice(), odd.deleted),
        (
            br"/tmp/a
b\c\134 d (deleted)"
                .as_slice(),
            true
        )
    );
    assert_eq!(odd.raw_path, br"/tmp/a\012b\c\134 d (deleted) (deleted)");
    assert_eq!(
        (odd.offset, odd.dev, odd.inode),
        (0x7ffffffffffff000, (0x103, 0xfffff), 10010705)
    );
    assert_eq!(
        (maps[2].path.as_slice(), maps[2].read, maps[2].len()),
        (b"".as_slice(), false, 0x133000)
    );
    assert!(maps[3].shared && maps[3].deleted);

    let kinds: Vec<_> = maps.iter().map(MapEntry::kind).collect();
    use MapKind::*;
    assert_eq!(
        kinds,
        [
            File,
            Heap,
            Anonymous,
            SysvShm { key: 0x1234 },
            Memfd(b"x y"),
            SharedAnonymous,
            File,
            File,
            AnonInode(b"[io_uring]"),
            Aio,
            SecretMemory,
            Socket,
            AnonNamed(b"a name"),
            AnonShmemNamed(b"b (deleted)"),
            Vvar,
            VvarVclock,
            Vdso,
            HugePages,
            File,
            Uprobes,
            Special(b"[new]"),
            Stack,
            Vsyscall,
        ]
    );
    let anonymous: Vec<_> = maps
        .iter()
        .enumerate()
        .filter(|(_, m)| m.is_anonymous())
        .map(|(i, _)| i)
        .collect();
    assert_eq!(anonymous, [1, 2, 12, 21]);
}

#[test]
fn maps_garbage() {
    assert_eq!(maps::parse("f", b"").unwrap(), []);
    let good = "1000-2000 r--p 00000000 fe:00 18504 /x\n";
    for (bad, message) in [
        ("\n", "/proc/9/maps: line 2: no valid addresses"),
        ("2000-2000 r--p 0 fe:00 1 /x\n", "line 2: no valid addresses"),
        ("-2000 r--p 0 fe:00 1 /x\n", "addresses"),
        ("1000-+2000 r--p 0 fe:00 1 /x\n", "addresses"),
        ("1000-11111111111112000 r--p 0 fe:00 1 /x\n", "addresses"),
        ("1000-2000 r-- 0 fe:00 1 /x\n", "permissions"),
        ("1000-2000 r-wp 0 fe:00 1 /x\n", "permissions"),
        ("1000-2000 r--p x fe:00 1 /x\n", "offset"),
        ("1000-2000 r--p 0 fe00 1 /x\n", "device"),
        ("1000-2000 r--p 0 fe:00 f /x\n", "inode"),
        ("1000-2000 r--p 0 fe:00", "device"),
    ] {
        invalid(
            maps::parse("/proc/9/maps", format!("{good}{bad}{good}").as_bytes()),
            message,
        );
    }
}

#[test]
fn smaps_flags() {
    let flags = maps::parse_smaps_flags("smaps", SMAPS.as_bytes()).unwrap();
    assert_eq!(flags.len(), 2);
    assert_eq!(
        (flags[0].start, flags[0].end, flags[0].flags.len()),
        (0x1000, 0x2000, 4)
    );
    assert_eq!(flags[1].flags, [*b"rd", *b"wr", *b"mr", *b"mw", *b"me", *b"dd", *b"??"]);
    assert!(flags[1].has(b"dd") && !flags[0].has(b"dd"));
    assert_eq!((flags[0].key, flags[1].key), (2, 0));

    assert_eq!(maps::parse_smaps_flags("f", b"").unwrap(), []);
    invalid(
        maps::parse_smaps_flags("f", SMAPS.replace("VmFlags: rd mr mw me \n", "").as_bytes()),
        "line 1: the mapping",
    );
    invalid(maps::parse_smaps_flags("f", &SMAPS.as_bytes()[..200]), "has no VmFlags");
    invalid(
        maps::parse_smaps_flags("f", SMAPS.replace("?? ", "???").as_bytes()),
        "line 8: no valid VmFlags",
    );
    invalid(maps::parse_smaps_flags("f", b"VmFlags: rd\n"), "without a mapping");
    invalid(maps::parse_smaps_flags("f", b"garbage\n"), "addresses");
}

#[test]
fn smaps_is_fast_enough() {
    let filler: String = (0..23)
        .map(|i| format!("Something{i:02}:            {i} kB\n"))
        .collect();
    let text: String = (1..=20_000)
        .map(|i| format!("{i:x}000-{i:x}fff rw-p 0 00:00 0 \n{filler}VmFlags: rd wr \n"))
        .collect();
    let start = std::time::Instant::now();
    assert_eq!(maps::parse_smaps_flags("smaps", text.as_bytes()).unwrap().len(), 20_000);
    // It takes some hundredths of a second; the allowance is for busy machines.
    assert!(
        start.elapsed().as_secs() < 5,
        "{:?} for {} bytes",
        start.elapsed(),
        text.len()
    );
}

#[test]
fn limits_entries() {
    let limits = limits::parse("limits", LIMITS.as_bytes()).unwrap();
    assert!(limits.iter().map(|l| l.resource).eq(0..16));
    let pair = |i: usize| (limits[i].soft, limits[i].hard);
    assert_eq!((pair(0), pair(1)), ((10, u64::MAX), (u64::MAX, u64::MAX)));
    assert_eq!((pair(3), pair(7)), ((8388608, u64::MAX - 1), (20000, 20001)));
    assert_eq!((pair(13), pair(14), pair(15)), ((0, 3), (0, 99), (u64::MAX, 200)));

    invalid(
        limits::parse("/proc/9/limits", b""),
        "/proc/9/limits: line 1: the file ends without \"Max cpu time\"",
    );
    invalid(
        limits::parse("f", LIMITS.replace("Max file locks", "Max new thing").as_bytes()),
        "Max file locks",
    );
    invalid(
        limits::parse("f", LIMITS.replace("20001", "200o1").as_bytes()),
        "line 9: no valid hard limit",
    );
    let end = LIMITS.find("96365").unwrap();
    invalid(
        limits::parse("f", &LIMITS.as_bytes()[..end]),
        "line 8: no valid soft limit",
    );
}

#[test]
fn timers_entries() {
    let timers = timers::parse("timers", TIMERS.as_bytes()).unwrap();
    let timer = |id, signal, value, notify, target, clock| Timer {
        id,
        signal,
        value,
        notify,
        target,
        clock,
    };
    assert_eq!(
        timers,
        [
            timer(0, 14, 0, TimerNotify::Thread, TimerTarget::Process(5272), 0),
            timer(1, 34, u64::MAX, TimerNotify::None, TimerTarget::Process(5272), 1),
            timer(
                2,
                10,
                0xdeadbeef1234,
                TimerNotify::Signal,
                TimerTarget::Thread(5272),
                -2
            ),
        ]
    );
    assert_eq!(timers::parse("f", b"").unwrap(), []);
    invalid(
        timers::parse("/proc/9/timers", b"x\n"),
        "/proc/9/timers: line 1: no valid ID",
    );
    invalid(
        timers::parse("f", b"ID: 1\nsignal: 10/0\n"),
        "line 1: the timer that starts here has no \"notify",
    );
    invalid(
        timers::parse("f", TIMERS.replace("tid.", "gid.").as_bytes()),
        "line 3: no valid notify",
    );
    invalid(
        timers::parse("f", TIMERS.replace("none/", "some/").as_bytes()),
        "line 7: no valid notify",
    );
    invalid(
        timers::parse("f", TIMERS.replace("-2", "two").as_bytes()),
        "line 4: no valid ClockID",
    );
    invalid(
        timers::parse("f", TIMERS.replace("34/", "34 ").as_bytes()),
        "line 6: no valid signal",
    );
}

#[test]
fn mountinfo_entries() {
    let mounts = mountinfo::parse("mountinfo", MOUNTINFO.as_bytes()).unwrap();
    assert_eq!((mounts[0].id, mounts[0].parent, mounts[0].dev), (22, 27, (0, 21)));
    assert_eq!(
        (mounts[1].dev, mounts[1].source.as_slice()),
        ((254, 0), b"/dev/vda".as_slice())
    );
    assert_eq!(mounts[1].optional, [b"shared:1", b"master:2"]);
    let odd = &mounts[2];
    assert_eq!(
        (odd.root.as_slice(), odd.mount_point.as_slice()),
        (&b"/sub dir"[..], &b"/mnt/a\tb\nc\\d#"[..])
    );
    assert_eq!(
        (odd.options.as_slice(), odd.fs_type.as_slice()),
        (&b"ro,nosuid"[..], &b"fuse.sshfs"[..])
    );
    assert_eq!(
        (odd.source.as_slice(), odd.super_options.as_slice()),
        (&b""[..], &b"rw"[..])
    );

    invalid(
        mountinfo::parse("/proc/9/mountinfo", b"22 27 0:21 / /proc rw\n"),
        "/proc/9/mountinfo: line 1: no valid separator",
    );
    invalid(
        mountinfo::parse("f", b"22 27 0:21 / / rw - ext4 x"),
        "file-system options",
    );
    invalid(mountinfo::parse("f", b"22 27 021 / / rw - ext4 x rw"), "device");
    invalid(
        mountinfo::parse("f", MOUNTINFO.replace("30 25", "x 25").as_bytes()),
        "line 3: no valid mount number",
    );
}

#[test]
fn accounting() {
    let io = task::parse_io("io", IO.as_bytes()).unwrap();
    assert_eq!((io.rchar, io.wchar, io.syscr, io.syscw), (1, 2, 3, 4));
    assert_eq!((io.read_bytes, io.write_bytes, io.cancelled_write_bytes), (5, 6, 7));
    invalid(task::parse_io("f", &IO.as_bytes()[..36]), "without read_bytes");
    invalid(task::parse_io("f", b"rchar: -1\n"), "line 1: no valid rchar");

    assert_eq!(
        task::parse_exec_start("sched", SCHED.as_bytes()).unwrap(),
        Some(1719160051305)
    );
    assert_eq!(task::parse_exec_start("sched", b"").unwrap(), None);
    assert_eq!(
        task::parse_exec_start("sched", b"a (1)\n---------------------\nx : 1\n").unwrap(),
        None
    );
    invalid(
        task::parse_exec_start("f", SCHED.replace(".051305", ".0513").as_bytes()),
        "line 4: no valid se.exec_start",
    );

    assert_eq!(task::parse_children("children", b"5 17 3 \n").unwrap(), [5, 17, 3]);
    assert_eq!(task::parse_children("children", b"").unwrap(), []);
    invalid(task::parse_children("f", b"5 x "), "child");
}

#[test]
fn fdinfo_head_and_locks() {
    let text = "pos:\t4096\nflags:\t022700002\nmnt_id:\t27\n\
        lock:\t1: FLOCK  ADVISORY  WRITE 5272 fe:00:10010687 0 EOF\n\
        lock:\t2: POSIX  ADVISORY  READ 5272 103:fffff:10010687 5 14\n\
        lock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:10010687 3 EOF\n\
        lock:\t4: LEASE  ACTIVE    READ 5272 fe:00:10010687 0 EOF\n\
        lock:\t5: LEASE  BREAKING  UNLCK 5272 fe:00:10010687 0 EOF\n\
        lock:\t6: POSIX  *NOINODE* WRITE 5272 <none>:0 1 2\n\
        pos: of a driver\nsomething else\n";
    let info = fdinfo::parse("fdinfo", text.as_bytes()).unwrap();
    assert_eq!(
        (info.pos, info.flags, info.mnt_id, info.ino),
        (4096, 0o22700002, 27, None)
    );
    assert_eq!((info.kind, info.scm_fds), (FdInfoKind::Other, None));
    let (dev, inode) = ((0xfe, 0), 10010687);
    let flock = LockLine {
        id: 1,
        kind: LockKind::Flock,
        exclusive: true,
        breaking: false,
        unlock: false,
        pid: 5272,
        dev,
        inode,
        start: 0,
        end: None,
    };
    let posix = LockLine {
        id: 2,
        kind: LockKind::Posix,
        exclusive: false,
        dev: (0x103, 0xfffff),
        start: 5,
        end: Some(14),
        ..flock
    };
    assert_eq!(info.locks[..2], [flock, posix]);
    assert_eq!(
        info.locks[2],
        LockLine {
            id: 3,
            kind: LockKind::Ofd,
            pid: -1,
            start: 3,
            ..flock
        }
    );
    assert_eq!(
        info.locks[3],
        LockLine {
            id: 4,
            kind: LockKind::Lease,
            exclusive: false,
            ..flock
        }
    );
    assert_eq!(
        info.locks[4],
        LockLine {
            id: 5,
            kind: LockKind::Lease,
            exclusive: false,
            breaking: true,
            unlock: true,
            ..flock
        }
    );
    assert_eq!(
        (info.locks[5].dev, info.locks[5].inode, info.locks[5].end),
        ((0, 0), 0, Some(2))
    );
    assert_eq!(info.locks.len(), 6);

    let info = fdinfo::parse("f", &fd_text("scm_fds: 2\n")).unwrap();
    assert_eq!((info.scm_fds, info.ino), (Some(2), Some(1038)));
    let far = fdinfo::parse("f", FD_HEAD.replace("pos:\t0", "pos:\t-4096").as_bytes()).unwrap();
    assert_eq!(far.pos, 0xffff_ffff_ffff_f000);

    invalid(
        fdinfo::parse("/proc/9/fdinfo/4", b""),
        "/proc/9/fdinfo/4: line 1: no valid pos",
    );
    invalid(fdinfo::parse("f", b"pos:\t0\nflags:\t02\n"), "line 2: no valid mnt_id");
    invalid(
        fdinfo::parse("f", FD_HEAD.replace("02", "09").as_bytes()),
        "line 2: no valid flags",
    );
    invalid(
        fd_kind("lock:\t1: FLOCK  ADVISORY  WRITE 5272 fe:00:10010687 0\n"),
        "line 5: no valid lock",
    );
    invalid(
        fd_kind("lock:\t1: FLOCK  ADVISORY  MAYBE 5272 fe:00:10010687 0 EOF\n"),
        "line 5: no valid lock",
    );
}

#[test]
fn fdinfo_kinds() {
    assert_eq!(
        fd_kind("eventfd-count:           1234ab\neventfd-id: 7\neventfd-semaphore: 1\n").unwrap(),
        FdInfoKind::EventFd {
            count: 0x1234ab,
            id: Some(7),
            semaphore: Some(true)
        }
    );
    assert_eq!(
        fd_kind("eventfd-count: ffffffffffffffff\n").unwrap(),
        FdInfoKind::EventFd {
            count: u64::MAX,
            id: None,
            semaphore: None
        }
    );
    assert_eq!(
        fd_kind(TIMERFD).unwrap(),
        FdInfoKind::TimerFd {
            clock: 1,
            ticks: 3,
            settime_flags: 3,
            it_value_ns: 99_999_969_564,
            it_interval_ns: 3_500_000_000
        }
    );
    assert_eq!(
        fd_kind("sigmask:\t8000000000004003\n").unwrap(),
        FdInfoKind::SignalFd {
            mask: 0x8000000000004003
        }
    );
    assert_eq!(
        fd_kind("Pid:\t-1\nNSpid:\t-1\n").unwrap(),
        FdInfoKind::PidFd {
            pid: -1,
            ns_pid: vec![-1]
        }
    );
    assert_eq!(
        fd_kind("Pid:\t9\nNSpid:\t9\t1\n").unwrap(),
        FdInfoKind::PidFd {
            pid: 9,
            ns_pid: vec![9, 1]
        }
    );
    assert_eq!(fd_kind("tty-index:\t12\n").unwrap(), FdInfoKind::Tty { index: 12 });
    assert_eq!(
        fd_kind("fanotify flags:200\nfanotify x\n").unwrap(),
        FdInfoKind::Fanotify(b"fanotify flags:200\nfanotify x\n".to_vec())
    );
    assert_eq!(
        fd_kind("pending:\t0\ntotal:\t0\nAPI:\taa:0:80000000000001ff\n").unwrap(),
        FdInfoKind::Other
    );
    let watch = EpollWatch {
        tfd: 4,
        events: 0x19,
        data: 4,
        pos: 0,
        ino: 0x40e,
        sdev: (0, 0x10),
    };
    let other = EpollWatch {
        tfd: 3,
        events: 0x80000019,
        data: u64::MAX,
        pos: u64::MAX,
        ino: 0x98c070,
        sdev: (0xfe, 1),
    };
    assert_eq!(fd_kind(EPOLL).unwrap(), FdInfoKind::Epoll(vec![watch, other]));
    let watch = InotifyWatch {
        wd: 0x12,
        ino: 0x3c4a7,
        sdev: (0xfe, 0),
        mask: 0xfff,
        ignored_mask: 0,
        fhandle_bytes: 8,
        fhandle_type: 1,
        f_handle: vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0],
    };
    let bare = InotifyWatch {
        wd: 1,
        ino: 1,
        sdev: (0, 0x15),
        mask: 2,
        fhandle_bytes: 0,
        fhandle_type: 0,
        f_handle: vec![],
        ..watch
    };
    let Ok(FdInfoKind::Inotify(found)) = fd_kind(INOTIFY) else {
        panic!()
    };
    assert_eq!(found.len(), 2);
    assert_eq!((&found[1], found[0].wd), (&bare, 0x12));
    assert_eq!(
        (found[0].fhandle_type, found[0].f_handle.as_slice()),
        (1, &[0xa7, 0xc4, 3, 0, 0, 0, 0, 0][..])
    );

    for (tail, message) in [
        ("eventfd-count: xyz\n", "eventfd-count"),
        ("sigmask:\t80\n", "sigmask"),
        ("Pid:\t\n", "Pid"),
        ("tfd:        4 events:       19 data:                4\n", "pos"),
        ("tfd:        4\n", "events:"),
        ("inotify wd:1 ino:1 sdev:15 ignored_mask:0\n", "mask:"),
        (
            "inotify wd:1 ino:1 sdev:15 mask:2 ignored_mask:0 fhandle-bytes:2 fhandle-type:1 f_handle:a7c\n",
            "f_handle",
        ),
        (
            "clockid: 1\nticks: 0\nsettime flags: 00\nit_value: (1, 0)\n",
            "it_interval",
        ),
        ("clockid: 1\nit_value: (18446744073709551615, 0)\n", "it_value"),
        ("clockid: 1\nit_value: (1, 1000000000)\n", "it_value"),
        (
            "sigmask:\t8000000000004003\ninotify wd:1 ino:1 sdev:1 mask:2 ignored_mask:0\n",
            "two kinds",
        ),
    ] {
        invalid(fd_kind(tail), message);
    }
}

/// No truncation and no change of a byte of good text makes a parser panic.
#[test]
fn damaged_text_does_not_panic() {
    let fd = |tail| String::from_utf8(fd_text(tail)).unwrap();
    let lock = fd("lock:\t1: FLOCK  ADVISORY  WRITE 5272 fe:00:10010687 0 EOF\n");
    let texts = [
        STAT,
        STATUS,
        MAPS,
        SMAPS,
        LIMITS,
        TIMERS,
        SCHED,
        MOUNTINFO,
        IO,
        &fd(EPOLL),
        &fd(INOTIFY),
        &fd(TIMERFD),
        &lock,
    ];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for text in texts {
        for end in 0..text.len() {
            all_parsers(&text.as_bytes()[..end]);
        }
        for _ in 0..1500 {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..1 + random() % 4 {
                let at = random() as usize % bytes.len();
                match random() % 4 {
                    0 => bytes[at] = random() as u8,
                    1 => bytes[at] = b"0-:/ \n()\\\t"[random() as usize % 10],
                    2 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"09f-:, \n"[random() as usize % 8]),
                }
            }
            all_parsers(&bytes);
        }
    }
}

fn me() -> ProcDir {
    ProcDir::open(std::process::id() as i32).unwrap()
}

fn live(fd: &impl AsRawFd) -> FdInfo {
    me().fdinfo(fd.as_raw_fd()).unwrap()
}

#[test]
fn live_process() {
    let me = me();
    let pid = std::process::id() as i32;
    let (stat, status) = (me.stat().unwrap(), me.status().unwrap());
    assert_eq!((me.pid(), stat.pid, status.pid, status.tgid), (pid, pid, pid, pid));
    assert_eq!((&stat.comm, stat.ppid), (&status.name, status.ppid));
    assert_eq!(stat.ppid, std::os::unix::process::parent_id() as i32);
    assert_eq!(status.uids[1], rustix::process::geteuid().as_raw());
    assert_eq!(status.ns_pid.len(), status.ns_tgid.len());
    assert!(status.vm_hwm_kib > 0 && stat.start_stack != 0 && stat.arg_end > stat.arg_start);
    assert!(
        me.tasks()
            .unwrap()
            .contains(&rustix::thread::gettid().as_raw_nonzero().get())
    );
    assert!(pids().unwrap().contains(&pid));
    assert!(me.io().unwrap().rchar > 0);
    assert!(!me.auxv().unwrap().is_empty());
    assert_eq!(me.limits().unwrap().len(), 16);
    let nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!(me.limits().unwrap()[7].soft, nofile.current.unwrap_or(u64::MAX));
    assert_eq!(me.timers().unwrap(), []);
    assert!(
        me.mountinfo()
            .unwrap()
            .iter()
            .any(|mount| mount.mount_point == b"/proc")
    );
    let exe = me.read_link("exe").unwrap();
    assert_eq!(
        exe,
        std::env::current_exe().unwrap().into_os_string().into_encoded_bytes()
    );
    if let Some(ns) = me.sched_exec_start_ns().unwrap() {
        assert!(ns > 0);
    }
}

#[test]
fn live_threads() {
    let (send, wait) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(") x (".into()).spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let _ = wait.recv();
    });
    let tid = told.recv().unwrap();
    let pid = std::process::id() as i32;
    let dir = ProcDir::open_task(pid, tid).unwrap();
    assert_eq!(
        (dir.pid(), dir.stat().unwrap().pid, dir.stat().unwrap().comm.as_slice()),
        (tid, tid, &b") x ("[..])
    );
    assert_eq!((dir.status().unwrap().pid, dir.status().unwrap().tgid), (tid, pid));
    assert!(me().tasks().unwrap().contains(&tid));
    drop(send);
    thread.unwrap().join().unwrap();
    assert!(ProcDir::open_task(pid, 1).is_err());
}

#[test]
fn live_maps() {
    let me = me();
    let maps = me.maps().unwrap();
    assert!(maps.is_sorted_by_key(|map| map.start));
    for kind in [MapKind::Stack, MapKind::Heap, MapKind::Vdso] {
        assert_eq!(maps.iter().filter(|map| map.kind() == kind).count(), 1, "{kind:?}");
    }
    let local = 0u8;
    let here = std::ptr::from_ref(&local) as u64;
    assert!(
        maps.iter()
            .any(|map| map.start <= here && here < map.end && map.is_anonymous() && map.write)
    );
    let code = live_maps as fn() as usize as u64;
    let text = maps.iter().find(|map| map.start <= code && code < map.end).unwrap();
    assert_eq!((text.kind(), text.exec, text.write), (MapKind::File, true, false));
    assert_eq!(text.path, me.read_link("exe").unwrap());

    // Other tests' threads come and go, but the program's text stays.
    let flags = me.smaps_flags().unwrap();
    let text = flags
        .iter()
        .find(|map| (map.start, map.end) == (text.start, text.end))
        .unwrap();
    assert!(text.has(b"ex") && text.has(b"rd") && !text.has(b"wr"));
}

#[test]
fn live_mapped_paths() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a\nb\\c d (deleted)");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    // A child that maps the file: the dynamic loader maps what LD_PRELOAD cannot name, so copy a real program there.
    std::fs::copy("/bin/sleep", &path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut child = Command::new(&path).arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let process = ProcDir::open(child.id() as i32).unwrap();
    let raw = path.as_os_str().as_encoded_bytes();
    let find = |path: &[u8]| process.maps().unwrap().into_iter().find(|map| map.path == path);
    let wait_for = |path: &[u8], deleted: bool| {
        (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            find(path).is_some_and(|map| map.deleted == deleted)
        })
    };
    // The suffix is part of the name, which only stat can tell.
    assert!(wait_for(raw.strip_suffix(b" (deleted)").unwrap(), true));
    std::fs::remove_file(&path).unwrap();
    assert!(wait_for(raw, true));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn live_descriptors() {
    let eventfd = rustix::event::eventfd(5, EventfdFlags::SEMAPHORE | EventfdFlags::CLOEXEC).unwrap();
    let info = live(&eventfd);
    let FdInfoKind::EventFd {
        count: 5, semaphore, ..
    } = info.kind
    else {
        panic!("{info:?}")
    };
    assert_ne!(semaphore, Some(false));
    assert_eq!(
        info.flags & OFlags::CLOEXEC.bits() as i32,
        OFlags::CLOEXEC.bits() as i32
    );

    let timerfd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).unwrap();
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(
        live(&timerfd).kind,
        FdInfoKind::TimerFd {
            clock: 1,
            ticks: 0,
            settime_flags: 0,
            it_value_ns: 0,
            it_interval_ns: 0
        }
    );
    let times = Itimerspec {
        it_interval: Timespec { tv_sec: 3, tv_nsec: 5 },
        it_value: Timespec { tv_sec: 1000, ..zero },
    };
    rustix::time::timerfd_settime(&timerfd, TimerfdTimerFlags::empty(), &times).unwrap();
    let FdInfoKind::TimerFd {
        clock: 1,
        ticks: 0,
        settime_flags: 0,
        it_value_ns,
        it_interval_ns: 3_000_000_005,
    } = live(&timerfd).kind
    else {
        panic!()
    };
    assert!((900_000_000_000..1_000_000_000_000).contains(&it_value_ns));

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    assert_eq!(live(&epoll).kind, FdInfoKind::Epoll(vec![]));
    let data = epoll::EventData::new_u64(0xfedc_ba98_7654_3210);
    epoll::add(&epoll, &eventfd, data, epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
    let FdInfoKind::Epoll(watches) = live(&epoll).kind else {
        panic!()
    };
    assert_eq!(watches.len(), 1);
    let stat = me().fd_stat(eventfd.as_raw_fd()).unwrap();
    assert_eq!(
        (watches[0].tfd, watches[0].data, watches[0].ino),
        (eventfd.as_raw_fd(), 0xfedc_ba98_7654_3210, stat.st_ino)
    );
    let dev = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    assert_eq!((watches[0].sdev, watches[0].events & 0x8000_0001), (dev, 0x8000_0001));

    let (reader, writer) = rustix::pipe::pipe().unwrap();
    assert_eq!((live(&reader).kind, live(&writer).flags & 3), (FdInfoKind::Other, 1));
    let ino = me().fd_stat(reader.as_raw_fd()).unwrap().st_ino;
    assert_eq!(
        me().fd_link(reader.as_raw_fd()).unwrap(),
        format!("pipe:[{ino}]").into_bytes()
    );

    let listed: BTreeSet<_> = me().descriptors().unwrap().into_iter().collect();
    for fd in [&eventfd, &timerfd, &epoll, &reader, &writer] {
        assert!(listed.contains(&fd.as_raw_fd()));
    }
}

#[test]
fn live_inotify() {
    use rustix::fs::inotify;
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    assert_eq!(live(&fd).kind, FdInfoKind::Inotify(vec![]));
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for i in 0..20 {
        let path = dir.path().join(i.to_string());
        File::create(&path).unwrap();
        last = inotify::add_watch(&fd, &path, inotify::WatchFlags::MODIFY).unwrap();
    }
    let stat = rustix::fs::stat(dir.path().join("19")).unwrap();
    let FdInfoKind::Inotify(watches) = live(&fd).kind else {
        panic!()
    };
    let watch = watches.iter().find(|watch| watch.wd == last).unwrap();
    assert_eq!((watches.len(), watch.mask, watch.ino), (20, 2, stat.st_ino));
    assert_eq!(watch.f_handle.len(), watch.fhandle_bytes as usize);
}

#[test]
fn live_locks() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    assert_eq!((live(&file).pos, live(&file).locks), (10, vec![]));
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    let info = live(&file);
    let stat = me().fd_stat(file.as_raw_fd()).unwrap();
    let mut kinds: Vec<_> = info.locks.iter().map(|lock| lock.kind).collect();
    kinds.sort_by_key(|&kind| kind != LockKind::Flock);
    assert_eq!(kinds, [LockKind::Flock, LockKind::Posix]);
    for lock in &info.locks {
        assert_eq!(
            (lock.exclusive, lock.pid, lock.inode),
            (true, std::process::id() as i32, stat.st_ino)
        );
        assert_eq!(
            (lock.start, lock.end),
            (if lock.kind == LockKind::Posix { lock.start } else { 0 }, None)
        );
    }
    assert!(me().fd_link(file.as_raw_fd()).unwrap().ends_with(b" (deleted)"));
    let copy = me()
        .open_file(&format!("fd/{}", file.as_raw_fd()), OFlags::RDONLY)
        .unwrap();
    let mut text = String::new();
    io::Read::read_to_string(&mut File::from(copy), &mut text).unwrap();
    assert_eq!(text, "0123456789");
}

#[test]
fn live_pidfd_tty_and_memfd() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let number = child.id() as i32;
    assert_eq!(
        live(&pidfd).kind,
        FdInfoKind::PidFd {
            pid: number,
            ns_pid: vec![number]
        }
    );
    assert!(me().children().unwrap().contains(&number));
    let process = ProcDir::open(number).unwrap();
    assert_eq!(process.stat().unwrap().ppid, std::process::id() as i32);
    child.kill().unwrap();
    rustix::process::waitid(
        rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
    )
    .unwrap();
    let stat = process.stat().unwrap();
    assert_eq!((stat.state, stat.exit_code, process.maps().unwrap()), (b'Z', 9, vec![]));
    assert_eq!(process.status().unwrap().umask, None);
    child.wait().unwrap();
    assert_eq!(
        live(&pidfd).kind,
        FdInfoKind::PidFd {
            pid: -1,
            ns_pid: vec![-1]
        }
    );
    // The directory does not follow the number to another process.
    for error in [
        process.stat().unwrap_err(),
        process.tasks().unwrap_err(),
        process.sched_exec_start_ns().unwrap_err(),
    ] {
        assert!(matches!(error.raw_os_error(), Some(2 | 3)), "{error}");
    }

    if let Ok(master) = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY) {
        let name = rustix::pty::ptsname(&master, Vec::new())
            .unwrap()
            .into_string()
            .unwrap();
        let index = name.strip_prefix("/dev/pts/").unwrap().parse().unwrap();
        assert_eq!(live(&master).kind, FdInfoKind::Tty { index });
    }
    let memfd: OwnedFd = rustix::fs::memfd_create("a name", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(me().fd_link(memfd.as_raw_fd()).unwrap(), b"/memfd:a name (deleted)");
}

#[test]
fn bad_numbers_and_names() {
    for pid in [0, -1, i32::MIN] {
        assert_eq!(ProcDir::open(pid).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(ProcDir::open(i32::MAX).unwrap_err().kind(), ErrorKind::NotFound);
    for name in ["/etc/passwd", "../1/stat", "task/../../1/stat"] {
        assert_eq!(me().read(name).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(me().fdinfo(-1).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(me().read("no such file").unwrap_err().kind(), ErrorKind::NotFound);
}
