//! What several stopped processes do at the same time: all are started before the first is waited for. To wake a thread
//! and be woken by it takes longer than most of what it does.

use std::time::Instant;

use cpr_kernel::batch::{Batch, Outcome};
use cpr_kernel::remote::{self, Arena};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::process::{Process, failed};

/// A system call: its number and arguments.
pub type Call = (i64, [u64; 6]);

/// Makes a system call in the first thread of each of these processes; gives the results in their order.
pub fn call_each(
    processes: &mut [&mut Process],
    call: impl Fn(usize) -> Call,
    deadline: Instant,
) -> Vec<Result<std::io::Result<u64>>> {
    let mut started = Vec::with_capacity(processes.len());
    for (index, process) in processes.iter_mut().enumerate() {
        let (number, arguments) = call(index);
        // A call that must not trap is not worth it.
        started.push(match process.ignores_traps() {
            true => Err(process.call(number, arguments, deadline)),
            false => process.start_call(number, arguments).map_err(Err),
        });
    }
    let ends = processes.iter_mut().zip(started);
    ends.map(|(process, started)| match started {
        Ok(()) => process.finish_call(deadline),
        Err(made) => made,
    })
    .collect()
}

/// Maps an arena for batches of up to `capacity` bytes in each of these processes.
///
/// # Errors
/// As [`Process::map_arena`], of the first process in which it fails.
pub fn map_arenas(processes: &mut [&mut Process], capacity: u64, deadline: Instant) -> Result<()> {
    let length = Arena::length_for(capacity);
    let mapped = call_each(processes, |_| (libc::SYS_mmap, Arena::map_call(length)), deadline);
    let mut addresses = Vec::with_capacity(mapped.len());
    let mut refused = Ok(());
    for result in mapped {
        match result {
            Ok(result) => addresses.push(result.ok()),
            Err(error) => {
                addresses.push(None);
                refused = refused.and(Err(error));
            }
        }
    }
    // What is mapped is removed again, whatever happens to the others.
    for (process, address) in processes.iter_mut().zip(&addresses) {
        if let (Some(space), Some(address)) = (process.space.as_mut(), *address) {
            space.arena = Some(Arena { address, length });
        }
    }
    refused?;
    let code = |index: usize| (libc::SYS_mmap, Arena::code_call(addresses[index].unwrap_or_default()));
    let mut there = Vec::new();
    let mut numbers = Vec::new();
    let mut others = Vec::new();
    for (index, process) in processes.iter_mut().enumerate() {
        match addresses[index] {
            Some(_) => {
                numbers.push(index);
                there.push(&mut **process);
            }
            None => others.push(&mut **process),
        }
    }
    let placed = call_each(&mut there, |at| code(numbers[at]), deadline);
    for (process, placed) in there.iter().zip(placed) {
        let what = || format!("map a page in process {}", process.pid);
        placed?.context(what)?;
        if let Some((space, arena)) = process.space.as_ref().and_then(|space| Some((space, space.arena?))) {
            arena.place_interpreter(&space.memory).context(what)?;
        }
    }
    // With its limits lifted, perhaps.
    others
        .into_iter()
        .try_for_each(|process| process.map_arena(capacity, deadline))
}

/// Runs a batch in the first thread of each of these processes; gives the outcomes in their order.
///
/// # Errors
/// That of the first process in which it fails. No batch runs any more then, unless it cannot be controlled.
pub fn run_each(processes: &mut [&mut Process], batches: &[Batch], deadline: Instant) -> Result<Vec<Outcome>> {
    let mut started = Vec::with_capacity(processes.len());
    for (process, batch) in processes.iter_mut().zip(batches) {
        let result = process.start_batch(batch);
        let goes_on = result.is_ok();
        started.push(result);
        if !goes_on {
            break;
        }
    }
    let ends = processes.iter_mut().zip(batches).zip(started);
    let ended: Vec<Result<Outcome>> = ends
        .map(|((process, batch), started)| started.and_then(|()| process.finish_batch(batch, deadline)))
        .collect();
    ended.into_iter().collect()
}

/// Removes the arenas of these processes. Gives the first failure; the others are removed all the same.
///
/// # Errors
/// As [`Process::unmap_arena`].
pub fn unmap_arenas(processes: &mut [Process], deadline: Instant) -> Result<()> {
    let mut result = Ok(());
    let mut with_arenas: Vec<&mut Process> = Vec::new();
    for process in processes {
        let has_arena = process.space.as_ref().is_some_and(|space| space.arena.is_some());
        match has_arena && !process.ignores_traps() {
            true => with_arenas.push(process),
            false => result = result.and(process.unmap_arena(deadline)),
        }
    }
    let calls: Vec<Call> = with_arenas
        .iter_mut()
        .filter_map(|process| process.space.as_mut()?.arena.take())
        .map(|arena| (libc::SYS_munmap, [arena.address, arena.length, 0, 0, 0, 0]))
        .collect();
    let unmapped = call_each(&mut with_arenas, |index| calls[index], deadline);
    for (process, unmapped) in with_arenas.iter().zip(unmapped) {
        let unmapped = unmapped.and_then(|result| {
            let what = || format!("unmap our page from process {}", process.pid);
            result.map(drop).context(what)
        });
        result = result.and(unmapped);
    }
    result
}

impl Process {
    /// Starts a call that traps in the first thread.
    fn start_call(&mut self, number: i64, arguments: [u64; 6]) -> Result<()> {
        let pid = self.pid;
        let (Some(thread), Some(space)) = (self.threads.first_mut(), self.space.as_ref()) else {
            return Err(Error::new(ErrorKind::Internal, format!("process {pid} has no threads")));
        };
        thread.prepare(pid, true)?;
        thread.in_syscall_exit = false;
        remote::start_step(thread.tracee, &thread.registers, space.instruction, number, arguments)
            .context(|| format!("have process {pid} make a system call"))
    }

    fn finish_call(&mut self, deadline: Instant) -> Result<std::io::Result<u64>> {
        let pid = self.pid;
        let thread = self.threads.first_mut();
        let thread = thread.ok_or_else(|| Error::new(ErrorKind::Internal, format!("process {pid} has no threads")))?;
        Ok(remote::finish_step(thread.tracee, deadline, &mut thread.deferred))
    }

    fn start_batch(&mut self, batch: &Batch) -> Result<()> {
        let pid = self.pid;
        let internal = || Error::new(ErrorKind::Internal, format!("process {pid} has no arena"));
        let thread = self.threads.first_mut().ok_or_else(internal)?;
        let space = self.space.as_ref().ok_or_else(internal)?;
        let arena = space.arena.ok_or_else(internal)?;
        thread.prepare(pid, true)?;
        thread.in_syscall_exit = false;
        let started = arena.start(thread.tracee, &thread.registers, &space.memory, batch);
        started.context(|| format!("process {pid}: run {} system calls", batch.len()))
    }

    fn finish_batch(&mut self, batch: &Batch, deadline: Instant) -> Result<Outcome> {
        let pid = self.pid;
        let internal = || Error::new(ErrorKind::Internal, format!("process {pid} has no arena"));
        let thread = self.threads.first_mut().ok_or_else(internal)?;
        let space = self.space.as_ref().ok_or_else(internal)?;
        let arena = space.arena.ok_or_else(internal)?;
        let ended = arena.finish(thread.tracee, &space.memory, batch, deadline, &mut thread.deferred);
        ended.map_err(|error| failed(pid, error))
    }
}
