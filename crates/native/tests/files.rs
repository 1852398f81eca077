//! Open files are saved from a stopped program and opened again here, where the program's own view can be compared.

#![allow(clippy::unwrap_used)]

mod files_support;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use cpr_image::model::{FlockKind, Object, SavedFileKind};
use cpr_kernel::proc::{FdInfo, ProcDir};
use cpr_native::files;
use cpr_types::{Error, ErrorKind};
use files_support::{Pages, Program, Restored};

fn own_info(fd: BorrowedFd<'_>) -> FdInfo {
    ProcDir::open(std::process::id() as i32)
        .unwrap()
        .fdinfo(fd.as_raw_fd())
        .unwrap()
}

fn file(fd: BorrowedFd<'_>) -> std::fs::File {
    fd.try_clone_to_owned().unwrap().into()
}

/// Access mode and status flags without close-on-exec.
fn flags(info: &FdInfo) -> i32 {
    info.flags & !libc::O_CLOEXEC
}

fn refused<T>(result: Result<T, Error>, kind: ErrorKind, words: &[&str]) {
    let error = result.err().expect("not refused");
    let text = error.chain();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

/// LBNL-2.2.4B.14, LBNL-3.9.8.1.1, LBNL-3.9.8.1.2, LBNL-3.9.8.1.6, LBNL-3.9.8.1.8: fifty files in different modes and
/// at different offsets; each takes one more record at the right place.
#[test]
fn regular_files_keep_modes_flags_and_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
d = sys.argv[1]
base = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR|os.O_APPEND, os.O_WRONLY|os.O_APPEND|os.O_NONBLOCK,
        os.O_RDWR|os.O_SYNC, os.O_RDWR|os.O_DSYNC, os.O_RDONLY|os.O_NOATIME, os.O_RDONLY|os.O_NOFOLLOW, os.O_RDWR|os.O_NONBLOCK]
for i in range(50):
  p = f'{d}/f{i}'
  open(p, 'w').write('0123456789' * (i + 1))
  fd = os.open(p, base[i % 10])
  os.lseek(fd, i + 3, 0)
  os.dup2(fd, 100 + 7 * i, i % 2 == 0)
  os.close(fd)
ready()
"#;
    let program = Program::start(script, &[dir.path().to_str().unwrap()]);
    let before: Vec<FdInfo> = (0..50)
        .map(|i| program.targets[0].proc.fdinfo(100 + 7 * i).unwrap())
        .collect();
    let restored = program.move_here();
    for (i, before) in before.iter().enumerate() {
        let number = 100 + 7 * i as i32;
        let fd = restored.at(0, number);
        let now = own_info(fd);
        assert_eq!(
            (now.pos, flags(&now)),
            (i as u64 + 3, flags(before)),
            "descriptor {number}"
        );
        let descriptors = &restored.manifest.processes[0].descriptors;
        let cloexec = descriptors.iter().find(|d| d.fd == number).unwrap().close_on_exec;
        assert_eq!(cloexec, before.flags & libc::O_CLOEXEC != 0);
        let path = dir.path().join(format!("f{i}"));
        if before.flags & libc::O_ACCMODE == libc::O_RDONLY {
            let mut digit = [0];
            file(fd).read_exact(&mut digit).unwrap();
            assert_eq!(digit[0], b'0' + ((i + 3) % 10) as u8);
            continue;
        }
        file(fd).write_all(b"RECORD").unwrap();
        let text = std::fs::read(path).unwrap();
        let appends = before.flags & libc::O_APPEND != 0;
        let at = if appends { 10 * (i + 1) } else { i + 3 };
        assert_eq!(&text[at..at + 6], b"RECORD", "descriptor {number}");
    }
}

#[test]
fn descriptions_shared_by_descriptors_and_processes_are_shared_again() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
p = sys.argv[1] + '/f'
open(p, 'w').write('x' * 100)
a = os.open(p, os.O_RDWR)
os.dup2(a, 50); os.dup2(a, 51)
b = os.open(p, os.O_RDWR); os.dup2(b, 52)
for fd in range(60, 100): os.dup2(os.open('/dev/null', os.O_RDONLY), fd)
child = os.fork()
if child == 0: time.sleep(1000)
ready(child)
"#;
    let restored = Program::start(script, &[dir.path().to_str().unwrap()]).move_here();
    assert_eq!(restored.id(0, 50), restored.id(0, 51));
    assert_eq!(restored.id(0, 50), restored.id(1, 51));
    assert_ne!(restored.id(0, 50), restored.id(0, 52));
    assert_eq!(restored.id(1, 52), restored.id(0, 52));
    // Forty descriptions that look alike are told apart, and found again in the child.
    let ids: std::collections::HashSet<usize> = (60..100).map(|fd| restored.id(0, fd)).collect();
    assert_eq!(ids.len(), 40);
    assert!((60..100).all(|fd| restored.id(0, fd) == restored.id(1, fd)));
}

#[test]
fn files_changed_since_are_cut_back_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
d = sys.argv[1]
for name, flags in ('log', os.O_WRONLY|os.O_APPEND), ('input', os.O_RDONLY), ('both', os.O_RDONLY), ('both', os.O_RDWR):
  open(f'{d}/{name}', 'w').write('0123456789')
  os.lseek(os.open(f'{d}/{name}', flags), 10, 0)
ready()
"#;
    let mut program = Program::start(script, &[dir.path().to_str().unwrap()]);
    let (manifest, pages) = program.save().unwrap();
    program.kill();
    let path = |name: &str| dir.path().join(name);
    let grow = |name: &str| {
        let mut file = std::fs::File::options().append(true).open(path(name)).unwrap();
        file.write_all(b"after the checkpoint").unwrap();
    };
    let length = |name: &str| std::fs::metadata(path(name)).unwrap().len();
    let restore = || Restored::new(manifest.clone(), &pages);
    grow("log");
    grow("both");
    restore().unwrap();
    assert_eq!((length("log"), length("both")), (10, 10));

    grow("log");
    grow("input");
    refused(
        restore(),
        ErrorKind::Incompatible,
        &["descriptor", "input", "30 bytes now", "10 at"],
    );
    assert_eq!(length("log"), 30, "a refused restart changes nothing");
    std::fs::write(path("input"), "0123456789").unwrap();
    std::fs::write(path("log"), "short").unwrap();
    refused(restore(), ErrorKind::Incompatible, &["log", "5 bytes now"]);
    std::fs::remove_file(path("log")).unwrap();
    refused(restore(), ErrorKind::Incompatible, &["log"]);
    // Nothing is followed or opened that is not the file it was.
    std::os::unix::fs::symlink(path("input"), path("log")).unwrap();
    refused(restore(), ErrorKind::Incompatible, &["log", "another kind"]);
}

/// LBNL-2.2.4B.19, LBNL-3.9.8.6.1, LBNL-3.9.8.6.2.
#[test]
fn deleted_files_keep_their_contents() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
d = sys.argv[1]
f = os.open(d + '/gone', os.O_RDWR|os.O_CREAT, 0o640)
os.write(f, b'start'); os.pwrite(f, bytes(range(256)) * 4096, 3000000); os.ftruncate(f, 10000001)
os.dup2(f, 40)
os.dup2(os.open(d + '/gone', os.O_RDONLY), 41)
os.dup2(os.open(d + '/gone', os.O_WRONLY|os.O_APPEND), 42)
os.unlink(d + '/gone')
open(d + '/old', 'w').write('old'); os.dup2(os.open(d + '/old', os.O_WRONLY), 43)
open(d + '/new', 'w').write('new'); os.rename(d + '/new', d + '/old')
os.dup2(os.open(d, os.O_TMPFILE|os.O_RDWR, 0o600), 44); os.write(44, b'unnamed')
open(d + '/odd (deleted)', 'w').write('odd'); os.dup2(os.open(d + '/odd (deleted)', os.O_RDONLY), 45)
os.closerange(3, 40)
ready()
"#;
    let mut program = Program::start(script, &[dir.path().to_str().unwrap()]);
    let (manifest, pages) = program.save().unwrap();
    program.kill();
    assert!(pages.0.len() < 2 << 20, "holes take space: {}", pages.0.len());
    assert_eq!(manifest.saved_files.len(), 3);
    let missing = tempfile::tempdir().unwrap().path().to_owned(); // removed at once
    let restored = Restored::new(manifest.clone(), &pages).unwrap();
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");

    let one = file(restored.at(0, 40));
    let metadata = one.metadata().unwrap();
    assert_eq!(
        (metadata.len(), metadata.nlink(), metadata.mode() & 0o777),
        (10000001, 0, 0o640)
    );
    assert_eq!(own_info(restored.at(0, 40)).pos, 5);
    let mut all = vec![0; 10000001];
    one.read_exact_at(&mut all, 0).unwrap();
    let expected: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();
    assert_eq!(&all[..6], b"start\0");
    assert_eq!(&all[3000000..3000000 + (1 << 20)], expected);
    assert!(all[3000000 + (1 << 20)..].iter().all(|b| *b == 0));
    // Three descriptions, one file.
    one.write_at(b"START", 0).unwrap();
    let mut start = [0; 5];
    file(restored.at(0, 41)).read_exact(&mut start).unwrap();
    assert_eq!(&start, b"START");
    assert!(file(restored.at(0, 41)).write_all(b"x").is_err());
    file(restored.at(0, 42)).write_all(b"end").unwrap();
    assert_eq!(one.metadata().unwrap().len(), 10000004);
    // Replaced under its name: the old file is kept, the new one is left alone.
    let old = std::fs::read(format!("/proc/self/fd/{}", restored.at(0, 43).as_raw_fd())).unwrap();
    assert_eq!(
        (
            old.as_slice(),
            std::fs::read(dir.path().join("old")).unwrap().as_slice()
        ),
        (&b"old"[..], &b"new"[..])
    );
    let mut unnamed = [0; 7];
    file(restored.at(0, 44)).read_exact_at(&mut unnamed, 0).unwrap();
    assert_eq!(&unnamed, b"unnamed");
    let odd = restored.id(0, 45);
    assert!(matches!(&restored.manifest.files[odd].object, Object::Regular(r) if r.path.0.ends_with(b"odd (deleted)")));

    let mut elsewhere = manifest;
    if let SavedFileKind::Deleted { path } = &mut elsewhere.saved_files[0].kind {
        *path = missing.join("gone").as_path().into();
    }
    // A directory that is missing was deleted, too: it is made for a moment.
    Restored::new(elsewhere, &pages).unwrap();
    assert!(!missing.exists());
}

#[test]
fn memfds_keep_name_seals_and_contents() {
    let script = r#"
a = os.memfd_create('alpha', os.MFD_ALLOW_SEALING); os.write(a, b'contents'); os.dup2(a, 40)
fcntl.fcntl(a, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK|fcntl.F_SEAL_GROW)
b = os.memfd_create('beta'); os.write(b, b'unsealable'); os.lseek(b, 2, 0); os.dup2(b, 41)
c = os.memfd_create('gamma', os.MFD_ALLOW_SEALING); os.write(c, b'fixed'); os.dup2(c, 42)
fcntl.fcntl(c, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE|fcntl.F_SEAL_SEAL)
d = os.memfd_create('delta', os.MFD_ALLOW_SEALING); os.fchmod(d, 0o400); os.dup2(d, 43)
fcntl.fcntl(d, fcntl.F_ADD_SEALS, 16)
ready()
"#;
    let program = Program::start(script, &[]);
    let link = |fd: i32| program.targets[0].proc.fd_link(fd).unwrap();
    let before: Vec<Vec<u8>> = (40..44).map(link).collect();
    let restored = program.move_here();
    let own = ProcDir::open(std::process::id() as i32).unwrap();
    let now: Vec<Vec<u8>> = (40..44)
        .map(|fd| own.fd_link(restored.at(0, fd).as_raw_fd()).unwrap())
        .collect();
    assert_eq!(now, before);
    let seals = |fd: i32| rustix::fs::fcntl_get_seals(restored.at(0, fd)).unwrap().bits();
    assert_eq!((seals(40), seals(41), seals(42), seals(43)), (6, 1, 9, 16));
    let text = |fd: i32| std::fs::read(format!("/proc/self/fd/{}", restored.at(0, fd).as_raw_fd())).unwrap();
    assert_eq!(
        (text(40), text(41), text(42)),
        (b"contents".to_vec(), b"unsealable".to_vec(), b"fixed".to_vec())
    );
    assert_eq!(own_info(restored.at(0, 41)).pos, 2);
    assert_eq!(rustix::fs::fstat(restored.at(0, 43)).unwrap().st_mode & 0o777, 0o400);
}

/// LBNL-2.2.4B.11, LBNL-3.9.6.2.1, LBNL-3.9.6.2.2: the bytes, packet boundaries and capacity. Saving takes nothing out.
#[test]
fn pipes_keep_their_data() {
    let script = r#"
def pipe(r, w, flags=0):
  a, b = os.pipe2(flags); os.dup2(a, r); os.dup2(b, w); os.close(a); os.close(b)
pipe(40, 41); os.write(41, bytes(i * 7 % 256 for i in range(65536)))
pipe(42, 43, os.O_DIRECT|os.O_NONBLOCK); [os.write(43, b'p' * n) for n in (10, 4096, 1)]
pipe(44, 45); fcntl.fcntl(44, 1031, 4096)
pipe(46, 47); os.write(47, b'last words'); os.close(47)
pipe(48, 49); os.close(48)
pipe(50, 51); fcntl.fcntl(50, 1031, 262144); [os.write(51, b'q') for _ in range(5)]; os.write(51, b'z' * 200000)
os.dup2(os.open('/proc/self/fd/50', os.O_RDWR), 52)
ready()
"#;
    let mut program = Program::start(script, &[]);
    program.save().unwrap();
    let (manifest, pages) = program.save().unwrap(); // what was saved once is still there
    program.kill();
    let fionread = |fd| rustix::io::ioctl_fionread(fd).unwrap();
    let restored = Restored::new(manifest, &pages).unwrap();
    let at = |fd| restored.at(0, fd);
    assert_eq!(fionread(at(40)), 65536);
    let mut bytes = vec![0; 65536];
    file(at(40)).read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(i, b)| *b == (i * 7 % 256) as u8));
    let mut buffer = [0; 8192];
    let mut packet = || file(at(42)).read(&mut buffer).unwrap();
    assert_eq!((packet(), packet(), packet()), (10, 4096, 1));
    assert_eq!(
        file(at(42)).read(&mut buffer).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    let size = |fd| rustix::pipe::fcntl_getpipe_size(fd).unwrap();
    assert_eq!((size(at(40)), size(at(44)), size(at(50))), (65536, 4096, 262144));
    let mut rest = Vec::new();
    file(at(46)).read_to_end(&mut rest).unwrap(); // ends, since the writer was gone
    assert_eq!(rest, b"last words");
    assert_eq!(
        file(at(49)).write(b"x").unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
    assert_eq!(fionread(at(50)), 200005);
    // Connected again, also the description opened through /proc.
    file(at(45)).write_all(b"hello").unwrap();
    assert_eq!(fionread(at(44)), 5);
    file(at(52)).write_all(b"!").unwrap();
    assert_eq!(fionread(at(50)), 200006);
    assert_eq!(flags(&own_info(at(40))), 0);
    assert_eq!(
        flags(&own_info(at(43))),
        libc::O_WRONLY | libc::O_DIRECT | libc::O_NONBLOCK
    );
}

/// LBNL-2.2.4B.12, LBNL-3.9.6.1.1, LBNL-3.9.6.1.2, LBNL-3.9.6.1.4.
#[test]
fn fifos_keep_data_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
p = sys.argv[1] + '/fifo'
os.mkfifo(p); os.chmod(p, 0o623)
os.dup2(os.open(p, os.O_RDONLY|os.O_NONBLOCK), 40); os.dup2(os.open(p, os.O_WRONLY), 41)
os.closerange(3, 40)
os.write(41, b'queued')
q = sys.argv[1] + '/gone'
os.mkfifo(q); os.dup2(os.open(q, os.O_RDWR), 42); os.unlink(q); os.write(42, b'nameless')
ready()
"#;
    let mut program = Program::start(script, &[dir.path().to_str().unwrap()]);
    let (manifest, pages) = program.save().unwrap();
    let path = dir.path().join("fifo");
    let busy = Restored::new(manifest.clone(), &pages);
    refused(busy, ErrorKind::InUse, &["fifo", "6 bytes"]);
    program.kill();
    std::fs::remove_file(&path).unwrap();
    let restored = Restored::new(manifest, &pages).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o623);
    let mut text = [0; 100];
    assert_eq!(file(restored.at(0, 40)).read(&mut text).unwrap(), 6);
    assert_eq!(&text[..6], b"queued");
    file(restored.at(0, 41)).write_all(b"more").unwrap();
    assert_eq!(file(restored.at(0, 40)).read(&mut text).unwrap(), 4);
    assert_eq!(flags(&own_info(restored.at(0, 41))) & libc::O_NONBLOCK, 0);
    assert_eq!(file(restored.at(0, 42)).read(&mut text).unwrap(), 8);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// LBNL-3.9.8.4.1, .2, .4 to .6, LBNL-3.9.8.11.1, LBNL-3.9.8.11.2.
#[test]
fn devices_directories_and_proc_files() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..200 {
        std::fs::write(dir.path().join(format!("entry{i}")), "").unwrap();
    }
    let script = r#"
d = sys.argv[1]
for i, name in enumerate(('null', 'zero', 'full', 'random', 'urandom')): os.dup2(os.open('/dev/' + name, os.O_RDWR), 40 + i)
os.dup2(os.open(d, os.O_RDONLY|os.O_DIRECTORY), 50)
buf = ctypes.create_string_buffer(1024)
seen = set()
n = libc.syscall(217, 50, buf, 1024)
at = 0
while at < n:
  length = struct.unpack_from('H', buf.raw, at + 16)[0]
  seen.add(buf.raw[at + 19:at + length].split(b'\0')[0].decode()); at += length
open(d + '/../' + os.path.basename(d) + '.seen', 'w').write('\n'.join(sorted(seen)))
os.dup2(os.open('/proc/meminfo', os.O_RDONLY), 51)
os.dup2(os.open(d, os.O_PATH), 52); os.dup2(os.open(d + '/entry0', os.O_PATH|os.O_NOFOLLOW), 53)
os.dup2(os.open('/sys/kernel/mm/transparent_hugepage/enabled', os.O_RDONLY), 54)
os.dup2(os.open('/proc/%d/status' % os.getpid(), os.O_RDONLY), 55); os.read(55, 6)
os.dup2(os.open('/proc/self/task', os.O_RDONLY), 56)
ready()
"#;
    let program = Program::start(script, &[dir.path().to_str().unwrap()]);
    let pid = program.root();
    // The process must exist at restart, so it goes on.
    let (manifest, pages) = program.save().unwrap();
    let restored = Restored::new(manifest, &pages).unwrap();
    let at = |fd| restored.at(0, fd);
    let rdev = |fd| std::os::linux::fs::MetadataExt::st_rdev(&file(at(fd)).metadata().unwrap());
    for (i, minor) in [3, 5, 7, 8, 9].into_iter().enumerate() {
        assert_eq!(rdev(40 + i as i32), rustix::fs::makedev(1, minor));
    }
    let mut text = [1; 16];
    assert_eq!(file(at(40)).read(&mut text).unwrap(), 0);
    assert_eq!(file(at(41)).read(&mut text).unwrap(), 16);
    assert_eq!(text, [0; 16]);
    assert!(file(at(42)).write(b"x").is_err());

    let seen_file = dir.path().with_extension("seen");
    let seen_file = if seen_file.exists() {
        seen_file
    } else {
        format!("{}.seen", dir.path().display()).into()
    };
    let seen = std::fs::read_to_string(&seen_file).unwrap();
    std::fs::remove_file(seen_file).unwrap();
    let mut names: Vec<String> = seen.lines().map(str::to_owned).collect();
    let first = names.len();
    for entry in rustix::fs::Dir::new(at(50).try_clone_to_owned().unwrap()).unwrap() {
        names.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
    }
    assert!(first > 2 && first < 202, "{first}");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 202, "every entry once, with . and ..");

    assert!(
        matches!(&restored.manifest.files[restored.id(0, 55)].object, Object::Proc { pid: Some(p), .. } if *p == pid)
    );
    let mut status = String::new();
    file(at(55)).read_to_string(&mut status).unwrap();
    assert!(
        status.starts_with("python3") && status.contains(&format!("\nPid:\t{pid}\n")),
        "{status}"
    );
    assert_eq!(rustix::fs::Dir::read_from(at(56)).unwrap().count(), 3);
    assert_eq!(flags(&own_info(at(52))), libc::O_PATH);
    assert_eq!(flags(&own_info(at(53))), libc::O_PATH | libc::O_NOFOLLOW);
    let mut text = String::new();
    file(at(54)).read_to_string(&mut text).unwrap();
    assert!(text.contains("always"));
}

/// LBNL-3.9.8.8.1, LBNL-3.9.8.8.3 and .4 (for flock and OFD locks): all three kinds are saved; those of descriptions
/// are taken again, or the restart is refused. Record locks are taken by the process itself, which is not there in this
/// test.
#[test]
fn locks_are_saved_and_taken_again() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
d = sys.argv[1]
def new(name, fd):
  open(f'{d}/{name}', 'w').write('x' * 100); os.dup2(os.open(f'{d}/{name}', os.O_RDWR), fd)
new('flock', 40); fcntl.flock(40, fcntl.LOCK_EX)
new('shared', 41); fcntl.flock(41, fcntl.LOCK_SH)
new('ofd', 42)
fcntl.fcntl(42, 37, struct.pack('hhxxxxqqixxxx', fcntl.F_WRLCK, 0, 10, 20, 0))
fcntl.fcntl(42, 37, struct.pack('hhxxxxqqixxxx', fcntl.F_RDLCK, 0, 50, 0, 0))
new('posix', 43); os.dup2(os.open(d + '/posix', os.O_RDONLY), 39)
fcntl.lockf(43, fcntl.LOCK_EX, 5, 10); fcntl.lockf(39, fcntl.LOCK_SH, 0, 90)
ready()
"#;
    let mut program = Program::start(script, &[dir.path().to_str().unwrap()]);
    let (manifest, pages) = program.save().unwrap();
    let locks = &manifest.processes[0].posix_locks;
    assert_eq!(locks.len(), 2, "{locks:?}");
    let exclusive = locks.iter().find(|l| l.exclusive).unwrap();
    assert_eq!((exclusive.start, exclusive.length), (10, 5));
    let shared = locks.iter().find(|l| !l.exclusive).unwrap();
    assert_eq!((shared.start, shared.length), (90, 0));
    let mut batch = cpr_kernel::batch::Batch::new();
    files::finish(&manifest.processes[0], &manifest, &mut batch).unwrap();
    // Two record locks, two of flock(2).
    assert_eq!(batch.len(), 4);

    refused(Restored::new(manifest.clone(), &pages), ErrorKind::InUse, &["ofd"]);
    program.kill();
    let restored = Restored::new(manifest, &pages).unwrap();
    let saved = |fd| &restored.manifest.files[restored.id(0, fd)];
    assert_eq!(
        (saved(40).flock, saved(41).flock),
        (Some(FlockKind::Exclusive), Some(FlockKind::Shared))
    );
    assert_eq!(saved(42).ofd_locks, [(true, 10, 20), (false, 50, 0)]);
    let again = |name: &str| {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(dir.path().join(name))
            .unwrap()
    };
    let ofd =
        |exclusive, start, length| cpr_kernel::fd::lock_description(again("ofd").as_fd(), exclusive, start, length);
    assert!(ofd(false, 10, 1).is_err() && ofd(true, 1000, 1).is_err());
    ofd(true, 30, 20).unwrap();
    ofd(false, 1000, 1).unwrap();
}

#[test]
fn signal_driven_io_is_set_up_again() {
    let script = r#"
r, w = os.pipe(); os.dup2(r, 40); os.dup2(w, 41)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
fcntl.fcntl(40, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(40, 10, signal.SIGUSR1)
fcntl.fcntl(40, fcntl.F_SETFL, os.O_ASYNC|os.O_NONBLOCK)
ready()
"#;
    let program = Program::start(script, &[]);
    let pid = program.root();
    let (manifest, pages) = program.save().unwrap(); // the owner must exist at restart
    let restored = Restored::new(manifest, &pages).unwrap();
    let fd = restored.at(0, 40);
    let owner = cpr_kernel::fd::owner(fd).unwrap();
    assert_eq!((owner.kind, owner.id), (1, pid));
    assert_eq!(cpr_kernel::fd::owner_signal(fd).unwrap(), libc::SIGUSR1);
    assert_eq!(flags(&own_info(fd)), libc::O_ASYNC | libc::O_NONBLOCK);
}

/// LBNL-3.9.8.1.3, LBNL-3.9.8.1.4: standard streams that lead out become those of whoever restarts.
#[test]
fn streams_that_lead_out_are_supplied_at_restart() {
    let script = "os.dup2(1, 2); os.dup2(1, 30)\nready()";
    let mut program = Program::start(script, &[]);
    assert!(program.check().is_empty(), "{:?}", program.check());
    let (manifest, pages) = program.save().unwrap();
    program.kill();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut other, second) = std::io::pipe().unwrap();
    let streams = [None, Some(OwnedFd::from(writer)), Some(OwnedFd::from(second))];
    let restored = Restored::with_streams(manifest, &pages, &streams).unwrap();
    drop(streams);
    let stream = |fd| match restored.manifest.files[restored.id(0, fd)].object {
        Object::Inherited { stream } => stream,
        ref object => panic!("{object:?}"),
    };
    assert_eq!((stream(1), stream(2), stream(30)), (1, 2, 1));
    file(restored.at(0, 1)).write_all(b"one").unwrap();
    file(restored.at(0, 30)).write_all(b"three").unwrap();
    file(restored.at(0, 2)).write_all(b"two").unwrap();
    drop(restored);
    let mut text = [String::new(), String::new()];
    reader.read_to_string(&mut text[0]).unwrap();
    other.read_to_string(&mut text[1]).unwrap();
    assert_eq!(text, ["onethree", "two"]);
}

/// LBNL-3.9.8.1.5, LBNL-3.9.8.4.3A, LBNL-3.9.8.4.3B: /dev/tty follows its own rule, another name of the terminal
/// becomes that of the new one, and the standard streams beside it follow theirs.
#[test]
fn the_terminal_the_job_was_started_on_is_replaced() {
    let script = r#"
out = os.dup(1)
os.setsid()
for fd in range(3): os.dup2(os.open(sys.argv[1], os.O_RDWR), fd)
os.dup2(os.open('/dev/tty', os.O_RDWR), 50)
os.dup2(os.open(sys.argv[1], os.O_RDONLY), 51)
os.write(out, b'ready\n')
os.closerange(3, 50)
time.sleep(1000)
"#;
    let terminal = || {
        let pair = cpr_kernel::terminal_relay::open_pair().unwrap();
        let path = std::fs::read_link(format!("/proc/self/fd/{}", pair.slave.as_raw_fd())).unwrap();
        (pair, path)
    };
    let (old, old_path) = terminal();
    let mut program = Program::start(script, &[old_path.to_str().unwrap()]);
    let mut attributes = cpr_kernel::terminal::attributes(old.slave.as_fd()).unwrap();
    attributes.local &= !libc::ECHO;
    cpr_kernel::terminal::set_attributes(old.slave.as_fd(), &attributes).unwrap();
    // It closes the pipe to us after it has said that it is ready.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !program.check().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", program.check());
        std::thread::yield_now();
    }
    let (manifest, pages) = program.save().unwrap();
    program.kill();
    assert_eq!(manifest.terminals.len(), 1);
    assert!(manifest.terminals[0].external);
    let tty = manifest.processes[0]
        .descriptors
        .iter()
        .find(|d| d.fd == 50)
        .unwrap()
        .file;
    assert!(matches!(manifest.files[tty.index()].object, Object::TerminalSlave(_)));

    let (new, _) = terminal();
    let slave = new.slave.try_clone().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let streams = [
        Some(slave.try_clone().unwrap()),
        Some(OwnedFd::from(writer)),
        Some(slave.try_clone().unwrap()),
    ];
    let restored = Restored::with_terminal(manifest, &pages, &streams, Some(&slave)).unwrap();
    file(restored.at(0, 1)).write_all(b"to the pipe").unwrap();
    file(restored.at(0, 50)).write_all(b"to the tty").unwrap();
    file(restored.at(0, 2)).write_all(b", too").unwrap();
    let mut text = [0; 100];
    let n = reader.read(&mut text).unwrap();
    assert_eq!(&text[..n], b"to the pipe");
    // A terminal may hand over each write by itself.
    file(new.master.as_fd()).read_exact(&mut text[..15]).unwrap();
    assert_eq!(&text[..15], b"to the tty, too");
    let device = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_rdev;
    assert_eq!(device(restored.at(0, 51)), device(slave.as_fd()));
    let now = cpr_kernel::terminal::attributes(slave.as_fd()).unwrap();
    assert_eq!(now.local & libc::ECHO, 0);
}

/// LBNL-2.4.9: refused with process, descriptor and object, by the check of the running program and by the checkpoint.
#[test]
fn what_cannot_be_saved_is_named() {
    let own = std::process::id();
    let cases: &[(&str, &[&str])] = &[
        (
            "os.dup2(os.open(f'/proc/{os.getppid()}/status', os.O_RDONLY), 40)",
            &["/status", "not part of the job"],
        ),
        ("os.dup2(libc.syscall(323, 1), 40)", &["userfaultfd"]),
        ("os.dup2(os.open('/dev/kmsg', os.O_RDONLY), 40)", &["/dev/kmsg", "1:11"]),
        (
            "os.dup2(os.open(f'/proc/{os.getppid()}/fd/' + sys.argv[1], os.O_RDONLY), 40)",
            &["pipe:", "outside"],
        ),
        (
            "s = socket.socket(socket.AF_UNIX); s.connect('\\0' + sys.argv[2]); os.dup2(s.fileno(), 40); s.close()",
            &["outside"],
        ),
    ];
    let (reader, _writer) = std::io::pipe().unwrap();
    let name = format!("cpr-files-test-{own}");
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (number, (script, words)) in cases.iter().enumerate() {
        if script.contains("/dev/kmsg") && std::fs::File::open("/dev/kmsg").is_err() {
            continue; // not everybody may
        }
        let directory = dir.path().join(number.to_string());
        let pipe = reader.as_raw_fd().to_string();
        let script = format!("{script}\nos.closerange(3, 40)\nready()");
        let program = Program::start(&script, &[&pipe, &name, directory.to_str().unwrap()]);
        let blockers = program.check();
        assert_eq!(blockers.len(), 1, "{script}: {blockers:?}");
        let text = format!(
            "process {}, {}: {}",
            blockers[0].pid, blockers[0].object, blockers[0].reason
        );
        let known = format!("process {}, descriptor 40 (", program.root());
        for word in words.iter().copied().chain([known.as_str()]) {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
        let wanted: Vec<&str> = words.iter().copied().chain([known.as_str()]).collect();
        refused(program.save(), ErrorKind::Unsupported, &wanted);
    }
}

#[test]
fn descriptor_tables_of_their_own_are_refused() {
    let script = r#"
import threading
def other(): libc.unshare(0x400); time.sleep(1000)
threading.Thread(target=other, daemon=True).start(); time.sleep(0.2)
ready()
"#;
    let program = Program::start(script, &[]);
    let blockers = program.check();
    assert!(
        blockers.iter().any(|b| b.reason.contains("descriptors of its own")),
        "{blockers:?}"
    );
    refused(
        program.save(),
        ErrorKind::Unsupported,
        &["thread", "descriptors of its own"],
    );
}

#[test]
fn descriptors_only_in_messages_are_found() {
    let script = r#"
a, b = socket.socketpair(); os.dup2(a.fileno(), 40); os.dup2(b.fileno(), 41); a.detach(); b.detach()
r, w = os.pipe(); os.write(w, b'inside'); os.dup2(w, 42)
s = socket.socket(fileno=os.dup(40)); socket.send_fds(s, [b'here'], [r, w]); s.close()
os.closerange(3, 40)
ready()
"#;
    let program = Program::start(script, &[]);
    assert!(program.check().is_empty(), "{:?}", program.check());
    let restored = program.move_here();
    let socket: std::os::unix::net::UnixStream = restored.at(0, 41).try_clone_to_owned().unwrap().into();
    let message = cpr_kernel::socket::peek(socket.as_fd(), 100).unwrap().unwrap();
    assert_eq!(message.data, b"here");
    let [read, write] = <[OwnedFd; 2]>::try_from(message.rights).unwrap();
    let mut text = [0; 6];
    std::fs::File::from(read).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"inside");
    let pid = std::process::id() as i32;
    let same = cpr_kernel::fd::compare_files(pid, write.as_raw_fd(), pid, restored.at(0, 42).as_raw_fd()).unwrap();
    assert!(same.is_eq(), "the writer in the message is the program's own");
}

#[test]
fn shared_memory_without_descriptor_is_read_from_its_mappings() {
    let mut saved = files::SavedFiles::default();
    let (dev, ino) = (u64::MAX, 7); // no such file, so that only memory can be read
    let kind = SavedFileKind::SharedAnonymous;
    let first = saved.intern_mapping(dev, ino, kind.clone(), 1 << 30, 0x10000, 0x14000, 0x2000);
    let second = saved.intern_mapping(dev, ino, kind, 1 << 30, 0x50000, 0x53000, 0);
    assert_eq!((first, saved.len()), (second, 1));
    let mut pages = Pages::default();
    let memory: &mut files::ReadMemory<'_> = &mut |_, address, buffer| {
        for (i, byte) in buffer.iter_mut().enumerate() {
            let at = address + i as u64;
            let offset = if at >= 0x50000 {
                at - 0x50000
            } else {
                at - 0x10000 + 0x2000
            };
            *byte = (offset / 4096) as u8; // page 0 is zero
        }
        Ok(())
    };
    let files = saved.write_contents(&mut pages, memory).unwrap();
    assert_eq!((files[0].size, pages.0.len()), (0x6000, 5 * 4096));
    let manifest = cpr_image::model::Manifest {
        saved_files: files,
        ..Default::default()
    };
    let made = files::create_saved(&manifest, &pages, &mut files::Backups::default()).unwrap();
    let text = std::fs::read(Path::new("/proc/self/fd").join(made[0].as_raw_fd().to_string())).unwrap();
    assert!(text.iter().enumerate().all(|(i, b)| usize::from(*b) == i / 4096));
    assert_eq!(text.len(), 0x6000);
}
