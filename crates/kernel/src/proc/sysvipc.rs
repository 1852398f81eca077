//! `/proc/sysvipc/shm`, `sem` and `msg`: the System V objects of the reader's IPC namespace.

use std::io;

use super::{decimal, lines, words};

/// What all three kinds of objects have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SysvObject {
    /// Identifier.
    pub id: i32,
    /// Key, 0 for `IPC_PRIVATE`.
    pub key: i32,
    /// Permission bits and, for segments, `SHM_DEST` and other flags.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change, in seconds since the epoch.
    pub ctime: u64,
}

/// A shared memory segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SysvSegment {
    /// Identity and owner.
    pub object: SysvObject,
    /// Size in bytes.
    pub size: u64,
    /// PID of its maker; 0 where our PID namespace has no number for it.
    pub creator: i32,
    /// Number of mappings.
    pub attached: u64,
    /// Bytes swapped out.
    pub swapped: u64,
}

/// A semaphore set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SysvSemaphores {
    /// Identity and owner.
    pub object: SysvObject,
    /// Number of semaphores.
    pub count: u64,
    /// Last semop(2), in seconds since the epoch; 0 if there was none.
    pub otime: u64,
}

/// A message queue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SysvQueue {
    /// Identity and owner.
    pub object: SysvObject,
    /// Bytes in it.
    pub bytes: u64,
    /// Messages in it.
    pub messages: u64,
    /// PIDs that last sent and received; 0 for none, or none of our PID namespace.
    pub users: [i32; 2],
}

/// A line after the headline, by the names in the headline.
struct Row<'a> {
    file: &'a str,
    names: &'a [&'a [u8]],
    values: Vec<&'a [u8]>,
}

impl Row<'_> {
    fn text(&self, name: &str) -> io::Result<&str> {
        let at = self.names.iter().position(|n| *n == name.as_bytes());
        let text = at
            .and_then(|at| self.values.get(at))
            .and_then(|v| std::str::from_utf8(v).ok());
        text.ok_or_else(|| io::Error::other(format!("{}: a line has no {name}", self.file)))
    }

    fn bad(&self, name: &str) -> io::Error {
        io::Error::other(format!("{}: no valid {name}", self.file))
    }

    fn number(&self, name: &str) -> io::Result<u64> {
        decimal(self.text(name)?.as_bytes()).ok_or_else(|| self.bad(name))
    }

    fn signed(&self, name: &str) -> io::Result<i32> {
        self.text(name)?.parse().map_err(|_| self.bad(name))
    }

    fn object(&self, id: &str) -> io::Result<SysvObject> {
        let mode = u32::from_str_radix(self.text("perms")?, 8).map_err(|_| self.bad("perms"))?;
        Ok(SysvObject {
            id: self.signed(id)?,
            key: self.signed("key")?,
            mode,
            uid: self.number("uid")? as u32,
            gid: self.number("gid")? as u32,
            ctime: self.number("ctime")?,
        })
    }
}

fn table<T>(file: &str, text: &[u8], make: impl Fn(&Row<'_>) -> io::Result<T>) -> io::Result<Vec<T>> {
    let mut all = lines(file, text).map(|(_, line)| line);
    let names: Vec<&[u8]> = words(all.next().unwrap_or_default()).collect();
    all.map(|line| {
        make(&Row {
            file,
            names: &names,
            values: words(line).collect(),
        })
    })
    .collect()
}

/// Parses `/proc/sysvipc/shm`.
pub fn parse_segments(file: &str, text: &[u8]) -> io::Result<Vec<SysvSegment>> {
    table(file, text, |row| {
        Ok(SysvSegment {
            object: row.object("shmid")?,
            size: row.number("size")?,
            creator: row.signed("cpid")?,
            attached: row.number("nattch")?,
            swapped: row.number("swap")?,
        })
    })
}

/// Parses `/proc/sysvipc/sem`.
pub fn parse_semaphores(file: &str, text: &[u8]) -> io::Result<Vec<SysvSemaphores>> {
    table(file, text, |row| {
        Ok(SysvSemaphores {
            object: row.object("semid")?,
            count: row.number("nsems")?,
            otime: row.number("otime")?,
        })
    })
}

/// Parses `/proc/sysvipc/msg`.
pub fn parse_queues(file: &str, text: &[u8]) -> io::Result<Vec<SysvQueue>> {
    table(file, text, |row| {
        Ok(SysvQueue {
            object: row.object("msqid")?,
            bytes: row.number("cbytes")?,
            messages: row.number("qnum")?,
            users: [row.signed("lspid")?, row.signed("lrpid")?],
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_names() {
        let text = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n         0      32770  1600                 10000    12    13      2  1000   100     0     0 1 2 1700000000 8192 4096\n-123 5 640 4096 0 0 0 0 0 0 0 0 0 9 0 0\n";
        let found = parse_segments("shm", text).unwrap();
        let object = SysvObject {
            id: 32770,
            key: 0,
            mode: 0o1600,
            uid: 1000,
            gid: 100,
            ctime: 1_700_000_000,
        };
        let first = SysvSegment {
            object,
            size: 10_000,
            creator: 12,
            attached: 2,
            swapped: 4096,
        };
        assert_eq!((&found[0], found[1].object.key), (&first, -123));
        assert!(parse_queues("msg", text).is_err());
        assert!(parse_segments("shm", b"key shmid\n1\n").is_err());
        assert_eq!(parse_semaphores("sem", b"").unwrap(), []);
    }
}
