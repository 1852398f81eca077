//! System V shared memory, semaphores and message queues of the IPC namespace this process is in.

use std::io;

use crate::batch::{Arg, Batch, CallId};

/// MSG_COPY of msgrcv(2): by position, and without taking it out (CONFIG_CHECKPOINT_RESTORE).
const MSG_COPY: libc::c_int = 0o40000;
/// GETPID, GETALL, SETVAL and SETALL of semctl(2).
const GETPID: libc::c_int = 11;
const GETALL: libc::c_int = 13;
const SETVAL: libc::c_int = 16;
const SETALL: libc::c_int = 17;
/// Largest value of a semaphore (SEMVMX), and largest adjustment (SEMAEM).
pub const SEMAPHORE_MAX: i32 = 32767;

/// The three kinds of objects; each has identifiers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Shared memory.
    Memory,
    /// Semaphore sets.
    Semaphores,
    /// Message queues.
    Messages,
}

/// Owner, group and the nine permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Permission bits; others are ignored.
    pub mode: u32,
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Asks for `id` as the identifier of the next object of this kind. It takes CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN)
/// in the user namespace that owns the IPC namespace; an identifier in use is passed over without a word.
pub fn request_id(kind: Kind, id: i32) -> io::Result<()> {
    let name = match kind {
        Kind::Memory => "shm_next_id",
        Kind::Semaphores => "sem_next_id",
        Kind::Messages => "msg_next_id",
    };
    std::fs::write(format!("/proc/sys/kernel/{name}"), id.to_string())
}

/// Makes a new object; `size` is in bytes for memory and a number of semaphores for a set. Memory consists of explicit
/// huge pages of so many bytes, or of ordinary ones where that is zero. Gives its identifier.
pub fn create(kind: Kind, key: i32, size: u64, mode: u32, huge_pages: u64) -> io::Result<i32> {
    let mut flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as libc::c_int;
    if huge_pages != 0 && kind == Kind::Memory {
        flags |= libc::SHM_HUGETLB | (huge_pages.trailing_zeros() as libc::c_int) << libc::MAP_HUGE_SHIFT;
    }
    let too_big = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let id = match kind {
        Kind::Memory => {
            let size = usize::try_from(size).map_err(too_big)?;
            // SAFETY: shmget takes three numbers.
            unsafe { libc::shmget(key, size, flags) }
        }
        Kind::Semaphores => {
            let count = libc::c_int::try_from(size).map_err(too_big)?;
            // SAFETY: semget takes three numbers.
            unsafe { libc::semget(key, count, flags) }
        }
        // SAFETY: msgget takes two numbers.
        Kind::Messages => unsafe { libc::msgget(key, flags) },
    };
    checked(id)
}

/// Removes an object. Memory that is attached somewhere goes when the last process lets go of it.
pub fn remove(kind: Kind, id: i32) -> io::Result<()> {
    let result = match kind {
        // SAFETY: IPC_RMID reads nothing from the null pointer.
        Kind::Memory => unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
        // SAFETY: IPC_RMID takes no further argument.
        Kind::Semaphores => unsafe { libc::semctl(id, 0, libc::IPC_RMID) },
        // SAFETY: IPC_RMID reads nothing from the null pointer.
        Kind::Messages => unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
    };
    checked(result).map(drop)
}

/// Gives a segment to a user and sets its permissions.
pub fn own_memory(id: i32, owner: Ownership) -> io::Result<()> {
    // SAFETY: shmid_ds is a structure of integers, for which all zeroes is a value.
    let mut data: libc::shmid_ds = unsafe { std::mem::zeroed() };
    data.shm_perm.uid = owner.uid;
    data.shm_perm.gid = owner.gid;
    data.shm_perm.mode = (owner.mode & 0o777) as _;
    // SAFETY: IPC_SET reads owner and mode from the structure, which outlives the call.
    checked(unsafe { libc::shmctl(id, libc::IPC_SET, &mut data) }).map(drop)
}

/// Keeps a segment in RAM, as SHM_LOCK does.
pub fn lock_memory(id: i32) -> io::Result<()> {
    // SAFETY: SHM_LOCK reads nothing from the null pointer.
    checked(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) }).map(drop)
}

/// Gives a semaphore set to a user and sets its permissions.
pub fn own_semaphores(id: i32, owner: Ownership) -> io::Result<()> {
    // SAFETY: semid_ds is a structure of integers, for which all zeroes is a value.
    let mut data: libc::semid_ds = unsafe { std::mem::zeroed() };
    data.sem_perm.uid = owner.uid;
    data.sem_perm.gid = owner.gid;
    data.sem_perm.mode = (owner.mode & 0o777) as _;
    // SAFETY: IPC_SET reads owner and mode from the structure, which outlives the call.
    checked(unsafe { libc::semctl(id, 0, libc::IPC_SET, &mut data as *mut libc::semid_ds) }).map(drop)
}

/// The values of all `count` semaphores of a set.
pub fn semaphore_values(id: i32, count: usize) -> io::Result<Vec<u16>> {
    // SAFETY: semid_ds is a structure of integers, for which all zeroes is a value.
    let mut data: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: IPC_STAT fills the structure.
    checked(unsafe { libc::semctl(id, 0, libc::IPC_STAT, &mut data as *mut libc::semid_ds) })?;
    // A set keeps its number of semaphores; another of that name may have come in its place.
    if data.sem_nsems as usize != count {
        return Err(io::Error::from_raw_os_error(libc::EIDRM));
    }
    let mut values = vec![0u16; count];
    // SAFETY: GETALL writes as many 16-bit values as the set has semaphores. Identifiers carry a sequence number, so
    // that the set is the one whose number was asked above; it outlives the call or the call fails.
    checked(unsafe { libc::semctl(id, 0, GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// Who operated on a semaphore last, as a PID in our namespace; zero if nobody has, or nobody of it.
pub fn semaphore_pid(id: i32, index: usize) -> io::Result<i32> {
    // SAFETY: GETPID takes no further argument.
    checked(unsafe { libc::semctl(id, index as libc::c_int, GETPID) })
}

/// Sets the values of all semaphores of a set that has as many as `values`.
pub fn set_semaphore_values(id: i32, values: &[u16]) -> io::Result<()> {
    let count = semaphore_values(id, values.len())?.len();
    let mut copy = values.to_vec();
    debug_assert_eq!(count, copy.len());
    // SAFETY: SETALL reads as many 16-bit values as the set has semaphores, which is the length of `copy`.
    checked(unsafe { libc::semctl(id, 0, SETALL, copy.as_mut_ptr()) }).map(drop)
}

/// One step of a semop(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SemaphoreStep {
    /// Semaphore in the set.
    pub index: u16,
    /// Added to its value.
    pub change: i16,
    /// SEM_UNDO.
    pub undo: bool,
}

/// Adds a semop(2) that does not wait to a batch.
pub fn operate_call(batch: &mut Batch, id: i32, steps: &[SemaphoreStep]) -> CallId {
    const SEM_UNDO: i16 = 0x1000;
    let mut bytes = Vec::with_capacity(steps.len() * 6);
    for step in steps {
        let flags = libc::IPC_NOWAIT as i16 | if step.undo { SEM_UNDO } else { 0 };
        bytes.extend_from_slice(&step.index.to_ne_bytes());
        bytes.extend_from_slice(&step.change.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
    }
    let data = batch.data(&bytes);
    batch.call(libc::SYS_semop, &[id.into(), data, steps.len().into()])
}

/// Adds a SETVAL to a batch.
pub fn set_value_call(batch: &mut Batch, id: i32, index: usize, value: u16) -> CallId {
    batch.call(
        libc::SYS_semctl,
        &[id.into(), index.into(), SETVAL.into(), Arg::from(u32::from(value))],
    )
}

/// What IPC_STAT says of a message queue beyond /proc: the most bytes it holds.
pub fn queue_capacity(id: i32) -> io::Result<u64> {
    // SAFETY: msqid_ds is a structure of integers, for which all zeroes is a value.
    let mut data: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: IPC_STAT fills the structure.
    checked(unsafe { libc::msgctl(id, libc::IPC_STAT, &mut data) })?;
    Ok(data.msg_qbytes as u64)
}

/// Gives a queue to a user and sets permissions and capacity (more than kernel.msgmnb takes CAP_SYS_RESOURCE).
pub fn own_queue(id: i32, owner: Ownership, capacity: u64) -> io::Result<()> {
    // SAFETY: msqid_ds is a structure of integers, for which all zeroes is a value.
    let mut data: libc::msqid_ds = unsafe { std::mem::zeroed() };
    data.msg_perm.uid = owner.uid;
    data.msg_perm.gid = owner.gid;
    data.msg_perm.mode = (owner.mode & 0o777) as _;
    data.msg_qbytes = capacity as _;
    // SAFETY: IPC_SET reads owner, mode and capacity from the structure, which outlives the call.
    checked(unsafe { libc::msgctl(id, libc::IPC_SET, &mut data) }).map(drop)
}

/// A copy of the message at position `index` of a queue, with its type; none when there are not so many. `limit` is the
/// most bytes it may have.
pub fn peek_message(id: i32, index: i64, limit: usize) -> io::Result<Option<(i64, Vec<u8>)>> {
    // The type is a word before the text; u64s give its alignment.
    let mut buffer = vec![0u64; 1 + limit.div_ceil(8)];
    // SAFETY: the buffer has room for the type and `limit` bytes, the most msgrcv writes.
    let length = unsafe {
        libc::msgrcv(
            id,
            buffer.as_mut_ptr().cast(),
            limit,
            index as libc::c_long,
            MSG_COPY | libc::IPC_NOWAIT,
        )
    };
    if length < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOMSG) => Ok(None),
            _ => Err(error),
        };
    }
    let text: Vec<u8> = buffer[1..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(Some((
        buffer[0] as i64,
        text.get(..length as usize).unwrap_or_default().to_vec(),
    )))
}

/// Appends a message to a queue; `EAGAIN` when there is no room.
pub fn send_message(id: i32, kind: i64, text: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0u64; 1 + text.len().div_ceil(8)];
    buffer[0] = kind as u64;
    for (word, bytes) in buffer[1..].iter_mut().zip(text.chunks(8)) {
        let mut raw = [0u8; 8];
        raw[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(raw);
    }
    // SAFETY: the buffer holds the type and `text.len()` bytes after it.
    checked(unsafe { libc::msgsnd(id, buffer.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) }).map(drop)
}

/// A segment attached to this process, until it is dropped. Others may write to it at any time.
#[derive(Debug)]
pub struct Attachment {
    address: *mut libc::c_void,
    length: usize,
}

impl Attachment {
    /// Attaches a segment of at least `length` bytes.
    pub fn new(id: i32, length: usize, read_only: bool) -> io::Result<Self> {
        // SAFETY: shmid_ds is a structure of integers, for which all zeroes is a value.
        let mut data: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: IPC_STAT fills the structure.
        checked(unsafe { libc::shmctl(id, libc::IPC_STAT, &mut data) })?;
        // The size of a segment never changes, and its identifier carries a sequence number.
        if data.shm_segsz < length {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let flags = if read_only { libc::SHM_RDONLY } else { 0 };
        // SAFETY: with a null address the kernel chooses a free place; nothing of ours is replaced.
        let address = unsafe { libc::shmat(id, std::ptr::null(), flags) };
        if address as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(Attachment { address, length })
    }

    /// Where it is in our memory.
    pub fn address(&self) -> u64 {
        self.address as u64
    }

    fn check(&self, offset: usize, length: usize) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        self.check(offset, buffer.len())?;
        // SAFETY: the range lies in the segment, which stays attached while `self` lives; `buffer` is memory of ours
        // and so no part of it. The contents are bytes, of which any value will do whoever writes them meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address.cast::<u8>().add(offset), buffer.as_mut_ptr(), buffer.len())
        };
        Ok(())
    }

    /// Copies bytes in. The segment must not be attached read-only: the kernel would end this process.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        // SAFETY: as in `read`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.cast::<u8>().add(offset), bytes.len()) };
        Ok(())
    }

    /// Copies bytes out of a segment of explicit huge pages. A page that was never touched and cannot be had is an error,
    /// where [`Attachment::read`] would be the end of this process.
    ///
    /// # Errors
    /// EFAULT for such a page.
    pub fn read_huge(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        self.check(offset, buffer.len())?;
        crate::huge_file::read_own(self.address() + offset as u64, buffer)
    }

    /// Copies bytes into one, in the same way.
    ///
    /// # Errors
    /// As [`Attachment::read_huge`].
    pub fn write_huge(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        crate::huge_file::write_own(self.address() + offset as u64, bytes)
    }

    /// Per page of the segment, whether RAM holds it. Pages never written are not held, nor are those swapped out.
    pub fn resident(&self) -> io::Result<Vec<bool>> {
        let mut pages = vec![0u8; self.length.div_ceil(crate::memory::PAGE as usize)];
        // SAFETY: the range is the attached segment, and `pages` has a byte for each of its pages.
        checked(unsafe { libc::mincore(self.address, self.length, pages.as_mut_ptr()) })?;
        Ok(pages.into_iter().map(|page| page & 1 != 0).collect())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: it was attached there by us and nothing refers to it any more.
        unsafe { libc::shmdt(self.address) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_peeked_in_order_and_stay() {
        let id = create(Kind::Messages, libc::IPC_PRIVATE, 0, 0o600, 0).unwrap();
        let result = std::panic::catch_unwind(|| {
            send_message(id, 7, b"first").unwrap();
            send_message(id, 3, b"").unwrap();
            for _ in 0..2 {
                assert_eq!(peek_message(id, 0, 100).unwrap(), Some((7, b"first".to_vec())));
                assert_eq!(peek_message(id, 1, 100).unwrap(), Some((3, Vec::new())));
                assert_eq!(peek_message(id, 2, 100).unwrap(), None);
            }
        });
        remove(Kind::Messages, id).unwrap();
        result.unwrap();
    }

    #[test]
    fn a_segment_is_read_and_written_within_its_bounds() {
        let id = create(Kind::Memory, libc::IPC_PRIVATE, 10_000, 0o600, 0).unwrap();
        let attached = Attachment::new(id, 10_000, false);
        remove(Kind::Memory, id).unwrap();
        let attached = attached.unwrap();
        attached.write(5000, b"hello").unwrap();
        assert_eq!(attached.resident().unwrap(), [false, true, false]);
        let mut back = [0; 5];
        attached.read(5000, &mut back).unwrap();
        assert_eq!(&back, b"hello");
        assert!(attached.write(9_996, b"hello").is_err());
    }
}
