//! An image as text, section by section. `--json` shows the same data whole, under the names of the schema.

mod objects;
mod processes;

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use clap::ValueEnum;
use gridcpr::image::Image;
use gridcpr::image::model::{AddressSpace, Extent, Manifest, Mapping, MappingKind, Process, SavedFile, SavedFileKind};

use crate::args::images::Section;
use crate::output::{clean, duration, size, timestamp};
use crate::signal::signal_name;

use objects::{channels, contents, files, ipc};
use processes::{credentials, limits, processes, signals};

/// Lines of text, indented.
struct Text(String);

impl Text {
    fn heading(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.line(0, text);
    }

    fn line(&mut self, depth: usize, text: impl AsRef<str>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{:indent$}{}", "", clean(text.as_ref()), indent = depth * 2);
    }
}

/// The sections asked for, or all, of an image.
pub fn render(image: &Image, sections: &[Section]) -> String {
    let mut text = Text(String::new());
    let manifest = image.manifest();
    for section in Section::value_variants() {
        if !sections.is_empty() && !sections.contains(section) {
            continue;
        }
        match section {
            Section::Checkpoint => checkpoint(&mut text, image),
            Section::Processes => processes(&mut text, manifest),
            Section::Credentials => credentials(&mut text, manifest),
            Section::Signals => signals(&mut text, manifest),
            Section::Limits => limits(&mut text, manifest),
            Section::Memory => memory(&mut text, manifest),
            Section::Files => files(&mut text, manifest),
            Section::Contents => contents(&mut text, manifest),
            Section::Channels => channels(&mut text, manifest),
            Section::Ipc => ipc(&mut text, manifest),
        }
    }
    text.0
}

fn checkpoint(text: &mut Text, image: &Image) {
    let manifest = image.manifest();
    let c = &manifest.checkpoint;
    let header = image.header();
    let threads: usize = manifest.processes.iter().map(|p| p.threads.len()).sum();
    let user = |uid: u32| format!("user {uid}");
    let mut rows = vec![
        ("image", image.id().to_string()),
        ("format", format!("{}.{}", header.version.0, header.version.1)),
        ("size", format!("{} ({} bytes)", size(image.length()), image.length())),
        ("page data", size(image.data_bytes())),
        ("time", timestamp(UNIX_EPOCH + Duration::from_nanos(c.time_ns))),
        ("job stopped for", duration(c.freeze_ns)),
        (
            "processes",
            format!("{} with {threads} threads", manifest.processes.len()),
        ),
        ("root process", c.root_pid.to_string()),
        (
            "PID namespace",
            if c.own_pid_namespace {
                "its own"
            } else {
                "the machine's"
            }
            .to_string(),
        ),
        (
            "IPC namespace",
            if c.own_ipc_namespace {
                "its own"
            } else {
                "the machine's"
            }
            .to_string(),
        ),
        ("owner", format!("{}, group {}", user(c.owner_uid), c.owner_gid)),
        ("made by", user(c.initiator_uid)),
        ("made with", format!("cpr {}, engine {}", c.tool_version, c.engine)),
        ("machine", format!("{} ({})", c.uname.nodename, c.architecture)),
        (
            "kernel",
            format!("{} {} {}", c.uname.sysname, c.uname.release, c.uname.version),
        ),
        ("page size", format!("{} bytes", c.page_size)),
        ("XSAVE features", format!("{:#x}", c.xstate_features)),
        ("CPU features", c.cpu_flags.join(" ")),
    ];
    if !c.job.is_empty() {
        rows.insert(1, ("job", c.job.clone()));
    }
    if !c.edited_from.is_empty() {
        rows.push(("edited from", c.edited_from.clone()));
    }
    if !header.required_features.is_empty() {
        rows.push(("needs", header.required_features.join(" ")));
    }
    text.heading("checkpoint");
    for (name, value) in rows {
        text.line(1, format!("{name:16} {value}"));
    }
}

fn memory(text: &mut Text, manifest: &Manifest) {
    text.heading("memory");
    for process in &manifest.processes {
        let Some(space) = address_space(manifest, process) else {
            continue;
        };
        let saved: u64 = space.mappings.iter().map(|m| saved_bytes(&m.extents)).sum();
        let mapped: u64 = space.mappings.iter().map(|m| m.end.saturating_sub(m.start)).sum();
        text.line(
            1,
            format!(
                "process {}: {} mappings, {} mapped, {} saved",
                process.pid,
                space.mappings.len(),
                size(mapped),
                size(saved)
            ),
        );
        for mapping in &space.mappings {
            let bit = |bit: u32, letter: char| if mapping.protection & bit != 0 { letter } else { '-' };
            let shared = matches!(
                mapping.kind,
                MappingKind::SharedFile(_)
                    | MappingKind::SharedSaved(_)
                    | MappingKind::SharedSocket(_)
                    | MappingKind::IoUring(_)
            );
            text.line(
                2,
                format!(
                    "{:012x}-{:012x} {}{}{}{} {:>8}, saved {:>8}  {}",
                    mapping.start,
                    mapping.end,
                    bit(1, 'r'),
                    bit(2, 'w'),
                    bit(4, 'x'),
                    if shared { 's' } else { 'p' },
                    size(mapping.end.saturating_sub(mapping.start)),
                    size(saved_bytes(&mapping.extents)),
                    mapped_object(manifest, mapping)
                ),
            );
        }
    }
}

fn mapped_object(manifest: &Manifest, mapping: &Mapping) -> String {
    let object = match mapping.kind {
        MappingKind::Anonymous => "anonymous".to_string(),
        MappingKind::Stack => "stack".to_string(),
        MappingKind::Vdso => "[vdso]".to_string(),
        MappingKind::Vvar => "[vvar]".to_string(),
        MappingKind::VvarClock => "[vvar_vclock]".to_string(),
        MappingKind::HugePages(page) => format!("huge pages of {}", size(page)),
        MappingKind::AioRing => "asynchronous I/O".to_string(),
        MappingKind::IoUring(id) => format!("io_uring instance {} at {:#x}", id.0, mapping.offset),
        MappingKind::SharedSocket(id) | MappingKind::PrivateSocket(id) => format!("rings of packet socket {}", id.0),
        MappingKind::PrivateFile(id) | MappingKind::SharedFile(id) => {
            let path = manifest.mapped_files.get(id.index()).map(|file| file.path.to_string());
            format!("{} at {:#x}", path.unwrap_or_default(), mapping.offset)
        }
        MappingKind::SharedSaved(id) | MappingKind::PrivateSaved(id) => {
            let file = manifest.saved_files.get(id.index());
            format!("{} at {:#x}", file.map(saved_file).unwrap_or_default(), mapping.offset)
        }
        MappingKind::SysvSegment(id) => {
            let segment = manifest.ipc.segments.get(id.index());
            let id = segment.map_or(-1, |segment| segment.identity.id);
            format!("System V segment {id} at {:#x}", mapping.offset)
        }
    };
    let guards = match mapping.guards.len() {
        0 => String::new(),
        n => format!(", {n} guard ranges"),
    };
    let flags = match mapping.flags.len() {
        0 => String::new(),
        _ => format!(" [{}]", mapping.flags.join(" ")),
    };
    format!("{object}{guards}{flags}")
}

fn address_space<'a>(manifest: &'a Manifest, process: &Process) -> Option<&'a AddressSpace> {
    manifest.address_spaces.get(process.address_space?.index())
}

fn saved_bytes(extents: &[Extent]) -> u64 {
    extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.length))
}

fn saved_file(file: &SavedFile) -> String {
    match &file.kind {
        SavedFileKind::Deleted { path } => format!("{path} (deleted)"),
        SavedFileKind::DeletedDirectory { path } => format!("directory {path} (deleted)"),
        SavedFileKind::DeletedLink { path, target } => format!("link {path} to {target} (deleted)"),
        SavedFileKind::Memfd { name, .. } => format!("memfd {name}"),
        SavedFileKind::SharedAnonymous => "shared memory".to_string(),
        SavedFileKind::SharedMemory { path } | SavedFileKind::Backup { path } => path.to_string(),
    }
}

fn range(start: u64, length: u64) -> String {
    match length {
        0 => format!("from byte {start}"),
        length => format!("{length} bytes from byte {start}"),
    }
}

fn timer_times(value_ns: u64, interval_ns: u64) -> String {
    let left = match value_ns {
        0 => "not running".to_string(),
        value => format!("{} left", duration(value)),
    };
    match interval_ns {
        0 => left,
        interval => format!("{left}, every {}", duration(interval)),
    }
}

/// Names of the signals in a mask.
fn signal_set(mask: u64) -> String {
    let all = u64::MAX;
    if mask == all {
        return "all".to_string();
    }
    let names: Vec<String> = (1..=64).filter(|n| mask >> (n - 1) & 1 == 1).map(signal_name).collect();
    or_none(&names.join(" ")).to_string()
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
