//! Whether an image can restart here, and why not (LBNL-3.6.1.9), without starting anything.

use std::collections::{BTreeSet, HashMap};

use cpr_image::Image;
use cpr_image::model::{ByteString, FileContent, Manifest, Object, Seccomp, Thread};
use cpr_kernel::arch;
use cpr_kernel::proc;
use cpr_types::{Connection, Context, Error, ErrorKind, Result};

use super::{instructions, log, numbers, vdso};
use crate::devices::DevicePlugins;
use crate::views::Views;
use crate::{Blocker, extended, files, mapped};

/// Names everything that would make a restart of `image` fail here.
///
/// # Errors
/// The machine cannot be looked at.
pub fn check_restart(image: &Image, own_pid_namespace: bool, devices: &dyn DevicePlugins) -> Result<Vec<Blocker>> {
    let manifest = image.manifest();
    let mut found = Vec::new();
    let mut add = |pid: i32, object: String, error: Error| {
        found.push(Blocker {
            pid,
            object,
            reason: error.chain(),
            hint: error.hint().map(str::to_owned),
            passes: false,
        });
    };
    if let Err(error) = machine(manifest) {
        add(0, "machine".to_owned(), error);
    }
    if let Err(error) = extended::adapt(manifest) {
        add(0, "machine".to_owned(), error);
    }
    if let Err(error) = vdso::renew(image, manifest) {
        add(0, "machine".to_owned(), error);
    }
    for (path, error) in files::violations(manifest) {
        add(0, format!("file {path}"), error);
    }
    let policies: HashMap<_, _> = manifest.file_policies.iter().map(|p| (&p.path, p.content)).collect();
    let is_saved = |path: &ByteString| policies.get(path) == Some(&FileContent::BackupRestore);
    for file in &manifest.mapped_files {
        // What is mounted in other namespaces is not there before the job is.
        if file.mount_namespace.is_some() || files::has_shared_memory(manifest, &file.path) || is_saved(&file.path) {
            continue;
        }
        if let Err(error) = mapped::open(file, &Views::default()) {
            add(0, format!("file {}", file.path), error);
        }
    }
    if !own_pid_namespace {
        for (pid, number, error) in numbers::in_use(manifest)? {
            add(pid, format!("PID {number}"), error);
        }
    }
    for process in &manifest.processes {
        if process.threads.is_empty() {
            continue;
        }
        let takes_root = |thread: &Thread| thread.seccomp != Seccomp::Off && !thread.credentials.no_new_privs;
        let filtered = process.threads.iter().any(takes_root) && process.user_namespace.is_none();
        if filtered && !cpr_kernel::namespace::is_admin_of_machine() {
            let error = Error::new(ErrorKind::Denied, "without no_new_privs, only root can restore them");
            add(process.pid, "seccomp filters".to_owned(), error);
        }
        let namespace = process
            .mount_namespace
            .and_then(|id| manifest.mount_namespaces.get(id.index()));
        // A deleted one is made again.
        let here = process.cwd_saved.is_none() && namespace.is_none_or(|namespace| namespace.tree.is_empty());
        let cwd = here.then(|| process.cwd.as_path());
        if let Some(Err(error)) = cwd.map(|cwd| std::fs::metadata(cwd).context(|| "look at it")) {
            add(process.pid, format!("working directory {}", process.cwd), error);
        }
        for descriptor in &process.descriptors {
            let Some(file) = manifest.files.get(descriptor.file.index()) else {
                continue;
            };
            let path = match &file.object {
                // Restarted as another job, it does without.
                object if log::is_log(manifest, object) => continue,
                _ if file.mount_namespace.is_some() => continue,
                Object::Regular(file) => &file.path,
                // It is made again.
                Object::Device { node: Some(_), .. } => continue,
                Object::Directory { path } | Object::Device { path, .. } => path,
                _ => continue,
            };
            if files::has_shared_memory(manifest, path) || is_saved(path) {
                continue;
            }
            if let Object::Device {
                plugin: Some(plugin), ..
            } = &file.object
                && let Err(error) = devices.require(&plugin.name, path.as_path())
            {
                add(process.pid, format!("descriptor {} ({path})", descriptor.fd), error);
            }
            let size = match std::fs::metadata(path.as_path()).context(|| "look at it") {
                Ok(metadata) => metadata.len(),
                Err(error) => {
                    add(process.pid, format!("descriptor {} ({path})", descriptor.fd), error);
                    continue;
                }
            };
            let any_size = policies
                .get(path)
                .is_some_and(|content| *content != FileContent::Default);
            if let Object::Regular(saved) = &file.object
                && size < saved.size
                && !any_size
            {
                let error = Error::new(
                    ErrorKind::Incompatible,
                    format!("it has shrunk from {} to {size} bytes", saved.size),
                );
                add(process.pid, format!("descriptor {} ({path})", descriptor.fd), error);
            }
        }
    }
    for end in files::channels(&manifest.inet_sockets)? {
        let Connection { local, remote } = end.connection;
        let error = Error::new(
            ErrorKind::Incompatible,
            "it leads to another job of the set that the image is of",
        )
        .with_hint("restart the set");
        add(0, format!("TCP connection from {local} to {remote}"), error);
    }
    let needed: u64 = manifest.extents().map(|extent| extent.length).sum();
    if let Some(free) = available_memory()
        && free < needed
    {
        let error = Error::new(
            ErrorKind::NoSpace,
            format!("the job needs {needed} bytes and {free} are available"),
        );
        add(0, "memory".to_owned(), error);
    }
    Ok(found)
}

/// Memory that can be had, bytes.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What no file can mend: architecture, processor features (LBNL-3.9.1.M23).
pub fn machine(manifest: &Manifest) -> Result<()> {
    let checkpoint = &manifest.checkpoint;
    let refuse = |reason: String| Err(Error::new(ErrorKind::Incompatible, reason));
    if checkpoint.architecture != arch::NAME {
        return refuse(format!(
            "the image is of architecture {} and this machine is {}",
            checkpoint.architecture,
            arch::NAME
        ));
    }
    let here: BTreeSet<String> = proc::cpu_flags().unwrap_or_default().into_iter().collect();
    let missing = instructions::missing(&checkpoint.cpu_flags, &here);
    if !missing.is_empty() {
        return refuse(format!(
            "this machine's processor lacks features the image's had: {}",
            missing.join(", ")
        ));
    }
    Ok(())
}
