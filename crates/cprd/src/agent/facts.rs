//! What a node says of its machine, beside what its operator does (GCA-ENV-3).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where commands are looked for: what jobs have as PATH that bring none.
const PLACES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];
/// Commands that jobs may ask for, as `tool.NAME`.
const TOOLS: [&str; 19] = [
    "R",
    "apptainer",
    "bwrap",
    "cmake",
    "docker",
    "gcc",
    "gfortran",
    "git",
    "java",
    "julia",
    "make",
    "matlab",
    "mpiexec",
    "mpirun",
    "octave",
    "perl",
    "podman",
    "python3",
    "singularity",
];
/// What stands before the version in the C library (libc.so.6, when it is run).
const BANNER: &[u8] = b"stable release version ";

/// Properties of the machine: its tools, its C library, and how much room there is where images are (`directory`).
pub fn of_machine(directory: &Path) -> BTreeMap<String, String> {
    let there = TOOLS.iter().filter(|name| is_there(name));
    let mut facts: BTreeMap<String, String> = there.map(|name| (format!("tool.{name}"), "yes".to_string())).collect();
    if let Some(version) = c_library() {
        facts.insert("libc".into(), version);
    }
    if let Ok(system) = rustix::fs::statvfs(directory) {
        let bytes = system.f_blocks.saturating_mul(system.f_frsize);
        facts.insert("storage-mb".into(), (bytes >> 20).to_string());
    }
    facts
}

/// Whether there is such a command.
fn is_there(name: &str) -> bool {
    let is_program = |path: std::path::PathBuf| {
        let known = path.metadata();
        known.is_ok_and(|known| known.is_file() && known.permissions().mode() & 0o111 != 0)
    };
    PLACES.iter().any(|place| is_program(Path::new(place).join(name)))
}

/// The version of the C library that we use, which programs of the machine use as well.
fn c_library() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| {
        line.split_whitespace()
            .nth(5)
            .filter(|path| path.ends_with("/libc.so.6"))
    });
    version_in(&std::fs::read(path?).ok()?)
}

fn version_in(library: &[u8]) -> Option<String> {
    let at = library.windows(BANNER.len()).position(|window| window == BANNER)? + BANNER.len();
    let is_of_version = |byte: &&u8| byte.is_ascii_digit() || **byte == b'.';
    let version = library[at..]
        .iter()
        .take_while(is_of_version)
        .map(|byte| char::from(*byte));
    let version: String = version.collect();
    Some(version.trim_end_matches('.').to_string()).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_library_is_what_it_says_of_itself() {
        let library = b"\0GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\nCopyright";
        assert_eq!(version_in(library).as_deref(), Some("2.36"));
        assert_eq!(version_in(b"stable release version x"), None);
        assert_eq!(version_in(b"something else"), None);
        assert!(is_there("sh") && !is_there("no-such-tool"));
    }
}
