//! The log of a job in the background when the job restarts as another one.
//!
//! Its output is to go where that one's goes: the old log belongs to the old job, and may not exist on this host. The
//! file becomes a standard stream of whoever restarts, as a terminal does.

use std::collections::HashSet;
use std::path::Path;

use cpr_image::model::{Manifest, Object, OpenFile};

/// Whether an open file is the log of the job that was saved.
pub(super) fn is_log(manifest: &Manifest, object: &Object) -> bool {
    let log = &manifest.checkpoint.log;
    matches!(object, Object::Regular(file) if !log.0.is_empty() && file.path == *log)
}

/// The same image with its log replaced by standard streams; none where nothing is to be replaced. `own` is the log of
/// the job that the image becomes, where the files of the image are opened by its owner. One of the same name that is
/// shorter than it was is another one: the old job was removed.
pub(super) fn redirect(manifest: &Manifest, own: Option<&Path>) -> Option<Manifest> {
    let saved_length = |file: &OpenFile| match &file.object {
        Object::Regular(regular) if is_log(manifest, &file.object) => Some(regular.size),
        _ => None,
    };
    if let Some(own) = own.filter(|own| *own == manifest.checkpoint.log.as_path())
        && let Ok(now) = std::fs::metadata(own)
        && manifest
            .files
            .iter()
            .filter_map(saved_length)
            .all(|length| now.len() >= length)
    {
        return None;
    }
    let logs = |file: &OpenFile| is_log(manifest, &file.object);
    if !manifest.files.iter().any(logs) {
        return None;
    }
    // Standard error where nobody has it as standard output.
    let output: HashSet<usize> = manifest
        .processes
        .iter()
        .flat_map(|process| &process.descriptors)
        .filter(|descriptor| descriptor.fd == 1)
        .map(|descriptor| descriptor.file.index())
        .collect();
    let mut redirected = manifest.clone();
    for (index, file) in redirected.files.iter_mut().enumerate() {
        if is_log(manifest, &file.object) {
            let stream = if output.contains(&index) { 1 } else { 2 };
            *file = OpenFile {
                flags: file.flags,
                position: 0,
                owner: None,
                flock: None,
                locker: 0,
                lease: None,
                ofd_locks: Vec::new(),
                mount_namespace: None,
                object: Object::Inherited { stream },
            };
        }
    }
    Some(redirected)
}
