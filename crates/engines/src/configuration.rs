//! Files of configuration that a site and a user have put into directories, one thing in each.
//!
//! They name programs that will be run, so only files that nobody else can write to count.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cpr_types::{Context, Error, ErrorKind, Result};

/// Where a site has its configuration.
const SITE: &str = "/etc/gridcpr";
/// Names directories to read instead of the user's and the site's, joined by colons.
pub const VARIABLE: &str = "GRIDCPR_CONFIG_DIRS";
/// Longest file that is read, bytes.
const LONGEST_FILE: u64 = 64 << 10;
/// Most files of one directory that are read.
pub(crate) const MOST_FILES: usize = 256;

/// A file that could not be used.
#[derive(Debug)]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: Error,
}

/// The `.toml` files of a directory by name, with what is in them.
pub(crate) fn files(directory: &Path, problems: &mut Vec<Problem>) -> Vec<(PathBuf, String)> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(Problem {
                path: directory.to_path_buf(),
                error: Error::new(ErrorKind::of_io(&error), "list the directory").with_source(error),
            });
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    if paths.len() > MOST_FILES {
        problems.push(Problem {
            path: directory.to_path_buf(),
            error: Error::new(ErrorKind::Usage, format!("only the first {MOST_FILES} files are read")),
        });
        paths.truncate(MOST_FILES);
    }
    let mut files = Vec::new();
    for path in paths {
        match require_trusted_directory(directory).and_then(|()| read(&path)) {
            Ok(text) => files.push((path, text)),
            Err(error) => problems.push(Problem { path, error }),
        }
    }
    files
}

/// The words of a command that a file names: a program with a `/` in it is one beside the file, unless its path is
/// absolute.
pub(crate) fn command(words: &[String], file: Option<&Path>) -> Vec<OsString> {
    let mut command: Vec<OsString> = words.iter().map(OsString::from).collect();
    if let Some(program) = words.first().filter(|program| program.contains('/'))
        && let Some(directory) = file.and_then(Path::parent)
    {
        command[0] = directory.join(program).into_os_string();
    }
    command
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The directories that are to be read instead of the user's and the site's.
fn configured() -> Option<Vec<PathBuf>> {
    let paths = variable(VARIABLE)?;
    Some(
        std::env::split_paths(&paths)
            .filter(|path| path.is_absolute())
            .collect(),
    )
}

/// The directories that every user of this host finds.
pub(crate) fn site_directories() -> Vec<PathBuf> {
    configured().unwrap_or_else(|| vec![PathBuf::from(SITE)])
}

/// The directories of configuration, the user's before the site's.
pub(crate) fn directories() -> Vec<PathBuf> {
    if let Some(directories) = configured() {
        return directories;
    }
    let user = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")));
    user.map(|path| path.join("gridcpr"))
        .into_iter()
        .chain([PathBuf::from(SITE)])
        .collect()
}

fn require_trusted_directory(directory: &Path) -> Result<()> {
    let what = || format!("look at directory {}", directory.display());
    require_trusted(&std::fs::metadata(directory).context(what)?)
}

/// Requires that nobody but us and root can change this.
fn require_trusted(metadata: &std::fs::Metadata) -> Result<()> {
    let owner = metadata.uid();
    let refusal = if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        format!("it belongs to user {owner}, not to us or root")
    } else if metadata.mode() & 0o022 != 0 {
        "others can write to it".to_string()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Denied, format!("not trusted: {refusal}"))
        .with_hint("it may name programs that are run: only its owner may be able to change it"))
}

fn read(path: &Path) -> Result<String> {
    let what = || "read the file".to_string();
    // Without NONBLOCK, opening a FIFO would wait.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(std::io::Error::from)
        .context(what)?;
    let file = std::fs::File::from(file);
    let metadata = file.metadata().context(what)?;
    require_trusted(&metadata)?;
    if !metadata.is_file() || metadata.len() > LONGEST_FILE {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("not a file of at most {} KiB", LONGEST_FILE >> 10),
        ));
    }
    let mut text = String::new();
    file.take(LONGEST_FILE).read_to_string(&mut text).context(what)?;
    Ok(text)
}
