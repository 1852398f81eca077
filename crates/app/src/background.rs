//! Writing while the program computes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::store::{Store, Written};
use crate::variable::{ElementType, Order, Variable};

/// How far writing has come; may be looked at from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    pub(crate) fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of variables done, and bytes in all.
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// Bytes that one thread copies at a time.
const PIECE: usize = 4 << 20;
/// Most threads that copy: memory is not faster with more.
const MOST_THREADS: usize = 4;

/// A variable without its bytes.
struct Described {
    name: String,
    element: ElementType,
    shape: Vec<u64>,
    order: Order,
}

/// Copies variables into memory that was used before where there is some: fresh memory takes longer than the copy.
fn copy(variables: &[Variable<'_>], spare: &mut Vec<Vec<u8>>) {
    spare.truncate(variables.len());
    spare.resize_with(variables.len(), Vec::new);
    let mut pieces = Vec::new();
    for (variable, room) in variables.iter().zip(spare) {
        if room.len() != variable.data.len() {
            // The old one goes first. Nobody has touched the zeros yet: the threads that copy share in getting the
            // memory.
            *room = Vec::new();
            *room = vec![0; variable.data.len()];
        }
        pieces.extend(variable.data.chunks(PIECE).zip(room.chunks_mut(PIECE)));
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(MOST_THREADS).min(pieces.len() / 2);
    let pieces = Mutex::new(pieces.into_iter());
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((from, to)) = next() {
            to.copy_from_slice(from);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without it this thread copies more.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

/// A generation that is being written from a copy of the variables. Dropping it waits for its end.
#[derive(Debug)]
pub struct Background {
    thread: Option<JoinHandle<(Store, Result<Written>)>>,
    progress: Arc<Progress>,
}

impl Background {
    /// Gets the memory of copies of these variables, which the first [`Background::start`] does otherwise: memory that
    /// nobody has used takes longer to get than to fill. The store keeps it.
    pub fn prepare(store: &mut Store, variables: &[Variable<'_>]) {
        // What is copied does not matter; it has to be written to for the kernel to give it.
        copy(variables, &mut store.spare);
    }

    /// Copies the variables and begins to write them. The store comes back with [`Background::wait`], and keeps the
    /// memory of the copy for the next one.
    ///
    /// # Errors
    /// No thread can be started. The store is lost then; it can be opened again.
    pub fn start(mut store: Store, variables: &[Variable<'_>]) -> Result<Background> {
        let described: Vec<Described> = variables
            .iter()
            .map(|variable| Described {
                name: variable.name.to_owned(),
                element: variable.element,
                shape: variable.shape.to_vec(),
                order: variable.order,
            })
            .collect();
        let mut copies = std::mem::take(&mut store.spare);
        copy(variables, &mut copies);
        let progress = store.progress();
        let work = move || {
            let variables: Vec<Variable<'_>> = described
                .iter()
                .zip(&copies)
                .map(|(variable, data)| Variable {
                    name: &variable.name,
                    element: variable.element,
                    shape: &variable.shape,
                    order: variable.order,
                    data,
                })
                .collect();
            let result = store.write(&variables);
            store.spare = copies;
            (store, result)
        };
        let thread = std::thread::Builder::new().name("gridcpr-app".to_owned()).spawn(work);
        Ok(Background {
            thread: Some(thread.context(|| "start the writing thread")?),
            progress,
        })
    }

    /// How far it has come.
    pub fn progress(&self) -> (u64, u64) {
        self.progress.get()
    }

    /// Whether it has ended, in whatever way.
    pub fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end, and gives the store back.
    ///
    /// # Errors
    /// The thread has panicked.
    pub fn wait(mut self) -> Result<(Store, Result<Written>)> {
        let lost = || Error::new(ErrorKind::Internal, "the writing thread has panicked");
        self.thread.take().ok_or_else(lost)?.join().map_err(|_| lost())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Who wants to know waits.
            let _ = thread.join();
        }
    }
}
