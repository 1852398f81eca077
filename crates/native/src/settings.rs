//! Values below /proc/sys, which shows those of the namespaces that the calling thread is in.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use cpr_image::model::{ByteString, Setting};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};

/// Most bytes of a value that are of interest.
const LONGEST: usize = 64 << 10;
/// Limits that every IPC namespace has its own of: paths below /proc/sys.
pub const IPC_LIMITS: [&str; 14] = [
    "kernel/auto_msgmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "fs/mqueue/msg_default",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_default",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/queues_max",
];

/// What the next object of an IPC namespace is to be called: each is for one object, and then -1 again.
const NEXT: [&str; 3] = ["kernel/msg_next_id", "kernel/sem_next_id", "kernel/shm_next_id"];
const NOT_CHOSEN: &[u8] = b"-1";

/// Below a directory of settings, the same ones by older names, which the kernel warns of.
const OLD_NAMES: [&[u8]; 2] = [b"base_reachable_time", b"retrans_time"];

fn root() -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, "/proc/sys", flags, Mode::empty())?)
}

fn open(root: &OwnedFd, name: &[u8], flags: OFlags) -> std::io::Result<OwnedFd> {
    // The name can come from an image.
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(
        root,
        name,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        beneath,
    )?)
}

fn read(root: &OwnedFd, name: &[u8]) -> std::io::Result<Vec<u8>> {
    // In one go: of several numbers the kernel shows those that the first read has room for, and then an end.
    let mut value = vec![0; LONGEST];
    let length = std::fs::File::from(open(root, name, OFlags::RDONLY)?).read(&mut value)?;
    value.truncate(length);
    Ok(value)
}

/// Values by their names.
pub type Values = BTreeMap<Vec<u8>, Vec<u8>>;

/// Everything below `directory` that can be read and written.
///
/// # Errors
/// The directory cannot be listed.
pub fn below(directory: &str) -> Result<Values> {
    let root = root().context(|| "open /proc/sys")?;
    let mut found = Values::new();
    let mut directories = vec![directory.as_bytes().to_vec()];
    while let Some(path) = directories.pop() {
        let what = || format!("list /proc/sys/{}", String::from_utf8_lossy(&path));
        let listed = open(&root, &path, OFlags::RDONLY | OFlags::DIRECTORY).context(what)?;
        for entry in Dir::new(listed).map_err(std::io::Error::from).context(what)? {
            let entry = entry.map_err(std::io::Error::from).context(what)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || OLD_NAMES.contains(&name) {
                continue;
            }
            let path = [path.as_slice(), b"/", name].concat();
            if entry.file_type() == FileType::Directory {
                directories.push(path);
                continue;
            }
            // Some are for writing only, and some have no value yet.
            let stat = rustix::fs::statat(&root, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
            let writable = stat.is_ok_and(|stat| stat.st_mode & 0o200 != 0);
            if let (true, Ok(value)) = (writable, read(&root, &path)) {
                found.insert(path, value);
            }
        }
    }
    Ok(found)
}

/// The limits of the IPC namespace that this thread is in, and what has been chosen for the next objects.
///
/// # Errors
/// There is no /proc/sys.
pub fn of_ipc() -> Result<Vec<Setting>> {
    let root = root().context(|| "open /proc/sys")?;
    // What the kernel does not have has no value.
    let value = |name: &&str| Some((ByteString::from(*name), ByteString(read(&root, name.as_bytes()).ok()?)));
    let chosen = |(_, value): &Setting| value.0.trim_ascii() != NOT_CHOSEN;
    let next = NEXT.iter().filter_map(value).filter(chosen);
    Ok(IPC_LIMITS.iter().filter_map(value).chain(next).collect())
}

/// Gives the IPC namespace that this thread is in its limits.
///
/// # Errors
/// As [`set`].
pub fn set_ipc_limits(settings: &[Setting]) -> Result<()> {
    let limits = settings.iter().filter(|(name, _)| !is_next(&name.0));
    set(limits, |name| IPC_LIMITS.iter().any(|known| known.as_bytes() == name))
}

/// Has the next objects of the IPC namespace that this thread is in get the identifiers that were chosen for them; all
/// others must have been made.
///
/// # Errors
/// The kernel refuses it.
pub fn choose_next(settings: &[Setting]) -> Result<()> {
    set(settings.iter().filter(|(name, _)| is_next(&name.0)), is_next)
}

fn is_next(name: &[u8]) -> bool {
    NEXT.iter().any(|known| known.as_bytes() == name)
}

/// Gives settings their values, where they have others. `belongs`: whether a setting is one that may be changed here.
///
/// # Errors
/// [`ErrorKind::Damaged`] for one that may not; the kernel refuses a value.
pub fn set<'a>(settings: impl IntoIterator<Item = &'a Setting>, belongs: impl Fn(&[u8]) -> bool) -> Result<()> {
    let mut settings = settings.into_iter().peekable();
    if settings.peek().is_none() {
        return Ok(());
    }
    let root = root().context(|| "open /proc/sys")?;
    for (name, value) in settings {
        if !belongs(&name.0) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the image sets {name} for a namespace"),
            ));
        }
        if read(&root, &name.0).is_ok_and(|now| now == value.0) {
            continue;
        }
        open(&root, &name.0, OFlags::WRONLY)
            .and_then(|file| std::fs::File::from(file).write_all(&value.0))
            .context(|| {
                format!(
                    "set /proc/sys/{name} to {}",
                    String::from_utf8_lossy(&value.0).trim_end()
                )
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_lead_nowhere_else() {
        let root = root().unwrap();
        assert!(read(&root, b"kernel/ostype").is_ok());
        for name in ["../self/comm", "/proc/sys/kernel/ostype", "kernel/../../version"] {
            assert!(read(&root, name.as_bytes()).is_err(), "{name}");
        }
        let setting = (ByteString::from("kernel/ostype"), ByteString::from("x"));
        let refused = set(&[setting], |name| name.starts_with(b"net/")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged);
    }
}
