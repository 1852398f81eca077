//! Writing while the program computes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// A variable with its bytes.
struct Owned {
    name: String,
    element: ElementType,
    shape: Vec<u64>,
    order: Order,
    data: Vec<u8>,
}

/// A generation that is being written from a copy of the variables. Dropping it waits for its end.
#[derive(Debug)]
pub struct Background {
    thread: Option<JoinHandle<(Store, Result<Written>)>>,
    progress: Arc<Progress>,
}

impl Background {
    /// Copies the variables and begins to write them. The store comes back with [`Background::wait`].
    ///
    /// # Errors
    /// No thread can be started. The store is lost then; it can be opened again.
    pub fn start(mut store: Store, variables: &[Variable<'_>]) -> Result<Background> {
        let copies: Vec<Owned> = variables
            .iter()
            .map(|variable| Owned {
                name: variable.name.to_owned(),
                element: variable.element,
                shape: variable.shape.to_vec(),
                order: variable.order,
                data: variable.data.to_vec(),
            })
            .collect();
        let progress = store.progress();
        let work = move || {
            let variables: Vec<Variable<'_>> = copies
                .iter()
                .map(|copy| Variable {
                    name: &copy.name,
                    element: copy.element,
                    shape: &copy.shape,
                    order: copy.order,
                    data: &copy.data,
                })
                .collect();
            let result = store.write(&variables);
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
