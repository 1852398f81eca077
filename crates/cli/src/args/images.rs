//! The command line for images: `cpr images`, `cpr inspect` and their kin.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum, ValueHint};
use cpr_node::Compression;

use super::{Namespace, parse_compression, parse_pair};

/// `cpr images`
#[derive(Debug, Args)]
pub struct Images {
    /// Only the images of this job
    pub job: Option<String>,
    /// Show increments below the images they were made after
    #[arg(long)]
    pub tree: bool,
}

/// `cpr merge`
#[derive(Debug, Args)]
pub struct Merge {
    /// An image, or the name of a job for its newest image
    #[arg(value_hint = ValueHint::FilePath)]
    pub image: PathBuf,
    /// Write the full image to this file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Compress the memory in it with zstd
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "fast",
        value_parser = parse_compression)]
    pub compress: Option<Compression>,
}

/// `cpr inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// An image, or the name of a job for its newest image
    #[arg(value_hint = ValueHint::FilePath)]
    pub image: PathBuf,
    /// Show only this part; may be given several times
    #[arg(long = "section", value_name = "SECTION", value_enum, action = ArgAction::Append)]
    pub sections: Vec<Section>,
}

/// A part of what `cpr inspect` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// When, where, by and of whom
    Checkpoint,
    /// Processes and threads
    Processes,
    /// User and group IDs, capabilities
    Credentials,
    /// Signal handlers, pending signals and timers
    Signals,
    /// Resource limits and scheduling
    Limits,
    /// Mappings of every process
    Memory,
    /// Descriptors and what they refer to
    Files,
    /// Mapped files, and files carried in the image
    Contents,
    /// Pipes, sockets and terminals
    Channels,
    /// System V objects and POSIX message queues
    Ipc,
}

/// `cpr check`
#[derive(Debug, Args)]
#[command(after_help = "\
Of a job or process: everything it uses that cannot be checkpointed. Nothing is stopped.

Of an image: everything that keeps it from being restarted here and now. Nothing is started.

Exit code: 0 where nothing is in the way, 69 where a job or process cannot be checkpointed, 78 where an image cannot be \
restarted here.")]
pub struct Check {
    /// Name of a job, a PID, or an image
    #[arg(value_name = "JOB|PID|IMAGE", value_hint = ValueHint::FilePath, required_unless_present = "session")]
    pub target: Option<PathBuf>,
    /// A POSIX session with all descendants of its processes
    #[arg(long, value_name = "SID", value_parser = clap::value_parser!(i32).range(1..), conflicts_with = "target")]
    pub session: Option<i32>,
    /// Of an image: whether the job would get a PID namespace of its own
    #[arg(long, value_enum, default_value_t = Namespace::Auto)]
    pub namespace: Namespace,
}

/// `cpr verify`
#[derive(Debug, Args)]
#[command(after_help = "\
With --restore the job runs its first instructions in namespaces of its own, without network, and with copies of the \
files it writes to; then everything is removed. Nothing outside changes. `cpr images` shows what is known of each image.")]
pub struct Verify {
    /// Also restart it in a sandbox, and see it run
    #[arg(long)]
    pub restore: bool,
    /// An image, or the name of a job for its newest image
    #[arg(value_hint = ValueHint::FilePath)]
    pub image: PathBuf,
}

/// `cpr edit`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cpr edit sim.cpr -o moved.cpr --replace-path /scratch/a=/scratch/b
  cpr edit sim -o new.cpr --environment COLOUR=red --set /processes/0/umask=18

The image itself is never changed. The new one has an identifier of its own, and names the one it was made from.")]
pub struct Edit {
    /// An image, or the name of a job for its newest image
    #[arg(value_hint = ValueHint::FilePath)]
    pub image: PathBuf,
    /// Write the new image to this file, which must not exist
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Replace a path, and all below it: of files, directories, programs and libraries
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_paths)]
    pub replace_path: Vec<(PathBuf, PathBuf)>,
    /// Change a variable of the environment the process was started with; the value must not become longer
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub environment: Vec<(String, String)>,
    /// The process whose environment is changed, instead of the job's first
    #[arg(long)]
    pub pid: Option<i32>,
    /// Change a field of the `manifest` that `cpr inspect --json` shows, by its JSON pointer
    #[arg(long, value_name = "POINTER=VALUE", value_parser = parse_pair)]
    pub set: Vec<(String, String)>,
}

fn parse_paths(text: &str) -> Result<(PathBuf, PathBuf), String> {
    parse_pair(text).map(|(old, new)| (old.into(), new.into()))
}
