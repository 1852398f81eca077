//! What /proc/PID/fdinfo says of a fanotify(7) group.

use std::io;

use super::{InotifyWatch, kernel_dev};

/// A fanotify group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FanotifyGroup {
    /// FAN_* of fanotify_init(2).
    pub flags: u32,
    /// O_* of descriptors that come with events.
    pub event_flags: u32,
    /// What is watched.
    pub marks: Vec<FanotifyMark>,
}

/// A mark of a fanotify group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanotifyMark {
    /// What it is on.
    pub on: FanotifyObject,
    /// FAN_MARK_* that say how it is treated.
    pub flags: u32,
    /// Events that are wanted.
    pub mask: u64,
    /// Events that are not.
    pub ignored_mask: u64,
}

/// What a mark is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FanotifyObject {
    /// A file or directory, as inotify shows it; `wd` is zero.
    Inode(InotifyWatch),
    /// A mount, by its number.
    Mount(u32),
    /// A file system: major and minor device number.
    FileSystem((u32, u32)),
    /// Something this code does not know.
    Other,
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

/// The value after `key:` in a line of such pairs.
fn member(line: &str, key: &str) -> Option<u64> {
    let word = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))?;
    hex(word)
}

fn parse_mark(line: &str) -> Option<FanotifyMark> {
    let number = |key: &str| member(line, key);
    let on = if let Some(ino) = number("ino") {
        let digits = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("f_handle:"))
            .unwrap_or_default();
        let byte = |at: usize| digits.get(at..at + 2).and_then(hex).map(|byte| byte as u8);
        let handle: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
        FanotifyObject::Inode(InotifyWatch {
            wd: 0,
            ino,
            sdev: kernel_dev(number("sdev")? as u32),
            mask: 0,
            ignored_mask: 0,
            fhandle_bytes: number("fhandle-bytes").unwrap_or(0) as u32,
            fhandle_type: number("fhandle-type").unwrap_or(0) as i32,
            f_handle: handle?,
        })
    } else if let Some(mount) = number("mnt_id") {
        FanotifyObject::Mount(u32::try_from(mount).ok()?)
    } else if let Some(file_system) = number("sdev") {
        FanotifyObject::FileSystem(kernel_dev(file_system as u32))
    } else {
        FanotifyObject::Other
    };
    Some(FanotifyMark {
        on,
        flags: number("mflags")? as u32,
        mask: number("mask")?,
        ignored_mask: number("ignored_mask")?,
    })
}

/// Reads the lines of [`super::FdInfoKind::Fanotify`].
pub fn parse_fanotify(lines: &[u8]) -> io::Result<FanotifyGroup> {
    let invalid = |line: &str| io::Error::new(io::ErrorKind::InvalidData, format!("strange line of fdinfo: {line}"));
    let text = String::from_utf8_lossy(lines);
    let mut group = FanotifyGroup::default();
    for line in text.lines() {
        let rest = line.strip_prefix("fanotify ").ok_or_else(|| invalid(line))?;
        match (member(rest, "flags"), member(rest, "event-flags")) {
            (Some(flags), Some(event_flags)) => {
                (group.flags, group.event_flags) = (flags as u32, event_flags as u32);
            }
            _ => group.marks.push(parse_mark(rest).ok_or_else(|| invalid(line))?),
        }
    }
    Ok(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_all_kinds_are_read() {
        let text = "fanotify flags:10 event-flags:8000\n\
                    fanotify ino:4f261 sdev:fd00001 mflags:0 mask:3b ignored_mask:0 fhandle-bytes:8 fhandle-type:1 \
                    f_handle:61f2040077de8c01\n\
                    fanotify mnt_id:1c mflags:40 mask:40000038 ignored_mask:3\n\
                    fanotify sdev:1a mflags:0 mask:20 ignored_mask:0\n";
        let group = parse_fanotify(text.as_bytes()).unwrap();
        assert_eq!((group.flags, group.event_flags), (0x10, 0x8000));
        let FanotifyObject::Inode(inode) = &group.marks[0].on else {
            panic!("{group:?}");
        };
        assert_eq!((inode.ino, inode.sdev, inode.fhandle_type), (0x4f261, (0xfd, 1), 1));
        assert_eq!(inode.f_handle, [0x61, 0xf2, 4, 0, 0x77, 0xde, 0x8c, 1]);
        assert_eq!(group.marks[1].on, FanotifyObject::Mount(28));
        assert_eq!(
            (group.marks[1].flags, group.marks[1].mask, group.marks[1].ignored_mask),
            (0x40, 0x4000_0038, 3)
        );
        assert_eq!(group.marks[2].on, FanotifyObject::FileSystem((0, 26)));
        assert!(parse_fanotify(b"fanotify ino:zz\n").is_err());
    }
}
