//! What is checkpointed: a program that holds memory, threads and processes, and beats.
//!
//! The bench starts it as `cpr-bench victim`; it knows the bench only through the page of [`crate::heartbeat`].

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use cpr_types::{Context, Result};

use crate::heartbeat::{Heartbeat, INTERVAL, Order, Word};
use crate::memory::{Content, Memory, PAGE_BYTES};

/// How often a process that does not beat looks for orders.
const IDLE: Duration = Duration::from_millis(50);
/// How long the writer sleeps between two bursts.
const BURST: Duration = Duration::from_millis(1);
/// What the writer may catch up on after it could not run: a stop is not followed by a flood.
const CATCH_UP: Duration = Duration::from_millis(10);
/// Stack of an idle thread, bytes.
const STACK: usize = 64 << 10;

/// `cpr-bench victim`
#[derive(Debug, Clone, Args)]
pub struct Victim {
    /// The page shared with the bench
    #[arg(long)]
    pub heartbeat: PathBuf,
    /// Memory in all
    #[arg(long, default_value_t = 0)]
    pub bytes: u64,
    /// What is in the memory
    #[arg(long, value_enum, default_value_t = Content::Random)]
    pub content: Content,
    /// Rewrite so many megabytes (10^6) a second
    #[arg(long, default_value_t = 0)]
    pub write_mb_s: u64,
    /// Rewrite so many percent of the memory, spread over it, when told to
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub rewrite_percent: u64,
    /// Threads
    #[arg(long, default_value_t = 1)]
    pub threads: u64,
    /// Processes
    #[arg(long, default_value_t = 1)]
    pub processes: u64,
    /// Number of this process
    #[arg(long, default_value_t = 0)]
    pub process: u64,
}

/// Runs until it is told to end.
pub fn run(victim: &Victim) -> Result<()> {
    let page = Arc::new(Heartbeat::open(&victim.heartbeat, false)?);
    let memory = Memory::fill(victim.bytes / victim.processes, victim.content, victim.process)?;
    let memory = Arc::new(Mutex::new(memory));
    for _ in 1..victim.threads {
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(|| {
                loop {
                    std::thread::park();
                }
            })
            .context(|| "start a thread")?;
    }
    if victim.write_mb_s > 0 {
        let (page, memory, rate) = (page.clone(), memory.clone(), victim.write_mb_s);
        std::thread::Builder::new()
            .spawn(move || write_for_ever(&page, &memory, rate * 1_000_000))
            .context(|| "start a thread")?;
    }
    if victim.process == 0 {
        for process in 1..victim.processes {
            start_other(victim, process)?;
        }
    }
    page.add(Word::Ready, 1);
    let parent = std::os::unix::process::parent_id();
    let (mut last, mut order) = (0, 0);
    loop {
        if victim.process == 0 {
            page.beat(&mut last);
            std::thread::sleep(INTERVAL);
        } else {
            std::thread::sleep(IDLE);
            if std::os::unix::process::parent_id() != parent {
                return Ok(());
            }
        }
        let wanted = page.get(Word::Order);
        if wanted != order {
            order = wanted;
            if obey(&page, &memory, order, victim.rewrite_percent) {
                return Ok(());
            }
        }
    }
}

/// Carries out an order; true when it is to end.
fn obey(page: &Heartbeat, memory: &Mutex<Memory>, order: u64, rewrite_percent: u64) -> bool {
    if order & 0xff == Order::End as u64 {
        return true;
    }
    let mut memory = lock(memory);
    if order & 0xff == Order::Rewrite as u64 {
        let pages = memory.pages() as u64 * rewrite_percent / 100;
        for number in 0..pages {
            memory.rewrite((number * 100 / rewrite_percent) as usize);
        }
    } else {
        page.add(Word::Wrong, memory.wrong_pages());
    }
    page.add(Word::Done, 1);
    false
}

/// Another panicking thread cannot have left the memory half written: it would have ended the process.
fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Another process of the same victim. It ends with this one.
fn start_other(victim: &Victim, process: u64) -> Result<()> {
    let program = std::env::current_exe().context(|| "find this program")?;
    let mut command = Command::new(program);
    command
        .arg("victim")
        .arg("--heartbeat")
        .arg(&victim.heartbeat)
        .args(["--bytes", &victim.bytes.to_string()])
        .args(["--processes", &victim.processes.to_string()])
        .args(["--rewrite-percent", &victim.rewrite_percent.to_string()])
        .args(["--process", &process.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().context(|| "start a process")?;
    Ok(())
}

/// Rewrites page after page at a steady rate.
fn write_for_ever(page: &Heartbeat, memory: &Mutex<Memory>, bytes_per_s: u64) {
    let mut at = 0;
    let mut credit = 0.0;
    let mut last = Instant::now();
    let most = CATCH_UP.as_secs_f64() * bytes_per_s as f64;
    loop {
        let now = Instant::now();
        credit = f64::min(credit + (now - last).as_secs_f64() * bytes_per_s as f64, most);
        last = now;
        let pages = credit as u64 / PAGE_BYTES;
        credit -= (pages * PAGE_BYTES) as f64;
        let mut memory = lock(memory);
        for _ in 0..pages {
            at = (at + 1) % memory.pages();
            memory.rewrite(at);
        }
        drop(memory);
        page.add(Word::Written, pages * PAGE_BYTES);
        std::thread::sleep(BURST);
    }
}
