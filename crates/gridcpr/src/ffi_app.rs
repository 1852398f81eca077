//! The C interface to checkpoints that a program writes itself (`gridcpr_app_*` of `include/gridcpr.h`).
//!
//! As in [`crate::ffi`], what a pointer has to point at is written in the header; here it is turned into a slice at once.
//! Variables are remembered by address, and looked at only in the calls that write and restore.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use cpr_app::{
    Background, ElementType, GenerationInfo, GenerationState, Kind, Options, Order, Store, Target, Variable, Written,
};
use cpr_types::{Error, ErrorKind, Result};

use crate::ffi::{copy_out, fill, path, run, run_wide, usage, utf8};

/// `gridcpr_app_options`
#[repr(C)]
pub struct COptions {
    pub(crate) size: u32,
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    pub(crate) keep: u32,
    pub(crate) lifetime: u64,
    pub(crate) sequence: *const c_char,
    pub(crate) session: *const c_char,
}

/// `gridcpr_app_generation`
#[repr(C)]
pub struct CGeneration {
    pub(crate) generation: u64,
    pub(crate) time_ns: u64,
    pub(crate) bytes: u64,
    pub(crate) lifetime: u64,
    pub(crate) state: i32,
    pub(crate) parts: u32,
    pub(crate) ranks: u32,
    pub(crate) needs: u32,
}

/// A variable of the program.
struct Protected {
    name: String,
    address: usize,
    element: ElementType,
    shape: Vec<u64>,
    order: Order,
    /// Bytes between neighbours of each dimension, where elements do not lie one after the other.
    strides: Option<Vec<u64>>,
    /// Bytes from the first to the last.
    extent: usize,
}

/// `gridcpr_app`
pub struct App {
    /// Not here while it is being written in the background.
    store: Option<Store>,
    background: Option<Background>,
    protected: Vec<Protected>,
}

impl App {
    /// The store; waits for a background write, whose failure is the caller's to hear of.
    fn store(&mut self) -> Result<&mut Store> {
        if self.background.is_some() {
            self.wait()?;
        }
        let lost = || Error::new(ErrorKind::Gone, "a background write has lost the checkpoint");
        self.store.as_mut().ok_or_else(lost)
    }

    fn wait(&mut self) -> Result<Option<Written>> {
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
    unsafe fn with_variables<T>(protected: &[Protected], work: impl FnOnce(&[Variable<'_>]) -> Result<T>) -> Result<T> {
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
    unsafe fn with_targets<T>(protected: &[Protected], work: impl FnOnce(&mut [Target<'_>]) -> Result<T>) -> Result<T> {
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

/// # Safety
/// `app` is null, or came from `gridcpr_app_open` and was not closed, and no other thread uses it meanwhile.
unsafe fn opened<'a>(app: *mut App) -> Result<&'a mut App> {
    // SAFETY: the caller of this function vouches for it.
    unsafe { app.as_mut() }.ok_or_else(|| usage("the checkpoint is NULL"))
}

/// # Safety
/// As [`utf8`], but null is nothing.
unsafe fn optional<'a>(text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as for this function.
    let text = unsafe { utf8(text) }?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn number(generation: u64) -> Result<i64> {
    i64::try_from(generation).map_err(|_| usage("the generation's number is too large"))
}

/// See `gridcpr.h`.
///
/// # Safety
/// `base` is null, or a string with a zero at its end; `name` is one. `options` is null, or points to a structure whose
/// `size` says how much of it is there, with such strings or null in it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_open(
    base: *const c_char,
    name: *const c_char,
    options: *const COptions,
) -> *mut App {
    let mut app = std::ptr::null_mut();
    run(|| {
        let base = if base.is_null() {
            Path::new("")
        } else {
            // SAFETY: the caller vouches for it.
            unsafe { path(base) }?
        };
        // SAFETY: the caller vouches for it.
        let mut wanted = Options::from_environment(base, unsafe { utf8(name) }?)?;
        // SAFETY: the caller vouches for it.
        if let Some(options) = unsafe { options.as_ref() } {
            if (options.size as usize) < size_of::<COptions>() {
                return Err(usage("the options have no size: set it to sizeof(gridcpr_app_options)"));
            }
            wanted.rank = options.rank;
            wanted.ranks = options.ranks.max(1);
            wanted.keep = Some(options.keep).filter(|keep| *keep > 0).or(wanted.keep);
            let lifetime = Some(options.lifetime).filter(|seconds| *seconds > 0);
            wanted.lifetime = lifetime.map(Duration::from_secs).or(wanted.lifetime);
            // SAFETY: the caller vouches for it.
            if let Some(sequence) = unsafe { optional(options.sequence) }? {
                wanted.sequence = Kind::sequence(sequence)?;
            }
            // SAFETY: the caller vouches for it.
            if let Some(session) = unsafe { optional(options.session) }? {
                wanted.session = session.to_owned();
            }
        }
        app = Box::into_raw(Box::new(App {
            store: Some(Store::open(wanted)?),
            background: None,
            protected: Vec::new(),
        }));
        Ok(0)
    });
    app
}

/// See `gridcpr.h`.
///
/// # Safety
/// `app` is null, or came from `gridcpr_app_open` and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_close(app: *mut App) -> c_int {
    if app.is_null() {
        return 0;
    }
    // SAFETY: it is the box that was made there, and nobody else has it.
    let mut app = unsafe { Box::from_raw(app) };
    run(|| app.wait().map(|_| 0))
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; `name` is a string with a zero at its end; `data` is null only where there are no elements; `shape` and
/// `strides` have one number for each dimension, and `strides` may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_protect_strided(
    app: *mut App,
    name: *const c_char,
    data: *mut c_void,
    element: c_int,
    dimensions: u32,
    shape: *const u64,
    strides: *const u64,
    order: c_int,
) -> c_int {
    /// More than any array of any language has.
    const MOST_DIMENSIONS: u32 = 64;
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, name) = unsafe { (opened(app)?, utf8(name)?) };
        let element = usize::try_from(element)
            .ok()
            .and_then(|number| ElementType::ALL.get(number).copied());
        let element = element.ok_or_else(|| usage("there is no such type of elements"))?;
        let order = match order {
            0 => Order::C,
            1 => Order::Fortran,
            _ => return Err(usage("there is no such order")),
        };
        if dimensions > MOST_DIMENSIONS || (dimensions > 0 && shape.is_null()) {
            return Err(usage("the shape is NULL, or has too many dimensions"));
        }
        let numbers = |from: *const u64| -> Vec<u64> {
            let each = 0..dimensions as usize;
            // SAFETY: the caller vouches for `dimensions` numbers, and neither pointer is null where it is read.
            each.map(|index| unsafe { from.add(index).read() }).collect()
        };
        let shape = numbers(shape);
        let strides = (!strides.is_null()).then(|| numbers(strides));
        let whole = shape.iter().try_fold(element.size(), |all, n| all.checked_mul(*n));
        let extent = match &strides {
            None => whole,
            Some(_) if shape.contains(&0) => Some(0),
            Some(strides) => shape.iter().zip(strides).try_fold(element.size(), |all, (n, stride)| {
                all.checked_add((n - 1).checked_mul(*stride)?)
            }),
        };
        let extent = extent.and_then(|extent| isize::try_from(extent).ok());
        let extent = extent.ok_or_else(|| usage("the variable is too large"))? as usize;
        if whole.is_none_or(|whole| isize::try_from(whole).is_err()) || (data.is_null() && extent > 0) {
            return Err(usage("the variable is NULL, or too large"));
        }
        app.protected.retain(|variable| variable.name != name);
        app.protected.push(Protected {
            name: name.to_owned(),
            address: data as usize,
            element,
            shape,
            order,
            strides,
            extent,
        });
        Ok(0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`gridcpr_app_protect_strided`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_protect(
    app: *mut App,
    name: *const c_char,
    data: *mut c_void,
    element: c_int,
    dimensions: u32,
    shape: *const u64,
    order: c_int,
) -> c_int {
    // SAFETY: as for this function.
    unsafe { gridcpr_app_protect_strided(app, name, data, element, dimensions, shape, std::ptr::null(), order) }
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; `name` is a string with a zero at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_unprotect(app: *mut App, name: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, name) = unsafe { (opened(app)?, utf8(name)?) };
        let before = app.protected.len();
        app.protected.retain(|variable| variable.name != name);
        if app.protected.len() == before {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no variable {name} is protected"),
            ));
        }
        Ok(0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; the strings have zeros at their ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_set_attribute(app: *mut App, key: *const c_char, value: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, key, value) = unsafe { (opened(app)?, utf8(key)?, utf8(value)?) };
        app.store()?.set_attribute(key, value);
        Ok(0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; every protected variable is where and what it was said to be, and nobody changes it meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_write(app: *mut App) -> i64 {
    run_wide(|| {
        // SAFETY: the caller vouches for it.
        let app = unsafe { opened(app) }?;
        app.store()?;
        let App { store, protected, .. } = app;
        let store = store.as_mut().ok_or_else(|| usage("the checkpoint is lost"))?;
        // SAFETY: as above.
        let written = unsafe { App::with_variables(protected, |variables| store.write(variables)) }?;
        number(written.generation)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`gridcpr_app_write`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_write_begin(app: *mut App) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let app = unsafe { opened(app) }?;
        app.store()?;
        let store = app.store.take().ok_or_else(|| usage("the checkpoint is lost"))?;
        // SAFETY: as above.
        let begun = unsafe { App::with_variables(&app.protected, |variables| Background::start(store, variables)) }?;
        app.background = Some(begun);
        Ok(0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; `done` and `total` are null or places for numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_progress(app: *mut App, done: *mut u64, total: *mut u64) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let app = unsafe { opened(app) }?;
        let at_rest = || app.store.as_ref().map_or((0, 0), |store| store.progress().get());
        let counts = app.background.as_ref().map_or_else(at_rest, Background::progress);
        for (place, count) in [(done, counts.0), (total, counts.1)] {
            if !place.is_null() {
                // SAFETY: the caller vouches for it.
                unsafe { place.write(count) };
            }
        }
        Ok(c_int::from(
            app.background.as_ref().is_some_and(|background| !background.is_done()),
        ))
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_wait(app: *mut App) -> i64 {
    run_wide(|| {
        // SAFETY: the caller vouches for it.
        let written = unsafe { opened(app) }?.wait()?;
        written.map_or(Ok(0), |written| number(written.generation))
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`gridcpr_app_write`], and nobody looks at the variables meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_restore(app: *mut App, generation: u64) -> i64 {
    run_wide(|| {
        // SAFETY: the caller vouches for it.
        let app = unsafe { opened(app) }?;
        app.store()?;
        let App { store, protected, .. } = app;
        let store = store.as_mut().ok_or_else(|| usage("the checkpoint is lost"))?;
        let restore = |targets: &mut [Target<'_>]| match generation {
            0 => Ok(store.restore(targets)?.map_or(0, |restored| restored.generation)),
            one => store.restore_from(one, targets).map(|_| one),
        };
        // SAFETY: as above.
        number(unsafe { App::with_targets(protected, restore) }?)
    })
}

/// Writes a path that must fit; gives its length.
///
/// # Safety
/// `place` is null, or has room for `size` bytes.
unsafe fn whole_path(found: &Path, place: *mut c_char, size: usize) -> Result<c_int> {
    let bytes = found.as_os_str().as_bytes();
    if place.is_null() || bytes.len() >= size {
        return Err(usage("the path does not fit"));
    }
    // SAFETY: the caller vouches for it.
    unsafe { copy_out(bytes, place, size) };
    c_int::try_from(bytes.len()).map_err(|_| usage("the path is too long"))
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; `name` is a string with a zero at its end; `place` is null, or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_route(
    app: *mut App,
    name: *const c_char,
    place: *mut c_char,
    size: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, name) = unsafe { (opened(app)?, utf8(name)?) };
        let path = app.store()?.route(name)?;
        // SAFETY: as above.
        unsafe { whole_path(&path, place, size) }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`gridcpr_app_route`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_file(
    app: *mut App,
    generation: u64,
    name: *const c_char,
    place: *mut c_char,
    size: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, name) = unsafe { (opened(app)?, utf8(name)?) };
        let path = app.store()?.file(generation, name)?;
        // SAFETY: as above.
        unsafe { whole_path(&path, place, size) }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; `name` is a string with a zero at its end; `buffer` is null only where `length` is 0, or has room for
/// `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_read(
    app: *mut App,
    generation: u64,
    rank: u32,
    name: *const c_char,
    offset: u64,
    buffer: *mut c_void,
    length: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, name) = unsafe { (opened(app)?, utf8(name)?) };
        if length > isize::MAX as usize || (buffer.is_null() && length > 0) {
            return Err(usage("the buffer is NULL or too long"));
        }
        let mut none = [0u8; 0];
        let buffer = match length {
            0 => none.as_mut_slice(),
            // SAFETY: the caller vouches for the room; it is made of bytes with a value first, as a slice must be.
            _ => unsafe {
                std::ptr::write_bytes(buffer.cast::<u8>(), 0, length);
                std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length)
            },
        };
        app.store()?.read(generation, rank, name, offset, buffer).map(|()| 0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`] and [`fill`]; the strings have zeros at their ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_find(
    app: *mut App,
    key: *const c_char,
    value: *const c_char,
    out: *mut CGeneration,
    count: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, key, value) = unsafe { (opened(app)?, utf8(key)?, utf8(value)?) };
        let found = app.store()?.find(&[(key, value)])?;
        // SAFETY: as above.
        unsafe { fill(found.iter().map(describe), out, count) }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_forget(app: *mut App) -> c_int {
    // SAFETY: the caller vouches for it.
    run(|| unsafe { opened(app) }?.store()?.forget().map(|()| 0))
}

fn describe(info: &GenerationInfo) -> CGeneration {
    CGeneration {
        generation: info.generation,
        time_ns: info.created_ns,
        bytes: info.bytes,
        lifetime: info.lifetime_s.unwrap_or(0),
        state: match info.state {
            GenerationState::Incomplete => 0,
            GenerationState::Complete => 1,
            GenerationState::Damaged => 2,
        },
        parts: info.parts.0,
        ranks: info.parts.1,
        needs: info.needs.len() as u32,
    }
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`] and [`fill`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_query(app: *mut App, out: *mut CGeneration, count: usize) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let all = unsafe { opened(app) }?.store()?.generations()?;
        // SAFETY: as above.
        unsafe { fill(all.iter().map(describe), out, count) }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; `key` is a string with a zero at its end; `value` is null, or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_get_attribute(
    app: *mut App,
    generation: u64,
    key: *const c_char,
    value: *mut c_char,
    size: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, key) = unsafe { (opened(app)?, utf8(key)?) };
        let info = app.store()?.generation(generation)?;
        let missing = || {
            Error::new(
                ErrorKind::NotFound,
                format!("generation {generation} has no attribute {key}"),
            )
        };
        let found = info.attributes.get(key).ok_or_else(missing)?;
        // SAFETY: the caller vouches for it.
        unsafe { copy_out(found.as_bytes(), value, size) };
        c_int::try_from(found.len()).map_err(|_| usage("the attribute is too long"))
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; the strings are null or have zeros at their ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_update(
    app: *mut App,
    generation: u64,
    key: *const c_char,
    value: *const c_char,
    lifetime: u64,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, key, value) = unsafe { (opened(app)?, optional(key)?, optional(value)?) };
        let attribute = key.map(|key| (key, value.unwrap_or_default()));
        let lifetime = Some(lifetime).filter(|seconds| *seconds > 0).map(Duration::from_secs);
        app.store()?
            .update(generation, attribute.as_slice(), lifetime)
            .map(|()| 0)
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_free(app: *mut App, generation: u64) -> c_int {
    // SAFETY: the caller vouches for it.
    run(|| unsafe { opened(app) }?.store()?.free(generation).map(|()| 0))
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_validate(app: *mut App, generation: u64) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let problems = unsafe { opened(app) }?.store()?.validate(generation)?;
        match problems.is_empty() {
            true => Ok(0),
            false => Err(Error::new(ErrorKind::Damaged, problems.join("; "))),
        }
    })
}

/// See `gridcpr.h`.
///
/// # Safety
/// As [`opened`]; `base` is a string with a zero at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_transfer(app: *mut App, generation: u64, base: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, base) = unsafe { (opened(app)?, path(base)?) };
        app.store()?.transfer(generation, base).map(|()| 0)
    })
}
