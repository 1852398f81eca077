//! Files that are mapped: what they look like now, and whether they still look so at restart.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use cpr_image::model::{ByteString, Bytes, MappedFile};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;

use crate::views::Views;

/// Bytes of the beginning of a file that are searched for its build ID, one after the other.
const SEARCHED: [usize; 2] = [4096, 64 * 1024];

/// Describes the file at `path`, open as `file`.
pub fn describe(path: &[u8], file: BorrowedFd<'_>, writable: bool, unchangeable: bool) -> Result<MappedFile> {
    let what = || format!("look at {}", String::from_utf8_lossy(path));
    let stat = rustix::fs::fstat(file).map_err(std::io::Error::from).context(what)?;
    Ok(MappedFile {
        path: ByteString(path.to_vec()),
        writable,
        size: stat.st_size as u64,
        mtime_ns: stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(stat.st_mtime_nsec as i64),
        build_id: Bytes(if unchangeable { build_id(file) } else { Vec::new() }),
        unchangeable,
        contents: None,
        mount_namespace: None,
    })
}

/// Opens the mapped file for restart.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when it is missing, shorter than the mapping needs, or (programs and libraries) not the
/// one that was mapped (LBNL-3.8.3.2).
pub fn open(file: &MappedFile, views: &Views) -> Result<OwnedFd> {
    let path = &file.path;
    let access = if file.writable { OFlags::RDWR } else { OFlags::RDONLY };
    let fd = views
        .open(file.mount_namespace, &path.0, access | OFlags::NOCTTY)
        .context(|| format!("open mapped file {path}"))
        .map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                error
                    .with_kind(ErrorKind::Incompatible)
                    .with_hint("put the file back where it was at the checkpoint")
            } else {
                error
            }
        })?;
    let now = describe(&path.0, std::os::fd::AsFd::as_fd(&fd), file.writable, file.unchangeable)?;
    if let Some(reason) = difference(file, &now) {
        return Err(
            Error::new(ErrorKind::Incompatible, format!("mapped file {path} {reason}"))
                .with_hint("restart with the same version of the program and its libraries"),
        );
    }
    Ok(fd)
}

fn difference(then: &MappedFile, now: &MappedFile) -> Option<String> {
    if !then.unchangeable {
        return (now.size < then.size).then(|| format!("has shrunk from {} to {} bytes", then.size, now.size));
    }
    if now.size != then.size {
        return Some(format!("had {} bytes and has {} now", then.size, now.size));
    }
    if now.build_id != then.build_id {
        return Some("is another build than the one that was mapped".to_owned());
    }
    if then.build_id.0.is_empty() && now.mtime_ns != then.mtime_ns {
        return Some("has been modified since the checkpoint".to_owned());
    }
    None
}

/// The GNU build ID note of an ELF file; empty when it has none.
fn build_id(file: BorrowedFd<'_>) -> Vec<u8> {
    // Reopened: the descriptor may be O_PATH or write-only.
    let Ok(file) = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
        return Vec::new();
    };
    let mut head = Vec::new();
    // It is near the beginning, as a rule.
    for length in SEARCHED {
        let from = head.len();
        head.resize(length, 0);
        let got = read_up_to(&file, from as u64, &mut head[from..]);
        head.truncate(from + got);
        if !head.starts_with(b"\x7fELF") {
            break;
        }
        if let Some(found) = note(&head) {
            return found.to_vec();
        }
        if head.len() < length {
            break;
        }
    }
    Vec::new()
}

/// Bytes read; fewer than there is room for only at the end of the file, or where it cannot be read.
fn read_up_to(file: &File, at: u64, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) | Err(_) => break,
            Ok(n) => filled += n,
        }
    }
    filled
}

/// The build ID in the beginning of an ELF file.
fn note(head: &[u8]) -> Option<&[u8]> {
    /// A longer one is none.
    const LONGEST: usize = 64;
    // A note: name size 4, descriptor size n, type 3 (NT_GNU_BUILD_ID), "GNU\0", n bytes.
    let marker = [3, 0, 0, 0, b'G', b'N', b'U', 0];
    let at = head.windows(8).position(|w| w == marker)?;
    let size: [u8; 4] = head.get(at.checked_sub(4)?..at)?.try_into().ok()?;
    let size = u32::from_ne_bytes(size) as usize;
    head.get(at + 8..at + 8 + size).filter(|id| id.len() <= LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn programs_have_a_build_id_and_changes_are_noticed() {
        let exe = File::open("/bin/sh").unwrap();
        let then = describe(b"/bin/sh", exe.as_fd(), false, true).unwrap();
        assert!(then.build_id.0.len() >= 8, "{then:?}");
        assert_eq!(difference(&then, &then), None);
        let other = MappedFile {
            size: then.size + 1,
            ..then.clone()
        };
        assert!(difference(&then, &other).is_some());
        let other = MappedFile {
            build_id: Bytes(vec![1; 20]),
            ..then.clone()
        };
        assert!(difference(&then, &other).is_some());
    }
}
