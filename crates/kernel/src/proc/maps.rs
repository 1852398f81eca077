//! `/proc/PID/maps` and the flags in `/proc/PID/smaps`.

use std::io;

use super::{At, decimal, hex, lines, split_once, unescape};

const DELETED: &[u8] = b" (deleted)";

/// One mapping.
///
/// The text alone does not always tell what a path is. The kernel appends ` (deleted)` to the path of an unlinked file
/// but does not mark a file that really has such a name, and it writes a newline as `\012` but does not escape a
/// backslash. Compare `stat` of [`path`](Self::path), and then of [`raw_path`](Self::raw_path), with
/// [`dev`](Self::dev) and [`inode`](Self::inode) to be sure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Address after the last one.
    pub end: u64,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
    /// Shared, as opposed to private.
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Major and minor device number of the file system; zeros without a file.
    ///
    /// On file systems that give their subvolumes device numbers of their own (btrfs) this is not `st_dev`.
    pub dev: (u32, u32),
    /// Inode number, 0 without a file.
    pub inode: u64,
    /// Path of the file or name of the mapping, with `\012` undone and a final ` (deleted)` removed; may be empty.
    pub path: Vec<u8>,
    /// Whether ` (deleted)` was removed from the path of a file.
    pub deleted: bool,
    /// The path or name as it is in the file.
    pub raw_path: Vec<u8>,
}

/// What a mapping is, judged by its name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind<'a> {
    /// Private memory without a name.
    Anonymous,
    /// `[heap]`: private memory that overlaps the program break.
    Heap,
    /// `[stack]`: the main stack.
    Stack,
    /// `[vdso]`
    Vdso,
    /// `[vvar]`
    Vvar,
    /// `[vvar_vclock]`
    VvarVclock,
    /// `[vsyscall]`: not a mapping of the process, but the same in all.
    Vsyscall,
    /// `[uprobes]`
    Uprobes,
    /// `[anon:NAME]`: private memory with a name given by prctl(2).
    AnonNamed(&'a [u8]),
    /// `[anon_shmem:NAME]`: shared memory without a file, with a name given by prctl(2).
    AnonShmemNamed(&'a [u8]),
    /// Any other name in brackets.
    Special(&'a [u8]),
    /// `/dev/zero (deleted)`: shared memory without a file. All mappings of one such object have the same inode.
    SharedAnonymous,
    /// `/anon_hugepage (deleted)`: memory in explicit huge pages, private or shared.
    HugePages,
    /// `/SYSVxxxxxxxx`: a System V segment. Its identifier is the inode number.
    SysvShm {
        /// The segment's key, 0 for `IPC_PRIVATE`.
        key: u32,
    },
    /// `/memfd:NAME`: memfd_create(2).
    Memfd(&'a [u8]),
    /// `/[aio]`: a ring of io_setup(2).
    Aio,
    /// `/secretmem`: memfd_secret(2).
    SecretMemory,
    /// `anon_inode:NAME`: a descriptor of some kernel service.
    AnonInode(&'a [u8]),
    /// `socket:[123]`: the rings of a packet socket.
    Socket,
    /// Any other name that is no path.
    Pseudo(&'a [u8]),
    /// A file with a path.
    File,
}

impl MapEntry {
    /// What the mapping is, judged by its name.
    ///
    /// The names of the kernel's own objects count only where such an object can be: on a device with major number 0
    /// and, except for names without a slash, marked as deleted. A process which can make and unlink a file such as
    /// `/memfd:x` in the root directory of a file system without a device can still mimic them.
    pub fn kind(&self) -> MapKind<'_> {
        match self.path.as_slice() {
            b"" => MapKind::Anonymous,
            [b'[', ..] => self.bracketed(),
            [b'/', ..] if self.deleted && self.dev.0 == 0 => self.kernel_object().unwrap_or(MapKind::File),
            [b'/', ..] => MapKind::File,
            other if other.starts_with(b"socket:[") && self.dev.0 == 0 => MapKind::Socket,
            other => match other.strip_prefix(b"anon_inode:") {
                Some(name) => MapKind::AnonInode(name),
                None => MapKind::Pseudo(other),
            },
        }
    }

    fn bracketed(&self) -> MapKind<'_> {
        match self.path.as_slice() {
            b"[heap]" => MapKind::Heap,
            b"[stack]" => MapKind::Stack,
            b"[vdso]" => MapKind::Vdso,
            b"[vvar]" => MapKind::Vvar,
            b"[vvar_vclock]" => MapKind::VvarVclock,
            b"[vsyscall]" => MapKind::Vsyscall,
            b"[uprobes]" => MapKind::Uprobes,
            other => match (named(other, b"[anon:"), named(other, b"[anon_shmem:")) {
                (Some(name), _) => MapKind::AnonNamed(name),
                (_, Some(name)) => MapKind::AnonShmemNamed(name),
                _ => MapKind::Special(other),
            },
        }
    }

    fn kernel_object(&self) -> Option<MapKind<'_>> {
        match self.path.as_slice() {
            b"/dev/zero" => return Some(MapKind::SharedAnonymous),
            b"/anon_hugepage" => return Some(MapKind::HugePages),
            b"/[aio]" => return Some(MapKind::Aio),
            b"/secretmem" => return Some(MapKind::SecretMemory),
            _ => {}
        }
        if let Some(key) = self.path.strip_prefix(b"/SYSV") {
            return hex(key).filter(|_| key.len() == 8).map(|key| MapKind::SysvShm { key });
        }
        self.path.strip_prefix(b"/memfd:").map(MapKind::Memfd)
    }

    /// Whether it is ordinary private memory, with no file behind it.
    pub fn is_anonymous(&self) -> bool {
        matches!(
            self.kind(),
            MapKind::Anonymous | MapKind::Heap | MapKind::Stack | MapKind::AnonNamed(_)
        ) && self.dev == (0, 0)
            && self.inode == 0
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether the mapping has no pages; the parser accepts none like that.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// The name in `[anon:NAME]` and the like.
fn named<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    text.strip_prefix(prefix)?.strip_suffix(b"]")
}

/// Parses `/proc/PID/maps`.
pub fn parse(file: &str, text: &[u8]) -> io::Result<Vec<MapEntry>> {
    lines(file, text).map(|(at, line)| entry(at, line)).collect()
}

fn entry(at: At<'_>, line: &[u8]) -> io::Result<MapEntry> {
    let mut fields = line.splitn(6, |&b| b == b' ');
    let mut field = |name: &str| at.need(fields.next(), name);
    let (start, end) = at.need(range(field("addresses")?), "addresses")?;
    let modes = field("permissions")?;
    let bad_modes = || at.bad("no valid permissions");
    let &[r, w, x, s] = modes else { return Err(bad_modes()) };
    let mode = |value: u8, yes: u8, no: u8| match value {
        _ if value == yes => Ok(true),
        _ if value == no => Ok(false),
        _ => Err(bad_modes()),
    };
    let (read, write, exec, shared) = (
        mode(r, b'r', b'-')?,
        mode(w, b'w', b'-')?,
        mode(x, b'x', b'-')?,
        mode(s, b's', b'p')?,
    );
    let offset = at.hex(field("offset")?, "offset")?;
    let (major, minor) = at.need(split_once(field("device")?, b':'), "device")?;
    let dev = (at.hex(major, "device")?, at.hex(minor, "device")?);
    let inode = at.need(decimal(field("inode")?), "inode")?;
    let raw = fields.next().unwrap_or_default();
    let blanks = raw.iter().take_while(|&&b| b == b' ').count();
    let raw_path = raw[blanks..].to_vec();
    let kept = if raw_path.first() == Some(&b'[') {
        None
    } else {
        raw_path.strip_suffix(DELETED)
    };
    let deleted = kept.is_some();
    let path = unescape(kept.unwrap_or(&raw_path), |code| code == b'\n');
    Ok(MapEntry {
        start,
        end,
        read,
        write,
        exec,
        shared,
        offset,
        dev,
        inode,
        path,
        deleted,
        raw_path,
    })
}

fn range(text: &[u8]) -> Option<(u64, u64)> {
    let (start, end) = split_once(text, b'-')?;
    Some((hex(start)?, hex(end)?)).filter(|(start, end)| start < end)
}

/// The flags of one mapping, in the two-letter codes of proc_pid_smaps(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFlags {
    /// First address.
    pub start: u64,
    /// Address after the last one.
    pub end: u64,
    /// The codes, such as `dd` for `MADV_DONTDUMP`. `??` is a flag the kernel has no code for.
    pub flags: Vec<[u8; 2]>,
    /// Its memory protection key (pkeys(7)); 0 is that of all memory.
    pub key: u32,
}

impl VmFlags {
    /// Whether `code` is among the flags.
    pub fn has(&self, code: &[u8; 2]) -> bool {
        self.flags.contains(code)
    }
}

/// Finds the `KernelPageSize:` of the mapping that starts at `start` in `/proc/PID/smaps`, in bytes.
pub fn parse_page_size(file: &str, text: &[u8], start: u64) -> io::Result<Option<u64>> {
    let mut here = false;
    for (at, line) in lines(file, text) {
        if !line.first().is_some_and(u8::is_ascii_uppercase) {
            let addresses = split_once(line, b' ').and_then(|(addresses, _)| range(addresses));
            here = at.need(addresses, "addresses")?.0 == start;
        } else if let Some(size) = line.strip_prefix(b"KernelPageSize:").filter(|_| here) {
            let number = super::words(size).next().and_then(decimal::<u64>);
            return at.need(number, "size").map(|kib| Some(kib * 1024));
        }
    }
    Ok(None)
}

/// Parses the `VmFlags:` and `ProtectionKey:` lines of `/proc/PID/smaps`; all other lines of a mapping are skipped.
pub fn parse_smaps_flags(file: &str, text: &[u8]) -> io::Result<Vec<VmFlags>> {
    let mut found = Vec::new();
    // The mapping whose flags are still to come, and where it starts.
    let mut open: Option<(At<'_>, u64, u64)> = None;
    let mut key = 0;
    let unfinished = |at: At<'_>| at.bad("the mapping that starts here has no VmFlags");
    for (at, line) in lines(file, text) {
        match line.first() {
            Some(b'V') => {
                let Some(codes) = line.strip_prefix(b"VmFlags:") else {
                    continue;
                };
                let (_, start, end) = open.take().ok_or_else(|| at.bad("VmFlags without a mapping"))?;
                let mut flags = Vec::with_capacity(codes.len() / 3);
                for code in super::words(codes) {
                    flags.push(code.try_into().map_err(|_| at.bad("no valid VmFlags"))?);
                }
                found.push(VmFlags { start, end, flags, key });
                key = 0;
            }
            Some(b'P') => {
                if let Some(number) = line.strip_prefix(b"ProtectionKey:") {
                    key = at.need(super::words(number).next().and_then(decimal::<u32>), "key")?;
                }
            }
            Some(b'A'..=b'Z') => {}
            _ => {
                if let Some((earlier, ..)) = open {
                    return Err(unfinished(earlier));
                }
                let addresses = split_once(line, b' ').and_then(|(addresses, _)| range(addresses));
                let (start, end) = at.need(addresses, "addresses")?;
                open = Some((at, start, end));
            }
        }
    }
    match open {
        Some((at, ..)) => Err(unfinished(at)),
        None => Ok(found),
    }
}
