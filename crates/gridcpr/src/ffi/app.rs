//! Checkpoints that a program writes itself

use std::ffi::{c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use cpr_app::{Background, ElementType, GenerationInfo, GenerationState, Kind, Options, Order, Store, Target};
use cpr_types::{Error, ErrorKind, Result};

use super::protected::{App, Protected};
use super::{copy_out, file, fill, run, run_wide, usage, utf8};

/// Integer of 8 bits, the first of the types of elements.
pub const GRIDCPR_INT8: c_int = 0;
/// Integer of 16 bits.
pub const GRIDCPR_INT16: c_int = 1;
/// Integer of 32 bits.
pub const GRIDCPR_INT32: c_int = 2;
/// Integer of 64 bits.
pub const GRIDCPR_INT64: c_int = 3;
/// Unsigned integer of 8 bits.
pub const GRIDCPR_UINT8: c_int = 4;
/// Unsigned integer of 16 bits.
pub const GRIDCPR_UINT16: c_int = 5;
/// Unsigned integer of 32 bits.
pub const GRIDCPR_UINT32: c_int = 6;
/// Unsigned integer of 64 bits.
pub const GRIDCPR_UINT64: c_int = 7;
/// IEEE 754 number of 32 bits.
pub const GRIDCPR_FLOAT32: c_int = 8;
/// IEEE 754 number of 64 bits.
pub const GRIDCPR_FLOAT64: c_int = 9;
/// Two FLOAT32.
pub const GRIDCPR_COMPLEX64: c_int = 10;
/// Two FLOAT64.
pub const GRIDCPR_COMPLEX128: c_int = 11;
/// Never converted.
pub const GRIDCPR_BYTES: c_int = 12;
/// Order of elements: the last index runs fastest.
pub const GRIDCPR_C_ORDER: c_int = 0;
/// The first index runs fastest.
pub const GRIDCPR_FORTRAN_ORDER: c_int = 1;

/// The type of elements with a number.
fn element_type(number: c_int) -> Option<ElementType> {
    Some(match number {
        GRIDCPR_INT8 => ElementType::Int8,
        GRIDCPR_INT16 => ElementType::Int16,
        GRIDCPR_INT32 => ElementType::Int32,
        GRIDCPR_INT64 => ElementType::Int64,
        GRIDCPR_UINT8 => ElementType::Uint8,
        GRIDCPR_UINT16 => ElementType::Uint16,
        GRIDCPR_UINT32 => ElementType::Uint32,
        GRIDCPR_UINT64 => ElementType::Uint64,
        GRIDCPR_FLOAT32 => ElementType::Float32,
        GRIDCPR_FLOAT64 => ElementType::Float64,
        GRIDCPR_COMPLEX64 => ElementType::Complex64,
        GRIDCPR_COMPLEX128 => ElementType::Complex128,
        GRIDCPR_BYTES => ElementType::Bytes,
        _ => return None,
    })
}

/// How a checkpoint is opened. All zero but `size` leaves things as the environment says.
#[repr(C)]
pub struct COptions {
    /// sizeof(gridcpr_app_options).
    pub size: u32,
    /// Which part is ours, from 0 ...
    pub rank: u32,
    /// ... of how many; 0 means 1.
    pub ranks: u32,
    /// How many complete generations are kept; 0: as the environment says, or all.
    pub keep: u32,
    /// Seconds for which one is kept; 0: as the environment says, or for ever.
    pub lifetime: u64,
    /// F: full; I: what changed since F; i: since the last one. In turn; may be NULL.
    pub sequence: *const c_char,
    /// The same for all ranks of one run, another in the next; NULL: as the launcher says.
    pub session: *const c_char,
}

/// A generation, as queries give it.
#[repr(C)]
pub struct CGeneration {
    /// Its number, from 1.
    pub generation: u64,
    /// When writing began: nanoseconds since the epoch.
    pub time_ns: u64,
    /// Of all its files.
    pub bytes: u64,
    /// Seconds, where that was set for this one; else 0.
    pub lifetime: u64,
    /// 0: parts are missing; 1: complete; 2: damaged.
    pub state: i32,
    /// Parts that are there ...
    pub parts: u32,
    /// ... and how many there have to be.
    pub ranks: u32,
    /// How many other generations it needs.
    pub needs: u32,
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

/// Opens a checkpoint, and makes its directory if need be; NULL on failure. `options` may be NULL. A `base` that is
/// NULL or empty is GRIDCPR_APP_BASE or SAGA_CPR_BASE_LOCATION of the environment, or the working directory;
/// GRIDCPR_APP_SEQUENCE, GRIDCPR_APP_LIFETIME, GRIDCPR_APP_KEEP, SAGA_CPR_SEQUENCE and SAGA_CPR_TIME_TO_LIVE are
/// honoured, too. To be used by one thread at a time. One process at a time can have a rank open.
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
            unsafe { file(base) }?
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

/// Waits for a background write, and tells whether it failed.
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

/// Names a variable; one protected before under that name is forgotten. It has to stay where it is until it is
/// unprotected or the checkpoint is closed. `shape` has the number of elements along each dimension, none for a single
/// element.
///
/// # Safety
/// As [`opened`]; `name` is a string with a zero at its end; `data` is null only where there are no elements; `shape`
/// has one number for each dimension.
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
    // SAFETY: as for this function; no strides are among what that one takes.
    unsafe { gridcpr_app_protect_strided(app, name, data, element, dimensions, shape, std::ptr::null(), order) }
}

/// The same for elements that do not lie one after the other: `strides` are bytes from one index to the next.
///
/// # Safety
/// As [`gridcpr_app_protect`]; `strides` is null, or has one number for each dimension, too.
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
        let element = element_type(element).ok_or_else(|| usage("there is no such type of elements"))?;
        let order = match order {
            GRIDCPR_C_ORDER => Order::C,
            GRIDCPR_FORTRAN_ORDER => Order::Fortran,
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

/// Forgets a variable.
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

/// What generations written from now on remember.
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

/// Writes all protected variables as our part of the next generation, and gives its number, 1 or more. It is on disk
/// when this returns. What is no longer to be kept is removed.
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

/// Gets the memory that copies of the protected variables go to, which the first gridcpr_app_write_begin() does
/// otherwise: that takes longer than the copy itself. It is kept until the checkpoint is closed.
///
/// # Safety
/// As [`gridcpr_app_write`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_prepare(app: *mut App) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let app = unsafe { opened(app) }?;
        app.store()?;
        let App { store, protected, .. } = app;
        let store = store.as_mut().ok_or_else(|| usage("the checkpoint is lost"))?;
        // SAFETY: as above.
        unsafe {
            App::with_variables(protected, |variables| {
                Background::prepare(store, variables);
                Ok(0)
            })
        }
    })
}

/// Copies the protected variables, and writes the copy while the program goes on. Every other function waits for its
/// end first, and fails if it failed.
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

/// 1 while one is being written, else 0; bytes done and in all.
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

/// Waits for its end, and gives its number, or 0 where none was begun.
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

/// Fills all protected variables from a generation or, where it is 0, from the newest sound one; gives its number, or 0
/// where there is none yet. Generations in which a byte is altered or missing are passed over; where none is left that
/// is GRIDCPR_E_DAMAGED, and the variables may hold anything. GRIDCPR_E_INCOMPATIBLE: a variable is missing there, or
/// has another type or shape.
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

/// Files that the program writes itself can belong to a generation, beside variables or instead of them. `name` has no
/// slashes and does not begin with a dot. This tells where to write such a file for the next generation; it writes the
/// path, gives its length, and fails where it does not fit into `size` bytes. The file belongs to the generation when
/// gridcpr_app_write() or gridcpr_app_wait() returns; it must be there, whole, when gridcpr_app_write() or
/// gridcpr_app_write_begin() is called.
///
/// # Safety
/// As [`opened`]; `name` is a string with a zero at its end; `path` is null, or has room for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_route(
    app: *mut App,
    name: *const c_char,
    path: *mut c_char,
    size: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, name) = unsafe { (opened(app)?, utf8(name)?) };
        let found = app.store()?.route(name)?;
        // SAFETY: as above.
        unsafe { whole_path(&found, path, size) }
    })
}

/// Where such a file of a generation is, for reading, after its hash was compared. Of our rank. The path is written as
/// by gridcpr_app_route().
///
/// # Safety
/// As [`gridcpr_app_route`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_file(
    app: *mut App,
    generation: u64,
    name: *const c_char,
    path: *mut c_char,
    size: usize,
) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, name) = unsafe { (opened(app)?, utf8(name)?) };
        let found = app.store()?.file(generation, name)?;
        // SAFETY: as above.
        unsafe { whole_path(&found, path, size) }
    })
}

/// Reads `length` bytes of a variable from `offset` on, of any rank, wherever it is protected; in this machine's byte
/// order. The hashes of all pieces that they are in are compared.
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

/// Writes the first `count` generations to `out`, the oldest first; gives how many there are.
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

/// As gridcpr_app_query(), but only generations that remember `value` under `key`.
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

/// Removes all generations, in whatever state, and what is known of them.
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

/// What a generation remembers under `key`: its length, and the text itself, cut to `size` bytes.
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

/// Changes an attribute (where `key` is not NULL) and the lifetime in seconds (where it is not 0).
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

/// Removes a generation. GRIDCPR_E_IN_USE: another one needs it.
///
/// # Safety
/// As [`opened`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_free(app: *mut App, generation: u64) -> c_int {
    // SAFETY: the caller vouches for it.
    run(|| unsafe { opened(app) }?.store()?.free(generation).map(|()| 0))
}

/// Compares every hash of a generation. GRIDCPR_E_DAMAGED: gridcpr_error() tells what is wrong.
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

/// Copies a complete generation below another base directory; it needs no other one there.
///
/// # Safety
/// As [`opened`]; `base` is a string with a zero at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gridcpr_app_transfer(app: *mut App, generation: u64, base: *const c_char) -> c_int {
    run(|| {
        // SAFETY: the caller vouches for it.
        let (app, base) = unsafe { (opened(app)?, file(base)?) };
        app.store()?.transfer(generation, base).map(|()| 0)
    })
}
