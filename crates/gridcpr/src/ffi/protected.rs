//! Variables of a program by their addresses: remembered, and looked at only in the calls that write and restore.

use cpr_app::{Background, ElementType, Order, Store, Target, Variable, Written};
use cpr_types::{Error, ErrorKind, Result};

/// A variable of the program.
pub(super) struct Protected {
    pub(super) name: String,
    pub(super) address: usize,
    pub(super) element: ElementType,
    pub(super) shape: Vec<u64>,
    pub(super) order: Order,
    /// Bytes between neighbours of each dimension, where elements do not lie one after the other.
    pub(super) strides: Option<Vec<u64>>,
    /// Bytes from the first to the last.
    pub(super) extent: usize,
}

/// A checkpoint of this kind has a name, and a directory of that name below a base directory with its generations. A
/// generation holds the variables that were protected, has one part for each rank of the program, and counts when all
/// parts are on disk. It can be read on a machine with another byte order. See docs/app-format.md for the files.
pub struct App {
    /// Not here while it is being written in the background.
    pub(super) store: Option<Store>,
    pub(super) background: Option<Background>,
    pub(super) protected: Vec<Protected>,
}

impl App {
    /// The store; waits for a background write, whose failure is the caller's to hear of.
    pub(super) fn store(&mut self) -> Result<&mut Store> {
        if self.background.is_some() {
            self.wait()?;
        }
        let lost = || Error::new(ErrorKind::Gone, "a background write has lost the checkpoint");
        self.store.as_mut().ok_or_else(lost)
    }

    pub(super) fn wait(&mut self) -> Result<Option<Written>> {
        let Some(background) = self.background.take() else {
            return Ok(None);
        };
        let (store, written) = background.wait()?;
        self.store = Some(store);
        written.map(Some)
    }

    /// Gathers what is not in one piece, and gives the variables to `work`.
    ///
    /// # Safety
    /// Every protected variable is where and what it was said to be, and nobody changes it meanwhile.
    pub(super) unsafe fn with_variables<T>(
        protected: &[Protected],
        work: impl FnOnce(&[Variable<'_>]) -> Result<T>,
    ) -> Result<T> {
        let mut gathered = Vec::with_capacity(protected.len());
        for variable in protected {
            // SAFETY: the caller of this function vouches for it.
            let bytes = unsafe { variable.bytes() };
            gathered.push(match &variable.strides {
                Some(strides) => Some(cpr_app::gather(
                    bytes,
                    &variable.slowest_first(&variable.shape),
                    &variable.slowest_first(strides),
                    variable.element.size(),
                )?),
                None => None,
            });
        }
        let variables: Vec<Variable<'_>> = protected
            .iter()
            .zip(&gathered)
            .map(|(variable, gathered)| Variable {
                name: &variable.name,
                element: variable.element,
                shape: &variable.shape,
                order: variable.order,
                data: match gathered {
                    Some(gathered) => gathered,
                    // SAFETY: as above.
                    None => unsafe { variable.bytes() },
                },
            })
            .collect();
        work(&variables)
    }

    /// Fills the protected variables by `work`.
    ///
    /// # Safety
    /// As [`App::with_variables`], and nobody looks at them meanwhile.
    pub(super) unsafe fn with_targets<T>(
        protected: &[Protected],
        work: impl FnOnce(&mut [Target<'_>]) -> Result<T>,
    ) -> Result<T> {
        let mut gathered: Vec<Vec<u8>> = protected
            .iter()
            .map(|variable| match variable.strides {
                Some(_) => vec![0; (variable.shape.iter().product::<u64>() * variable.element.size()) as usize],
                None => Vec::new(),
            })
            .collect();
        let mut targets: Vec<Target<'_>> = protected
            .iter()
            .zip(&mut gathered)
            .map(|(variable, gathered)| Target {
                name: &variable.name,
                element: variable.element,
                shape: &variable.shape,
                order: variable.order,
                data: match variable.strides {
                    Some(_) => gathered,
                    // SAFETY: the caller of this function vouches for it.
                    None => unsafe { variable.bytes_mut() },
                },
            })
            .collect();
        let done = work(&mut targets)?;
        drop(targets);
        for (variable, gathered) in protected.iter().zip(&gathered) {
            if let Some(strides) = &variable.strides {
                // SAFETY: as above.
                let place = unsafe { variable.bytes_mut() };
                let (shape, strides) = (variable.slowest_first(&variable.shape), variable.slowest_first(strides));
                cpr_app::scatter(gathered, place, &shape, &strides, variable.element.size())?;
            }
        }
        Ok(done)
    }
}

impl Protected {
    /// Numbers of dimensions, those of the one that runs fastest last.
    fn slowest_first(&self, numbers: &[u64]) -> Vec<u64> {
        let mut numbers = numbers.to_vec();
        if self.order == Order::Fortran {
            numbers.reverse();
        }
        numbers
    }

    /// # Safety
    /// The variable is there, and nobody changes it as long as the slice lives.
    unsafe fn bytes<'a>(&self) -> &'a [u8] {
        if self.extent == 0 {
            return &[];
        }
        // SAFETY: the caller vouches for it; the address was not null when the variable was protected, and any bytes
        // are valid.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.extent) }
    }

    /// # Safety
    /// As [`Protected::bytes`], and nobody else looks at it either.
    // A variable of the program, and not ours: what it is changed through is the address the program gave.
    #[allow(clippy::mut_from_ref)]
    unsafe fn bytes_mut<'a>(&self) -> &'a mut [u8] {
        if self.extent == 0 {
            return &mut [];
        }
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.extent) }
    }
}
