//! Making contexts of kernel asynchronous I/O again.

use cpr_image::model::Mapping;
use cpr_kernel::aio::{self, ENTRY, Header};
use cpr_kernel::batch::Batch;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::space::Sources;
use super::stub::{Workshop, number};
use crate::aio::{Pinned, Ring};
use crate::sink::PageSource;

/// Makes a context whose ring is where and as it was.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where the kernel makes rings of another size, and others where it makes none.
pub fn restore(workshop: &Workshop, pid: i32, mapping: &Mapping, sources: &Sources<'_>) -> Result<()> {
    let what = || format!("make the asynchronous I/O context at {:#x} again", mapping.start);
    make(workshop, pid, mapping, sources).context(what)
}

fn make(workshop: &Workshop, pid: i32, mapping: &Mapping, sources: &Sources<'_>) -> Result<()> {
    let length = mapping.end - mapping.start;
    let mut saved = vec![0; length as usize];
    for extent in &mapping.extents {
        let from = (extent.start - mapping.start) as usize;
        let piece = &mut saved[from..from + extent.length as usize];
        PageSource::read(sources.image, extent.offset, piece)?;
    }
    let wanted =
        Header::parse(&saved, length).ok_or_else(|| Error::new(ErrorKind::Damaged, "its ring has no valid header"))?;
    let mut batch = Batch::new();
    let place = aio::setup_call(&mut batch, length);
    let ring = Ring {
        address: workshop.run(pid, &batch)?.word(place, 0),
        length,
        file: number(sources.window),
    };
    let memory = &workshop.stub(pid)?.memory;
    ring.header(memory).map_err(|error| {
        let text = "this machine, with another number of processors, makes rings of another size";
        Error::new(ErrorKind::Incompatible, text).with_source(error)
    })?;
    let pinned = Pinned::new(pid)?;
    let mut run = |batch: &Batch| workshop.run(pid, batch);
    ring.bring(&mut run, memory, wanted.head, wanted.waiting())?;
    pinned.undo()?;
    let mut batch = Batch::new();
    batch.must(
        libc::SYS_mremap,
        &[
            ring.address.into(),
            length.into(),
            length.into(),
            (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).into(),
            mapping.start.into(),
        ],
        "move its ring to its place",
    );
    workshop.run(pid, &batch)?;
    memory
        .write(mapping.start + ENTRY as u64, &saved[ENTRY..])
        .context(|| "fill its ring")
}
