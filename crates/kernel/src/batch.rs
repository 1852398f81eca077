//! A list of system calls to be made in another process by the interpreter of [`crate::arch`].
//!
//! A batch is position independent: arguments may be numbers, addresses of data carried along, addresses of output
//! buffers, or results of earlier calls. [`Batch::layout`] fixes it to an address.

use std::io;

use crate::arch::{ENTRY_MUST_SUCCEED, ENTRY_SIZE, Entry};

/// An argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A number.
    Value(u64),
    /// Address of data or of an output buffer: an offset into the batch's data.
    Data(usize),
    /// What an earlier call returned. Each result may be used by one argument only.
    Result(CallId),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Arg::Value(value)
    }
}

impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Arg::Value(value as u64)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Arg::Value(value as i64 as u64)
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Arg::Value(u64::from(value))
    }
}

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Arg::Value(value as u64)
    }
}

/// A call of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(usize);

/// An output buffer of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutId {
    offset: usize,
    length: usize,
}

#[derive(Debug)]
struct Call {
    number: i64,
    arguments: [Arg; 6],
    /// What is being done, for calls that must succeed.
    what: Option<String>,
}

/// System calls to be made in another process.
#[derive(Debug, Default)]
pub struct Batch {
    calls: Vec<Call>,
    data: Vec<u8>,
    /// Places in `data` that hold the address of another place in it.
    pointers: Vec<(usize, usize)>,
}

/// What a batch returned.
#[derive(Debug, Default)]
pub struct Outcome {
    pub(crate) results: Vec<i64>,
    pub(crate) data: Vec<u8>,
}

/// A call that had to succeed and did not.
#[derive(Debug)]
pub struct CallFailed {
    /// What was being done.
    pub what: String,
    /// Why it failed.
    pub error: io::Error,
}

impl std::fmt::Display for CallFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for CallFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Number of calls.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Carries `bytes` along and gives their address in the target, 16-byte aligned.
    pub fn data(&mut self, bytes: &[u8]) -> Arg {
        let offset = self.reserve(bytes.len());
        self.data[offset..offset + bytes.len()].copy_from_slice(bytes);
        Arg::Data(offset)
    }

    /// Carries a NUL-terminated copy of `text` along.
    pub fn string(&mut self, text: &[u8]) -> Arg {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.data(&bytes)
    }

    /// Replaces carried data; as many bytes as fit the batch.
    pub fn set(&mut self, place: Arg, bytes: &[u8]) {
        if let Arg::Data(at) = place
            && let Some(slot) = self.data.get_mut(at..at + bytes.len())
        {
            slot.copy_from_slice(bytes);
        }
    }

    /// Stores the address of `target` (data or an output buffer) as a 64-bit word at byte `at` of `place`.
    pub fn point(&mut self, place: Arg, at: usize, target: Arg) {
        if let (Arg::Data(place), Arg::Data(target)) = (place, target) {
            self.pointers.push((place + at, target));
        }
    }

    /// A zeroed buffer of `length` bytes for a call to write to.
    pub fn out(&mut self, length: usize) -> (Arg, OutId) {
        let offset = self.reserve(length);
        (Arg::Data(offset), OutId { offset, length })
    }

    fn reserve(&mut self, length: usize) -> usize {
        let offset = self.data.len().next_multiple_of(64);
        self.data.resize(offset + length, 0);
        offset
    }

    /// Adds a call whose failure is the caller's to look at.
    pub fn call(&mut self, number: i64, arguments: &[Arg]) -> CallId {
        self.push(number, arguments, None)
    }

    /// Adds a call that must succeed: if it fails, the rest is not made and the failure is reported with `what`.
    pub fn must(&mut self, number: i64, arguments: &[Arg], what: impl Into<String>) -> CallId {
        self.push(number, arguments, Some(what.into()))
    }

    fn push(&mut self, number: i64, arguments: &[Arg], what: Option<String>) -> CallId {
        debug_assert!(arguments.len() <= 6);
        let mut six = [Arg::Value(0); 6];
        for (slot, argument) in six.iter_mut().zip(arguments) {
            *slot = *argument;
        }
        self.calls.push(Call {
            number,
            arguments: six,
            what,
        });
        CallId(self.calls.len() - 1)
    }

    /// Bytes the batch needs in the target.
    pub fn size(&self) -> usize {
        self.entries_size() + self.data.len()
    }

    fn entries_size(&self) -> usize {
        (self.calls.len() * ENTRY_SIZE).next_multiple_of(64)
    }

    /// The batch as it has to stand at `address`: entries, then data.
    pub(crate) fn layout(&self, address: u64) -> Vec<u8> {
        let data_base = address + self.entries_size() as u64;
        let mut entries: Vec<Entry> = Vec::with_capacity(self.calls.len());
        for call in &self.calls {
            let mut entry = Entry {
                number: call.number as u64,
                flags: if call.what.is_some() { ENTRY_MUST_SUCCEED } else { 0 },
                ..Entry::default()
            };
            let this = entries.len();
            for (index, argument) in call.arguments.iter().enumerate() {
                match *argument {
                    Arg::Value(value) => entry.arguments[index] = value,
                    Arg::Data(offset) => entry.arguments[index] = data_base + offset as u64,
                    Arg::Result(CallId(source)) => {
                        // The source's result is stored straight into this argument's slot.
                        if let Some(from) = entries.get_mut(source) {
                            debug_assert_eq!(from.forward, 0, "a result is used twice");
                            from.forward = address + (this * ENTRY_SIZE + 8 + index * 8) as u64;
                        }
                    }
                }
            }
            entries.push(entry);
        }
        let mut bytes = Vec::with_capacity(self.size());
        for entry in &entries {
            bytes.extend_from_slice(&entry.to_bytes());
        }
        bytes.resize(self.entries_size(), 0);
        bytes.extend_from_slice(&self.data);
        for &(place, target) in &self.pointers {
            let at = self.entries_size() + place;
            if let Some(slot) = bytes.get_mut(at..at + 8) {
                slot.copy_from_slice(&(data_base + target as u64).to_ne_bytes());
            }
        }
        bytes
    }

    /// Reads back what the interpreter left of [`Batch::layout`]; `done` calls were completed.
    pub(crate) fn collect(&self, memory: &[u8], done: usize) -> Result<Outcome, CallFailed> {
        let word = |at: usize| -> u64 {
            let mut raw = [0u8; 8];
            if let Some(bytes) = memory.get(at..at + 8) {
                raw.copy_from_slice(bytes);
            }
            u64::from_ne_bytes(raw)
        };
        let results: Vec<i64> = (0..self.calls.len())
            .map(|i| word(i * ENTRY_SIZE + 56) as i64)
            .collect();
        if let Some(call) = self.calls.get(done) {
            return Err(CallFailed {
                what: call
                    .what
                    .clone()
                    .unwrap_or_else(|| format!("system call {}", call.number)),
                error: to_error(results[done]),
            });
        }
        let data = memory.get(self.entries_size()..).unwrap_or_default().to_vec();
        Ok(Outcome { results, data })
    }
}

fn to_error(result: i64) -> io::Error {
    if (-4095..0).contains(&result) {
        io::Error::from_raw_os_error(-result as i32)
    } else {
        io::Error::other(format!("the interpreter stopped early (result {result})"))
    }
}

impl Outcome {
    /// Raw result of a call: negative error numbers as the kernel returns them.
    pub fn raw(&self, call: CallId) -> i64 {
        self.results.get(call.0).copied().unwrap_or(-i64::from(libc::ENOSYS))
    }

    /// Result of a call.
    pub fn result(&self, call: CallId) -> io::Result<u64> {
        let raw = self.raw(call);
        if (-4095..0).contains(&raw) {
            Err(to_error(raw))
        } else {
            Ok(raw as u64)
        }
    }

    /// What was written to an output buffer.
    pub fn output(&self, out: OutId) -> &[u8] {
        self.data.get(out.offset..out.offset + out.length).unwrap_or_default()
    }

    /// The 64-bit word at byte `at` of an output buffer; zero beyond its end.
    pub fn word(&self, out: OutId, at: usize) -> u64 {
        let mut raw = [0u8; 8];
        if let Some(bytes) = self.output(out).get(at..at + 8) {
            raw.copy_from_slice(bytes);
        }
        u64::from_ne_bytes(raw)
    }

    /// The 32-bit word at byte `at` of an output buffer; zero beyond its end.
    pub fn word32(&self, out: OutId, at: usize) -> u32 {
        let mut raw = [0u8; 4];
        if let Some(bytes) = self.output(out).get(at..at + 4) {
            raw.copy_from_slice(bytes);
        }
        u32::from_ne_bytes(raw)
    }
}
