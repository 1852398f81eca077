//! The files that a restart opens before there are processes, and handing them out.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cpr_image::model::{AddressSpace, Manifest, MappedFile, MappingKind, Process};
use cpr_kernel::batch::{Arg, Batch, OutId};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::stub::Workshop;
use super::terminals::with_descriptor;
use super::{address_space, living, stub};
use crate::files;
use crate::mapped;
use crate::views::Views;

/// Most descriptors handed over at a time.
const HANDED: usize = 64;

/// Opens all mapped files; those whose contents are put back, as they will be. Those of mount namespaces that are not
/// there yet only get their numbers.
pub(super) fn open_mapped(manifest: &Manifest, saved: &[OwnedFd], roots_own: bool) -> Result<Vec<OwnedFd>> {
    let views = Views::default();
    let open = |file: &MappedFile| {
        if file.mount_namespace.is_some() {
            let null = std::fs::File::open("/dev/null").context(|| "open /dev/null")?;
            return Ok(null.into());
        }
        let policy = manifest.file_policies.iter().find(|policy| policy.path == file.path);
        match policy.and_then(|policy| saved.get(policy.saved?.index())) {
            Some(saved) => {
                let flags = if file.writable { libc::O_RDWR } else { libc::O_RDONLY };
                files::open_saved(saved.as_fd(), flags).context(|| format!("open mapped file {}", file.path))
            }
            None => files::with_roots_rights(roots_own, || mapped::open(file, &views)),
        }
    };
    manifest.mapped_files.iter().map(open).collect()
}

/// Opens mapped files of mount namespaces of the job's, at the numbers they have got.
pub(super) fn open_elsewhere(manifest: &Manifest, mapped: &[OwnedFd], views: &Views, roots_own: bool) -> Result<()> {
    for (file, number) in manifest.mapped_files.iter().zip(mapped) {
        if file.mount_namespace.is_some() {
            let opened = files::with_roots_rights(roots_own, || mapped::open(file, views))?;
            cpr_kernel::fd::replace(number.as_fd(), opened.as_fd()).context(|| "copy a descriptor")?;
        }
    }
    Ok(())
}

/// Mapped files of mount namespaces of the job's that an address space has.
pub(super) fn elsewhere(manifest: &Manifest, space: &AddressSpace) -> BTreeSet<usize> {
    let of_mappings = space.mappings.iter().filter_map(|mapping| match mapping.kind {
        MappingKind::PrivateFile(id) | MappingKind::SharedFile(id) => Some(id),
        _ => None,
    });
    let all = of_mappings.chain(space.executable).map(|id| id.index());
    let files = &manifest.mapped_files;
    all.filter(|id| files.get(*id).is_some_and(|file| file.mount_namespace.is_some()))
        .collect()
}

/// Gives processes the files that were opened when they had their descriptors already.
pub(super) fn hand_out(workshop: &Workshop, manifest: &Manifest, mapped: &[OwnedFd]) -> Result<()> {
    for process in living(manifest) {
        for index in elsewhere(manifest, address_space(manifest, process)?) {
            let missing = || Error::new(ErrorKind::Damaged, "there is no such mapped file");
            let file = mapped.get(index).ok_or_else(missing)?;
            with_descriptor(workshop, process.pid, file.as_fd(), |batch, fd| {
                let arguments = [fd.into(), stub::number(file).into(), libc::O_CLOEXEC.into()];
                batch.must(libc::SYS_dup3, &arguments, "put a mapped file in its place");
            })?;
        }
    }
    Ok(())
}

/// Opens programs from the image for reading only: the kernel takes no file for one that can be written.
pub(super) fn close_programs(manifest: &Manifest, saved: &mut [OwnedFd]) -> Result<()> {
    for id in manifest
        .address_spaces
        .iter()
        .filter_map(|space| space.saved_executable)
    {
        if let Some(file) = saved.get_mut(id.index()) {
            *file = files::open_saved(file.as_fd(), libc::O_RDONLY).context(|| "open the saved program")?;
        }
    }
    Ok(())
}

/// Puts every descriptor at its number. Nothing else stays open.
pub(super) fn place_descriptors(workshop: &Workshop, process: &Process, opened: &[Arc<OwnedFd>]) -> Result<()> {
    let pid = process.pid;
    let wanted: BTreeSet<i32> = process.descriptors.iter().map(|d| d.fd).collect();
    let from = stub::number(&workshop.channel_stub);
    let channel = (0..).find(|n| !wanted.contains(n) && *n != from).unwrap_or(i32::MAX);
    let mut batch = Batch::new();
    batch.must(
        libc::SYS_dup3,
        &[from.into(), channel.into(), libc::O_CLOEXEC.into()],
        "move the channel",
    );
    if channel > 0 {
        batch.must(
            libc::SYS_close_range,
            &[Arg::from(0), (channel - 1).into(), Arg::from(0)],
            "close our descriptors",
        );
    }
    batch.must(
        libc::SYS_close_range,
        &[(channel + 1).into(), Arg::from(u32::MAX), Arg::from(0)],
        "close our descriptors",
    );
    workshop.run(pid, &batch)?;
    let (mut open, mut lowest): (BTreeSet<i32>, i32) = ([channel].into(), 0);
    for group in process.descriptors.chunks(HANDED) {
        let mut batch = Batch::new();
        let mut expected: Vec<(OutId, i32)> = Vec::new();
        for descriptor in group {
            let file = opened
                .get(descriptor.file.index())
                .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("descriptor {} has no file", descriptor.fd)))?;
            workshop.send(file.as_fd())?;
            // The kernel gives the lowest free number, which never becomes lower: what is there stays.
            lowest = (lowest..).find(|n| !open.contains(n)).unwrap_or(i32::MAX);
            let number = lowest;
            let out = workshop.receive(&mut batch, channel, descriptor.close_on_exec);
            expected.push((out, number));
            if number != descriptor.fd {
                let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
                batch.must(
                    libc::SYS_dup3,
                    &[number.into(), descriptor.fd.into(), flags.into()],
                    format!("give descriptor {} its number (see `ulimit -n`)", descriptor.fd),
                );
                batch.must(libc::SYS_close, &[number.into()], "close a descriptor");
            }
            open.insert(descriptor.fd);
        }
        let outcome = workshop.run(pid, &batch)?;
        if expected
            .iter()
            .any(|&(out, number)| stub::received(&outcome, out) != number)
        {
            return Err(Error::new(ErrorKind::Internal, "descriptors arrived out of order"));
        }
    }
    let mut batch = Batch::new();
    batch.must(libc::SYS_close, &[channel.into()], "close the channel");
    workshop.run(pid, &batch).map(drop)
}
